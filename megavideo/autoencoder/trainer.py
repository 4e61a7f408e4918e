"""One step of training: the autoencoder against its data and its adversary, then the adversary against it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.func import functional_call

from megavideo.autoencoder.corpus import VaeBatch
from megavideo.autoencoder.discriminator import PatchDiscriminator, discriminator_hinge, generator_hinge
from megavideo.autoencoder.features import PerceptualDistance
from megavideo.autoencoder.loss import adversarial_weight, loss_terms, total
from megavideo.autoencoder.model import Reconstruction, TrainedAutoencoder
from megavideo.config.schema.optim import OptimConfig
from megavideo.config.schema.vae import TrainVaeRun, VaeLossConfig
from megavideo.optim.adamw import EMA, AdamWWithEma
from megavideo.optim.build import build_optimizer
from megavideo.optim.schedule import learning_rate
from megavideo.parallel.engines.plain_engine import PlainEngine

_DISCRIMINATOR_BETAS = (0.5, 0.9)


@dataclass(frozen=True)
class VaeStep:
    """A step's terms, each a mean over all ranks, and what the update did. Terms that were off are absent."""

    values: dict[str, float]
    grad_norm: float
    learning_rate: float
    applied: bool


class VaeTrainer:
    """The autoencoder and its adversary with their engines. `device` is where they are."""

    def __init__(
        self, config: TrainVaeRun, model: TrainedAutoencoder, distance: PerceptualDistance, device: torch.device
    ) -> None:
        self._loss: VaeLossConfig = config.loss
        self._optim: OptimConfig = config.optim
        self._steps = config.train.steps
        self._distance = distance.to(device)
        self.device = device
        autocast = config.train.precision == "bf16"
        clip = config.optim.clip
        self.engine = PlainEngine(model.to(device), lambda m: build_optimizer(m, config.optim), clip, autocast)
        self.model = model
        self.adversary: PlainEngine | None = None
        if config.loss.adversarial and config.loss.disc_width:
            critic = PatchDiscriminator(config.loss.disc_width).to(device)
            self.adversary = PlainEngine(critic, _discriminator_optimizer, clip, autocast)

    def step(self, number: int, batch: VaeBatch) -> VaeStep:
        """Train on this rank's part of step `number`; a collective call."""
        videos = [video.to(self.device) for video in batch.videos]
        found = self.engine(videos, self._noises(batch))
        terms = loss_terms(self._loss, found, videos, batch.keys, self._distance)
        loss = total(self._loss, terms)
        values = {"reconstruction": terms.reconstruction, "kl": terms.kl}
        if terms.perceptual is not None:
            values["perceptual"] = terms.perceptual
        weight = adversarial_weight(self._loss, number)
        if weight and self.adversary is not None:
            values["adversarial"] = generator_hinge(self._scores(found))
            loss = loss + weight * values["adversarial"]
        rate = learning_rate(self._optim, number, self._steps)
        outcome = self.engine.update(loss, rate)
        applied = outcome.applied
        if weight and self.adversary is not None:
            values["discriminator"] = self._train_adversary(found, videos)
        return VaeStep(self._mean({"loss": loss, **values}), outcome.grad_norm, rate, applied)

    def averaged(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights of the autoencoder by name: their moving average where one is kept."""
        for name, parameter in self.model.named_parameters():
            state = self.engine.base_optimizer.state.get(parameter, {})
            yield name, state.get(EMA, parameter.detach())

    def _noises(self, batch: VaeBatch) -> list[torch.Tensor]:
        noises = []
        for video, keys in zip(batch.videos, batch.keys, strict=True):
            shape = self.model.latent_shape(video[0])
            noises.append(torch.stack([key.normal("posterior", shape) for key in keys]).to(self.device))
        return noises

    def _scores(self, found: list[Reconstruction]) -> list[torch.Tensor]:
        """Scores whose gradient reaches the pictures and not the adversary."""
        assert self.adversary is not None
        module = self.adversary.module
        fixed = {name: parameter.detach() for name, parameter in module.named_parameters()}
        scores: list[torch.Tensor] = functional_call(module, fixed, ([item.video for item in found],))
        return scores

    def _train_adversary(self, found: list[Reconstruction], videos: list[torch.Tensor]) -> torch.Tensor:
        assert self.adversary is not None and self._loss.disc_lr is not None
        # one forward pass over real and restored pictures together
        pairs = [torch.cat([video, item.video.detach().float()]) for video, item in zip(videos, found, strict=True)]
        halves = [scores.chunk(2) for scores in self.adversary(pairs)]
        loss = discriminator_hinge([half[0] for half in halves], [half[1] for half in halves])
        self.adversary.update(loss, self._loss.disc_lr)
        return loss

    def _mean(self, values: dict[str, torch.Tensor]) -> dict[str, float]:
        together = torch.stack([value.detach().float() for value in values.values()])
        dist.all_reduce(together)
        return dict(zip(values, (together / dist.get_world_size()).tolist(), strict=True))


def is_finite(step: VaeStep) -> bool:
    """Whether a step did what it should."""
    return step.applied and math.isfinite(step.values["loss"])


def _discriminator_optimizer(module: torch.nn.Module) -> AdamWWithEma:
    return AdamWWithEma(
        module.parameters(), ema_decay=None, lr=0.0, betas=_DISCRIMINATOR_BETAS, eps=1e-8, weight_decay=0.0
    )
