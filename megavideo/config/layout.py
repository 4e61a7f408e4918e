"""The grammar of a parallel layout: `tp2-sp-cp2-ring-pp2-dp2-zero1`.

Words are joined by `-`, each at most once: `tpN`, `cpN`, `ppN`, `dpN` give degrees (1 when left out; `dp` left out
means all processes that remain), `sp` is sequence parallel, `ulysses`, `ring` or `2d` is the kind of context parallel,
`dualpipev` is the pipeline schedule (1F1B when left out), `zeroN` the ZeRO stage, 0 to 3 (0 when left out), and
`offload` keeps the states of the optimizer in CPU memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from megavideo.border.names import shown
from megavideo.config.names import nearest
from megavideo.errors import ConfigError

ContextKind = Literal["ulysses", "ring", "2d"]
PipelineSchedule = Literal["1f1b", "dualpipev"]

CONTEXT_KINDS: tuple[ContextKind, ...] = ("ulysses", "ring", "2d")
FLAGS = ("sp", "dualpipev", "offload")
FIELD = "layout"
GRAMMAR = "write words joined by '-', as dp2-zero1 or tp2-sp-cp2-ring-pp2-dp2-zero1"


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism. `dp` None takes every process that tp, cp and pp leave over."""

    tp: int = 1
    sp: bool = False
    cp: int = 1
    cp_kind: ContextKind | None = None
    pp: int = 1
    dp: int | None = None
    zero: int = 0
    pp_schedule: PipelineSchedule = "1f1b"
    offload: bool = False

    @property
    def model_size(self) -> int:
        """Processes that hold one copy of the model and share one pack: tp * cp * pp."""
        return self.tp * self.cp * self.pp

    def format(self) -> str:
        """The layout in canonical order; `parse_layout` gives an equal layout back."""
        words = [f"tp{self.tp}"] if self.tp > 1 else []
        words += ["sp"] if self.sp else []
        words += [f"cp{self.cp}", str(self.cp_kind)] if self.cp > 1 else []
        words += [f"pp{self.pp}"] if self.pp > 1 else []
        words += ["dualpipev"] if self.pp_schedule == "dualpipev" else []
        words += [f"dp{self.dp}"] if self.dp is not None else []
        words += [f"zero{self.zero}"]
        return "-".join([*words, "offload"] if self.offload else words)


def parse_layout(text: str) -> Layout:
    """Parse a layout. Raises ConfigError naming the word that is unknown, repeated or without effect."""
    found: dict[str, int] = {}
    kind: ContextKind | None = None
    for word in text.split("-"):
        match = re.fullmatch(r"(tp|cp|pp|dp|zero)([0-9]+)", word)
        if word in CONTEXT_KINDS:
            name, value = "kind of context parallel", 0
            kind = word
        elif word in FLAGS:
            name, value = word, 1
        elif match:
            name, value = match[1], int(match[2])
            _check_degree(text, word, name, value)
        else:
            raise _unknown(text, word)
        if name in found:
            raise ConfigError(FIELD, text, f"names {name} twice, the second time by {word!r}", "keep one of the two")
        found[name] = value
    layout = Layout(
        tp=found.get("tp", 1),
        sp="sp" in found,
        cp=found.get("cp", 1),
        cp_kind=kind,
        pp=found.get("pp", 1),
        dp=found.get("dp"),
        zero=found.get("zero", 0),
        pp_schedule="dualpipev" if "dualpipev" in found else "1f1b",
        offload="offload" in found,
    )
    _check_whole(text, layout)
    return layout


