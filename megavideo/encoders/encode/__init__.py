"""From clips to a dataset of latents, in units of work that are done once."""
