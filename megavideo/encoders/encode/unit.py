"""One unit of work: its clips become shards and, last of all, one small file that says what they hold."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megavideo.border.fields import Count, Finite, Size
from megavideo.border.json_text import parse_json
from megavideo.border.refused import Refused
from megavideo.config.schema.prepare import GivenTask
from megavideo.data.clips.captions import WeightedCaption
from megavideo.data.clips.resample import FrameUse
from megavideo.data.dataset.dataset import DroppedClip, manifest_row
from megavideo.data.dataset.index import ShardEntry
from megavideo.data.dataset.rates import SOURCE_FRAMES
from megavideo.data.storage.protocol import Storage
from megavideo.encoders.encode.clips import ClipSource, PlannedClip, ReadVideo, read_ahead
from megavideo.encoders.encode.dataset_writer import ShardWriter, writing_shards
from megavideo.encoders.encode.half import to_half
from megavideo.encoders.encode.plan import PageReader
from megavideo.encoders.encode.work_units import SHARDS_PREFIX, WorkUnit
from megavideo.encoders.folder import Encoders
from megavideo.encoders.video.given import given_video
from megavideo.errors import DataError
from megavideo.types import Grid, SampleInfo

_MEASURED_CLIPS = 4
_FORMAT = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnitJob:
    """A unit to be encoded, and the ids of those of its clips that are listed no more."""

    unit: WorkUnit
    unlisted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class UnitRecord:
    """What became of a unit: entries of its shards, rows of the manifest without an index, and what was dropped.

    `key` is that of the place it was encoded for; `squared_errors` are the autoencoder's on some of its clips.
    """

    key: str
    shards: list[ShardEntry]
    rows: list[dict[str, Any]]
    dropped: tuple[DroppedClip, ...]
    captions_cut: Count
    squared_errors: list[Finite]
    format: int = _FORMAT


@dataclass
class _Tally:
    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[DroppedClip] = field(default_factory=list)
    captions_cut: int = 0
    squared_errors: list[float] = field(default_factory=list)

    def drop(self, clip: PlannedClip, reason: object) -> None:
        self.dropped.append(DroppedClip(clip.row.file, str(reason), clip.row.clip_id))
        _log.warning("encode: dropped %s: %s", clip.row.file, reason)


class UnitEncoder:
    """Encodes units of clips of `source` into `storage`.

    `staging` is a local folder of this process alone, `key` that of the place. For the tasks `given` what they give of
    a clip is encoded too, and its first frame where there is an encoder of images.
    """

    def __init__(
        self,
        storage: Storage,
        key: str,
        encoders: Encoders,
        source: ClipSource,
        staging: Path,
        shard_bytes: int,
        given: tuple[GivenTask, ...] = (),
    ) -> None:
        self._storage = storage
        self._key = key
        self._encoders = encoders
        self._source = source
        self._staging = staging
        self._shard_bytes = shard_bytes
        self._given = given
        self._pages = PageReader(storage)

    def encode(self, job: UnitJob) -> None:
        """Encode the clips of a unit; those that cannot be are recorded with their reason.

        Raises DataError where the GPU is too small for a clip, or the unit's page is damaged.
        """
        tally = _Tally()
        clips = self._clips(job, tally)
        prefix = SHARDS_PREFIX + job.unit.name
        with_image = self._encoders.image_encoder is not None
        place = (self._storage, prefix, self._staging, self._shard_bytes)
        with writing_shards(*place, self._given, with_image=with_image) as writer:
            for clip, read in read_ahead(clips):
                if isinstance(read, DataError):
                    tally.drop(clip, read)
                else:
                    self._add(writer, clip, read, job.unit, tally)
            shards = writer.finish()
        record = UnitRecord(
            self._key, shards, tally.rows, tuple(tally.dropped), tally.captions_cut, tally.squared_errors
        )
        self._storage.write_bytes(job.unit.file, _record_bytes(record))

    def _clips(self, job: UnitJob, tally: _Tally) -> list[PlannedClip]:
        rows = self._pages.rows(job.unit)
        for row in rows:
            if row.clip_id in job.unlisted:
                tally.dropped.append(DroppedClip(row.file, "is not in the list of clips any more", row.clip_id))
        unfit: list[DroppedClip] = []
        clips = list(self._source.fitting((row for row in rows if row.clip_id not in job.unlisted), unfit))
        for clip in unfit:
            _log.warning("encode: dropped %s: %s", clip.file, clip.reason)
        tally.dropped += unfit
        return clips

    def _add(self, writer: ShardWriter, clip: PlannedClip, read: ReadVideo, unit: WorkUnit, tally: _Tally) -> None:
        autoencoder, text_encoder = self._encoders.autoencoder, self._encoders.text_encoder
        captions = clip.row.captions or (WeightedCaption(clip.row.caption),)
        try:
            latent = to_half(autoencoder.encode(read.video))
            given = {task: self._encoded_given(read.video, latent, task) for task in self._given}
            image = self._encoded_image(read.video)
        except torch.OutOfMemoryError as error:
            frames, height, width = clip.pixels
            raise DataError(
                f"{clip.address}: {frames} frames of {height}x{width} do not fit into the GPU's memory. Remedy: begin "
                "anew (another out=, or overwrite=true) with autoencoder.tile=256 or less, a smaller area or max_frames"
            ) from error
        texts = [to_half(text) for text in text_encoder.encode([caption.text for caption in captions])]
        images = () if image is None else (image,)
        if not all(np.isfinite(values).all() for values in (latent, *texts, *given.values(), *images)):
            tally.drop(clip, "its latent or text is not finite in float16")
            return
        # The first list's first clips are as good as any, since the order is that of a hash.
        if unit.position == 0 and writer.num_samples < _MEASURED_CLIPS:
            restored = autoencoder.decode(torch.from_numpy(latent).float())
            tally.squared_errors.append(float((restored - read.video).square().mean()))
        lengths = [len(text) for text in texts]
        sample = SampleInfo(
            sample_id=clip.row.clip_id,
            index=-1,  # the manifest of the dataset gives it
            latent=Grid(*latent.shape[1:]),
            text_tokens=max(lengths),
            fps=clip.fps,
            caption=clip.row.caption,
            source=clip.row.file,
        )
        writer.add(sample, latent, texts, [caption.weight for caption in captions], given, image)
        pairs = list(zip(captions, lengths, strict=True))
        more = {"scores": clip.row.scores, "unit": unit.name, SOURCE_FRAMES: asdict(read.use)}
        tally.rows.append(manifest_row(sample, clip.pixels, pairs, **more))
        most = text_encoder.max_tokens
        tally.captions_cut += sum(text_encoder.count_tokens(caption.text) > most for caption in captions)

    def _encoded_image(self, video: torch.Tensor) -> np.ndarray | None:
        encoder = self._encoders.image_encoder
        if encoder is None:
            return None
        frame = (video[:, 0] + 1.0) * 127.5  # the bytes that it was made of
        return to_half(encoder.encode(frame.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()))

    def _encoded_given(self, video: torch.Tensor, latent: np.ndarray, task: GivenTask) -> np.ndarray:
        # of an image nothing is ever given: its own latent fills the place
        return latent if video.shape[1] == 1 else to_half(self._encoders.autoencoder.encode(given_video(video, task)))


def read_record(storage: Storage, unit: WorkUnit, key: str) -> UnitRecord | None:
    """What became of a unit that is done; None where its file is damaged or of an encoding with other encoders."""
    try:
        content = storage.read_bytes(unit.file)
        record = parse_json(content, UnitRecord)
        parse_json(content, _Rows)
    except Refused:
        return None
    is_ours = record.format == _FORMAT and record.key == key
    return record if is_ours and sum(shard.samples for shard in record.shards) == len(record.rows) else None


@dataclass(frozen=True)
class _Row:
    """What is used of a row before it is a line of the manifest, which is held to more."""

    sample_id: str
    latent: tuple[Size, Size, Size]
    source_frames: FrameUse | None = None


@dataclass(frozen=True)
class _Rows:
    rows: list[_Row]


def _record_bytes(record: UnitRecord) -> bytes:
    return json.dumps(asdict(record), ensure_ascii=False).encode("utf-8")
