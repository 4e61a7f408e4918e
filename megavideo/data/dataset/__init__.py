"""A dataset of latents: its versions and its manifest."""
