"""Models that write captions: local folders of transformers, or behind a server."""
