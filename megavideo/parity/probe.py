"""FP8 beside bf16 on the first batch of a parity run, in one process."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megavideo.config.schema.precision import LayersConfig
from megavideo.errors import ConfigError
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.parallel.fp8_probe import ProbeReport, fp8_probe
from megavideo.parity.packs import fill_whole, step_input
from megavideo.parity.spec import ParitySpec, check_pack


def probe_fp8(spec: ParitySpec, layouts: Sequence[str]) -> ProbeReport:
    """Compare torch's numeric model of current-scaling FP8 with bf16; embedders, modulation and head stay in bf16."""
    if layouts:
        raise ConfigError("precision", "fp8", "compares one process with itself, and takes no layout", "drop LAYOUT")
    check_pack(spec)
    if spec.model.width % 16 or spec.tokens % 16:
        field, value = ("heads", spec.heads) if spec.model.width % 16 else ("tokens", spec.tokens)
        rule = "makes a matrix whose sizes 16 does not divide, which FP8 needs"
        raise ConfigError(field, value, rule, "take heads=12 or another even number, and tokens=96 or another multiple")
    batch = step_input(spec, 0, 0, 1).batches[0].to(torch.device("cpu"), torch.bfloat16)

    def build() -> DiT:
        model = DiT(spec.model, LocalLayers())
        fill_whole(spec, model)
        return model

    return fp8_probe(build, batch.pack, batch.target, LayersConfig().fp8_exclude)
