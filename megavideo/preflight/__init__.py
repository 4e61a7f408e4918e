"""Are the nodes fit for a run? Each is looked at by itself and beside the others, and the bad ones are named."""
