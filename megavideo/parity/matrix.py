"""The layouts that the project itself holds to parity. Every pair of dimensions is among them, and their products."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megavideo.config.schema.train import RecomputeConfig
from megavideo.parity.spec import ParitySpec


@dataclass(frozen=True)
class Batch:
    """Layouts that are run with one spec, and so compared with one oracle."""

    name: str
    spec: ParitySpec
    layouts: tuple[str, ...]


_FP32 = """
zero0 zero1 dp2-zero0 dp2-zero1 dp2-zero2 dp2-zero3 dp4-zero1 dp4-zero3 dp8-zero1 dp2-zero1-offload dp2-zero2-offload
dp2-zero3-offload tp2 tp3 tp4 tp2-sp tp3-sp tp4-sp tp2-dp2-zero1 tp2-sp-dp2-zero1 tp2-sp-dp2-zero2 tp2-dp2-zero3
tp2-sp-dp2-zero3 tp2-sp-dp2-zero1-offload cp2-ulysses cp2-ring cp3-ulysses cp3-ring cp4-ulysses cp4-ring cp4-2d cp6-2d
cp8-ring cp4-ring-zero1 cp4-ulysses-zero2 cp4-2d-zero1 cp4-ring-zero3 cp2-ulysses-dp2-zero1 cp2-ring-dp2-zero1
cp2-ring-dp2-zero2 cp2-ulysses-dp2-zero3 cp2-ring-dp2-zero3 cp2-ring-zero3 cp4-2d-dp2-zero3 cp4-2d-dp2-zero2
tp2-cp2-ulysses tp2-cp2-ring tp2-sp-cp2-ulysses tp2-sp-cp2-ring tp3-sp-cp2-ring tp2-sp-cp4-ring tp2-sp-cp4-2d
tp2-cp2-ring-zero3 tp2-sp-cp2-ulysses-dp2-zero3 tp2-sp-cp2-ring-dp2-zero1 pp2 pp2-dp2-zero0 pp2-dp2-zero1 pp4
pp4-dp2-zero1 pp2-dualpipev pp2-dualpipev-dp2-zero1 pp2-dp2-zero1-offload tp2-pp2 tp2-sp-pp2 tp2-sp-pp2-dp2-zero1
tp2-sp-pp2-dualpipev tp2-sp-pp4 cp2-ulysses-pp2 cp2-ring-pp2 cp2-ring-pp2-dp2-zero1 cp2-ring-pp2-dualpipev cp4-2d-pp2
cp2-ulysses-pp2-dualpipev cp4-2d-pp2-dualpipev tp2-cp2-ulysses-pp2 tp2-sp-cp2-ring-pp2-zero0 tp2-sp-cp2-ring-pp2-zero1
tp2-sp-cp2-ring-pp2-dualpipev-zero1
"""

_BF16 = """
zero1 dp2-zero1 dp2-zero2 dp2-zero3 tp2-sp-zero1 tp2-sp-dp2-zero3 cp2-ring-zero1 cp2-ulysses-zero1 cp4-ring-zero1
cp4-2d-zero2 tp2-sp-cp2-ring-zero1 pp2-zero1 tp2-sp-pp2-zero1 tp2-sp-cp2-ring-pp2-zero1
"""

_TERMS = """
zero0 dp2-zero1 dp2-zero2 dp2-zero3 tp2 tp2-sp cp2-ring cp2-ulysses cp3-ring cp4-2d pp2 pp2-dualpipev tp2-sp-cp2-ring
cp4-2d-pp2 tp2-sp-pp2-dp2-zero1 tp2-sp-cp2-ring-pp2-dualpipev-zero1
"""

_ADAPTERS = """
zero0 zero1 dp2-zero0 dp2-zero1 dp2-zero2 dp2-zero3 dp2-zero1-offload tp2 tp3 tp2-sp tp3-sp tp2-sp-dp2-zero1
tp2-sp-dp2-zero3 tp2-dp2-zero3 cp2-ring cp2-ulysses cp4-2d cp2-ring-zero3 pp2 pp4 pp2-dp2-zero1 pp2-dualpipev tp2-pp2
tp2-sp-pp2 tp2-sp-pp2-dualpipev tp2-cp2-ring tp2-sp-cp2-ulysses tp2-cp2-ring-zero3 tp2-sp-cp2-ring-pp2-zero1
"""

_MUON = """
zero0 dp2-zero0 dp2-zero1 dp2-zero2 dp2-zero3 dp4-zero1 tp2 tp3-sp tp2-sp-dp2-zero1 tp2-sp-dp2-zero2 tp2-dp2-zero3
cp2-ulysses-dp2-zero1 cp2-ring-zero3 pp2 pp2-dualpipev-dp2-zero1 tp2-sp-pp2-dp2-zero1 tp2-sp-cp2-ring-pp2-zero0
tp2-sp-cp2-ring-pp2-dualpipev-zero1
"""

# images have no differences between frames, which the further terms must bear too
_WITH_TERMS = ParitySpec(loss_terms=("temporal_consistency", "motion_smoothness", "perceptual"))
_WITH_CHANNELS = ParitySpec(given_channels=8)
_WITH_IMAGE = replace(_WITH_CHANNELS, image_dim=12)

FULL = (
    Batch("fp32", ParitySpec(), tuple(_FP32.split())),
    Batch("bf16", ParitySpec(precision="bf16"), tuple(_BF16.split())),
    Batch(
        "six heads, adaln_zero",
        ParitySpec(heads=6, modulation="adaln_zero"),
        ("cp4-ring", "cp4-2d", "tp2-sp-cp2-ring", "tp2-sp-pp2-dp2-zero1", "tp3-sp", "cp2-ulysses-dp2-zero3"),
    ),
    Batch("one clip", ParitySpec(pack="one"), ("cp4-ring", "cp4-ulysses", "cp4-2d", "tp2-sp-cp4-ring")),
    Batch("images", ParitySpec(pack="images"), ("cp4-ring", "cp3-ring", "cp4-2d", "tp2-sp-cp2-ring-pp2-zero1")),
    Batch(
        "recompute",
        ParitySpec(recompute=RecomputeConfig(kind="full", offload=True)),
        ("tp2-sp-cp2-ring", "tp2-sp-pp2-dp2-zero1", "cp2-ulysses-zero3", "pp2-dualpipev"),
    ),
    Batch(
        "selective recompute",
        ParitySpec(recompute=RecomputeConfig(kind="selective", parts=("self_attention", "ffn"), layers=2)),
        ("tp2-sp-cp2-ring", "pp2-dp2-zero1", "dp2-zero3"),
    ),
    Batch("adapters", ParitySpec(lora=3), tuple(_ADAPTERS.split())),
    Batch("adapters, bf16", ParitySpec(lora=3, precision="bf16"), ("dp2-zero3", "tp2-sp-cp2-ring-pp2-zero1")),
    Batch("adapters, adaln_zero", ParitySpec(lora=3, heads=6, modulation="adaln_zero"), ("tp2-sp", "cp2-ring-zero3")),
    Batch(
        "adapters, recompute",
        ParitySpec(lora=3, recompute=RecomputeConfig(kind="full", offload=True)),
        ("tp2-sp-cp2-ring", "cp2-ulysses-zero3", "pp2-dualpipev"),
    ),
    Batch("loss terms", _WITH_TERMS, tuple(_TERMS.split())),
    Batch("loss terms, images", replace(_WITH_TERMS, pack="images"), ("cp2-ring", "tp2-sp-pp2")),
    Batch(
        "loss terms, bf16",
        replace(_WITH_TERMS, precision="bf16"),
        ("dp2-zero1", "tp2-sp-cp2-ring-zero1", "pp2-zero1"),
    ),
    Batch("given channels", _WITH_CHANNELS, ("dp2-zero3", "tp2-sp-cp2-ring-pp2-zero1", "cp2-ulysses-pp2-dualpipev")),
    Batch(
        "image embedding",
        _WITH_IMAGE,
        (
            "dp2-zero3",
            "tp2",
            "tp2-sp",
            "tp3-sp",
            "cp2-ring",
            "cp3-ulysses",
            "cp4-2d",
            "pp2",
            "pp2-dualpipev",
            "cp2-ring-zero3",
            "tp2-sp-cp2-ring-pp2-zero1",
            "cp2-ulysses-pp2-dualpipev",
        ),
    ),
    Batch(
        "image embedding, recompute",
        replace(_WITH_IMAGE, recompute=RecomputeConfig(kind="full", offload=True)),
        ("tp2-sp-cp2-ring", "pp2-dualpipev"),
    ),
    Batch("image embedding, adapters", replace(_WITH_IMAGE, lora=3), ("tp2-sp", "cp2-ring-zero3", "pp2")),
    Batch("image embedding, muon", replace(_WITH_IMAGE, optimizer="muon"), ("tp2-sp-dp2-zero1", "dp2-zero3")),
    Batch("muon", ParitySpec(optimizer="muon"), tuple(_MUON.split())),
    Batch("muon, bf16", ParitySpec(optimizer="muon", precision="bf16"), ("dp2-zero1", "dp2-zero3", "tp2-sp-zero1")),
    Batch(
        "muon, adaln_zero",
        ParitySpec(optimizer="muon", modulation="adaln_zero"),
        ("tp2-sp-dp2-zero1", "dp2-zero3", "pp2-dp2-zero1"),
    ),
)

# a layout or two for each mechanism: what the default test run can afford. Four packs hold the mixture in each of its
# orders and feed dualpipev; in three steps a layout trains on its own updates, and clips and averages them, twice
_SHORT = ParitySpec(steps=3, packs_per_step=4)

FAST = (
    Batch(
        "fp32",
        _SHORT,
        (
            "dp2-zero1", "dp2-zero2-offload", "tp2", "cp2-ulysses", "cp3-ring", "cp4-2d", "pp2-dp2-zero1",
            "pp2-dualpipev", "cp2-ring-zero3", "tp2-sp-cp2-ring-pp2-zero1",
        ),
    ),
    Batch("bf16", replace(_SHORT, precision="bf16"), ("tp2-sp-cp2-ring-zero1",)),
    Batch("six heads, adaln_zero", replace(_SHORT, heads=6, modulation="adaln_zero"), ("tp2-sp-pp2",)),
    Batch(
        "adapters", replace(_SHORT, lora=3, heads=6, num_layers=2, steps=2),
        ("tp2", "tp2-sp-pp2", "cp2-ring-zero3"),
    ),
    Batch(
        "loss terms", replace(_WITH_TERMS, steps=2, packs_per_step=4),
        ("dp2-zero3", "cp2-ring-pp2"),
    ),
    Batch("image embedding", replace(_WITH_IMAGE, steps=2, packs_per_step=4), ("tp2-sp", "cp2-ring", "pp2")),
    Batch(
        "muon, adaln_zero", replace(_SHORT, optimizer="muon", modulation="adaln_zero", num_layers=2, packs_per_step=2),
        ("dp2-zero3", "tp2-sp-dp2-zero1", "pp2"),
    ),
)  # fmt: skip
