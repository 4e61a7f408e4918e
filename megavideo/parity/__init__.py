"""Parity: any layout beside one process, from the same weights on the same packs, compared number by number."""
