"""Published rows: what their figures mean, how well the model fits them, and what it says of rows it has not seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megavideo.errors import DataError
from megavideo.planning.calibrate import (
    Fit,
    calibrate,
    fit,
    fitted_roofline,
    predict,
    score,
    summary,
)
from megavideo.planning.measured import PUBLISHED, Row, read_rows
from megavideo.planning.step_time import PUBLISHED_CONSTANTS

HEAD = "name,family,hardware,gpus,layout,layers,width,ffn,heads,tokens,figure,unit\n"
WAN = "a,dit,h100,128,tp2-sp-cp4-ring-zero1,40,5120,13824,40,37440,18.98,seconds\n"


@pytest.fixture(scope="module")
def rows() -> tuple[Row, ...]:
    return read_rows(PUBLISHED)


def table(folder: Path, text: str) -> Path:
    file = folder / "rows.csv"
    file.write_text(text)
    return file


def test_conventions_give_back_what_else_was_published(rows: tuple[Row, ...]) -> None:
    named = {row.name: row for row in rows}

    def tflops(row: Row, flops: float) -> float:
        return flops / row.seconds / row.gpus / 1e12

    # the source tells seconds and TFLOP/s both, or tokens a second and TFLOP/s, or parameters of the model
    wan = named["Wan-14B 37k"]
    assert tflops(wan, wan.flops) == pytest.approx(325.77, rel=0.003)
    for name, told in (("NeMo 7B 8k", 519), ("NeMo 7B 74k", 439), ("NeMo 28B 8k", 468), ("NeMo 28B 64k", 445)):
        row = named[name]
        tokens, _ = row.scheme.segments[0]
        per_token = 6 * row.shape.parameters + 12 * row.shape.layers * tokens * row.shape.width
        all_tokens = tokens * row.scheme.micro_steps * row.scheme.dp
        assert tflops(row, per_token * all_tokens) == pytest.approx(told, rel=0.01), name
    assert named["MPT 1B"].mfu(named["MPT 1B"].seconds) == pytest.approx(0.4182, rel=1e-6)
    # 45,455 and 10,643 tokens a second and GPU are told beside the utilisation
    for name, told in (("MPT 1B", 45_455), ("MPT 7B", 10_643)):
        row = named[name]
        found = row.scheme.tokens * row.scheme.micro_steps / row.seconds
        assert found == pytest.approx(told, rel=0.003), name


def test_the_fit_is_what_ships_and_every_row_is_within_8_percent(rows: tuple[Row, ...]) -> None:
    found = fit(rows)
    for name in ("products", "attention", "elements", "exposed"):
        assert getattr(found, name) == pytest.approx(getattr(PUBLISHED_CONSTANTS, name), rel=0.02), name
    scored = [score(row, PUBLISHED_CONSTANTS) for row in rows]
    assert max(abs(row.error) for row in scored) <= 0.08, [(row.name, row.error) for row in scored]
    assert all(row.low <= row.predicted <= row.high for row in scored)


@pytest.mark.slow
def test_each_row_left_out_is_within_12_percent_and_baselines_are_worse(rows: tuple[Row, ...]) -> None:
    found: Fit = calibrate(rows)
    left_out = summary([row.error for row in found.left_out])
    assert left_out.largest <= 0.12, [(row.name, row.error) for row in found.left_out]
    for family in ("dit", "lm"):
        assert summary([row.error for row in found.left_out if row.family == family]).median < 0.06
    for baseline in ("constant", "roofline"):
        assert summary([getattr(row, baseline) for row in found.rows]).mean > 2 * left_out.mean
    assert summary(fitted_roofline(rows, rows)).mean > 2 * left_out.mean


def test_rows_of_a_known_world_give_its_constants_back(rows: tuple[Row, ...]) -> None:
    world = replace(PUBLISHED_CONSTANTS, products=0.6, attention=0.7, elements=2.0)
    made = [replace(row, seconds=predict(row, world)) for row in rows]
    found = fit(made, prior=world)
    assert (found.products, found.attention) == pytest.approx((0.6, 0.7), rel=0.01)


def test_what_a_row_does_not_say_is_assumed_and_spanned(tmp_path: Path) -> None:
    (row,) = read_rows(table(tmp_path, HEAD + WAN))
    assert {"attention", "kernels", "overlap", "recompute", "batch"} <= set(row.assumed)
    assert "layout" not in row.assumed
    scored = score(row, PUBLISHED_CONSTANTS)
    assert scored.low < scored.predicted < scored.high and scored.high > 1.2 * scored.low
    (known,) = read_rows(
        table(tmp_path, HEAD.strip() + ",text,batch,micro,vpp,recompute,attention,kernels,overlap\n"
              + WAN.strip() + ",512,128,1,1,0.2,cudnn,fused,none\n")
    )  # fmt: skip
    assert known.assumed == ()
    sure = score(known, PUBLISHED_CONSTANTS)
    assert sure.low == sure.predicted == sure.high


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        (HEAD, "has no rows"),
        ("name,hardware\na,h100\n", "lacks the column 'gpus'"),
        (HEAD.strip() + ",colour\n" + WAN.strip() + ",red\n", "unknown column 'colour'"),
        (HEAD + WAN.replace("h100", "h900"), r"row 1 \('a'\): hardware='h900'"),
        (HEAD + WAN.replace("18.98", "fast"), "figure='fast': must be a number"),
        (HEAD + WAN.replace("37440", ""), "tokens='': is required"),
        (HEAD + WAN.replace(",40,37440", ",39,37440"), "heads=39: must divide"),
        (HEAD + WAN.replace("18.98", "nan"), "figure='nan'"),
        (HEAD + WAN.replace("seconds", "furlongs"), "unit='furlongs'"),
        (HEAD + WAN.replace(",128,", ",100,"), "gpus=100"),
        (HEAD + WAN.replace("tp2-sp-cp4-ring-zero1", "tp2-spp"), "layout='tp2-spp'"),
        (HEAD + WAN.strip() + ",3\n", "line 2 has 13 values"),
    ],
)
def test_a_table_that_says_something_else_is_refused_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as error:
        read_rows(table(tmp_path, text))
    assert "rows.csv" in str(error.value) and "\n" not in str(error.value)
