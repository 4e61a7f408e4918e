"""`megavideo encode`: clips and captions become standardised latents and unpadded text in hashed shards."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from megavideo.config.schema.prepare import EncodeRun, IngestRun
from megavideo.data.dataset import (
    ENCODERS_PREFIX,
    FORMAT,
    NULL_TEXT_NAME,
    DatasetInfo,
    DroppedClip,
    checksum,
    info_bytes,
    null_text_bytes,
)
from megavideo.data.ingest import CLIPS_NAME, ClipList, ingest, read_clip_list
from megavideo.data.storage import Storage, is_object_store
from megavideo.encoders.clips import ClipLimits, PlannedClip, fitting_videos, plan_clips, read_ahead
from megavideo.encoders.dataset_writer import DatasetWriter, check_place, complete, writing_dataset
from megavideo.encoders.folder import (
    Encoders,
    autoencoder_ratios,
    build_autoencoder,
    build_text_encoder,
    save_encoders,
)
from megavideo.errors import DataError
from megavideo.types import Grid, SampleInfo

_INGEST_FOLDER = "ingest"
_MEASURED_CLIPS = 4
_LOGGED_STEPS = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenCount:
    """How many samples have so many video tokens (latent points over the patch)."""

    tokens: int
    samples: int


@dataclass(frozen=True)
class EncodeReport:
    """The outcome of an encode.

    `psnr_db` is the autoencoder's on `psnr_clips` clips, from the latents as stored; `num_bytes` is what was written.
    """

    out: str
    num_samples: int
    num_images: int
    num_bytes: int
    num_tokens: int
    tokens: tuple[TokenCount, ...]
    longest_text: int
    captions_cut: int
    psnr_db: float
    psnr_clips: int
    dropped: tuple[DroppedClip, ...]


@dataclass
class _Tally:
    """What is counted while samples are written."""

    tokens: Counter[int] = field(default_factory=Counter)
    num_images: int = 0
    longest_text: int = 0
    captions_cut: int = 0
    squared_errors: list[float] = field(default_factory=list)
    dropped: list[DroppedClip] = field(default_factory=list)

    def drop(self, file: str, reason: object) -> None:
        self.dropped.append(DroppedClip(file, str(reason)))
        _log.warning("encode: dropped %s: %s", file, reason)


def encode(cfg: EncodeRun) -> EncodeReport:
    """Encode the clips of `cfg.src` into a dataset at `cfg.out`.

    A clip that does not fit is dropped with its reason. Nothing of an earlier dataset is touched before settings,
    place and encoders have proven good. Raises ConfigError on settings that cannot be used, and DataError where a
    dataset is there already, the source holds nothing usable, or the place cannot be written.
    """
    storage = check_place(cfg.out, cfg.overwrite)
    ratios = autoencoder_ratios(cfg.autoencoder)
    text_encoder = build_text_encoder(cfg.text_encoder)
    with _ingested(cfg) as clips:
        planned, dropped = plan_clips(clips, ClipLimits(cfg.area, cfg.max_frames, cfg.patch), *ratios)
        tally = _Tally()
        for clip in dropped:
            tally.drop(clip.file, clip.reason)
        if not planned:
            raise _nothing_left(cfg, tally)
        autoencoder = build_autoencoder(cfg.autoencoder, lambda count: fitting_videos(planned, count))
        encoders = Encoders(autoencoder, text_encoder)
        with writing_dataset(storage, cfg.shard_bytes) as writer:
            _write_samples(writer, planned, encoders, cfg.patch, tally)
            if writer.num_samples == 0:
                raise _nothing_left(cfg, tally)
            num_bytes = _finish(storage, writer, encoders, cfg.patch, tally)
    report = _report(cfg, writer.num_samples, num_bytes, tally)
    _log.info(
        "encode: %d samples, %d dropped, %d tokens, autoencoder %.1f dB, %d bytes at %s",
        report.num_samples,
        len(report.dropped),
        report.num_tokens,
        report.psnr_db,
        report.num_bytes,
        cfg.out,
    )
    return report


@contextmanager
def _ingested(cfg: EncodeRun) -> Iterator[ClipList]:
    """The clip list of an ingested folder; raw clips are ingested first, into `out` or beside the store's staging."""
    src = Path(cfg.src).expanduser()
    if (src / CLIPS_NAME).is_file():
        yield read_clip_list(src)
    elif is_object_store(cfg.out):
        with tempfile.TemporaryDirectory() as folder:
            ingest(IngestRun(src=cfg.src, out=folder))
            yield read_clip_list(Path(folder))
    else:
        folder = str(Path(cfg.out.removeprefix("file://")).expanduser() / _INGEST_FOLDER)
        ingest(IngestRun(src=cfg.src, out=folder))
        yield read_clip_list(Path(folder))


