"""The synthetic benchmark of moving shapes: rendered with a known truth, and measured from pixels alone."""
