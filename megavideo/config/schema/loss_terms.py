"""Settings of further terms of the loss (section `diffusion.terms`)."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.config.schema.field import setting


@dataclass(frozen=True, kw_only=True)
class LossTermsConfig:
    """Weights of terms beside the squared error; 0 is off. All look at the clean latent that a prediction amounts to.

    `temporal_consistency` compares the differences between latent frames with the clip's own, `motion_smoothness` their
    second differences. `perceptual` compares features of both decoded by the run's autoencoder, for at most
    `perceptual_clips` clips of a step and `perceptual_frames` latent frames of each. Clips noised more than `max_level`
    (0 clean, 1 noise) take no part in any of them.
    """

    temporal_consistency: float = setting(0.0, minimum=0.0)
    motion_smoothness: float = setting(0.0, minimum=0.0)
    perceptual: float = setting(0.0, minimum=0.0)
    perceptual_clips: int = setting(1, minimum=1)
    perceptual_frames: int = setting(2, minimum=1)
    max_level: float = setting(0.7, above=0.0, maximum=1.0)
