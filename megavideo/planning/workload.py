"""What a step computes and how it is laid out, in the few numbers that its time depends on.

One description serves the runs of this project, and rows that others measured with their own engines, of diffusion
transformers and of language models alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kernels = Literal["eager", "compiled", "fused"]
_BESIDES = 1.4
Sharding = Literal["ddp", "zero1", "zero2", "zero3"]


@dataclass(frozen=True)
class Shape:
    """A transformer: `cross` with cross-attention to text (a DiT), `vocab` with a head of so many words (0: none).

    `parameters` are the whole model's, of which `trained` are trained (None: all).
    """

    layers: int
    width: int
    ffn: int
    heads: int
    parameters: int
    ffn_matrices: int = 2
    cross: bool = True
    causal: bool = False
    vocab: int = 0
    trained: int | None = None

    @property
    def updated(self) -> int:
        """Parameters that are trained."""
        return self.parameters if self.trained is None else self.trained

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads


@dataclass(frozen=True)
class Product:
    """A linear layer on a rank: `rows` tokens times [inner, outer]."""

    rows: float
    inner: float
    outer: float

    @property
    def flops(self) -> float:
        """Of its forward pass; the backward pass has two such products."""
        return 2 * self.rows * self.inner * self.outer


@dataclass(frozen=True)
class Scheme:
    """How the work is shared out. A rank's micro-batch holds `segments`, each of (video tokens, text tokens).

    `recompute` is the share of a forward pass that is computed again. `vpp` is the number of chunks of layers a
    pipeline rank has. `overlap_tp`, `overlap_dp` and `overlap_cp` say that this communication runs beside products;
    `chunked_pp` that stages send while they compute. `gradient_bytes` an element are reduced over the data axis once a
    step (ZeRO 2 and 3: a micro-step). `text_in_ring` lets keys of the text go round the ring in shares, and with
    `gathered_norms` queries and keys are gathered over tp for a norm across heads: other engines do so. Products are
    `product_gain` times as fast as in bf16. Without `trains_all` weights of blocks have no gradients.
    """

    segments: tuple[tuple[int, int], ...]
    micro_steps: int
    tp: int = 1
    sp: bool = False
    cp: int = 1
    ulysses: int = 1
    pp: int = 1
    vpp: int = 1
    dual: bool = False
    dp: int = 1
    sharding: Sharding = "zero1"
    recompute: float = 0.0
    attention: str = "fa3"
    kernels: Kernels = "fused"
    overlap_tp: bool = False
    overlap_dp: bool = False
    overlap_cp: bool = True
    gradient_bytes: int = 2
    offload: bool = False
    text_in_ring: bool = False
    gathered_norms: bool = False
    product_gain: float = 1.0
    trains_all: bool = True

    @property
    def tokens(self) -> int:
        """Video tokens of a micro-batch."""
        return sum(tokens for tokens, _ in self.segments)

    @property
    def text(self) -> int:
        """Text tokens of a micro-batch."""
        return sum(text for _, text in self.segments)

    @property
    def ring(self) -> int:
        """Ranks of a ring."""
        return self.cp // self.ulysses

    @property
    def ranks(self) -> int:
        """All GPUs."""
        return self.tp * self.cp * self.pp * self.dp


def layer_products(shape: Shape, scheme: Scheme) -> Iterator[Product]:
    """The linear layers of one block on a rank: attention, cross-attention where there is one, feed-forward."""
    rows, text, width = scheme.tokens / scheme.cp, scheme.text / scheme.cp, shape.width
    yield Product(rows, width, 3 * width / scheme.tp)
    yield Product(rows, width / scheme.tp, width)
    if shape.cross:
        yield Product(rows, width, width / scheme.tp)
        yield Product(text, width, 2 * width / scheme.tp)
        yield Product(rows, width / scheme.tp, width)
    up = (shape.ffn_matrices - 1) * shape.ffn
    yield Product(rows, width, up / scheme.tp)
    yield Product(rows, shape.ffn / scheme.tp, width)


def attention_flops(shape: Shape, scheme: Scheme) -> Iterator[tuple[float, float]]:
    """(length, forward FLOPs) on a rank, of the self-attention of segments of a length, and to their text."""
    share = scheme.cp * scheme.tp
    for (tokens, text), count in Counter(scheme.segments).items():
        products = count * 4 * tokens * tokens * shape.width / share
        yield tokens, products / 2 if shape.causal else products
        if shape.cross:
            yield text / (scheme.ring if scheme.text_in_ring else 1), count * 4 * tokens * text * shape.width / share


def element_bytes(shape: Shape, scheme: Scheme) -> float:
    """Bytes a token and width that kernels bound by memory move in a block, forward and backward.

    Eager and compiled are this project's own, counted by operator on the meta device (1.3B: 458, 14B: 427, under tensor
    parallel 350 and in a ring 500 more, of float32 norms and merges). `fused` is an engine with fused norms, rotation
    and activation: at best 96 + 10 f/d for a DiT and 76 + 10 f/d for a language model, and 1.4 times as much with
    biases, copies under sequence parallel and what else is left; an eager language model 1.3 times that.
    """
    activation = 10 * (shape.ffn_matrices - 1) * shape.ffn / shape.width
    if scheme.kernels == "fused" or not shape.cross:
        return _BESIDES * (1.3 if scheme.kernels == "eager" else 1.0) * ((96 if shape.cross else 76) + activation)
    base = 400.0 if scheme.kernels == "eager" else 190.0
    base += (350.0 if scheme.kernels == "eager" else 100.0) if scheme.tp > 1 else 0.0
    base += (500.0 if scheme.kernels == "eager" else 120.0) if scheme.ring > 1 else 0.0
    return base + activation
