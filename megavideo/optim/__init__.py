"""The optimizer with its moving average, parameter groups and the learning rate."""
