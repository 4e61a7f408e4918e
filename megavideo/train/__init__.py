"""The training run: wiring, feeding, stepping, saving and resuming."""
