"""The caption of a visit is drawn by weight, and belongs to the sample."""

from __future__ import annotations

import pytest

from megavideo.diffusion.captions import choose_caption
from megavideo.diffusion.randomness import SampleKey

NUM_DRAWS = 4000


def share(weights: list[float], seed: int = 0) -> list[float]:
    drawn = [choose_caption(weights, SampleKey(seed, f"s{i % 40}", i // 40)) for i in range(NUM_DRAWS)]
    return [drawn.count(index) / NUM_DRAWS for index in range(len(weights))]


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, 0.2, 0.1], [5.0, 0.0, 15.0], [0.0, 1e-300, 1e-300]])
def test_captions_are_drawn_by_weight(weights: list[float]) -> None:
    for found, weight in zip(share(weights), weights, strict=True):
        expected = weight / sum(weights)
        assert abs(found - expected) < 4 * (expected * (1 - expected) / NUM_DRAWS) ** 0.5 + 1e-12


def test_the_draw_belongs_to_the_sample() -> None:
    weights = [0.5, 0.3, 0.2]
    one = [choose_caption(weights, SampleKey(3, "a", visit)) for visit in range(60)]
    assert one == [choose_caption(weights, SampleKey(3, "a", visit)) for visit in range(60)]
    assert set(one) == {0, 1, 2}  # over its visits a sample is seen with each caption
    for other in (SampleKey(4, "a", 0), SampleKey(3, "b", 0)):
        assert one != [choose_caption(weights, SampleKey(other.seed, other.sample_id, visit)) for visit in range(60)]


def test_scaling_the_weights_changes_nothing() -> None:
    keys = [SampleKey(0, f"s{i}", 0) for i in range(200)]
    for key in keys:
        assert choose_caption([1.0, 2.0, 4.0], key) == choose_caption([8.0, 16.0, 32.0], key)


def test_the_ends_of_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    key = SampleKey(0, "a", 0)
    for drawn, expected in ((0.0, 1), (0.5, 2), (1.0 - 2**-53, 2)):
        monkeypatch.setattr(SampleKey, "uniform", lambda self, purpose, drawn=drawn: drawn)
        assert choose_caption([0.0, 0.1, 0.1, 0.0], key) == expected


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -0.5], [float("nan")], [1.0, float("inf")]])
def test_what_are_no_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="no weights"):
        choose_caption(weights, SampleKey(0, "a", 0))
