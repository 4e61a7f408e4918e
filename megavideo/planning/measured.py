"""Rows of measured steps, from a table that anyone can write: to calibrate the step-time model on, or to score it by.

`docs/planning.md` describes the columns. A row is (configuration, unit, convention): the model predicts seconds, and
the figure is converted with the formula of whoever published it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from megavideo.border.csv_text import read_csv
from megavideo.border.names import shown
from megavideo.border.refused import Refused
from megavideo.config.layout import Layout, parse_layout, ulysses_degree
from megavideo.errors import ConfigError, DataError
from megavideo.planning.chips import chip_names, chip_of
from megavideo.planning.flops import BlockShape, train_flops
from megavideo.planning.step_time import Cluster
from megavideo.planning.workload import Scheme, Shape

PUBLISHED = Path(__file__).parent / "rows" / "published.csv"
UNITS = ("seconds", "tokens_per_second", "tokens_per_second_per_gpu", "samples_per_second", "tflops", "mfu")
CONVENTIONS = ("dit", "dense", "megatron")
FAMILIES = ("dit", "lm")
_REQUIRED = ("name", "hardware", "gpus", "layers", "width", "heads", "tokens", "figure", "unit")
# what a row that does not say is taken to have; those whose choice matters are told as assumed
_DEFAULTS: Mapping[str, str] = {
    "family": "dit", "layout": "zero1", "ffn": "", "ffn_matrices": "2", "vocab": "0", "parameters": "", "text": "512",
    "batch": "", "micro": "1", "vpp": "1", "recompute": "0", "attention": "", "kernels": "", "overlap": "dp",
    "gradient_bytes": "4", "convention": "", "assumed": "", "source": "", "nic": "", "causal": "", "engine": "",
}  # fmt: skip
# other values that an unstated setting may have, by which the interval is found
_OTHERS: Mapping[str, tuple[str, ...]] = {
    "attention": ("fa2", "cudnn", "fa3", "fa4"),
    "kernels": ("eager", "compiled", "fused"),
    "overlap": ("none", "dp", "tp dp cp"),
    "recompute": ("0", "1"),
    "micro": ("1", "2", "4"),
    "vpp": ("1", "2", "4"),
}
_MOST = {"gpus": 1e6, "layers": 1e4, "micro": 4096.0, "recompute": 1.0, "vpp": 1e4, "ffn_matrices": 3.0}
_COUNTED = ("attention", "kernels", "overlap", "recompute", "micro", "vpp", "batch", "text", "layout")


@dataclass(frozen=True)
class Row:
    """One measured step. `seconds` is the published figure as seconds; `flops` of the whole step by its convention."""

    name: str
    family: str
    shape: Shape
    scheme: Scheme
    cluster: Cluster
    seconds: float
    flops: float
    assumed: tuple[str, ...]
    cells: Mapping[str, str]

    @property
    def gpus(self) -> int:
        """All GPUs."""
        return self.scheme.ranks

    def mfu(self, seconds: float) -> float:
        """FLOPs by the row's convention over those of the peak, where a step takes so long."""
        return self.flops / seconds / self.gpus / (self.cluster.chip.bf16_tflops * 1e12)

    def others(self) -> tuple[Row, ...]:
        """The same row with other values of what it does not state, one after another."""
        found = []
        for name in self.assumed:
            for value in _OTHERS.get(name, ()):
                if value != self.cells[name] and (name != "attention" or value in self.cluster.chip.attention):
                    changed = _built({**self.cells, name: value}, self.name)
                    found.append(replace(changed, seconds=self.seconds))
        return tuple(found)


def read_rows(path: Path) -> tuple[Row, ...]:
    """All rows of a table. Raises DataError naming the file, the row and the column of what is wrong."""
    try:
        cells = read_csv(path).mappings()
    except (OSError, Refused) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path}: {reason}. Remedy: give a table of measured steps, as docs/planning.md says"
        ) from error
    if not cells:
        raise DataError(f"{path}: has no rows. Remedy: give a table of measured steps, as docs/planning.md says")
    missing = [name for name in _REQUIRED if name not in cells[0]]
    unknown = [name for name in cells[0] if name not in (*_REQUIRED, *_DEFAULTS)]
    for names, rule in ((missing, "lacks the column"), (unknown, "has an unknown column")):
        if names:
            legal = ", ".join((*_REQUIRED, *_DEFAULTS))
            raise DataError(f"{path}: {rule} {shown(names[0])}. Remedy: name columns of {legal}")
    return tuple(_row(path, number, given) for number, given in enumerate(cells, start=1))


