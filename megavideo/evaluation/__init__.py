"""Benchmarks that measure what a trained model has learned."""
