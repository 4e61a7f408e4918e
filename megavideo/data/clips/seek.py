"""Reading from the middle of a video, with proof that it gives the frames that reading from the beginning gives.

What the index of a file says cannot be believed: some call every frame a key frame, and a decoder of an older codec
that starts on another one gives pictures full of blocks without a word. In some containers a frame's time is inferred,
and comes out otherwise where reading starts elsewhere. So reading starts at a frame of which the decoder itself says
that it leans on no other, and the anchor's time and picture must be those that were met before. So must the pictures
that follow: a decoder that does not know yet how far frames are reordered may leave some out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megavideo.data.clips.decode import in_presentation_order
from megavideo.data.clips.deinterlace import deinterlaced
from megavideo.data.clips.frame import Frame
from megavideo.errors import DataError

# Below so many frames decoding from the beginning costs less than seeking; times equal to this are the same frame's.
_SEEK_FRAMES = 32
_SAME_TIME_SECONDS = 1e-4
# An index that calls any frame a key frame leads to no true one: then reading starts farther back, once.
_BACK_SECONDS = (0.0, 12.0)
# Codecs whose decoders in FFmpeg read from the stream itself which frames are key frames, and in which nothing after a
# key frame, in presentation order, leans on what was before it. With codecs of key frames alone they are sought in.
_TRUE_KEYS = frozenset(
    ("h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "h263", "h263p", "flv1", "msmpeg4v1",
     "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "wmv3", "vc1", "theora")
)  # fmt: skip
# Containers that give each frame a time of its own. Elsewhere the picture must be known too.
_TIMED_CONTAINERS = frozenset(("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"))


@dataclass(frozen=True)
class Anchor:
    """The exact time of frame number `frame`, from which a reader can seek instead of decoding from the beginning.

    `digest` is that of its picture (`Frame.digest`), and `marks` are the first two hexadecimal digits of its digest and
    of those of the frames that follow. Both are empty where they are not known, as in lists of earlier versions.
    """

    frame: int
    seconds: float
    digest: str = ""
    marks: str = ""

    @property
    def is_far(self) -> bool:
        """True where seeking costs less than reading what lies before."""
        return self.frame >= _SEEK_FRAMES

    def is_met(self, place: int, frame: Frame) -> bool:
        """True where the picture is that of the frame `place` frames after the anchor, or no picture is known."""
        if not self.digest:
            return True
        expected = self.digest if place == 0 else self.marks[2 * place : 2 * place + 2]
        return bool(expected) and frame.digest().startswith(expected)


def may_seek(container: Any, stream: Any, anchor: Anchor) -> bool:
    """True for a stream whose decoder tells true key frames, in which the anchor can be known again."""
    codec = stream.codec_context.codec
    tells_keys = bool(codec.intra_only) or codec.canonical_name in _TRUE_KEYS
    return tells_keys and bool(anchor.digest or container.format.name in _TIMED_CONTAINERS)


def from_anchor(anchor: Anchor, frames_from: Callable[[float], Iterator[Frame]]) -> Iterator[Frame]:
    """Frames from the anchor's on, as long as they are proven to be those of reading from the beginning.

    `frames_from` gives frames, as the decoder gives them, from a time on, or a little before it.
    """
    for back in _BACK_SECONDS:
        place = 0
        try:
            for frame in _from_time(anchor, frames_from(max(0.0, anchor.seconds - back))):
                if not anchor.is_met(place, frame):
                    break
                yield frame
                place += 1
        except DataError:
            # A decoder that starts in the middle may fail on frames that lean on earlier ones.
            pass
        if place:
            return


def _from_time(anchor: Anchor, frames: Iterator[Frame]) -> Iterator[Frame]:
    """Frames from the anchor's exact time on; none where that is not met after a key frame."""
    found = False
    for place, frame in enumerate(deinterlaced(in_presentation_order(_from_key(anchor, frames)))):
        if not found:
            # Its picture depends on the frame before it.
            if place == 0 and frame.was_interlaced:
                continue
            if frame.seconds > anchor.seconds + _SAME_TIME_SECONDS:
                return
            found = frame.seconds >= anchor.seconds - _SAME_TIME_SECONDS
        if found:
            yield frame


def _from_key(anchor: Anchor, frames: Iterator[Frame]) -> Iterator[Frame]:
    """Frames from the first true key frame on; none further where one before the anchor has no time of its own."""
    key_seconds, passed = None, False
    for frame in frames:
        passed = passed or frame.seconds > anchor.seconds
        if not (frame.is_timed or passed):
            return
        if key_seconds is None and frame.is_key:
            key_seconds = frame.seconds
        if key_seconds is not None and frame.seconds >= key_seconds:
            yield frame
