"""How fast a clip moves by the motion vectors that its codec has written: no flow is computed, and no model needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from megavideo.data.clips.decode import decoded, demuxed, in_presentation_order, video_stream
from megavideo.data.clips.frame import Frame
from megavideo.data.clips.media import opened_video
from megavideo.data.ingest.rows import ClipRow

_LEAST_COVERED = 0.25  # of the picture: below, its blocks are hardly predicted, and tell no speed


class CodecMotion:
    """Mean speed of the blocks of frames that are predicted from earlier ones (P), in % of the diagonal a second.

    A block's vector leads to the reference frame, taken to be the last one of type I or P before it. Codecs of FFmpeg
    that export vectors are H.264, MPEG-1, 2 and 4 and their kin; clips of others have no value. Blocks in the cut-off
    letterbox do not count.
    """

    name: str = "codec_motion"
    key: str = "codec_motion 1"

    def measure_file(self, path: Path, rows: Sequence[ClipRow]) -> list[float | None]:
        """The speed in each clip of a file; None where no frame tells one. DataError where it cannot be read."""
        speeds: dict[int, list[float]] = defaultdict(list)
        if rows[0].is_image or rows[0].is_animation:
            return [None] * len(rows)
        last = max(row.start + row.frames for row in rows)
        with opened_video(path) as container:
            from av.codec.context import Flags2

            stream = video_stream(path, container)
            stream.codec_context.flags2 |= Flags2.export_mvs
            frames = in_presentation_order(decoded(path, demuxed(container, stream), stream))
            reference: tuple[int, float] | None = None
            for number, frame in enumerate(islice(frames, last)):
                if _kind(frame) not in ("I", "P"):
                    continue
                if _kind(frame) == "P" and reference is not None and frame.seconds > reference[1]:
                    for place, row in enumerate(rows):
                        if row.start <= reference[0] and number < row.start + row.frames:
                            speed = _speed(frame, row, frame.seconds - reference[1])
                            speeds[place] += [] if speed is None else [speed]
                reference = number, frame.seconds
        return [float(np.mean(speeds[place])) if speeds[place] else None for place in range(len(rows))]


def _kind(frame: Frame) -> str:
    from av.video.frame import PictureType

    return str(PictureType(frame.raw.pict_type).name)


def _speed(frame: Frame, row: ClipRow, seconds: float) -> float | None:
    side_data = frame.raw.side_data.get("MOTION_VECTORS")
    if side_data is None:
        return None
    vectors = side_data.to_ndarray()
    vectors = vectors[(vectors["source"] < 0) & (vectors["motion_scale"] > 0)]
    height, width = frame.raw.height, frame.raw.width
    inside = np.ones(len(vectors), np.bool_)
    if row.crop is not None and not frame.upright.transpose:
        left, top, right, bottom = row.crop
        inside = (vectors["dst_x"] >= left) & (vectors["dst_x"] < right)
        inside &= (vectors["dst_y"] >= top) & (vectors["dst_y"] < bottom)
        height, width = bottom - top, right - left
    vectors = vectors[inside]
    areas = vectors["w"].astype(np.float64) * vectors["h"]
    if areas.sum() < _LEAST_COVERED * height * width:
        return None
    scale = vectors["motion_scale"].astype(np.float64)
    lengths = np.hypot(vectors["motion_x"] / scale, vectors["motion_y"] / scale)
    return float(100.0 * np.average(lengths, weights=areas) / np.hypot(height, width) / seconds)
