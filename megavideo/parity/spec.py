"""What a parity run trains: a small model, a few steps, and the mixture of clips in its packs."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

from megavideo.config.schema.data import DataConfig
from megavideo.config.schema.diffusion import ConditionConfig, DiffusionConfig
from megavideo.config.schema.lora import LoraConfig
from megavideo.config.schema.loss_terms import LossTermsConfig
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.optim import OptimConfig
from megavideo.config.schema.parity import ParityRun
from megavideo.config.schema.precision import LayersConfig
from megavideo.config.schema.train import LoopConfig, ObserveConfig, TrainRun
from megavideo.errors import ConfigError
from megavideo.types import Grid

# named mixtures; `mixed` holds an image, a clip longer than half the pack and a short clip, and leaves a tail empty
_SHARES: dict[str, tuple[float, ...]] = {
    "mixed": (0.08, 0.56, 0.2),
    "images": (0.12, 0.12, 0.06, 0.2, 0.12, 0.2),
    "one": (0.97,),
    "halves": (0.5, 0.5),
}
_HEAD_DIM = 8
# settings of a training run that a parity run has under another name
_OWN_NAMES = {
    "train.packs_per_step": "packs_per_step", "data.tokens_per_pack": "tokens", "model.heads": "heads",
    "model.layers": "num_layers", "train.precision": "precision", "train.recompute": "recompute",
    "optim=constant": "optimizer=adamw",
}  # fmt: skip
# such that each term has a share of the gradient that no rounding hides
_TERM_WEIGHTS = {"temporal_consistency": 0.5, "motion_smoothness": 0.3, "perceptual": 0.5}
_GRIDS = re.compile(r"\d+x\d+x\d+(?:\+\d+x\d+x\d+)*")


@dataclass(frozen=True, kw_only=True)
class ParitySpec(ParityRun):
    """A parity run's settings, and what follows from them.

    `loss_terms` are those of the loss beside the error; `given_channels` those of the model's input beside its latents,
    `image_dim` the width of its image embedding.
    """

    loss_terms: tuple[str, ...] = ()
    given_channels: int = 0
    image_dim: int | None = None

    @classmethod
    def of(cls, run: ParityRun) -> ParitySpec:
        """The spec of a run's settings."""
        return cls(**{field.name: getattr(run, field.name) for field in fields(run)})

    @property
    def layers(self) -> LayersConfig:
        """Those of the layouts; the one process that they are compared with has the CPU kernel."""
        return LayersConfig(attention="stand_in" if self.kernel == "stand-in" else "cpu")

    @property
    def model(self) -> ModelConfig:
        """A DiT with everything that can be sharded: query norms, cross-attention norm and both embedders."""
        width = self.heads * _HEAD_DIM
        return ModelConfig(
            layers=self.num_layers, width=width, ffn=2 * width, heads=self.heads, latent_channels=4, text_dim=24,
            time_dim=32, fps_conditioning=True, place_embedding=True, modulation=self.modulation,
            given_channels=self.given_channels, image_dim=self.image_dim,
        )  # fmt: skip

    @property
    def adapters(self) -> LoraConfig:
        """Adapters beside every linear layer, with a scale that is not one; their base has the spec's start weights."""
        if self.lora is None:
            return LoraConfig()
        return LoraConfig(rank=self.lora, alpha=2.0 * self.lora, targets=("*",), base="start weights")

    @property
    def diffusion(self) -> DiffusionConfig:
        """Flow matching with clips that are partly given, so that tokens of one segment differ in their timestep."""
        last_frames = 0.0 if self.image_dim is not None else 1.0  # of one image there is one embedding
        conditions = ConditionConfig(text=1.0, image_to_video=1.0, interpolation=last_frames)
        weights = {name: weight if name in self.loss_terms else 0.0 for name, weight in _TERM_WEIGHTS.items()}
        terms = LossTermsConfig(
            temporal_consistency=weights["temporal_consistency"],
            motion_smoothness=weights["motion_smoothness"],
            perceptual=weights["perceptual"],
            perceptual_clips=3 if weights["perceptual"] else 1,
        )
        return DiffusionConfig(conditions=conditions, terms=terms)

    @property
    def optim(self) -> OptimConfig:
        """Clipping acts. AdamW's eps is such that an element whose gradient is rounding alone hardly moves.

        Muon computes in fp32: in bf16 the order of a sum would show in the third digit of an update.
        """
        adamw = OptimConfig(lr=1e-3, clip=0.05, ema_decay=0.9, eps=1e-6)
        if self.optimizer == "adamw":
            return adamw
        return replace(adamw, algorithm="muon", muon_momentum=0.95, muon_precision="fp32")

    def as_training(self, layout: str) -> TrainRun:
        """The training run that this amounts to, for the rules between settings."""
        return TrainRun(
            name="parity", output="runs", layout=layout, model=self.model, diffusion=self.diffusion, optim=self.optim,
            data=DataConfig(uri="", tokens_per_pack=self.tokens, text_tokens_per_pack=64, max_segments=8),
            train=LoopConfig(steps=self.steps, packs_per_step=self.packs_per_step, seed=self.seed,
                             precision="fp32" if self.precision == "fp32" else "bf16", recompute=self.recompute),
            observe=ObserveConfig(), layers=self.layers, lora=self.adapters,
        )  # fmt: skip

    def grids(self, pack: int) -> list[Grid]:
        """Token grids of the segments of a pack; those of a named mixture change their order from pack to pack."""
        if self.pack in _SHARES:
            shares = _SHARES[self.pack]
            turned = shares[pack % len(shares) :] + shares[: pack % len(shares)]
            return [_grid(share, self.tokens, clip=share > 0.15 and self.pack != "images") for share in turned]
        return [Grid(*map(int, word.split("x"))) for word in self.pack.split("+")]


def check_pack(spec: ParitySpec) -> None:
    """Raise ConfigError for a mixture that is unknown, or does not fit."""
    if spec.pack not in _SHARES and not _GRIDS.fullmatch(spec.pack):
        raise ConfigError(
            "pack", spec.pack, "is no mixture", f"take one of {', '.join(_SHARES)}, or grids as 1x4x4+5x4x3 (t x h x w)"
        )
    total = sum(grid.num_tokens for grid in spec.grids(0))
    if total > spec.tokens or any(grid.num_tokens == 0 for grid in spec.grids(0)):
        raise ConfigError(
            "pack", spec.pack, f"has {total} tokens, of which each grid needs at least one, and a pack {spec.tokens}",
            "take smaller grids, or more --tokens",
        )  # fmt: skip


def in_own_names(error: ConfigError) -> ConfigError:
    """An error that names settings of a training run, as one that names those of a parity run."""

    def renamed(text: str) -> str:
        for name, own in _OWN_NAMES.items():
            text = text.replace(name, own)
        return text

    return ConfigError(renamed(error.field), error.value, renamed(error.rule), renamed(error.remedy))


def _grid(share: float, tokens: int, *, clip: bool) -> Grid:
    """The largest grid within a share of the tokens whose sides are alike: an image, or a clip of 3 to 5 frames."""
    budget = max(1, int(share * tokens))
    frames = (3, 4, 5) if clip and budget >= 12 else (1,)
    grids = [
        Grid(t, h, w)
        for t in frames
        for h in range(1, budget // t + 1)
        for w in range(h, min(2 * h + 1, budget // (t * h)) + 1)
    ]
    return max(grids, key=lambda grid: grid.num_tokens)
