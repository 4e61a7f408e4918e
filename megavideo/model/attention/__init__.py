"""Attention inside the segments of a pack: one differentiable operator over interchangeable kernels."""
