"""Every page that the package writes stands in one frame, with one style sheet."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

import megavideo
from megavideo.observe.page import render

PACKAGE = Path(megavideo.__file__).parent
FRAME = PACKAGE / "observe" / "templates" / "page.html.j2"


def test_there_is_one_style_sheet() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".j2")]
    assert [path for path in files if "<style" in path.read_text(encoding="utf-8")] == [FRAME]
    pages = [path for path in files if path.name.endswith(".html.j2") and path != FRAME]
    assert {path.name for path in pages} >= {"run.html.j2", "ingest.html.j2", "dataset.html.j2", "demo.html.j2"}
    for path in pages:
        assert path.read_text(encoding="utf-8").startswith('{% extends "page.html.j2" %}'), path


def test_a_name_that_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("dataset.html.j2", {}, "megavideo.evaluation")
