"""Diffusion as tensor math: objectives, timesteps, conditions and the randomness that belongs to a sample."""
