"""Video autoencoders: the built-in one and those of diffusers."""
