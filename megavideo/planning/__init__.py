"""Arithmetic on runs that needs no torch."""