def _row(path: Path, number: int, given: Mapping[str, str]) -> Row:
    try:
        return _built(_filled(given), given["name"])
    except ConfigError as error:
        raise DataError(f"{path}, row {number} ({shown(given['name'])}): {error}") from error


def _filled(given: Mapping[str, str]) -> dict[str, str]:
    """All cells; those that were empty or left out, and matter, are added to `assumed`."""
    for name in _REQUIRED:
        if not given[name]:
            raise ConfigError(name, given[name], "is required of each row", "fill it in")
    cells = {**_DEFAULTS, **{name: value for name, value in given.items() if value}}
    assumed = cells["assumed"].split()
    assumed += [name for name in _COUNTED if not given.get(name) and name not in assumed]
    if cells["family"] == "lm" and not given.get("text"):
        cells["text"] = "0"
        assumed = [name for name in assumed if name != "text"]
    cells["kernels"] = cells["kernels"] or ("fused" if cells["family"] == "lm" else "compiled")
    cells["assumed"] = " ".join(assumed)
    return cells


def _built(cells: Mapping[str, str], name: str) -> Row:
    number = _Numbers(cells)
    chip = chip_of(_one_of(cells, "hardware", chip_names()))
    family = _one_of(cells, "family", FAMILIES)
    shape = _shape(number, family, cells)
    layout = parse_layout(cells["layout"])
    gpus = number.whole("gpus", 1)
    if gpus % layout.model_size:
        rule = f"must divide by tp x cp x pp = {layout.model_size} of layout {layout.format()}"
        raise ConfigError("gpus", gpus, rule, "correct one of the two")
    dp = gpus // layout.model_size
    micro = number.whole("micro", 1)
    batch = number.whole("batch", 1) if cells["batch"] else 4 * dp * micro
    tokens, text = number.whole("tokens", 1), number.whole("text", 0)
    attention = cells["attention"] or ("fa2" if chip.name == "a100" else "cudnn")
    if attention not in chip.attention:
        legal = f"take one of {', '.join(chip.attention)}"
        raise ConfigError("attention", attention, f"has no known speed on {chip.name}", legal)
    overlap, engine = cells["overlap"].split(), cells["engine"].split()
    scheme = Scheme(
        segments=((tokens, text),) * micro,
        micro_steps=max(1, round(batch / dp / micro)),
        tp=layout.tp, sp=layout.sp, cp=layout.cp, ulysses=ulysses_degree(layout, shape.heads), pp=layout.pp,
        vpp=number.whole("vpp", 1), dual=layout.pp_schedule == "dualpipev", dp=dp, sharding=_sharding(layout),
        recompute=number.real("recompute", 0.0), attention=attention,
        kernels=cast(Any, _one_of(cells, "kernels", ("eager", "compiled", "fused"))),
        overlap_tp="tp" in overlap, overlap_dp="dp" in overlap, overlap_cp="cp" in overlap,
        gradient_bytes=number.whole("gradient_bytes", 1), offload=layout.offload,
        text_in_ring="text_in_ring" in engine, gathered_norms="gathered_norms" in engine,
    )  # fmt: skip
    nic = number.real("nic", 0.0) * 1e9 if cells["nic"] else None
    samples = scheme.micro_steps * micro * dp
    seconds, flops = _converted(number, cells, shape, scheme, samples, chip.bf16_tflops)
    return Row(
        name, family, shape, scheme, Cluster(chip, 8, nic), seconds, flops, tuple(cells["assumed"].split()), cells
    )


