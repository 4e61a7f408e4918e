"""How a run is looked at: the loss on held-out clips, and samples of fixed prompts."""
