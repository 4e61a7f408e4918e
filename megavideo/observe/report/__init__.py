"""The page of a run: its numbers, curves, faults and samples in one file."""