def ulysses_degree(layout: Layout, heads: int) -> int:
    """Ranks of a context-parallel group that exchange heads by all-to-all; cp / degree such groups form a ring.

    It is cp for `ulysses`, 1 for `ring`, and for `2d` the largest divisor u of cp, 1 < u < cp, that divides the heads
    of a tensor-parallel rank. `heads` is the model's. Raises ConfigError naming the legal choices where there is none.
    """
    if layout.cp == 1 or layout.cp_kind == "ring":
        return 1
    legal = [u for u in range(2, layout.cp + 1) if layout.cp % u == 0 and heads % (layout.tp * u) == 0]
    inner = [u for u in legal if u < layout.cp]
    if layout.cp_kind == "ulysses" and layout.cp in legal:
        return layout.cp
    if layout.cp_kind == "2d" and inner:
        return max(inner)
    own = heads // layout.tp
    degrees = ", ".join(str(u) for u in range(2, own + 1) if own % u == 0) or "none above 1"
    if layout.cp_kind == "2d":
        rule = f"2d needs cp{layout.cp} = u * r, both > 1, with u dividing the {own} heads of each tensor-parallel rank"
        remedy = f"take cp{layout.cp}-ring, which takes any number of heads, or a cp with such a u: {degrees}"
    else:
        rule = f"Ulysses deals the {own} heads of each tensor-parallel rank to cp{layout.cp}, which must divide them"
        both = f" or cp{layout.cp}-2d" if inner else ""
        remedy = f"take cp{layout.cp}-ring, which takes any number of heads,{both} or ulysses with cp from: {degrees}"
    raise ConfigError(FIELD, layout.format(), rule, remedy)


def stage_parts(num_blocks: int, stages: int) -> list[range]:
    """The blocks of each stage: consecutive, as even as can be, the longer runs in the middle stages.

    The first and the last stage have the embedder and the head besides.
    """
    short, longer = divmod(num_blocks, stages)
    order = sorted(range(stages), key=lambda stage: abs(2 * stage - stages + 1))
    lengths = [short + (order.index(stage) < longer) for stage in range(stages)]
    ends = [sum(lengths[: stage + 1]) for stage in range(stages)]
    return [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def layout_parts(num_blocks: int, layout: Layout) -> list[range]:
    """The blocks of each stage; a DualPipeV rank holds two, one on the way down and one on the way up."""
    return stage_parts(num_blocks, layout.pp * (2 if layout.pp_schedule == "dualpipev" else 1))


def full_layout(text: str, ranks: int) -> str:
    """The layout with its `dp` on so many ranks. Raises ConfigError where they do not divide."""
    layout = parse_layout(text)
    size = layout.model_size
    dp = layout.dp if layout.dp is not None else max(1, ranks // size)
    if dp * size != ranks:
        rule = f"needs {dp * size} ranks (tp {layout.tp} x cp {layout.cp} x dp {dp} x pp {layout.pp})"
        near = ranks // size * size or size
        remedy = f"take another layout, or cluster.nodes and cluster.gpus_per_node of which the product is {near}"
        raise ConfigError("layout", text, rule, remedy)
    return replace(layout, dp=dp).format()


def _check_degree(text: str, word: str, name: str, value: int) -> None:
    if name == "zero" and value > 3:
        raise ConfigError(FIELD, text, f"{word!r} is no ZeRO stage", "take zero0, zero1, zero2 or zero3")
    if name != "zero" and value < 1:
        raise ConfigError(FIELD, text, f"{word!r} is no degree: degrees start at 1", f"take {name}1, or leave it out")


def _check_whole(text: str, layout: Layout) -> None:
    if layout.sp and layout.tp == 1:
        raise ConfigError(FIELD, text, "'sp' has no effect without tensor parallel", "drop sp, or add tp2")
    if layout.cp_kind and layout.cp == 1:
        raise ConfigError(
            FIELD, text, f"{layout.cp_kind!r} has no effect without context parallel", "drop it, or add cp2"
        )
    if layout.cp > 1 and layout.cp_kind is None:
        raise ConfigError(FIELD, text, f"'cp{layout.cp}' needs a kind", "add ulysses, ring or 2d")
    if layout.pp_schedule == "dualpipev" and layout.pp == 1:
        raise ConfigError(
            FIELD, text, "'dualpipev' has no effect without pipeline parallel", "drop dualpipev, or add pp2"
        )
    if layout.offload and layout.zero == 0:
        remedy = "drop offload, or take zero1, zero2 or zero3"
        raise ConfigError(FIELD, text, "'offload' has no effect without ZeRO", remedy)


def _unknown(text: str, word: str) -> ConfigError:
    known = ["tp1", "cp1", "pp1", "dp1", "zero1", *FLAGS, *CONTEXT_KINDS]
    close = nearest(word, known)
    hint = f"did you mean {close}? " if close else ""
    return ConfigError(FIELD, text, f"{shown(word)} is no word of a layout", hint + GRAMMAR)
