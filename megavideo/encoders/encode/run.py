"""`megavideo encode`: clips and captions become standardised latents and unpadded text in hashed shards.

Clips are divided into units of work. Each unit is encoded by one process, alone or one of many here and on other
machines, and is whole or absent; whoever is stopped goes on where it was. The last to be ready publishes a version of
the dataset, and clips that are added later make the next one.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megavideo.config.schema.prepare import EncodeRun, IngestRun
from megavideo.config.texts import Share
from megavideo.data.clips.resample import Resampling
from megavideo.data.clips.stored import clip_place
from megavideo.data.dataset.dataset import DroppedClip, open_dataset
from megavideo.data.dataset.rates import NOT_COUNTED, FrameCounts, Rates, count_rates
from megavideo.data.ingest import CLIPS_NAME, ClipFile, ingest, open_clip_file
from megavideo.data.ingest.share import find_share
from megavideo.data.storage.open import is_object_store
from megavideo.data.storage.owners import Claim, Ownership, owning
from megavideo.data.storage.protocol import Storage
from megavideo.encoders.encode.clips import ClipLimits, ClipSource, PlannedClip, fitting_videos
from megavideo.encoders.encode.dataset_place import Place, begin_place, check_place, open_place, planned_settings
from megavideo.encoders.encode.dataset_versions import (
    Gathered,
    Version,
    clean,
    gather_units,
    newest_version,
    publish_units,
)
from megavideo.encoders.encode.plan import Plan
from megavideo.encoders.encode.plan_work import WorkOrder, plan_work
from megavideo.encoders.encode.pool import EncodeSetting, choose_workers, run_units
from megavideo.encoders.encode.staging import staging_folder
from megavideo.encoders.encode.unit import UnitJob
from megavideo.encoders.encode.work_units import UNITS_PREFIX, WorkUnit
from megavideo.encoders.folder import (
    Encoders,
    autoencoder_ratios,
    build_autoencoder,
    build_text_encoder,
    move_weights,
)
from megavideo.encoders.image_encoder import build_image_encoder
from megavideo.errors import ConfigError, DataError

_INGEST_FOLDER = "ingest"
_ATTEMPTS = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenCount:
    """How many samples have so many video tokens (latent points over the patch)."""

    tokens: int
    samples: int


@dataclass(frozen=True)
class EncodeReport:
    """The outcome of an encode: the dataset's newest version, of which `new_samples` were added now.

    `units_waiting` are units of work that other tasks have still to encode: the last of them publishes the version.
    `psnr_db` is the autoencoder's on `psnr_clips` clips, from the latents as stored; `num_bytes` are those of shards
    and manifest. `rates` are those of its videos, and `frames` tells what it shows of its clips' frames. Without a
    version yet, `version` is 0.
    """

    out: str
    version: int
    num_samples: int
    new_samples: int
    num_images: int
    num_bytes: int
    num_tokens: int
    tokens: tuple[TokenCount, ...]
    rates: Rates | None
    frames: FrameCounts
    longest_text: int
    captions_cut: int
    psnr_db: float | None
    psnr_clips: int
    units: int
    units_waiting: int
    dropped: tuple[DroppedClip, ...]


@dataclass(frozen=True)
class _Work:
    """The list of clips, what they are made to fit, the share of the units that is this process's, and its place."""

    listed: ClipFile
    source: ClipSource
    share: Share
    owner: Ownership


def encode(cfg: EncodeRun) -> EncodeReport:
    """Encode the clips of `cfg.src` into the dataset at `cfg.out`, or this task's share of them.

    What is done already stays; a clip that does not fit is dropped with its reason. Nothing of an earlier dataset is
    touched before settings, place and encoders have proven good. Raises ConfigError on settings that cannot be used
    or are not those of the dataset that is there, DataError where the source holds nothing usable, or the place cannot
    be written, and OutputInUse where an encode of other clips or settings is at work there.
    """
    share = find_share(cfg.shard, os.environ)
    storage, _ = check_place(cfg)
    _check_alone(cfg, share)
    with (
        owning(storage, _claim(cfg)) as owner,
        _ingested(cfg) as listed,
        staging_folder(storage) as staging,
        clip_place(listed.place, cfg.store) as root,
    ):
        _, begun = check_place(cfg)  # by one that was at work here until now
        resampling = None if cfg.fps is None else Resampling(cfg.fps, cfg.max_doubled)
        limits = ClipLimits(cfg.area, cfg.max_frames, cfg.patch, resampling)
        source = ClipSource(root, limits, *autoencoder_ratios(cfg.autoencoder))
        _check_any_fits(cfg, listed, source)
        place = open_place(storage, staging) if begun else _begin(cfg, storage, _fitting(listed, source), staging)
        move_weights(place.encoders, cfg.autoencoder, cfg.text_encoder, cfg.image_encoder)
        return _encode(cfg, place, _Work(listed, source, share, owner), staging)


