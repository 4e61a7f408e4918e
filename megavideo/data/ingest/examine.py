"""One input as one unit of work: decoded once, cut into pieces, measured. Nothing here knows thresholds or captions."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from megavideo.border.refused import Refused
from megavideo.config.schema.prepare import IngestRun
from megavideo.data.clips.formats import MOST_PIXELS
from megavideo.data.clips.media import (
    MediaInfo,
    TooManyPixels,
    is_image,
    iter_video,
    read_image_file,
    still_info,
    video_info,
    video_rate,
)
from megavideo.data.ingest.filters.choose import OwnScoreError, build_scores, own_digests, own_scores
from megavideo.data.ingest.filters.score import LONGEST_SIDE, ClipView, Score
from megavideo.data.ingest.fingerprint import fingerprint
from megavideo.data.ingest.letterbox import is_black_outside
from megavideo.data.ingest.part import LARGE, OWN_SCORE, UNREACHABLE, UNREADABLE, Box, Identity, Part, Piece, identify
from megavideo.data.ingest.seen import SeenFrame, seen_frames
from megavideo.data.ingest.shot import CLOSED_SECONDS, Lines, Shot, Window
from megavideo.data.ingest.shots import CutRule, Mark, mark_shots, num_holes
from megavideo.errors import DataError

_VERSION = 2  # to be raised with every change of what is measured: parts of an older one are made anew
_PICTURE_SIDE = 160
_PICTURE_QUALITY = 70


@dataclass(frozen=True)
class Recipe:
    """All settings that what is measured depends on, and hashes of the files in which own scores stand.

    Frames of more than `max_pixels` are not decoded.
    """

    cuts: CutRule | None
    max_seconds: float | None
    letterbox: bool
    own_paths: tuple[str, ...]
    own_digests: tuple[str, ...] = ()
    max_pixels: int = MOST_PIXELS

    @property
    def key(self) -> str:
        """A name of the recipe, equal for equal ones: what `max_pixels` let pass is measured as with any other."""
        settings = asdict(self)
        del settings["max_pixels"]
        digests = settings.pop("own_digests")  # beside the others: parts without own scores keep their key
        text = json.dumps([_VERSION, settings, *digests], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def recipe_of(cfg: IngestRun) -> Recipe:
    """The part of the settings that needs decoding anew when it changes. Raises ConfigError as `build_scores` does."""
    cuts = CutRule(**{name: value for name, value in asdict(cfg.cuts).items() if name != "enabled"})
    own_paths = tuple(own.path for own in own_scores(cfg.filters))
    build_scores(own_paths)
    return Recipe(
        cuts if cfg.cuts.enabled else None,
        cfg.filters.max_seconds,
        cfg.filters.letterbox,
        own_paths,
        own_digests(own_paths),
        cfg.filters.max_pixels,
    )


def examine(path: Path, file: str, recipe: Recipe) -> Part:
    """Measure one input; its fault is part of the outcome. Raises ConfigError for an own score that is not there."""
    scores = build_scores(recipe.own_paths)
    identity = Identity()
    try:
        identity = identify(path)
        media, sought, pieces = _image(path, recipe, scores) if is_image(path) else _video(path, recipe, scores)
    except OwnScoreError as error:
        return Part(file, recipe.key, identity, None, False, (), OWN_SCORE, str(error))
    except TooManyPixels as error:
        reason = f"{str(error).removeprefix(f'{path}: ')}, more than filters.max_pixels={recipe.max_pixels}"
        return Part(file, recipe.key, identity, None, False, (), LARGE, reason, error.pixels)
    except DataError as error:
        return Part(file, recipe.key, identity, None, False, (), UNREADABLE, str(error).removeprefix(f"{path}: "))
    except Refused as error:
        return Part(file, recipe.key, identity, None, False, (), UNREADABLE, f"is not read: {error}")
    except OSError as error:
        return Part(file, recipe.key, identity, None, False, (), UNREACHABLE, f"cannot be read ({error.strerror})")
    return Part(file, recipe.key, identity, media, sought, pieces)


def _image(path: Path, recipe: Recipe, scores: Sequence[Score]) -> tuple[MediaInfo, bool, tuple[Piece, ...]]:
    still = read_image_file(path, recipe.max_pixels)
    media = still_info(still)
    picture = Image.fromarray(still.pixels)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    window = Window(0, 0.0, ("",), 1, 1.0, (0.0,), np.asarray(picture)[None])
    return media, False, (_piece(window, None, media, scores),)


def _video(path: Path, recipe: Recipe, scores: Sequence[Score]) -> tuple[MediaInfo, bool, tuple[Piece, ...]]:
    film = _Film(path, recipe, scores)
    for seen, mark in mark_shots(seen_frames(iter_video(path, recipe.max_pixels), recipe.letterbox), recipe.cuts):
        film.add(seen, mark)
    return film.finished()


class _Film:
    """A video as it is read. Only the shot that is being read has its frames in memory."""

    def __init__(self, path: Path, recipe: Recipe, scores: Sequence[Score]) -> None:
        self._path = path
        self._recipe = recipe
        self._scores = scores
        self._media = MediaInfo(0, 1.0, 0, 0, 1.0, False)
        self._closes_full = recipe.max_seconds is not None and recipe.max_seconds <= CLOSED_SECONDS
        self._times: list[float] = []
        self._rate_told = 0.0
        self._is_timed = True
        self._is_interlaced = False
        self._shot: Shot | None = None
        self._run = 0
        self._pieces: list[tuple[Piece, Lines]] = []

    def add(self, seen: SeenFrame, mark: Mark) -> None:
        """Take the next frame, which belongs to the run that `mark` tells."""
        if self._shot is None:
            self._media = video_info(seen.traits, 0, 1.0)
            self._rate_told = seen.traits.rate_told
        if self._shot is None or mark.run != self._run or (self._shot.is_full and self._closes_full):
            self._close()
            self._shot, self._run = Shot(seen.index, mark.is_transition), mark.run
        self._shot.add(seen)
        self._times.append(seen.seconds)
        self._is_timed = self._is_timed and seen.is_timed
        self._is_interlaced = self._is_interlaced or seen.traits.is_interlaced

    def finished(self) -> tuple[MediaInfo, bool, tuple[Piece, ...]]:
        """What the file holds, whether it can be sought by time, and its pieces; DataError where it is empty."""
        if self._shot is None:
            raise DataError(f"{self._path}: holds no video frame")
        self._close()
        media = replace(
            self._media,
            frames=len(self._times),
            fps=self._rate(self._times),
            is_interlaced=self._is_interlaced,
            holes=num_holes(self._times),
        )
        sought = self._is_timed and all(earlier < later for earlier, later in pairwise(self._times))
        return media, sought, tuple(self._same_box())

    def _close(self) -> None:
        if self._shot is None:
            return
        box, lines = self._shot.box()
        for window in self._shot.windows(self._recipe.max_seconds, self._rate):
            piece = _piece(window, box, self._media, self._scores)
            self._pieces.append((replace(piece, is_transition=self._shot.is_transition), lines))

    def _rate(self, times: list[float]) -> float:
        return video_rate(self._path, times, self._rate_told)

    def _same_box(self) -> Iterator[Piece]:
        """The pieces; a shot too dark to show where its bars end takes the most common box of the file."""
        boxes = Counter(piece.crop for piece, _ in self._pieces if piece.crop is not None)
        common = max(boxes, key=lambda box: (boxes[box], box)) if boxes else None
        for piece, lines in self._pieces:
            adopted = piece.crop is None and common is not None and is_black_outside(lines, common)
            yield replace(piece, crop=common) if adopted else piece


def _piece(window: Window, box: Box | None, media: MediaInfo, scores: Sequence[Score]) -> Piece:
    frames, width, height = window.samples, media.width, media.height
    if box is not None:
        left, top, right, bottom = box
        scale_x, scale_y = frames.shape[2] / width, frames.shape[1] / height
        # Inwards, so that no line of a bar is left; never empty.
        begin_x, begin_y = math.ceil(left * scale_x), math.ceil(top * scale_y)
        end_x, end_y = max(begin_x + 1, int(right * scale_x)), max(begin_y + 1, int(bottom * scale_y))
        frames = np.ascontiguousarray(frames[:, begin_y:end_y, begin_x:end_x])
        width, height = right - left, bottom - top
    view = ClipView(window.seconds, window.fps, width, height, media.is_image)
    hash_bits, colours = fingerprint(frames, window.seconds)
    return Piece(
        start=window.start,
        start_seconds=window.start_seconds,
        start_digest=window.digests[0],
        frame_marks="".join(digest[:2] for digest in window.digests),
        frames=window.frames,
        fps=window.fps,
        crop=box,
        scores={
            score.name: round(score.score(frames, view), 4)
            for score in scores
            if score.for_images or not media.is_image
        },
        hash_bits=hash_bits,
        colours=colours,
        picture=_picture(frames[len(frames) // 2], width * media.pixel_aspect / height),
    )


def _picture(frame: np.ndarray, aspect: float) -> str:
    """A small JPEG, in base64, of uint8 [h, w, 3] shown at `aspect`, width over height."""
    width, height = (_PICTURE_SIDE, _PICTURE_SIDE / aspect) if aspect >= 1 else (_PICTURE_SIDE * aspect, _PICTURE_SIDE)
    size = max(1, round(width)), max(1, round(height))
    data = io.BytesIO()
    Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR).save(data, "JPEG", quality=_PICTURE_QUALITY)
    return base64.b64encode(data.getvalue()).decode()
