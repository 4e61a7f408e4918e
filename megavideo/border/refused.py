"""What the border raises."""

from __future__ import annotations


class Refused(ValueError):
    """Input that is not what it should be. The message is the reason alone; the reader names the file and a remedy."""