def _claim(cfg: EncodeRun) -> Claim:
    """Those that encode the same clips with the same settings share the place; one that clears it shares with none.

    Raw clips are known by where they are, an ingested folder by its list.
    """
    elsewhere = "out= another place"
    if cfg.overwrite:
        return Claim("encode", elsewhere)
    src = Path(cfg.src).expanduser()
    listed = open_clip_file(src).digest() if (src / CLIPS_NAME).is_file() else os.path.realpath(src)
    return Claim("encode", elsewhere, json.dumps([listed, planned_settings(cfg)], sort_keys=True))


def _encode(cfg: EncodeRun, place: Place, work: _Work, staging: Path) -> EncodeReport:
    storage, before = place.storage, newest_version(place.storage)
    again = frozenset(clip.clip_id for clip in before.info.dropped) if before and cfg.retry_dropped else frozenset()
    num_done = before.info.num_plans if before else 0
    planned = plan_work(storage, WorkOrder(work.listed, cfg.unit_clips, num_done, again - {""}, staging))
    num_units = sum(plan.num_units for plan in planned.plans)
    open_units = [unit for plan in planned.plans[num_done:] for unit in plan.units()]
    setting = EncodeSetting(
        work.source, cfg.out, place.encoders, place.key, staging, cfg.shard_bytes, place.given_latents
    )
    mine = [unit for unit in _not_done(storage, open_units) if unit.page_number % work.share.count == work.share.index]
    _log.info(
        "encode: %d clips in %d units, %d units still to do in share %d/%d",
        sum(plan.num_clips for plan in planned.plans), num_units, len(mine), work.share.index, work.share.count,
    )  # fmt: skip
    for _ in range(_ATTEMPTS):
        jobs = [UnitJob(unit, planned.unlisted.get(unit.name, frozenset())) for unit in mine]
        run_units(jobs, setting, choose_workers(cfg.workers, len(jobs)))
        if waiting := _not_done(storage, open_units):
            _log.info("encode: %d units are still to be encoded by others; the last one publishes", len(waiting))
            return _report(cfg, before, num_units, len(waiting))
        gathered = gather_units(place, before, open_units, staging)
        work.owner.check()
        if not gathered.redo:
            _publish(cfg, place, before, gathered, planned.plans)
            return _report(cfg, before, num_units, 0)
        mine = gathered.redo
        _log.warning("encode: %d units are damaged or of other encoders, and are encoded again", len(mine))
    raise DataError(f"{cfg.out}/{mine[0].file}: cannot be read back as it was written. Remedy: check the store")


def _publish(cfg: EncodeRun, place: Place, before: Version | None, gathered: Gathered, plans: list[Plan]) -> None:
    info = publish_units(place, before, gathered, len(plans))
    if info is None and before is None:
        raise _nothing_left(cfg, gathered.dropped)
    newest = newest_version(place.storage)
    if newest is not None:
        clean(place.storage, newest, plans)


def _not_done(storage: Storage, units: list[WorkUnit]) -> list[WorkUnit]:
    done = set(storage.list(UNITS_PREFIX)) if units else set()
    return [unit for unit in units if unit.file not in done]


def _check_any_fits(cfg: EncodeRun, listed: ClipFile, source: ClipSource) -> None:
    unfit: list[DroppedClip] = []
    if next(source.fitting((row for _, row in listed.lines()), unfit), None) is None:
        raise _nothing_left(cfg, unfit)


def _fitting(listed: ClipFile, source: ClipSource) -> Iterator[PlannedClip]:
    return source.fitting(row for _, row in listed.lines())