def _write_samples(
    writer: DatasetWriter, planned: list[PlannedClip], encoders: Encoders, patch: tuple[int, int, int], tally: _Tally
) -> None:
    log_every = max(1, len(planned) // _LOGGED_STEPS)
    measure_every = -(-len(planned) // _MEASURED_CLIPS)
    for number, (clip, video) in enumerate(read_ahead(planned)):
        if isinstance(video, DataError):
            tally.drop(clip.row.file, video)
            continue
        latent = encoders.autoencoder.encode(video)
        text = encoders.text_encoder.encode([clip.row.caption])[0]
        stored_latent, stored_text = _half(latent), _half(text)
        if not (np.isfinite(stored_latent).all() and np.isfinite(stored_text).all()):
            tally.drop(clip.row.file, "its latent or text is not finite in float16")
            continue
        if writer.num_samples % measure_every == 0:
            restored = encoders.autoencoder.decode(torch.from_numpy(stored_latent).float())
            tally.squared_errors.append(float((restored - video).square().mean()))
        sample = _sample(writer.num_samples, clip, latent, text)
        writer.add(sample, stored_latent, stored_text, clip.pixels)
        tally.tokens[sample.latent.num_tokens // (patch[0] * patch[1] * patch[2])] += 1
        tally.num_images += clip.window.count == 1
        tally.longest_text = max(tally.longest_text, sample.text_tokens)
        tally.captions_cut += encoders.text_encoder.count_tokens(clip.row.caption) > encoders.text_encoder.max_tokens
        if (number + 1) % log_every == 0:
            _log.info("encode: %d of %d clips", number + 1, len(planned))


def _sample(index: int, clip: PlannedClip, latent: torch.Tensor, text: torch.Tensor) -> SampleInfo:
    return SampleInfo(
        sample_id=clip.row.clip_id,
        index=index,
        latent=Grid(*latent.shape[1:]),
        text_tokens=text.shape[0],
        fps=clip.row.fps,
        caption=clip.row.caption,
        source=clip.row.file,
    )


def _finish(
    storage: Storage, writer: DatasetWriter, encoders: Encoders, patch: tuple[int, int, int], tally: _Tally
) -> int:
    """Write all but the shards, `dataset.json` last; gives the bytes of the whole dataset."""
    null_text = _half(encoders.text_encoder.encode([""])[0])
    files = writer.finish({NULL_TEXT_NAME: null_text_bytes(null_text)})
    num_bytes = writer.num_bytes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_encoders(folder, encoders.autoencoder, encoders.text_encoder)
        for path in _files(folder):
            storage.upload(path, ENCODERS_PREFIX + path.relative_to(folder).as_posix())
            num_bytes += path.stat().st_size
    info = DatasetInfo(
        format=FORMAT,
        num_samples=writer.num_samples,
        latent_channels=encoders.autoencoder.latent_channels,
        text_dim=encoders.text_encoder.dim,
        patch=patch,
        time_ratio=encoders.autoencoder.time_ratio,
        space_ratio=encoders.autoencoder.space_ratio,
        dropped=tuple(tally.dropped),
        captions_cut=tally.captions_cut,
        checksums={name: checksum(data) for name, data in files.items()},
    )
    content = info_bytes(info)
    complete(storage, info, content)
    return num_bytes + len(content)


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _half(values: torch.Tensor) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values.float().numpy().astype(np.float16))


def _nothing_left(cfg: EncodeRun, tally: _Tally) -> DataError:
    reasons = "; ".join(f"{clip.file}: {clip.reason}" for clip in tally.dropped[:3])
    return DataError(
        f"{cfg.src}: no clip is left to encode ({reasons}). Remedy: change area, max_frames or patch, or the clips"
    )


def _report(cfg: EncodeRun, num_samples: int, num_bytes: int, tally: _Tally) -> EncodeReport:
    # The first sample is always measured, so that there is one.
    error = float(np.mean(tally.squared_errors))
    return EncodeReport(
        out=cfg.out,
        num_samples=num_samples,
        num_images=tally.num_images,
        num_bytes=num_bytes,
        num_tokens=sum(tokens * samples for tokens, samples in tally.tokens.items()),
        tokens=tuple(TokenCount(tokens, samples) for tokens, samples in sorted(tally.tokens.items())),
        longest_text=tally.longest_text,
        captions_cut=tally.captions_cut,
        # Videos span -1..1, so that the peak is 2.
        psnr_db=round(10.0 * float(np.log10(4.0 / max(error, 1e-12))), 2),
        psnr_clips=len(tally.squared_errors),
        dropped=tuple(tally.dropped),
    )
