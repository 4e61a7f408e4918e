"""The split composes: every pair of attributes is trained, no held-out combination is."""

from __future__ import annotations

import itertools

from megavideo.evaluation.shapes.spec import (
    COLOURS,
    MOTIONS,
    NUM_CLIP_WORDINGS,
    SHAPES,
    Combination,
    caption,
    split,
)


def test_halves_are_disjoint_and_whole() -> None:
    halves = split()
    assert len(halves.trained) == len(halves.held_out) == 24
    assert set(halves.trained) | set(halves.held_out) == {
        Combination(c, s, m) for c, s, m in itertools.product(COLOURS, SHAPES, MOTIONS)
    }
    assert not set(halves.trained) & set(halves.held_out)
    assert split() == halves


def test_every_pair_is_trained() -> None:
    trained = split().trained
    assert {(c.colour, c.shape) for c in trained} == set(itertools.product(COLOURS, SHAPES))
    assert {(c.colour, c.motion) for c in trained} == set(itertools.product(COLOURS, MOTIONS))
    assert {(c.shape, c.motion) for c in trained} == set(itertools.product(SHAPES, MOTIONS))


def test_attributes_are_balanced() -> None:
    for half in (split().trained, split().held_out):
        assert {sum(c.colour == colour for c in half) for colour in COLOURS} == {6}
        assert {sum(c.shape == shape for c in half) for shape in SHAPES} == {8}
        assert {sum(c.motion == motion for c in half) for motion in MOTIONS} == {6}


def test_captions_name_every_attribute_and_differ() -> None:
    combination = Combination("red", "circle", "left")
    texts = {caption(combination, wording) for wording in range(NUM_CLIP_WORDINGS)}
    assert len(texts) == NUM_CLIP_WORDINGS
    assert all("red" in text and "circle" in text and "left" in text for text in texts)
    assert caption(combination) == "a red circle moves left"
    assert caption(Combination("blue", "square", None)) == "a blue square"
