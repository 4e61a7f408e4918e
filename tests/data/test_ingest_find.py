"""Which files an ingest takes, and what it says of those that it cannot."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import pytest

from megavideo.data.ingest import find_media
from megavideo.data.ingest.find import find_inputs
from megavideo.errors import DataError


def test_a_linked_folder_is_told_and_a_linked_file_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    src, other = tmp_path / "src", tmp_path / "other"
    for folder in (src, other):
        folder.mkdir()
        (folder / "a.mp4").write_bytes(b"x")
    (src / "b.mp4").symlink_to(other / "a.mp4")
    caplog.set_level(logging.WARNING)
    assert find_media(src, tmp_path / "out") == [src / "a.mp4", src / "b.mp4"] and not caplog.records
    (src / "linked").symlink_to(other)
    assert find_media(src, tmp_path / "out") == [src / "a.mp4", src / "b.mp4"]
    assert f"1 folders are links and are not entered, as {src / 'linked'}" in caplog.text
    assert find_media(src / "linked", tmp_path / "out") == [src / "linked" / "a.mp4"]


def test_names_that_are_not_utf_8_are_refused_and_end_nothing(tmp_path: Path) -> None:
    (tmp_path / "café.mp4").write_bytes(b"x")
    assert find_media(tmp_path, tmp_path / "out") == [tmp_path / "café.mp4"]
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for number in range(2):
        with open(folder + b"/%d.mp4" % number, "wb"):
            pass
    found = find_inputs(tmp_path, tmp_path / "out")
    assert found.files == ["café.mp4"]
    reason = "its name is not UTF-8 (convmv renames many at once)"
    assert found.refused == [(r"caf\xe9/0.mp4", reason), (r"caf\xe9/1.mp4", reason)]


def test_folders_may_lie_deep(tmp_path: Path) -> None:
    """Deeper than Python's own stack, and than a path may be long."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("b.mp4", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    try:
        found = find_inputs(tmp_path, tmp_path / "out")
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # shutil gives up on such a depth
    assert found.files == ["a.mp4"]
    assert [reason for _, reason in found.refused] == ["this folder lies deeper than a path may be long"]


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "barred").mkdir()
    scandir = os.scandir

    def barred(path: str) -> object:
        if Path(path).name == "barred":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", barred)
    with pytest.raises(DataError, match=r"barred: cannot be listed \(Permission denied\)\. Remedy"):
        find_media(tmp_path, tmp_path / "out")
