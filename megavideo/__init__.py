"""megavideo trains video diffusion transformers on clusters, and the same code on a laptop's CPU."""

from __future__ import annotations

__version__ = "0.1.0"
