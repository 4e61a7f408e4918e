"""From clips and captions to latents and text vectors, and back."""
