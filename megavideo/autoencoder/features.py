"""How far two pictures are apart; what the training of video models measures with too, `encoders/features.py`."""

from megavideo.encoders.features import RANDOM_NAME, PerceptualDistance

__all__ = ["RANDOM_NAME", "PerceptualDistance"]
