"""The diffusion transformer on packs, with the layers it is injected."""
