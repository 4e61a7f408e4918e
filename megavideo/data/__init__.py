"""Data: clips and captions in, storage, shards, the step plan, and packs out."""
