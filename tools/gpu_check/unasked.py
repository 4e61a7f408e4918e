"""What a check raises that this machine cannot answer."""

from __future__ import annotations


class Unasked(Exception):
    """The check was not made, for the reason told."""
