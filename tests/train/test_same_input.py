"""Ranks that train one pack together have the same one, or every rank ends and names those that do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from megavideo.train.loss.term_labels import TermLabels
from megavideo.train.packs.noising import TrainBatch
from megavideo.train.packs.same_input import PARTS, differing, input_hashes
from megavideo.types import PackedBatch
from tests.train.conftest import QUICK_ON_FOUR, Place, Runs, slow_but


@pytest.mark.parametrize(
    ("name", "step", "what"),
    [
        pytest.param("other_noise", 1, "timesteps, noise", marks=pytest.mark.slow),
        ("other_noise_later", 4, "timesteps, noise"),
        ("other_samples", 1, "samples, texts, timesteps, noise"),
    ],
)
def test_a_rank_with_other_inputs_is_named(place: Place, on_two: Runs, name: str, step: int, what: str) -> None:
    for outcome in on_two[name]:
        assert outcome.error == "DataError"
        assert outcome.message.startswith(f"step {step}: ranks of one tp, cp and pp group must")
        assert f"rank 1 has other {what} than rank 0. Remedy: " in outcome.message
    if step == 1:
        assert place.rows(name) == []
    else:
        assert len(place.losses(name)) == step - 1


@pytest.mark.parametrize("name", slow_but(["other_noise_four", "other_noise_of_three"], QUICK_ON_FOUR))
def test_ranks_of_the_other_groups_end_too(place: Place, on_four: Runs, name: str) -> None:
    text = {"other_noise_four": "rank 3 has other timesteps, noise than rank 2",
            "other_noise_of_three": "rank 0 has other timesteps, noise than rank 1, 2, 3"}[name]  # fmt: skip
    assert [outcome.error for outcome in on_four[name]] == ["DataError"] * 4
    assert all(f"same inputs: {text}. Remedy" in outcome.message for outcome in on_four[name])


def test_most_of_a_group_are_right_and_in_a_tie_the_first() -> None:
    good, bad = [1, 2, 3, 4], [1, 2, 9, 9]
    assert differing({4: good, 5: good, 6: good}) == {}
    assert differing({4: good, 5: bad}) == {5: ("timesteps", "noise")}
    assert differing({4: bad, 5: good, 6: good}) == {4: ("timesteps", "noise")}
    assert differing({4: good, 5: bad, 6: [8, 2, 3, 4], 7: good}) == {5: ("timesteps", "noise"), 6: ("samples",)}


def batch() -> TrainBatch:
    pack = PackedBatch(
        tokens=torch.zeros(8, 2),
        cu_seqlens=torch.tensor([0, 4, 8], dtype=torch.int32),
        grid=torch.ones(2, 3, dtype=torch.int64),
        text=torch.zeros(4, 2),
        cu_seqlens_text=torch.tensor([0, 2, 4], dtype=torch.int32),
        fps=torch.ones(2),
        timestep=torch.zeros(2),
        condition_mask=torch.zeros(8, dtype=torch.bool),
        sample_ids=("a", "b"),
        visits=(0, 0),
    )
    return TrainBatch(pack, torch.zeros(8, 2), torch.ones(8))


def with_pack(**values: object) -> TrainBatch:
    given = batch()
    return dataclasses.replace(given, pack=dataclasses.replace(given.pack, **values))  # type: ignore[arg-type]


TERMS = TermLabels(
    torch.ones(8), torch.full((8,), -1), torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0), torch.zeros(0, 2)
)

CHANGES: list[tuple[str, Callable[[], TrainBatch]]] = [
    ("samples", lambda: with_pack(sample_ids=("a", "c"))),
    ("samples", lambda: with_pack(visits=(0, 1))),
    ("samples", lambda: with_pack(cu_seqlens=torch.tensor([0, 3, 8], dtype=torch.int32))),
    ("samples", lambda: with_pack(bounds=(0, 3, 8))),
    ("samples", lambda: with_pack(grid=torch.zeros(2, 3, dtype=torch.int64))),
    ("samples", lambda: with_pack(fps=torch.zeros(2))),
    ("texts", lambda: with_pack(text=torch.ones(4, 2))),
    ("texts", lambda: with_pack(cu_seqlens_text=torch.tensor([0, 1, 4], dtype=torch.int32))),
    ("texts", lambda: with_pack(text_bounds=(0, 1, 4))),
    ("timesteps", lambda: with_pack(timestep=torch.tensor([0.0, 1e-6]))),
    ("noise", lambda: with_pack(tokens=torch.full((8, 2), 1e-30))),
    ("noise", lambda: with_pack(condition_mask=torch.ones(8, dtype=torch.bool))),
    ("noise", lambda: with_pack(given=torch.ones(8, 5))),
    ("noise", lambda: with_pack(image=torch.ones(2, 3, 5))),
    ("noise", lambda: dataclasses.replace(batch(), target=torch.ones(8, 2))),
    ("noise", lambda: dataclasses.replace(batch(), weight=torch.zeros(8))),
    ("noise", lambda: dataclasses.replace(batch(), terms=TERMS)),
]


@pytest.mark.parametrize(("part", "change"), CHANGES)
def test_every_field_is_in_one_hash(part: str, change: Callable[[], TrainBatch]) -> None:
    before, after = input_hashes([batch()]), input_hashes([change()])
    assert [name for name, old, new in zip(PARTS, before, after, strict=True) if old != new] == [part]
    assert input_hashes([batch()]) == before


def test_every_field_of_a_batch_has_a_change() -> None:
    fields = {*(f.name for f in dataclasses.fields(PackedBatch)), *(f.name for f in dataclasses.fields(TrainBatch))}
    assert len(CHANGES) == len(fields - {"pack"})


def test_inputs_in_bf16_have_hashes_too() -> None:
    cpu = torch.device("cpu")
    one, two = (given.to(cpu, torch.bfloat16) for given in (batch(), with_pack(tokens=torch.full((8, 2), 0.5))))
    assert input_hashes([one]) == input_hashes([batch().to(cpu, torch.bfloat16)]) != input_hashes([two])


def test_hashes_tell_packs_and_their_order_and_fit_64_signed_bits() -> None:
    one, two = batch(), with_pack(timestep=torch.ones(2))
    assert input_hashes([one, two]) != input_hashes([two, one])
    assert input_hashes([one]) != input_hashes([one, one])
    hashes = [value for step in range(50) for value in input_hashes([with_pack(timestep=torch.tensor([step, 0.0]))])]
    assert torch.tensor(hashes, dtype=torch.int64).tolist() == hashes
    assert min(hashes) < 0 < max(hashes)
