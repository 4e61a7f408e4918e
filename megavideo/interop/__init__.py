"""Models of others, in and out: names and folders of diffusers and of the original Wan, adapters, checks."""