def _shape(number: _Numbers, family: str, cells: Mapping[str, str]) -> Shape:
    width, layers, heads = (number.whole(name, 1) for name in ("width", "layers", "heads"))
    if width % heads:
        raise ConfigError("heads", heads, f"must divide width={width}", "correct one of the two")
    ffn = number.whole("ffn", 1) if cells["ffn"] else 4 * width
    matrices, vocab = number.whole("ffn_matrices", 2), number.whole("vocab", 0)
    block = (8 if family == "dit" else 4) * width * width + matrices * width * ffn
    parameters = number.whole("parameters", 1) if cells["parameters"] else layers * block + vocab * width
    causal = family == "lm" if not cells["causal"] else cells["causal"] in ("1", "true", "yes")
    return Shape(
        layers, width, ffn, heads, parameters, matrices, cross=family == "dit", causal=causal,
        vocab=vocab,
    )  # fmt: skip


def _sharding(layout: Layout) -> Any:
    return ("ddp", "zero1", "zero2", "zero3")[layout.zero]


def _converted(
    number: _Numbers, cells: Mapping[str, str], shape: Shape, scheme: Scheme, samples: int, peak: float
) -> tuple[float, float]:
    """(seconds, FLOPs) of a step that has so many samples."""
    unit = _one_of(cells, "unit", UNITS)
    figure = number.real("figure", 1e-9)
    tokens, text = scheme.segments[0]
    default = "dit" if shape.cross else "megatron"
    convention = _one_of({**cells, "convention": cells["convention"] or default}, "convention", CONVENTIONS)
    flops = samples * _FLOPS[convention](shape, tokens, text)
    gpus = scheme.ranks
    seconds = {
        "seconds": figure,
        "tokens_per_second": samples * tokens / figure,
        "tokens_per_second_per_gpu": samples * tokens / figure / gpus,
        "samples_per_second": samples / figure,
        "tflops": flops / (figure * 1e12) / gpus,
        "mfu": flops / (figure / 100 * peak * 1e12) / gpus,
    }[unit]
    return seconds, flops


def _dit_flops(shape: Shape, tokens: int, text: int) -> float:
    return train_flops(BlockShape(shape.layers, shape.width, shape.ffn, shape.ffn_matrices), [(tokens, text)])


def _dense_flops(shape: Shape, tokens: int, text: int) -> float:
    """6 N + 12 L s d a token (llm-foundry): attention without regard of its mask."""
    del text
    return tokens * (6 * shape.parameters + 12 * shape.layers * tokens * shape.width)


def _megatron_flops(shape: Shape, tokens: int, text: int) -> float:
    """Matrices of the layers and the head, and attention without regard of its mask (Narayanan et al. 2021)."""
    del text
    d, matrices = shape.width, 4 * shape.width**2 + shape.ffn_matrices * shape.width * shape.ffn
    return tokens * (shape.layers * (6 * matrices + 12 * tokens * d) + 6 * d * shape.vocab)


_FLOPS: Mapping[str, Callable[[Shape, int, int], float]] = {
    "dit": _dit_flops, "dense": _dense_flops, "megatron": _megatron_flops,
}  # fmt: skip


def _one_of(cells: Mapping[str, str], name: str, legal: tuple[str, ...]) -> str:
    if cells[name] not in legal:
        raise ConfigError(name, cells[name], f"must be one of {', '.join(legal)}", "take one of them")
    return cells[name]


@dataclass(frozen=True)
class _Numbers:
    """Cells as numbers, with the name of the column in what is said of one that is none."""

    cells: Mapping[str, str]

    def whole(self, name: str, least: int) -> int:
        value = self.real(name, least)
        if value != int(value):
            raise ConfigError(name, self.cells[name], "must be a whole number", "correct it")
        return int(value)

    def real(self, name: str, least: float) -> float:
        words = {"none": "0", "full": "1"} if name == "recompute" else {}
        text = words.get(self.cells[name], self.cells[name])
        try:
            value = float(text.replace("_", ""))
        except ValueError as error:
            raise ConfigError(name, text, "must be a number", "correct it") from error
        most = _MOST.get(name, 1e15)
        if not least <= value <= most:
            raise ConfigError(name, text, f"must be a number from {least:g} to {most:g}", "correct it")
        return value
