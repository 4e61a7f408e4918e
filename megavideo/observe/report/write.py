"""`megavideo report`: the files of a run folder in, its page and numbers out."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from megavideo.config.schema.report import ReportRun
from megavideo.errors import DataError
from megavideo.observe.report.content import page_text
from megavideo.observe.report.record import read_record
from megavideo.observe.report.summary import RunReport, summarise
from megavideo.observe.run_folder import folder_content
from megavideo.observe.whole_file import write_file


def write_report(cfg: ReportRun, root: Path) -> RunReport:
    """Write the page of the run in `root`, which may still be at work, and return its numbers.

    Raises DataError where `root` is no folder or cannot be read, and where the page cannot be written.
    """
    folder_content(root)
    record = read_record(root)
    page = Path(cfg.out) if cfg.out is not None else record.folder.report
    report = summarise(record, page)
    written = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    try:
        write_file(page, page_text(cfg, report, record, written).encode())
    except OSError as error:
        raise DataError(f"{page}: cannot be written ({error}). Remedy: set out= to a file that can be") from error
    return report
