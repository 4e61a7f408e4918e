"""Metrics, logs, plots, pictures and the run folder: all that a run leaves for a reader."""
