"""Layers that share heads and tokens out over ranks, and what they send each other."""
