"""A dataset and a run on it, looked at before any GPU starts: what would fail, what is dropped, what the stream needs.

Packs are those that training will make: they come from the same plan, which is a function of manifest, seed and step.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megavideo.config.schema.doctor import DoctorRun
from megavideo.data.dataset.dataset import LatentDataset, open_dataset
from megavideo.data.dataset.rates import Rates, count_rates
from megavideo.data.plan.packing import PackLimits
from megavideo.data.plan.size_classes import DroppedSamples, make_classes
from megavideo.data.plan.step_plan import Pack, PlanSettings, StepPlan, rank_share
from megavideo.data.plan.visits import seen_again
from megavideo.data.storage.files import writing
from megavideo.data.storage.owners import Claim, owning
from megavideo.data.table.open import open_samples
from megavideo.data.table.sample_table import SampleTable
from megavideo.data.table.sound import size_fault
from megavideo.errors import ConfigError, DataError
from megavideo.evaluation.dataset_page import PAGE_NAME, SampleColumns, draw_histograms, page_text
from megavideo.evaluation.dataset_report import DatasetReport, Histogram, Packs, Reason, Shards
from megavideo.evaluation.dataset_shards import check_shards
from megavideo.evaluation.dataset_soundness import content_faults, content_warnings
from megavideo.observe.whole_file import write_file

_NAMED = 20
_NAMED_IN_FAULT = 5
_BINS = 40
_MOST_STEPS, _MOST_PACKS = 64, 20_000  # looked at
Limits = tuple[tuple[int, int, int], PackLimits]


@dataclass(frozen=True)
class _Planned:
    """The plan of the run and what a look at some of its steps showed."""

    packs: Packs
    packs_per_epoch: float
    bytes_per_token: float
    fill: np.ndarray
    seen_again: str | None


def check_dataset(cfg: DoctorRun) -> DatasetReport:
    """Look at the dataset `cfg.data` and the run that `cfg` describes; pictures and report go to `cfg.out`.

    Raises DataError where the dataset cannot be opened at all or the disk refuses what is written, and ConfigError
    where the run could not be set up or `out` is no folder.
    """
    assert cfg.data is not None
    _check_out(cfg.out)  # shards may be read for hours before anything is written
    dataset = open_dataset(cfg.data, version=cfg.version)
    patch, limits = _limits(cfg, dataset)
    table = open_samples(dataset)
    if (fault := size_fault(dataset.uri, table)) is not None:
        raise DataError(fault)
    columns = _columns(table, patch, limits)
    classes, dropped = make_classes(table, patch, limits, (1.0,))
    shards = check_shards(dataset, table, cfg.check_hashes)
    sizes = _sample_bytes(dataset, columns, shards.num_bytes)
    planned = _planned(cfg, table, (patch, limits), sizes) if classes is not None else None
    report = _report(cfg, dataset, table, columns, (dropped, repeated_ids(table)), shards, planned)
    return _written(report, columns, planned, cfg) if cfg.out else report


def _check_out(out: str | None) -> None:
    for place in (Path(out), *Path(out).parents) if out else ():
        if place.exists() and not place.is_dir():
            raise ConfigError("out", out, f"{place} is a file, and a folder is needed", "name another place")


def _limits(cfg: DoctorRun, dataset: LatentDataset) -> Limits:
    patch, made_for = cfg.patch or dataset.info.patch, dataset.info.patch
    if any(theirs % ours for ours, theirs in zip(patch, made_for, strict=True)):
        rule = f"the dataset was cut to sizes that patch {list(made_for)} divides"
        raise ConfigError("patch", list(patch), rule, f"take patch={list(made_for)}")
    most = min(cfg.tokens_per_pack, cfg.text_tokens_per_pack)
    return patch, PackLimits(cfg.tokens_per_pack, cfg.text_tokens_per_pack, most, dataset.null_text.shape[0])


def _columns(table: SampleTable, patch: tuple[int, int, int], limits: PackLimits) -> SampleColumns:
    latent, text = table.latent.astype(np.int64), table.text.astype(np.int64)
    tokens = latent.prod(axis=1) // int(np.prod(patch))
    kept = (tokens <= limits.tokens) & (np.maximum(text, limits.min_text_tokens) <= limits.text_tokens)
    return SampleColumns(latent, tokens, text, np.asarray(table.fps), kept)


def repeated_ids(table: SampleTable) -> tuple[int, tuple[str, ...]]:
    """How many ids more than one sample has, and the first of them; holds eight bytes a sample, the order of hashes."""
    hashes = table.id_hash
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    alike = np.unique(order[np.concatenate([again, again + 1])])  # samples whose hash is not theirs alone
    times = Counter(table.sample_id(sample) for sample in alike.tolist())
    repeated = [name for name, count in times.items() if count > 1]
    return len(repeated), tuple(repeated[:_NAMED])


def _sample_bytes(dataset: LatentDataset, columns: SampleColumns, num_bytes: int) -> np.ndarray:
    """Bytes [n] of each sample: by its latent and caption, and what else the shards hold shared out in proportion."""
    info = dataset.info
    values = columns.latent.prod(axis=1) * info.latent_channels + columns.text * info.text_dim
    sizes: np.ndarray = values * (num_bytes / max(1, int(values.sum())))
    return sizes


def _planned(cfg: DoctorRun, table: SampleTable, limits: Limits, sizes: np.ndarray) -> _Planned:
    plan = StepPlan(table, PlanSettings(*limits, cfg.packs_per_step, cfg.seed))
    count = min(cfg.steps, _MOST_STEPS, max(4, _MOST_PACKS // cfg.packs_per_step))
    steps = np.unique(np.linspace(0, cfg.steps - 1, count).astype(np.int64)).tolist()
    packs: list[Pack] = []
    imbalance: list[float] = []
    for step in steps:
        made = plan.step(step)
        packs += made
        imbalance.append(_imbalance(made, cfg.dp))
    tokens = np.array([sum(segment.grid.num_tokens for segment in pack) for pack in packs])
    lengths = [len(pack) for pack in packs]
    fill = tokens / cfg.tokens_per_pack
    num_bytes = float(sum(sizes[[segment.index for segment in pack]].sum() for pack in packs))
    return _Planned(
        Packs(
            len(steps), len(packs), float(fill.mean()), float(fill.min()), float(np.mean(lengths)), max(lengths),
            float(np.mean(imbalance)), max(imbalance),
        ),
        plan.packs_per_cycle / plan.passes_per_cycle,
        num_bytes / int(tokens.sum()),
        fill,
        seen_again(plan, len(table) - plan.dropped.count, cfg.packs_per_step, "packs_per_step"),
    )  # fmt: skip


def _imbalance(packs: list[Pack], dp: int) -> float:
    cost = [
        sum(segment.grid.num_tokens**2 for pack in rank_share(packs, rank, dp) for segment in pack)
        for rank in range(dp)
    ]
    return max(cost) / (sum(cost) / dp) - 1.0


def _report(
    cfg: DoctorRun,
    dataset: LatentDataset,
    table: SampleTable,
    columns: SampleColumns,
    found: tuple[DroppedSamples, tuple[int, tuple[str, ...]]],
    shards: Shards,
    planned: _Planned | None,
) -> DatasetReport:
    dropped, (same_id, same_id_first) = found
    info, count = dataset.info, len(columns.tokens)
    frames = 1 + (columns.latent[:, 0] - 1) * info.time_ratio
    video = columns.latent[:, 0] > 1
    per_gpu = planned.bytes_per_token * cfg.tokens_per_second_per_gpu if planned else None
    share = dropped.count / max(1, count)
    return DatasetReport(
        data=dataset.uri,
        version=info.version,
        samples=count,
        images=int((~video).sum()),
        videos=int(video.sum()),
        video_seconds=_seconds(frames[video], columns.fps[video]),
        rates=Rates.of(count_rates(columns.latent, columns.fps)),
        frames=info.frames,
        tokens=int(columns.tokens.sum()),
        tokens_per_sample=_histogram(columns.tokens, "video tokens of a sample"),
        aspect=_histogram(columns.aspect, "width / height"),
        packs=planned.packs if planned else None,
        steps=cfg.steps,
        steps_per_epoch=planned.packs_per_epoch / cfg.packs_per_step if planned else None,
        epochs=cfg.steps * cfg.packs_per_step / planned.packs_per_epoch if planned else None,
        dropped_count=dropped.count,
        dropped_share=share,
        dropped=tuple(Reason(d.sample_id, d.reason) for d in dropped.first[:_NAMED]),
        not_encoded_count=len(info.dropped),
        not_encoded=tuple(Reason(clip.file, clip.reason) for clip in info.dropped[:_NAMED]),
        bytes_per_sample=shards.num_bytes / max(1, count),
        bytes_per_second_per_gpu=per_gpu,
        bytes_per_second=per_gpu * (cfg.gpus or cfg.dp) if per_gpu is not None else None,
        captions_cut=info.captions_cut,
        captions_cut_share=info.captions_cut / max(1, count),
        same_id=same_id,
        same_id_first=same_id_first,
        shards=shards,
        faults=(*content_faults(dataset, table, shards), *_faults(cfg, count, dropped, shards)),
        warnings=(
            *([planned.seen_again] if planned and planned.seen_again else []),
            *content_warnings(dataset, table, shards),
        ),
        page=str(Path(cfg.out) / PAGE_NAME) if cfg.out else None,
    )


def _seconds(frames: np.ndarray, fps: np.ndarray) -> float:
    """Of all videos whose frame rate is one."""
    known = np.isfinite(fps) & (fps > 0)
    return float((frames[known] / fps[known]).sum())


def _faults(cfg: DoctorRun, count: int, dropped: DroppedSamples, shards: Shards) -> list[str]:
    """What would make the run fail, or drop more than is allowed."""
    faults = [bad.reason for bad in shards.bad[:_NAMED_IN_FAULT]]
    if len(shards.bad) > _NAMED_IN_FAULT:
        faults.append(f"{len(shards.bad) - _NAMED_IN_FAULT} more of {shards.count} shards are missing or damaged")
    if shards.left_out:
        faults.append(f"{shards.left_out} shards were not looked at, because {len(shards.bad)} before them are bad")
    if shards.non_finite:
        named = ", ".join(shards.non_finite_first[:_NAMED_IN_FAULT])
        faults.append(
            f"{shards.non_finite} samples hold a value that is not finite: {named}. Remedy: encode these clips again"
        )
    if dropped.count > cfg.max_dropped_share * count:
        first = f"the first is {dropped.first[0].sample_id}, {dropped.first[0].reason}"
        faults.append(
            f"{dropped.count} of {count} samples ({dropped.count / count:.1%}) fit no pack, and "
            f"max_dropped_share={cfg.max_dropped_share:g}; {first}. Remedy: raise tokens_per_pack or "
            "text_tokens_per_pack, or encode with a smaller area or fewer frames"
        )
    elif dropped.count == count:
        faults.append(f"none of the {count} samples fits a pack. Remedy: raise tokens_per_pack or text_tokens_per_pack")
    return faults


def _histogram(values: np.ndarray, unit: str) -> Histogram:
    counts, edges = np.histogram(values, _BINS)
    return Histogram(unit, tuple(edges.tolist()), tuple(counts.tolist()))


def _written(report: DatasetReport, columns: SampleColumns, planned: _Planned | None, cfg: DoctorRun) -> DatasetReport:
    folder = Path(cfg.out or "")
    picture = draw_histograms(columns, planned.fill if planned else np.zeros(0), cfg)
    text = json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False)
    with owning(folder, Claim("doctor", "out= another folder")), writing(folder):
        write_file(folder / "histograms.png", picture)
        write_file(folder / "report.json", (text + "\n").encode())
        write_file(folder / PAGE_NAME, page_text(report, picture).encode())
    return report
