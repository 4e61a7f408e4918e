"""Training of causal 3D video autoencoders on clips and images, and reports of what they lose."""
