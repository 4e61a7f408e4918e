"""Low-rank adapters beside the linear layers of a model (LoRA), under every layout."""
