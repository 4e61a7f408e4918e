"""Messages hold what they must and stay short, whatever was given."""

from __future__ import annotations

from megavideo.errors import ConfigError, DataError


def test_a_message_that_repeats_a_long_name_keeps_its_head_and_its_remedy() -> None:
    message = str(DataError(f"list.jsonl: {'n' * 100_000} is not there. Remedy: correct the name"))
    assert len(message) < 4000
    assert message.startswith("list.jsonl: nnn") and message.endswith("is not there. Remedy: correct the name")
    assert "characters left out" in message


def test_a_long_value_is_shown_short() -> None:
    error = ConfigError("name", "x" * 10_000, f"{'x' * 10_000} is no name", "give another")
    assert len(str(error)) < 4000 and str(error).endswith("is no name. Remedy: give another")
    assert error.value == "x" * 10_000


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    assert str(DataError("a\nb\x1b[31m.mds\u2028: damaged")) == "a\\nb\\x1b[31m.mds\\u2028: damaged"
