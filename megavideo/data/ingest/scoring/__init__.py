"""Scores that models give: measured of clips that pass all else, kept beside the parts, and judged with them."""
