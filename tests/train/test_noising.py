"""What a step trains on belongs to (seed, sample id, visit): text dropout, noise, levels, masks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from megavideo.config.schema.train import TrainRun
from megavideo.data.dataset.dataset import LatentDataset, open_dataset
from megavideo.data.patches import unpatchify
from megavideo.data.stream.shards import LatentSample, ShardReader
from megavideo.diffusion.conditions import draw_mask, draw_task, drops_text
from megavideo.diffusion.objective import build_objective
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import range_share
from megavideo.errors import ConfigError, DataError
from megavideo.model.modulation import sinusoid
from megavideo.parallel.processes.mesh import ProcessMesh
from megavideo.testing.dataset import write_dataset
from megavideo.testing.saved_run import random_model
from megavideo.testing.settings import micro_config
from megavideo.train.given_latents import check_given_latents
from megavideo.train.packs.feed import Feed
from megavideo.train.packs.noising import TrainBatch, choose_texts
from megavideo.types import Grid, PackSegment

CONDITIONS = {
    "diffusion__conditions__text": 0.3,
    "diffusion__conditions__image_to_video": 0.4,
    "diffusion__conditions__extension": 0.2,
    "diffusion__conditions__interpolation": 0.2,
    "diffusion__conditions__inpainting": 0.4,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    folder = tmp_path_factory.mktemp("noising")
    write_dataset(str(folder), 18)
    return open_dataset(str(folder))


def make_feed(dataset: LatentDataset, dp_rank: int = 0, dp: int = 1, **settings: Any) -> Feed:
    output = f"{dataset.uri}-runs"
    config: TrainRun = micro_config(output=output, data__uri=dataset.uri, train__packs_per_step=4, **settings)
    mesh = ProcessMesh(rank=dp_rank, tp=1, ulysses=1, ring=1, dp=dp, pp=1)
    return Feed(config, dataset, ShardReader(dataset, None), build_objective(config.diffusion), mesh)


def same(one: TrainBatch, two: TrainBatch) -> bool:
    pairs = [(getattr(one.pack, field.name), getattr(two.pack, field.name)) for field in dataclasses.fields(one.pack)]
    return (
        all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)
        and torch.equal(one.target, two.target)
        and torch.equal(one.weight, two.weight)
    )


def by_visit(feed: Feed, steps: int) -> dict[tuple[str, int], tuple[torch.Tensor, ...]]:
    """All that a model is given of each visit of a sample: tokens, target, weight, mask, text, timestep."""
    found: dict[tuple[str, int], tuple[torch.Tensor, ...]] = {}
    for batch in (batch for step in range(steps) for batch in feed.step(step).batches):
        pack = batch.pack
        video, text = pack.cu_seqlens.tolist(), pack.cu_seqlens_text.tolist()
        for i, sample_id in enumerate(pack.sample_ids):
            if sample_id:
                rows, words = slice(video[i], video[i + 1]), slice(text[i], text[i + 1])
                parts = (pack.tokens[rows], batch.target[rows], batch.weight[rows], pack.condition_mask[rows])
                found[sample_id, pack.visits[i]] = (*parts, pack.text[words], pack.timestep[i])
    return found


@pytest.mark.parametrize("dp", [2, 4])
def test_ranks_take_slices_of_the_same_step(dataset: LatentDataset, dp: int) -> None:
    alone, ranks = make_feed(dataset), [make_feed(dataset, rank, dp) for rank in range(dp)]
    for step in (0, 3, 1):
        whole, parts = alone.step(step), [feed.step(step) for feed in ranks]
        assert {(part.loss_tokens, part.tokens, part.segment_tokens) for part in parts} == {
            (whole.loss_tokens, whole.tokens, whole.segment_tokens)
        }
        batches = [batch for part in parts for batch in part.batches]
        of_whole = {(batch.pack.sample_ids, batch.pack.visits): batch for batch in whole.batches}
        of_ranks = {(batch.pack.sample_ids, batch.pack.visits): batch for batch in batches}
        assert of_whole.keys() == of_ranks.keys() and len(batches) == 4
        assert all(same(of_whole[key], of_ranks[key]) for key in of_whole)


def test_a_visit_is_the_same_among_other_neighbours(dataset: LatentDataset) -> None:
    one = by_visit(make_feed(dataset, **CONDITIONS), 8)
    two = by_visit(make_feed(dataset, data__tokens_per_pack=31, data__max_segments=3, **CONDITIONS), 8)
    common = one.keys() & two.keys()
    assert len(common) > 30
    for key in common:
        assert all(torch.equal(a, b) for a, b in zip(one[key], two[key], strict=True)), key


def test_visits_seeds_and_samples_differ(dataset: LatentDataset) -> None:
    visits, other = by_visit(make_feed(dataset), 12), by_visit(make_feed(dataset, train__seed=1), 12)
    first, second = visits["sample-1", 0], visits["sample-1", 1]
    assert not torch.equal(first[1], second[1]) and first[-1] != second[-1]
    assert not torch.equal(first[1], other["sample-1", 0][1])
    times = [float(parts[-1]) for parts in visits.values()]
    assert len(set(times)) == len(times)


def test_text_dropout_is_applied_and_to_exactly_those_segments(dataset: LatentDataset) -> None:
    share = 0.3
    feed = make_feed(dataset, diffusion__text_dropout=share)
    reader, null_text = ShardReader(dataset, None), torch.from_numpy(dataset.null_text.astype("float32"))
    indices = {sample.sample_id: sample.index for sample in dataset.samples}
    visits = by_visit(feed, 60)
    dropped = 0
    for (sample_id, visit), parts in visits.items():
        drops = drops_text(share, SampleKey(0, sample_id, visit))
        dropped += drops
        assert torch.equal(parts[4], null_text if drops else reader.read(indices[sample_id]).text)
    assert len(visits) > 600
    assert dropped / len(visits) == pytest.approx(share, abs=4 * (share * (1 - share) / len(visits)) ** 0.5)


@pytest.mark.parametrize("settings", [{}, CONDITIONS], ids=["text", "conditions"])
def test_the_loss_is_averaged_over_what_is_in_it(dataset: LatentDataset, settings: dict[str, float]) -> None:
    feed = make_feed(dataset, **settings)
    for step in range(6):
        given = feed.step(step)
        assert given.loss_tokens == sum(int((batch.weight != 0).sum()) for batch in given.batches)
        assert given.tokens == sum(int(batch.pack.cu_seqlens[-1]) for batch in given.batches)
        assert (given.loss_tokens < given.tokens) == bool(settings)
        for batch in given.batches:
            assert not batch.weight[batch.pack.condition_mask].any()
            assert not batch.weight[int(batch.pack.cu_seqlens[-1]) :].any()


def test_given_tokens_stay_clean_and_the_others_are_noised(dataset: LatentDataset) -> None:
    feed = make_feed(dataset, **CONDITIONS)
    diffusion = micro_config(data__uri="x", **CONDITIONS).diffusion
    objective = build_objective(diffusion)
    grids = {s.sample_id: Grid(s.latent.t, s.latent.h // 2, s.latent.w // 2) for s in dataset.samples}
    seen = 0
    for (sample_id, visit), (tokens, target, weight, mask, _, time) in by_visit(feed, 10).items():
        key = SampleKey(0, sample_id, visit)
        assert torch.equal(mask, draw_mask(diffusion.conditions, key, grids[sample_id]))
        noise = key.normal("noise", tuple(target.shape))
        clean = noise - target  # of flow matching
        assert torch.allclose(tokens[mask], clean[mask], atol=1e-5)
        level = float(time) / 1000
        assert torch.allclose(tokens[~mask], torch.lerp(clean, noise, level)[~mask], atol=1e-4)
        assert torch.allclose(objective.clean(tokens, target, float(time))[~mask], clean[~mask], atol=1e-4)
        assert torch.equal(weight, (~mask).float())
        seen += int(mask.sum())
    assert seen > 100


WIDE = {
    "model__given_channels": 8, "diffusion__conditions__image_to_video": 1.0,
    "diffusion__conditions__interpolation": 0.7,
}  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    """The same latents, with those of what is given beside them."""
    folder = tmp_path_factory.mktemp("told")
    write_dataset(str(folder), 18, given=("image_to_video", "interpolation"))
    return open_dataset(str(folder))


def test_given_channels_tell_what_is_given_and_all_tokens_are_noised(
    dataset: LatentDataset, told: LatentDataset
) -> None:
    config = micro_config(data__uri="x", **WIDE)
    plain = make_feed(dataset, **{name: value for name, value in WIDE.items() if not name.startswith("model")})
    feed, reader = make_feed(told, **WIDE), ShardReader(told, None)
    index = {sample.sample_id: sample.index for sample in told.samples}
    seen: Counter[str] = Counter()
    for step in range(4):
        one, two = plain.step(step), feed.step(step)
        assert two.loss_tokens == two.tokens > one.loss_tokens
        for known, batch in zip(one.batches, two.batches, strict=True):
            pack, free = batch.pack, ~known.pack.condition_mask
            assert pack.given is not None and known.pack.given is None and not pack.condition_mask.any()
            assert torch.equal(pack.tokens[free], known.pack.tokens[free])
            assert not torch.isclose(pack.tokens[~free], known.pack.tokens[~free]).all(dim=1).any()
            assert bool((batch.weight > 0)[: pack.bounds[-1]].all()) and not pack.given[pack.bounds[-1] :].any()
            moved = batch.to(torch.device("cpu"), torch.bfloat16).pack.given
            assert moved is not None and moved.dtype == torch.bfloat16
            for i, name in enumerate(filter(None, pack.sample_ids)):
                grid = Grid(*pack.grid[i].tolist())
                task = draw_task(config.diffusion.conditions, SampleKey(0, name, pack.visits[i]), grid)
                found, seen[task] = pack.given[pack.bounds[i] : pack.bounds[i + 1]], seen[task] + 1
                if task == "text":
                    assert not found.any()
                    continue
                latent = unpatchify(found, grid, config.model.patch)
                assert torch.equal(latent[4:], reader.read(index[name]).given[task])
                assert latent[:4, 0].all() and not latent[:4, 1:-1].any() and not latent[:3, -1].any()
                assert bool(latent[3, -1].all()) == (task == "interpolation") == bool(latent[3, -1].any())
    assert min(seen[task] for task in ("text", "image_to_video", "interpolation")) >= 3, seen


def test_given_channels_are_the_same_on_other_ranks_and_among_other_neighbours(told: LatentDataset) -> None:
    def by_sample(feeds: list[Feed]) -> dict[tuple[str, int], torch.Tensor]:
        packs = [batch.pack for step in range(6) for feed in feeds for batch in feed.step(step).batches]
        return {
            (name, pack.visits[i]): pack.given[pack.bounds[i] : pack.bounds[i + 1]]
            for pack in packs for i, name in enumerate(pack.sample_ids) if name and pack.given is not None
        }  # fmt: skip

    whole = by_sample([make_feed(told, **WIDE)])
    for other in (
        by_sample([make_feed(told, rank, 2, **WIDE) for rank in range(2)]),
        by_sample([make_feed(told, data__tokens_per_pack=31, data__max_segments=3, **WIDE)]),
    ):
        common = whole.keys() & other.keys()
        assert len(common) > 20 and all(torch.equal(whole[key], other[key]) for key in common)


def test_an_image_embedding_tells_the_first_frame_that_is_given(tmp_path: Path, told: LatentDataset) -> None:
    write_dataset(str(tmp_path), 18, given=("image_to_video",), image_dim=12)
    dataset = open_dataset(str(tmp_path))
    wide = {**WIDE, "model__image_dim": 12, "diffusion__conditions__interpolation": 0.0}
    config, reader = micro_config(data__uri="x", **wide), ShardReader(dataset, None)
    index = {sample.sample_id: sample.index for sample in dataset.samples}
    seen: Counter[str] = Counter()
    for step in range(3):
        for batch in make_feed(dataset, **wide).step(step).batches:
            pack = batch.pack
            assert pack.image is not None and pack.image.shape == (len(pack.grid), 5, 12)
            moved = batch.to(torch.device("cpu"), torch.bfloat16).pack.image
            assert moved is not None and moved.dtype == torch.bfloat16
            for i, name in enumerate(pack.sample_ids):
                task = "text"
                if name:
                    key = SampleKey(0, name, pack.visits[i])
                    task = draw_task(config.diffusion.conditions, key, Grid(*pack.grid[i].tolist()))
                    seen[task] += 1
                expected = reader.read(index[name]).image if task == "image_to_video" else None
                assert torch.equal(pack.image[i], torch.zeros(5, 12) if expected is None else expected)
    assert min(seen["text"], seen["image_to_video"]) >= 3, seen
    check_given_latents(config, dataset, "data.uri")
    for other, what in ((told, "no embeddings"), (dataset, "embeddings of width 12")):
        width = 12 if other is told else 16
        wrong = micro_config(data__uri="x", **wide | {"model__image_dim": width})
        with pytest.raises(ConfigError, match=f"stores {what} of first frames.*model.image_dim={width}"):
            check_given_latents(wrong, other, "data.uri")
        # and one whose description says more than its shards hold
        with pytest.raises(DataError, match=r"sample sample-\d+: its shard has an image embedding of"):
            [make_feed(other, **wide | {"model__image_dim": width}).step(step) for step in range(2)]


def test_a_dataset_without_what_is_given_is_refused(dataset: LatentDataset, told: LatentDataset) -> None:
    config = micro_config(data__uri="x", **WIDE)
    check_given_latents(config, told, "data.uri")
    check_given_latents(micro_config(data__uri="x"), dataset, "data.uri")
    with pytest.raises(
        ConfigError, match=r"stores no latents of the frames that image_to_video and interpolation "
    ) as e:
        check_given_latents(config, dataset, "validation.uri")
    assert e.value.field == "validation.uri" and "given_latents=[image_to_video,interpolation]" in e.value.remedy
    # and one whose description says more than its shards hold
    with pytest.raises(DataError, match=r"sample sample-\d+: its shard has no latents of what (image|inter)"):
        [make_feed(dataset, **WIDE).step(step) for step in range(2)]


def test_levels_stay_in_the_range_and_its_share_is_told(dataset: LatentDataset) -> None:
    settings = {"diffusion__shift_by_size": "true", "diffusion__sigma_range": "[0.6,0.9]"}
    feed, halves = make_feed(dataset, **settings), [make_feed(dataset, rank, 2, **settings) for rank in range(2)]
    diffusion = micro_config(data__uri="x", **settings).diffusion
    for step in range(3):
        given = feed.step(step)
        segments = [segment for pack in feed.plan.step(step) for segment in pack]
        assert given.range_share == pytest.approx(fmean(range_share(diffusion, s.grid) for s in segments))
        assert {half.step(step).range_share for half in halves} == {given.range_share}
        times = [
            float(t) for batch in given.batches for t, name in zip(batch.pack.timestep, batch.pack.sample_ids) if name
        ]
        assert all(600 <= time <= 900 for time in times) and len(set(times)) == len(times)
    assert make_feed(dataset).step(0).range_share is None


def conditioned_batch(dataset: LatentDataset) -> TrainBatch:
    settings = dict.fromkeys(CONDITIONS, 0.0) | {"diffusion__conditions__image_to_video": 1.0}
    batches = (b for step in range(4) for b in make_feed(dataset, **settings).step(step).batches)
    return next(batch for batch in batches if batch.pack.condition_mask.any())


def test_given_tokens_inform_the_others_and_are_not_in_the_loss(dataset: LatentDataset) -> None:
    batch = conditioned_batch(dataset)
    model = random_model(micro_config(data__uri="x").model, 0).requires_grad_(False)
    given = batch.pack.condition_mask
    first = int(given.nonzero()[0])
    bounds = batch.pack.cu_seqlens.tolist()
    i = next(k for k in range(len(bounds) - 1) if bounds[k] <= first < bounds[k + 1])
    inside = torch.zeros_like(given)
    inside[bounds[i] : bounds[i + 1]] = True
    before = model(batch.pack)
    changed = batch.pack.tokens.clone()
    changed[first] += 1.0
    after = model(dataclasses.replace(batch.pack, tokens=changed))
    moved = (after - before).abs().amax(dim=1) > 0
    assert moved[inside & ~given].all()
    assert not moved[~inside].any()  # other samples of the pack are not told
    target = batch.target.clone().requires_grad_()
    ((before - target).square().mean(dim=1) * batch.weight).sum().backward()
    assert target.grad is not None
    assert not target.grad[given].any() and not target.grad[bounds[-1] :].any()
    assert (target.grad[: bounds[-1]][~given[: bounds[-1]]].abs().amax(dim=1) > 0).all()


def test_given_tokens_are_conditioned_on_timestep_zero(dataset: LatentDataset) -> None:
    batch = conditioned_batch(dataset)
    model = random_model(micro_config(data__uri="x").model, 0).requires_grad_(False)
    assert model.embed is not None
    cond = model.conditioning(model.embed(batch.pack))
    zero = model.embed.time(sinusoid(torch.zeros(1), model.config.time_dim))
    given, real = batch.pack.condition_mask, int(batch.pack.cu_seqlens[-1])
    times = cond.time[cond.rows.row]
    assert torch.allclose(times[given], zero.expand(int(given.sum()), -1), atol=1e-6)
    segment = torch.bucketize(torch.arange(real), batch.pack.cu_seqlens[1:].long(), right=True)
    own = model.embed.time(sinusoid(batch.pack.timestep, model.config.time_dim))[segment]
    noised = ~given[:real]
    assert torch.allclose(times[:real][noised], own[noised], atol=1e-5)


def test_steps_are_made_ahead_in_order_and_a_fault_comes_through(
    dataset: LatentDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = make_feed(dataset)
    assert [given.step for given in feed.steps(3, 8, depth=2)] == [3, 4, 5, 6, 7]
    half = feed.steps(0, 100, depth=1)
    next(half)
    half.close()  # stops the thread
    read = feed._reader.read

    def fail_once(index: int, sample_id: str) -> LatentSample:
        if index == 7:
            raise DataError("shard gone")
        return read(index, sample_id)

    monkeypatch.setattr(feed._reader, "read", fail_once)
    with pytest.raises(DataError, match="shard gone"):
        list(feed.steps(0, 9, depth=2))


def test_captions_are_drawn_by_weight() -> None:
    texts = (torch.full((3, 4), 1.0), torch.full((1, 4), 2.0))
    several = LatentSample(torch.zeros(1, 1, 2, 2), texts[0], 8.0, texts, (3.0, 1.0))
    one = LatentSample(torch.zeros(1, 1, 2, 2), texts[1], 8.0)
    segments = [PackSegment(0, "one", visit, Grid(1, 1, 1), 3) for visit in range(400)]
    chosen = choose_texts(segments, [several] * 400, 7)
    long = sum(sample.text is texts[0] for sample in chosen)
    assert 260 < long < 340
    assert all(sample.text is texts[0] or sample.text is texts[1] for sample in chosen)
    assert [len(s.text) for s in choose_texts(segments, [several] * 400, 7)] == [len(s.text) for s in chosen]
    assert choose_texts(segments[:1], [one], 7) == [one]
