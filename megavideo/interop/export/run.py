"""`megavideo export`: a checkpoint into a folder or file that others load."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from megavideo.config.schema.export import ExportRun
from megavideo.config.schema.train import TrainRun
from megavideo.errors import ConfigError
from megavideo.interop.experts import check_pair, check_whole
from megavideo.interop.export.configs import check_expressible, diffusers_config, original_config, single_file_notes
from megavideo.interop.export.output import making, write_json
from megavideo.interop.export.parts import RunEncoders, run_encoders
from megavideo.interop.export.pipeline import Pipeline, plan_pipeline
from megavideo.interop.export.quantised import (
    Quantiser,
    QuantizationReport,
    page_for,
    quantiser_for,
    quantization_config,
    reader_notes,
    report_of,
)
from megavideo.interop.export.source import ExportSource
from megavideo.interop.export.tensor_files import (
    Group,
    TensorFile,
    index_of,
    named_files,
    plan_files,
    write_tensor_file,
    written_dtype,
)
from megavideo.interop.export.verify import Verified, verify
from megavideo.interop.names import Dialect, tensor_rules
from megavideo.observe.progress import format_bytes

_HOMES = ("transformer", "transformer_2")  # of a pipeline, and of a pair's low expert
_STEM = "diffusion_pytorch_model"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_GB = 1e9
_SAY_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WrittenFile:
    """A file of the export, named from `out`, and its size; that of what it leads to where it is a link."""

    file: str
    size_bytes: int


@dataclass(frozen=True)
class ExportReport:
    """What was exported. `notes` say what whoever loads it has to know; numbers of a pair are those of both."""

    out: str
    format: str
    step: int
    low_step: int | None
    weights: str
    dtype: str
    num_parameters: int
    num_tensors: int
    size_bytes: int
    seconds: float
    verify: Verified | None
    quantization: QuantizationReport | None
    files: tuple[WrittenFile, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Expert:
    config: TrainRun
    encoders_folder: Path


@dataclass(frozen=True)
class _Transformer:
    """The files of a network, in the folder `home` of the export, and their config.json; None for one file alone."""

    source: ExportSource
    dialect: Dialect
    dtype: torch.dtype
    files: tuple[TensorFile, ...]
    config: Mapping[str, object] | None
    home: str = ""
    quantiser: Quantiser | None = None

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    def paths(self, out: Path) -> list[Path]:
        """Of its files in an export at `out`."""
        return [out] if out.is_file() else [out / self.home / file.name for file in self.files]

    def rounded(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """A parameter of ours as it was written, in float32."""
        if self.quantiser is not None:
            return self.quantiser.rounded(name, value)
        return value.to(written_dtype(name, self.dtype)).float()


def export(cfg: ExportRun, checkpoint: Path, low: Path | None = None) -> ExportReport:
    """Export the checkpoint in the folder `checkpoint`; nothing is left where that fails.

    `low` is that of the low expert where the settings name one. Raises ConfigError for a run that the format cannot
    express, for two that are no pair and for an `out` that is there, CheckpointError where a checkpoint is damaged, of
    another model or not finite, and DataError where a part of the pipeline is missing or the disk refuses. Whether
    diffusers gives the same numbers is told by the report alone.
    """
    begin = time.monotonic()
    sources = [ExportSource(folder, cfg.weights) for folder in (checkpoint, low) if folder is not None]
    source = sources[0]
    for one in sources:
        check_expressible(one.config.model)
    with ExitStack() as stack:
        pipeline: Pipeline | None = None
        if cfg.format == "pipeline":
            encoders = [stack.enter_context(run_encoders(one, cfg.parts)) for one in sources]
            _check_experts(cfg, sources, encoders)
            pipeline = plan_pipeline(cfg, source.config, encoders[0])
        homes = _HOMES if pipeline else ("",)
        transformers = [_plan(cfg, one, home) for one, home in zip(sources, homes, strict=False)]
        total = sum(one.num_bytes for one in transformers) + (pipeline.num_bytes if pipeline else 0)
        working = stack.enter_context(making(Path(cfg.out), total, is_file=cfg.format == "single"))
        progress = _Progress(total)
        for transformer in transformers:
            _write(working / transformer.home, transformer, progress)
        if pipeline is not None:
            pipeline.write(working, progress.add)
        files = tuple(
            WrittenFile(path.relative_to(working).as_posix(), path.stat().st_size)
            for path in sorted(working.rglob("*"))
            if path.is_file()
        )
    seconds = time.monotonic() - begin
    notes = pipeline.notes if pipeline else ()
    if cfg.format in ("wan", "single"):
        notes = single_file_notes(source.config.model)
    if cfg.quantization != "none":
        notes = (*(() if cfg.format == "single" else notes), *reader_notes(cfg.format))
    return ExportReport(
        out=cfg.out,
        format=cfg.format,
        step=source.manifest.step,
        low_step=None if low is None else sources[1].manifest.step,
        weights=cfg.weights,
        dtype=cfg.dtype,
        num_parameters=sum(math.prod(shape) for one in sources for shape in one.shapes.values()),
        num_tensors=sum(len(file.tensors) for one in transformers for file in one.files),
        size_bytes=sum(file.size_bytes for file in files),
        seconds=seconds,
        verify=_verified(Path(cfg.out), transformers) if cfg.verify else None,
        quantization=_quantization(cfg, transformers[0]),
        files=files,
        notes=notes,
    )


def _check_experts(cfg: ExportRun, sources: Sequence[ExportSource], encoders: Sequence[RunEncoders]) -> None:
    """Raise ConfigError for an expert alone, and for two runs that cannot share the steps of a sample."""
    configs = [one.config for one in sources]
    if cfg.boundary is None:
        check_whole(configs[0])
        return
    high, low = (_Expert(config, kept.folder) for config, kept in zip(configs, encoders, strict=True))
    check_pair(high, low, cfg.boundary)
    given = [config.diffusion.conditions.image_to_video > 0 for config in configs]
    if given[0] != given[1]:
        told = " and ".join(f"{config.name} {'with' if was else 'without'} them" for config, was in zip(configs, given))
        rule = f"a pipeline is given images for both experts or for none, and {told} was trained"
        raise ConfigError("low_ckpt", cfg.low_ckpt, rule, "give experts that were trained for the same tasks")


def _plan(cfg: ExportRun, source: ExportSource, home: str) -> _Transformer:
    model, dtype = source.config.model, _DTYPES[cfg.dtype]
    dialect: Dialect = "wan" if cfg.format in ("wan", "single") else "diffusers"
    limit = math.inf if cfg.format == "single" else cfg.shard_gb * _GB
    quantiser = quantiser_for(cfg.quantization, dtype)
    if quantiser is not None:
        page_for(cfg.out)  # so that it is not found to be taken when all is written
    rules = tensor_rules(model, dialect)
    files = plan_files(rules, model, source.shapes, dtype, limit, quantiser.group if quantiser else Group)
    if cfg.format == "single":
        single = (TensorFile(Path(cfg.out).name, files[0]),)
        return _Transformer(source, dialect, dtype, single, None, quantiser=quantiser)
    config = original_config(model) if dialect == "wan" else diffusers_config(model)
    if quantiser is not None:
        config = {**config, "quantization_config": quantization_config(rules, source.shapes, quantiser.scheme)}
    return _Transformer(source, dialect, dtype, named_files(_STEM, files), config, home, quantiser)


def _write(folder: Path, transformer: _Transformer, progress: _Progress) -> None:
    source = transformer.source
    folder.mkdir(exist_ok=True)
    for file in transformer.files:
        write_tensor_file(folder / file.name, file.groups, source.config.model, source, progress.add)
    source.finish()
    if transformer.config is not None:
        write_json(folder / "config.json", transformer.config)
    if len(transformer.files) > 1:
        write_json(folder / f"{_STEM}.safetensors.index.json", index_of(transformer.files))


def _verified(out: Path, transformers: Sequence[_Transformer]) -> Verified:
    """Of a pair what is found of the worse."""
    _log.info("loading it in diffusers, and comparing one forward pass")
    found = [verify(one.paths(out), one.dialect, one.source, one.rounded) for one in transformers]
    return next((one for one in found if not one.passed), max(found, key=lambda one: one.relative_error or 0.0))


def _quantization(cfg: ExportRun, written: _Transformer) -> QuantizationReport | None:
    if written.quantiser is None:
        return None
    paths, page = written.paths(Path(cfg.out)), page_for(cfg.out)
    return report_of(written.quantiser, paths, written.num_bytes, written.source, written.dialect, page, cfg.verify)


class _Progress:
    """Logs a line every few seconds, and at the end."""

    def __init__(self, total_bytes: int) -> None:
        self._total, self._done = total_bytes, 0
        self._said = time.monotonic()

    def add(self, num_bytes: int) -> None:
        """So many bytes more were written."""
        self._done += num_bytes
        now = time.monotonic()
        if self._done >= self._total or now - self._said >= _SAY_SECONDS:
            self._said = now
            _log.info("exported %s of %s", format_bytes(self._done), format_bytes(self._total))
