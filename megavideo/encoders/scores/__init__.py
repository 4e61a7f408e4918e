"""Scores of clips by pretrained models in local folders of transformers: what `ingest` is handed for its measures."""
