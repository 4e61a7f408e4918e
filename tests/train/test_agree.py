"""A fault that one rank meets ends all of them, with its message and not the transport's."""

from __future__ import annotations

from tests.train.conftest import Place, Runs


def test_a_damaged_shard_ends_every_rank_with_its_name(place: Place, on_two: Runs) -> None:
    outcomes = on_two["torn"]
    assert [outcome.error for outcome in outcomes] == ["DataError", "DataError"]
    assert all("shard.00002.mds" in outcome.message and "damaged" in outcome.message for outcome in outcomes)
    told = [outcome.message for outcome in outcomes if "failed: " in outcome.message]
    assert len(told) <= 1 and all(message.startswith("rank ") for message in told)
