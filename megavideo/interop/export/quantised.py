"""Export with the blocks' matrices in 8 bits, in the form of compressed-tensors, and what that loses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megavideo.config.schema.export import ExportFormat, Quantization
from megavideo.config.schema.model import ModelConfig
from megavideo.errors import ConfigError
from megavideo.interop.export.source import ExportSource
from megavideo.interop.export.tensor_files import Form, Group, written_dtype
from megavideo.interop.export.verify import our_output, sample_for
from megavideo.interop.names import Dialect, TensorRule
from megavideo.interop.quantised_files import WrittenWeights
from megavideo.interop.quantization import (
    SCHEMES,
    MatrixLoss,
    Scheme,
    dequantise,
    is_matrix,
    loss_of,
    quantise,
    scale_name,
)
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.parallel.materialise import materialise

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class VideoDifference:
    """A video [frames, height, width] that the run and its export sampled from the same noise, and their PSNR."""

    prompt: str
    steps: int
    frames: int
    height: int
    width: int
    psnr_db: float


@dataclass(frozen=True)
class QuantizationReport:
    """What quantising lost.

    `bytes_share` is the size of the network's files beside that without quantisation. `relative_error` is the norm of
    the difference of all quantised matrices over their norm, `forward_error` that of the network's output of one fixed
    sample; None where the export was not verified. `video` is None where none was sampled, for the reason `no_video`.
    `matrices` are the worst first, under their names in the files, and `page` shows all that.
    """

    scheme: str
    num_matrices: int
    bytes_share: float
    relative_error: float
    forward_error: float | None
    video: VideoDifference | None
    no_video: str | None
    page: str
    matrices: tuple[MatrixLoss, ...]


class Quantiser:
    """Quantises the matrices of one export, whose other tensors are in `dtype`, and keeps what that loses."""

    def __init__(self, scheme: Scheme, dtype: torch.dtype) -> None:
        self.scheme, self.dtype = scheme, dtype
        self._losses: list[MatrixLoss] = []
        self._squares = self._error_squares = 0.0

    def group(self, rule: TensorRule, dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]) -> Group:
        """The parameter of a rule as it will be written: quantised where it is a block's matrix, else in `dtype`."""
        if all(is_matrix(rule.ours, shape) for shape in shapes.values()):
            return QuantisedGroup(rule, self.scheme.dtype, shapes, self)
        return Group(rule, dtype, shapes)

    def take(self, name: str, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales of a matrix, called `name` in the files; its loss is kept."""
        codes, scale = quantise(matrix, self.scheme)
        loss = loss_of(name, matrix, codes, scale, self.scheme)
        squares = float(torch.linalg.vector_norm(matrix)) ** 2
        self._losses.append(loss)
        self._squares += squares
        self._error_squares += squares * loss.relative_error**2
        return codes, scale

    def rounded(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """A parameter of ours as it was written, float32."""
        if is_matrix(name, tuple(value.shape)):
            return dequantise(*quantise(value, self.scheme))
        return value.to(written_dtype(name, self.dtype)).float()

    @property
    def losses(self) -> tuple[MatrixLoss, ...]:
        """Of the matrices that were taken, the worst first."""
        return tuple(sorted(self._losses, key=lambda loss: (-loss.relative_error, loss.name)))

    @property
    def relative_error(self) -> float:
        """Of all matrices together (Frobenius)."""
        return math.sqrt(self._error_squares / self._squares) if self._squares else 0.0


def quantiser_for(name: Quantization, dtype: torch.dtype) -> Quantiser | None:
    """The one of a setting, None where nothing is quantised."""
    return None if name == "none" else Quantiser(SCHEMES[name], dtype)


@dataclass(frozen=True)
class QuantisedGroup(Group):
    """Matrices stacked in one parameter of ours: `dtype` is that of the codes, and each has its scales beside it."""

    quantiser: Quantiser

    @property
    def in_order(self) -> bool:
        """A scale is of a whole row."""
        return False

    @property
    def tensors(self) -> dict[str, Form]:
        """Scales [out, 1] and codes [out, in], by name."""
        found: dict[str, Form] = {}
        for name, shape in self.shapes.items():
            found[scale_name(name)] = (torch.float32, (shape[0], 1))
            found[name] = (self.dtype, shape)
        return found

    def parts(self, value: torch.Tensor, config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
        """Scales and codes, one by one."""
        for name, matrix in self.rule.to_theirs(value, config).items():
            codes, scale = self.quantiser.take(name, matrix)
            yield scale_name(name), scale
            yield name, codes


def quantization_config(rules: Sequence[TensorRule], shapes: Mapping[str, tuple[int, ...]], scheme: Scheme) -> object:
    """The entry of config.json, as compressed-tensors reads it; `rules` and `shapes` are of the whole model."""
    matrices = [rule for rule in rules if rule.form == "same" and len(shapes[rule.ours]) == 2]
    kept = [rule for rule in matrices if not is_matrix(rule.ours, shapes[rule.ours])]
    weights = {"num_bits": 8, "type": scheme.kind, "symmetric": True, "strategy": "channel", "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": f"{scheme.kind}-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [name.removesuffix(".weight") for rule in kept for name in rule.theirs],
    }


def reader_notes(export_format: ExportFormat) -> tuple[str, ...]:
    """What reads a quantised export: nothing of diffusers does."""
    if export_format == "single":
        return (
            "it is for programs that read weight_scale beside weight: from_single_file would take codes for weights",
        )
    inner = "/transformer" if export_format == "pipeline" else ""
    given = "give from_pretrained transformer=" if export_format == "pipeline" else "take "
    call = f"megavideo.interop.quantised_files.load_transformer(Path('OUT{inner}'))"
    return (f"diffusers reads no compressed-tensors: {given}{call}, which multiplies codes by scales",)


def page_for(out: str) -> Path:
    """Where the page of an export at `out` goes: beside it. Raises ConfigError where that is there already."""
    page = Path(f"{out.rstrip('/').removesuffix(_SUFFIX)}.html")
    if page.exists() or page.is_symlink():
        raise ConfigError("out", out, f"{page}, which shows what quantising loses, is there already", "remove it")
    return page


def report_of(
    quantiser: Quantiser, files: Sequence[Path], num_bytes: int, source: ExportSource, dialect: Dialect, page: Path,
    run_both: bool,
) -> QuantizationReport:  # fmt: skip
    """The report on written files with `num_bytes` of tensors; with `run_both` the networks are compared too."""
    plain = sum(
        written_dtype(name, quantiser.dtype).itemsize * math.prod(shape) for name, shape in source.shapes.items()
    )
    return QuantizationReport(
        scheme=quantiser.scheme.name,
        num_matrices=len(quantiser.losses),
        bytes_share=num_bytes / plain,
        relative_error=quantiser.relative_error,
        forward_error=forward_error(files, dialect, source) if run_both else None,
        video=None,
        no_video=None,
        page=str(page),
        matrices=quantiser.losses,
    )


@torch.no_grad()
def forward_error(files: Sequence[Path], dialect: Dialect, source: ExportSource) -> float:
    """How far the network of the files is from that of the checkpoint, in one forward pass: norm over norm."""
    config = source.config.model
    written, sample = WrittenWeights(files, config, dialect), sample_for(config)
    with torch.device("meta"):
        model = DiT(config, LocalLayers())
    materialise(model, lambda name, _: written.value(name))
    actual = our_output(model, sample)
    materialise(model, lambda name, _: source.value(name))
    expected = our_output(model, sample)
    return float((actual - expected).norm() / expected.norm())
