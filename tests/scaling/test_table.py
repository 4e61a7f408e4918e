"""Tables of points: what is read, and the one message of what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megavideo.border.csv_text import parse_csv
from megavideo.border.refused import Refused
from megavideo.config.schema.fit import ColumnsConfig
from megavideo.errors import DataError
from megavideo.planning.flops import BlockShape, train_flops
from megavideo.scaling.points import Points, choose
from megavideo.scaling.table import read_table

PLAIN = "params,tokens,flops,loss\n1e8,2e9,1.2e18,3.1\n2e8,2e9,2.4e18,2.9\n"


def read(folder: Path, text: str | bytes, *, six_nd: bool = False, columns: ColumnsConfig | None = None) -> Points:
    path = folder / "points.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_table(path, columns or ColumnsConfig(), six_nd=six_nd)


def test_columns_as_they_are(tmp_path: Path) -> None:
    text = 'loss,"name, of it",N,tokens,budget,learning_rate\n3.1,a,1e8,2e9,1e18,1e-3\n\n2.9,"b\nc",2e8,1e9,1e18,2e-3\n'
    points = read(tmp_path, b"\xef\xbb\xbf" + text.encode(), columns=ColumnsConfig(params="N"))
    assert points.params.tolist() == [1e8, 2e8] and points.loss.tolist() == [3.1, 2.9]
    assert points.flops.tolist() == points.budget.tolist() == [1e18, 1e18]  # no column of its own: the budget
    assert points.learning_rate is not None and points.learning_rate.tolist() == [1e-3, 2e-3]
    assert points.batch_tokens is None and points.counted == "column budget"


def test_flops_are_counted_by_the_one_formula(tmp_path: Path) -> None:
    head = "params,tokens,loss,layers,width,ffn,clip_tokens,text_tokens\n"
    points = read(tmp_path, head + "1.4e10,1e12,2,40,5120,13824,75600,512\n")
    expected = train_flops(BlockShape(40, 5120, 13824), [(75600, 512)]) / 75600 * 1e12
    assert points.flops.tolist() == [pytest.approx(expected)]
    assert expected > 2.4 * 6 * 1.4e10 * 1e12  # what 6 N D would miss of long clips


def test_six_nd_fills_what_is_missing(tmp_path: Path) -> None:
    assert read(tmp_path, "params,flops,loss\n1e8,6e18,3\n", six_nd=True).tokens.tolist() == [1e10]
    assert read(tmp_path, "params,tokens,loss\n1e8,1e10,3\n", six_nd=True).flops.tolist() == [6e18]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        (b"\xff\xfe", "no UTF-8"),
        ("a,a\n1,2\n", "column 'a' is there twice"),
        ("params,loss\n1\n", "line 2 has 1 values for 2 columns"),
        ('params,loss\n"1,2\n', "line 2"),
    ],
)
def test_what_is_no_table(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(DataError, match="cannot be read as a table") as caught:
        read(tmp_path, text)
    assert said in str(caught.value) and "points.csv" in str(caught.value) and "Remedy" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PLAIN.replace("loss", "los"), "has no column 'loss', but 'params', 'tokens', 'flops', 'los'"),
        (PLAIN.replace("3.1", "nan"), "line 2, column 'loss': 'nan' is no finite number above zero"),
        (PLAIN.replace("2.9", ""), "line 3, column 'loss': '' is no finite number above zero"),
        (PLAIN.replace("2e9,2.4e18", "-2e9,2.4e18"), "line 3, column 'tokens': '-2e9' is no finite number above zero"),
        (PLAIN.replace("1e8", "inf"), "line 2, column 'params': 'inf'"),
        (PLAIN.replace("1.2e18", "0"), "line 2, column 'flops': '0'"),
        (PLAIN.replace(",flops", ",work"), "has no column 'flops' of training FLOPs"),
        (
            "params,tokens,loss,layers,width,ffn,clip_tokens,text_tokens\n1,1,1,2.5,64,64,9,0\n",
            "'2.5' is no whole number",
        ),
    ],
)
def test_one_message_names_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value) and "Remedy" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_table(tmp_path / "none.csv", ColumnsConfig(), six_nd=False)


def test_too_few_points() -> None:
    def made(count: int, sizes: int) -> Points:
        params = np.geomspace(1e7, 1e9, sizes)[np.arange(count) % sizes]
        tokens = np.geomspace(1e9, 1e10, count)
        return Points("made", "made", params, tokens, 6 * params * tokens, np.ones(count), np.linspace(3, 2, count))

    with pytest.raises(DataError, match="made: 1 points are left, and a law of five numbers needs 6"):
        choose(made(1, 1), 0, None)
    with pytest.raises(DataError, match="2 different numbers of parameters"):
        choose(made(8, 2), 0, None)
    assert len(choose(made(8, 4), 2, None)) == 6
    assert choose(made(8, 4), 2, None).loss.max() < 3  # the highest are gone
    with pytest.raises(DataError, match="0 points are left"):
        choose(made(8, 4), 0, 1.0)


def test_csv_is_bounded() -> None:
    table = parse_csv(b"a,b\r\n1,2\r\n")
    assert (table.columns, table.rows, table.lines) == (("a", "b"), (("1", "2"),), (2,))
    with pytest.raises(Refused, match="1001 columns"):
        parse_csv(",".join(f"c{number}" for number in range(1001)).encode())
    with pytest.raises(Refused, match="line 2: field larger than"):
        parse_csv(b"a\n" + b"1" * 200_000)
