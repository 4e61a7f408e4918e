"""Configuration: Hydra composes the text, a strict builder makes frozen dataclasses of it, rules hold them together."""
