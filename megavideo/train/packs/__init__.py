"""What a step trains on: packs of this rank, made ahead and noised."""