def _check_alone(cfg: EncodeRun, share: Share) -> None:
    if share.count == 1:
        return
    value = f"{share.index}/{share.count}"
    if cfg.overwrite:
        rule = "a task that overwrites would delete what the other tasks write"
        raise ConfigError("overwrite", True, rule, f"drop it, or encode without shard={value}")
    if not (Path(cfg.src).expanduser() / CLIPS_NAME).is_file():
        rule = f"{cfg.src} holds no {CLIPS_NAME}, and all tasks need one list of clips"
        raise ConfigError("shard", value, rule, "run `megavideo ingest` first, and give its out= as src=")


def _begin(cfg: EncodeRun, storage: Storage, clips: Iterable[PlannedClip], staging: Path) -> Place:
    text_encoder = build_text_encoder(cfg.text_encoder)
    autoencoder = build_autoencoder(cfg.autoencoder, lambda count: fitting_videos(clips, count))
    path = cfg.image_encoder.path
    image_encoder = None if path is None else build_image_encoder(path)
    return begin_place(cfg, storage, Encoders(autoencoder, text_encoder, image_encoder), staging)


@contextmanager
def _ingested(cfg: EncodeRun) -> Iterator[ClipFile]:
    """The clip list of an ingested folder; raw clips are ingested first, into `out` or beside the store's staging."""
    src = Path(cfg.src).expanduser()
    if (src / CLIPS_NAME).is_file():
        yield open_clip_file(src)
    elif is_object_store(cfg.out):
        with tempfile.TemporaryDirectory() as folder:
            ingest(IngestRun(src=cfg.src, out=folder, store=cfg.store))
            yield open_clip_file(Path(folder))
    else:
        folder = str(Path(cfg.out.removeprefix("file://")).expanduser() / _INGEST_FOLDER)
        ingest(IngestRun(src=cfg.src, out=folder, store=cfg.store))
        yield open_clip_file(Path(folder))


def _nothing_left(cfg: EncodeRun, dropped: list[DroppedClip]) -> DataError:
    reasons = "; ".join(f"{clip.file}: {clip.reason}" for clip in dropped[:3])
    return DataError(
        f"{cfg.src}: no clip is left to encode ({reasons}). Remedy: change area, max_frames or patch, or the clips"
    )


def _report(cfg: EncodeRun, before: Version | None, num_units: int, num_waiting: int) -> EncodeReport:
    """The report on the version that is the newest now."""
    dataset = None if num_waiting and before is None else open_dataset(cfg.out)
    info = dataset.info if dataset else None
    patch_t, patch_h, patch_w = cfg.patch
    tokens: Counter[int] = Counter()
    rates: Counter[float] = Counter()
    num_images = longest_text = 0
    for part in dataset.manifest.parts() if dataset else ():
        tokens.update((part.latent.prod(axis=1) // (patch_t * patch_h * patch_w)).tolist())
        rates.update(count_rates(part.latent, part.fps))
        num_images += int((part.latent[:, 0] == 1).sum())
        longest_text = max(longest_text, int(part.text.max(initial=0)))
    num_samples = info.num_samples if info else 0
    report = EncodeReport(
        out=cfg.out,
        version=info.version if info else 0,
        num_samples=num_samples,
        new_samples=num_samples - (before.info.num_samples if before else 0),
        num_images=num_images,
        num_bytes=info.num_bytes if info else 0,
        num_tokens=sum(size * count for size, count in tokens.items()),
        tokens=tuple(TokenCount(size, count) for size, count in sorted(tokens.items())),
        rates=Rates.of(rates),
        frames=info.frames if info else NOT_COUNTED,
        longest_text=longest_text,
        captions_cut=info.captions_cut if info else 0,
        psnr_db=info.psnr_db if info else None,
        psnr_clips=info.psnr_clips if info else 0,
        units=num_units,
        units_waiting=num_waiting,
        dropped=info.dropped if info else (),
    )
    _log.info(
        "encode: version %d: %d samples, %d of them new, %d dropped, %d tokens, %d bytes at %s", report.version,
        report.num_samples, report.new_samples, len(report.dropped), report.num_tokens, report.num_bytes, cfg.out,
    )  # fmt: skip
    if report.rates is not None:
        _log.info("encode: frames a second: %s", report.rates.words)
    if report.frames.total:
        _log.info("encode: of %d clips %s", report.num_samples, report.frames.words)
    return report
