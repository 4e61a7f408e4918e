"""Scores of clips: each a pure function of a clip's downscaled frames; thresholds stand in the settings."""
