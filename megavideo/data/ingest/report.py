"""What an ingest tells its user."""

from __future__ import annotations

from dataclasses import dataclass

from megavideo.data.clips.captions import CaptionNote

CAPTION = "caption"
SHORT = "short"
DUPLICATE = "duplicate"
ALIKE = "alike"
TRANSITION = "transition"
HDR = "hdr"
INTERLACED = "interlaced"
SUFFIX = "suffix"
NOT_READ = "not read"


@dataclass(frozen=True)
class DroppedClip:
    """A clip, or a whole input where `clip_id` is None, that is not used: the kind of reason, and the reason in words.

    `start` is its first frame in the file and `seconds` its duration.
    """

    file: str
    kind: str
    reason: str
    clip_id: str | None = None
    start: int = 0
    frames: int = 0
    seconds: float = 0.0
    scores: dict[str, float] | None = None


@dataclass(frozen=True)
class IngestReport:
    """The outcome of an ingest.

    Each of `num_inputs` is one of `inputs_kept`, which gave a clip at least, and `inputs_dropped`, once all are read.
    Files that have a caption and are not read, by their suffixes, are among them then. `inputs_waiting` are those that
    other processes have yet to read: while there are any, nothing but parts is written, and all further counts are 0,
    as only the whole decides what is kept. `num_clips` are kept, `num_images` of them images; `num_dropped` clips and
    whole inputs are not, by kind of reason in `dropped_by_kind`. All are in `dropped.jsonl`, and the first hundred in
    `dropped`. `treated` counts the kept clips whose pixels are not simply those of the file, by what was made of them.
    """

    src: str
    out: str
    num_inputs: int
    inputs_kept: int
    inputs_dropped: int
    inputs_waiting: int
    num_clips: int
    num_images: int
    num_frames: int
    video_seconds: float
    num_dropped: int
    dropped_by_kind: dict[str, int]
    dropped: tuple[DroppedClip, ...]
    treated: dict[str, int]
    caption_notes: tuple[CaptionNote, ...]
    page: str | None
