"""Frozen dataclasses of every setting, one file for each group."""
