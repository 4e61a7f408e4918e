"""Checkpoints: files of fragments and a manifest, written whole or not at all, read by any layout."""
