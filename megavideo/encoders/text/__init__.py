"""Text encoders: the built-in one and those of transformers."""
