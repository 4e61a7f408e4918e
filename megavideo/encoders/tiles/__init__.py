"""Encoding and decoding piece by piece, with the result of the whole: nothing is blended.

`wan` runs all fine layers on a tile, with a margin as wide as they see. `layerwise` goes one layer at a time over all
tiles, which also serves group norms, whose statistics are of everything.
"""
