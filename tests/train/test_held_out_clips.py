"""Which clips a run is measured on, and how they are packed and dealt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.config.schema.train import TrainRun
from megavideo.data.dataset.dataset import info_bytes, open_dataset
from megavideo.data.table.open import open_selected
from megavideo.data.table.selection import selection_of
from megavideo.errors import ConfigError, DataError
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.testing.dataset import write_dataset
from megavideo.testing.settings import micro_config
from megavideo.train.validation import held_out_packs
from megavideo.train.validation.held_out_clips import HeldOutClips, open_held_out
from megavideo.train.validation.held_out_packs import HeldOutPacks
from megavideo.types import Grid

HELD_GRIDS = (Grid(2, 4, 4), Grid(1, 8, 8))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    write_dataset(str(place / "training"), 18)
    write_dataset(str(place / "held"), 7, grids=HELD_GRIDS)
    return place


def config_of(data: Path, **settings: Any) -> TrainRun:
    given = {"data__uri": data / "training", "output": data, "validation__every": 5, "validation__clips": 5}
    return micro_config(**{**given, **settings})


def opened(config: TrainRun) -> HeldOutClips:
    dataset = open_dataset(config.data.uri)
    return open_held_out(config, dataset, open_selected(dataset, (), selection_of(config)))


def packs_of(config: TrainRun, dp_rank: int = 0, dp: int = 1) -> HeldOutPacks:
    return HeldOutPacks(config, opened(config), ProcessMesh(dp_rank, 1, 1, 1, dp, 1))


def test_clips_are_those_held_out_of_training(data: Path) -> None:
    config = config_of(data)
    held = opened(config)
    assert len(held.clips) == 5
    selected = open_selected(open_dataset(config.data.uri), (), selection_of(config))
    assert not {clip.index for clip in held.clips} & set(selected.table.index.tolist())
    for clip in held.clips:
        assert held.read(clip.index).latent.shape[1:] == (clip.latent.t, clip.latent.h, clip.latent.w)
        assert clip.pixels == (1 + 4 * (clip.latent.t - 1), 8 * clip.latent.h, 8 * clip.latent.w)


def test_clips_of_a_dataset_of_their_own(data: Path) -> None:
    config = config_of(data, validation__uri=data / "held")
    held = opened(config)
    assert len(held.clips) == 5 and {clip.index for clip in held.clips} < set(range(7))
    for clip in held.clips:
        grid = HELD_GRIDS[clip.index % 2]
        assert held.read(clip.index).latent.shape[1:] == (grid.t, grid.h, grid.w) and clip.latent == grid
    everything = opened(config_of(data, validation__uri=data / "held", validation__clips=100))
    assert [clip.index for clip in everything.clips] == list(range(7))


def test_clips_encoded_otherwise_are_refused(data: Path) -> None:
    write_dataset(str(data / "other"), 3)
    place = data / "other" / "dataset.json"
    info = open_dataset(str(data / "other")).info
    place.write_bytes(info_bytes(dataclasses.replace(info, space_ratio=16)))
    with pytest.raises(ConfigError, match=r"validation\.uri=.*pixels to a latent's side differs.*\(16, not 8\)"):
        opened(config_of(data, validation__uri=data / "other"))


def test_each_clip_is_counted_once_however_many_ranks_there_are(data: Path) -> None:
    config = config_of(data, data__tokens_per_pack=16, validation__clips=6)
    alone = packs_of(config)
    for dp in (1, 2, 3):
        ranks = [packs_of(config, rank, dp) for rank in range(dp)]
        packs = [list(rank.mine()) for rank in ranks]
        assert {len(mine) for mine in packs} == {ranks[0].rounds} == {-(-alone.rounds // dp)}
        counted = torch.zeros(len(alone.classes) + 1, dtype=torch.int64)
        for pack in (pack for mine in packs for pack in mine):
            counted += torch.bincount(pack.classes, minlength=len(counted))
            assert pack.batch.tokens.shape[0] == 16
        assert counted[:-1].tolist() == [tokens for _, tokens in alone.counts()]
    assert alone.rounds % 3  # so that some ranks had less to do
    assert sum(clips for clips, _ in alone.counts()) == alone.num_clips == 5  # one fits no pack


def test_packs_are_kept_where_they_are_small(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(data)
    packs = packs_of(config)
    first = list(packs.mine())
    assert all(one is two for one, two in zip(first, packs.mine(), strict=True))
    monkeypatch.setattr(held_out_packs, "_KEPT_BYTES", 100)
    packs = packs_of(config)
    for one, two in zip(packs.mine(), packs.mine(), strict=True):
        assert one is not two and torch.equal(one.batch.tokens, two.batch.tokens)


def test_clips_that_fit_no_pack(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(data, data__tokens_per_pack=8, validation__clips=6)
    packs = packs_of(config)
    assert f"{6 - packs.num_clips} of 6 held-out clips fit no pack" in caplog.text
    with pytest.raises(DataError, match=r"none of 6 held-out clips fits a pack of data\.tokens_per_pack=2"):
        packs_of(dataclasses.replace(config, data=dataclasses.replace(config.data, tokens_per_pack=2)))
