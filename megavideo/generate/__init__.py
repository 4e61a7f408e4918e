"""Sampling from a trained run."""
