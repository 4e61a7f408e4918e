"""Bytes that the forward pass of one pack keeps on a rank for its backward pass, tensor by tensor.

The ledger follows `model/block.py` and the layers of `parallel/layers`, with the fused kernels of a GPU; tests hold it
to what autograd keeps (`SavedTensors`), within 2 %, over sizes, recomputation, layouts, packs and precisions.

Letters: n own tokens, m attended tokens, l own text tokens, R rows of conditioning (two a segment), D width, F width of
the feed-forward, e bytes of an element; figures of a tensor-parallel rank where features are shared out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from megavideo.config.layout import Layout, ulysses_degree
from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import RecomputeConfig, TrainRun

FP32 = 4


@dataclass(frozen=True)
class PackShape:
    """What of a pack its memory depends on: video tokens, text tokens, and how many segments it has room for."""

    tokens: int
    text: int
    segments: int


@dataclass(frozen=True)
class KeptBytes:
    """What one pack keeps on a rank between its two passes.

    `blocks` is what blocks keep, `ends` embedders and head, `rotary` and `text` what all blocks use. `inputs` came from
    the stage before, that of the first block among it, and waits in its buffers; `offloaded` waits on the host.
    `working` is what one block computes again at the height of the backward pass, on top of what is kept.
    """

    blocks: int
    ends: int
    rotary: int
    text: int
    inputs: int
    offloaded: int
    working: int

    @property
    def on_device(self) -> int:
        """All that stays on the device from the forward to the backward pass."""
        return self.blocks + self.ends + self.rotary + self.text + self.inputs


@dataclass(frozen=True)
class _Sizes:
    """The letters of the module for one rank, and its degrees."""

    model: ModelConfig
    element: int
    tp: int
    cp: int
    ulysses: int
    own: int
    attended: int
    own_text: int
    rows: int

    @property
    def stream(self) -> int:
        """Own tokens in the model's width: n D e."""
        return self.own * self.model.width * self.element

    @property
    def heads(self) -> int:
        """Attended tokens in the width of a rank's heads: m D e / tp."""
        return self.attended * self.model.width // self.tp * self.element

    @property
    def text_heads(self) -> int:
        """Own text tokens in the width of a rank's heads."""
        return self.own_text * self.model.width // self.tp * self.element

    @property
    def sums(self) -> int:
        """Log-sum-exp of each head and attended token."""
        return FP32 * self.attended * self.model.heads // self.tp

    def norm(self, count: int, kept: int) -> int:
        """What the query or key norm of `count` tokens keeps besides a tensor of `kept` bytes that is its input.

        torch's own keeps its input and a number a token. That over shards keeps the input in float32, the normalised
        tensor in the run's precision and a number a token.
        """
        if not self.model.qk_norm:
            return 0
        numbers = FP32 * count
        if self.tp == 1:
            return numbers
        return numbers + kept + (kept * FP32 // self.element if self.element < FP32 else 0)

    @property
    def keeps_inputs_of_norms(self) -> bool:
        """Whether norms keep their input itself; the one over shards does in float32 alone."""
        return self.model.qk_norm and (self.tp == 1 or self.element == FP32)


def kept_bytes(config: TrainRun, layout: Layout, pack: PackShape, part: range) -> KeptBytes:
    """Of the pipeline stage with the blocks of `part`."""
    sizes, model = _sizes(config, layout, pack), config.model
    first = part.start == 0
    last = part.stop == model.layers
    recompute = config.train.recompute
    whole = least = _block(sizes, frozenset())
    blocks = offloaded = 0
    for names, count in Counter(_names(recompute, number, model.layers) for number in part).items():
        kept = _block(sizes, names)
        waiting = _waiting(sizes, names) if recompute.offload else 0
        blocks += count * (kept - waiting)
        offloaded += count * waiting
        least = min(least, kept)
    ends = (_embedder(sizes, pack) if first else 0) + (_head(sizes) if last else 0)
    text = sizes.own_text * model.width * sizes.element
    rotary = FP32 * sizes.attended * model.head_dim  # complex64 for half of a head
    tables = sizes.rows * model.width * sizes.element * (7 if model.modulation == "adaln" else 1)
    inputs = 0 if first else sizes.stream + text + tables
    return KeptBytes(
        blocks=blocks - (0 if first or recompute.offload else sizes.stream), ends=ends, rotary=rotary,
        text=text if first else 0, inputs=inputs, offloaded=offloaded,
        working=whole - least + 3 * sizes.attended * model.ffn // sizes.tp * sizes.element,
    )  # fmt: skip


def _sizes(config: TrainRun, layout: Layout, pack: PackShape) -> _Sizes:
    attended = pack.tokens // layout.cp
    return _Sizes(
        model=config.model,
        element=2 if config.train.precision == "bf16" else FP32,
        tp=layout.tp,
        cp=layout.cp,
        ulysses=ulysses_degree(layout, config.model.heads),
        own=attended // layout.tp if layout.sp else attended,
        attended=attended,
        own_text=-(-pack.text // layout.cp),
        rows=2 * pack.segments,
    )


def _names(recompute: RecomputeConfig, number: int, layers: int) -> frozenset[str]:
    if not recompute.chooses(number, layers):
        return frozenset()
    return frozenset(("block",) if recompute.kind == "full" else recompute.parts)


def _waiting(sizes: _Sizes, names: Collection[str]) -> int:
    """Inputs of what is computed again, which offload moves to the host."""
    if "block" in names:
        return sizes.stream
    up = sizes.attended * sizes.model.ffn // sizes.tp * sizes.element
    return sizes.stream * len([name for name in names if name != "gelu"]) + (up if "gelu" in names else 0)


def _block(sizes: _Sizes, names: Collection[str]) -> int:
    """What one block keeps: its input always, and of each part that is not computed again what it needs."""
    if "block" in names:
        return sizes.stream
    # three residual streams, the results of the two gated branches, and the table of modulations
    kept = 5 * sizes.stream + 6 * sizes.rows * sizes.model.width * sizes.element
    if sizes.model.modulation == "adaln_zero":
        kept += sizes.rows * sizes.model.width * sizes.element
    if "self_attention" not in names:
        kept += _self_attention(sizes)
    if "cross_attention" not in names:
        kept += _cross_attention(sizes)
    if "ffn" not in names:
        up = sizes.attended * sizes.model.ffn // sizes.tp * sizes.element
        kept += _modulated_norm(sizes) + up * (1 if "gelu" in names else 2)
    return kept


def _modulated_norm(sizes: _Sizes) -> int:
    """Its result, which the next layer keeps, with mean and deviation of each token."""
    return sizes.stream + 2 * FP32 * sizes.own


def _self_attention(sizes: _Sizes) -> int:
    exchanged = sizes.ulysses > 1
    # queries and keys after norm and rotation, and, where heads are exchanged, the values beside them
    kept = _modulated_norm(sizes) + (3 if exchanged else 2) * sizes.heads
    if sizes.keeps_inputs_of_norms or not exchanged:
        kept += 3 * sizes.heads  # one tensor, of which the values are a part
    kept += 2 * sizes.norm(sizes.attended, sizes.heads)
    # the output, and again once heads have come back
    return kept + sizes.sums + (2 if exchanged else 1) * sizes.heads


def _cross_attention(sizes: _Sizes) -> int:
    kept = _modulated_norm(sizes) if sizes.model.cross_attn_norm else 0
    kept += sizes.norm(sizes.attended, sizes.heads) + sizes.norm(sizes.own_text, sizes.text_heads)
    if sizes.keeps_inputs_of_norms:
        kept += sizes.heads
    kept += sizes.heads * 2 + sizes.sums  # queries and output
    # keys and values as one tensor, and either the keys after their norm or both brought together over cp
    if sizes.keeps_inputs_of_norms or sizes.cp == 1:
        kept += 2 * sizes.text_heads
    if sizes.cp > 1:
        kept += 2 * sizes.cp * sizes.text_heads
    elif sizes.model.qk_norm:
        kept += sizes.text_heads
    return kept


def _embedder(sizes: _Sizes, pack: PackShape) -> int:
    model, element = sizes.model, sizes.element
    tokens = (pack.tokens * model.patch_dim if not model.given_channels else 0) * element
    tokens += sizes.own * (model.patch_dim + model.given_dim) * element if model.given_channels else 0
    text_in = (pack.text if sizes.cp == 1 else sizes.own_text) * model.text_dim * element
    text = 2 * sizes.own_text * model.width * element
    embedders = 2 if model.fps_conditioning else 1
    times = sizes.rows * (embedders * (model.time_dim + 2 * model.width) + 2 * model.width) * element
    place = sizes.own * 24 * element if model.place_embedding else 0
    return tokens + text_in + text + times + place


def _head(sizes: _Sizes) -> int:
    tables = sizes.rows * 2 * sizes.model.width * sizes.element
    return sizes.stream + _modulated_norm(sizes) + tables
