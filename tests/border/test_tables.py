"""Tables of comma-separated values: what is a row, and what is refused."""

from __future__ import annotations

import pytest

from megavideo.border.refused import Refused
from megavideo.border.table_text import parse_table


def test_rows_are_mappings_of_texts_without_blanks() -> None:
    text = '# a comment\r\nname , value\r\n\r\na, 1 \r\n"b, c",\r\n'
    assert parse_table(text.encode()) == [{"name": "a", "value": "1"}, {"name": "b, c", "value": ""}]
    assert parse_table("\ufeffname\nä\n".encode()) == [{"name": "ä"}]
    assert parse_table(b"name\n") == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"a,b\n1\n", "row 1 has 1 values"),
        (b"a,b\n1,2\n1,2,3\n", "row 2 has 3 values"),
        (b"a,b,a\n", "two columns 'a'"),
        (b'a\n"1\n', "no table"),
        (b"\xff\xfe", "no UTF-8"),
    ],
)
def test_anything_else_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(Refused, match=told):
        parse_table(content)
