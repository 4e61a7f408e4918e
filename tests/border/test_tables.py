"""Tables of comma-separated values: what is a row, and what is refused."""

from __future__ import annotations

import pytest

from megavideo.border.csv_text import parse_csv
from megavideo.border.refused import Refused


def test_rows_are_mappings_of_texts_without_blanks() -> None:
    text = '# a comment\r\nname , value\r\n\r\na, 1 \r\n"b, c",\r\n'
    assert parse_csv(text.encode()).mappings() == [{"name": "a", "value": "1"}, {"name": "b, c", "value": ""}]
    assert parse_csv("\ufeffname\nä\n".encode()).mappings() == [{"name": "ä"}]
    assert parse_csv(b"name\n").mappings() == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"a,b\n1\n", "line 2 has 1 values"),
        (b"a,b\n1,2\n1,2,3\n", "line 3 has 3 values"),
        (b"a,b,a\n", "column 'a' is there twice"),
        (b'a\n"1\n', "line 2: "),
        (b"\xff\xfe", "no UTF-8"),
    ],
)
def test_anything_else_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(Refused, match=told):
        parse_csv(content)
