from __future__ import annotations

from megavideo.data.stream.counts import StreamCounts, StreamRates, zero_counts


def test_counts_have_every_whole_number() -> None:
    assert StreamCounts(**zero_counts()) == StreamCounts()  # type: ignore[arg-type]
    assert "retries" in zero_counts() and "wait_seconds" not in zero_counts()


def test_rates_are_those_since_the_last_row() -> None:
    counts = [StreamCounts(samples=5), StreamCounts(samples=9, read_bytes=10**6, wait_seconds=0.5, retries=2)] * 2
    rates = StreamRates(iter([StreamCounts(), *counts[:2], counts[1]]).__next__)
    first, second, third = rates.metrics(), rates.metrics(), rates.metrics()
    assert first["stream_samples_per_second"] > 0 and second["stream_megabytes_per_second"] > 0
    assert (second["stream_wait_seconds"], second["stream_retries"]) == (0.5, 2)
    assert third["stream_samples_per_second"] == third["stream_wait_seconds"] == 0 and third["stream_retries"] == 2
