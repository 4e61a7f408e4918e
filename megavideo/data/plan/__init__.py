"""The step plan: which samples are in which pack of which step."""
