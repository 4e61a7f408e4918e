"""`megavideo ingest`: from a folder of captioned video and images to a list of clips that can be trained on.

Each input is one unit of work: decoded once, cut into shots and pieces, measured, and kept as one small file under
`out/parts`. The last step applies thresholds, captions and the search for near-duplicates to all of them, and writes
`dropped.jsonl`, `report.json`, `report.html`, `ingest.json` (where the inputs lie) and, last, `clips.jsonl` (one
`ClipRow` a line): where that is, the folder is whole.
"""

from megavideo.data.ingest.find import find_media
from megavideo.data.ingest.report import IngestReport
from megavideo.data.ingest.rows import (
    CLIPS_NAME,
    ClipFile,
    ClipList,
    ClipRow,
    open_clip_file,
    parse_row,
    read_clip_list,
)
from megavideo.data.ingest.run import ingest

__all__ = [
    "CLIPS_NAME", "ClipFile", "ClipList", "ClipRow", "IngestReport", "find_media", "ingest", "open_clip_file",
    "parse_row", "read_clip_list",
]  # fmt: skip
