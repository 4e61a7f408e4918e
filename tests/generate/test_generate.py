"""Sampling from a run folder: independence of prompts, guidance, sizes, schedulers, weights and seeds."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from megavideo.checkpoint.manifest import read_manifest
from megavideo.checkpoint.read import CheckpointReader
from megavideo.config.load import load
from megavideo.config.schema.sample import SampleRun
from megavideo.config.schema.train import TrainRun
from megavideo.diffusion.randomness import SampleKey
from megavideo.diffusion.timesteps import apply_shift
from megavideo.errors import CheckpointError, ConfigError, DataError
from megavideo.generate.loaded_run import LoadedRun, load_run
from megavideo.generate.rates import RunRates, played_fps
from megavideo.generate.run import output_files, sample, sample_videos
from megavideo.generate.sampler import Guidance, Predictor, Prompt, sample_latents
from megavideo.generate.schedulers import build_scheduler
from megavideo.generate.sizes import covering_latent
from megavideo.testing.saved_run import write_run
from megavideo.testing.settings import micro_config
from megavideo.types import Grid

PROMPTS = ["a red shape", "a blue shape, moving", "a green shape"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> TrainRun:
    config = micro_config(name="flow", output=tmp_path_factory.mktemp("runs"), data__uri="gone", optim__ema_decay=0.9)
    write_run(config)
    return config


@pytest.fixture(scope="module")
def run(flow: TrainRun) -> LoadedRun:
    return opened(flow)


def opened(config: TrainRun, weights: str = "ema", dtype: torch.dtype = torch.float32) -> LoadedRun:
    return load_run(Path(config.output) / config.name, weights=weights, dtype=dtype, device=CPU)


def settings(**given: Any) -> SampleRun:
    base: dict[str, Any] = {"ckpt": "run", "out": "a.mp4", "steps": 4, "frames": 5, "height": 16, "width": 32}
    return SampleRun(**base | given)


def videos(run: LoadedRun, prompts: list[str] = PROMPTS[:1], negative: str = "", first: int = 0, **given: Any) -> Any:
    return np.stack(sample_videos(run, settings(**given), prompts, negative, first=first)).astype(int)


def differs(one: np.ndarray, two: np.ndarray) -> bool:
    return float(np.abs(one - two).mean()) > 0.5


def test_a_prompt_does_not_depend_on_the_others(run: LoadedRun) -> None:
    together = videos(run, PROMPTS)
    for place, prompt in enumerate(PROMPTS):
        alone = videos(run, [prompt], first=place)
        assert np.abs(together[place] - alone[0]).max() <= 1  # of 255
    assert differs(together[0], together[1])
    others = videos(run, [PROMPTS[0], "something else, of more words", "and more"])
    assert np.abs(together[0] - others[0]).max() <= 1


def test_guidance(run: LoadedRun) -> None:
    results = {scale: videos(run, guidance=scale) for scale in (0.0, 0.5, 1.0, 5.0)}
    for one, two in ((0.0, 0.5), (0.5, 1.0), (1.0, 5.0)):
        assert differs(results[one], results[two])
    # 0 is the negative prompt alone, 1 the prompt alone
    assert np.abs(results[0.0] - videos(run, [""], guidance=1.0)).max() <= 1
    assert np.array_equal(results[1.0], videos(run, negative="a blue shape", guidance=1.0))
    assert np.abs(videos(run, [""], guidance=7.0) - videos(run, [""], guidance=1.0)).max() <= 1


def test_guidance_goes_from_the_negative_prompt_through_the_prompt(run: LoadedRun) -> None:
    text, negative = run.encoders.text_encoder.encode(["a red shape", "a blue shape"])
    results = {}
    for scale in (0.0, 1.0, 4.0):
        scheduler = build_scheduler("euler", run.config.diffusion, None)
        scheduler.set_timesteps(1)  # one step is linear in the prediction
        prompt, guidance = Prompt(text, SampleKey(0, "a", 0)), Guidance(scale, negative)
        model = Predictor.of(run.model)
        (results[scale],) = sample_latents(model, scheduler, [prompt], guidance, Grid(2, 1, 2), (1, 2, 2), 8.0)
    assert (results[1.0] - results[0.0]).abs().max() > 1e-2
    expected = results[0.0] + 4.0 * (results[1.0] - results[0.0])  # Ho and Salimans 2022
    assert torch.allclose(results[4.0], expected, atol=1e-4)


def test_the_negative_prompt_matters(run: LoadedRun) -> None:
    assert differs(videos(run, guidance=5.0), videos(run, negative="a blue shape", guidance=5.0))


def test_seeds_reproduce(run: LoadedRun) -> None:
    assert np.array_equal(videos(run, seed=3), videos(run, seed=3))
    assert differs(videos(run, seed=3), videos(run, seed=4))
    both = videos(run, [PROMPTS[0]] * 2)
    assert differs(both[0], both[1])  # two places, two samples


def test_weights(flow: TrainRun, run: LoadedRun) -> None:
    assert differs(videos(run), videos(opened(flow, "raw")))
    assert np.abs(videos(opened(flow, dtype=torch.bfloat16)) - videos(run)).mean() < 8


def test_weights_are_read_one_by_one(flow: TrainRun, monkeypatch: pytest.MonkeyPatch) -> None:
    value, given = CheckpointReader.value, list[weakref.ref[torch.Tensor]]()

    def watched(self: CheckpointReader, *which: Any) -> torch.Tensor:
        assert all(one() is None for one in given)
        given.append(weakref.ref(found := value(self, *which)))
        return found

    monkeypatch.setattr(CheckpointReader, "value", watched)
    model = opened(flow, dtype=torch.bfloat16).model
    assert len(given) == len(list(model.parameters())) and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("layers", "message"), [(1, r"has no parameter 'blocks\.1\."), (3, r"parameter 'blocks\.2\.")])
def test_a_model_of_other_size_is_refused(tmp_path: Path, layers: int, message: str) -> None:
    config = micro_config(output=tmp_path, data__uri="gone", model__layers=2)
    (path,) = write_run(config).glob("checkpoints/*/manifest.json")
    manifest = read_manifest(path.parent)
    assert "layers: 2\n" in manifest.config
    other = manifest.config.replace("layers: 2\n", f"layers: {layers}\n")
    path.write_text(dataclasses.replace(manifest, config=other).to_json())
    with pytest.raises(CheckpointError, match=message):
        opened(config)


@pytest.mark.parametrize("scheduler", ["euler", "unipc", "dpm"])
def test_flow_schedulers_agree_with_many_steps(run: LoadedRun, scheduler: str) -> None:
    fine = videos(run, steps=200, guidance=1.0)
    result = videos(run, scheduler=scheduler, steps=40, guidance=1.0)
    assert np.abs(result - fine).mean() < 4
    assert differs(videos(run, scheduler=scheduler), videos(run, scheduler=scheduler, shift=5.0))


DDPM = [("epsilon", False, ("ddim", "unipc", "dpm")), ("v", False, ("ddim", "unipc", "dpm")), ("v", True, ("ddim",))]


@pytest.mark.parametrize(("prediction", "zero_terminal", "legal"), DDPM)
def test_ddpm_schedulers(tmp_path: Path, prediction: str, zero_terminal: bool, legal: tuple[str, ...]) -> None:
    config = micro_config(
        output=tmp_path,
        data__uri="gone",
        diffusion="ddpm",
        diffusion__prediction=prediction,
        diffusion__zero_terminal_snr=str(zero_terminal).lower(),
    )
    write_run(config)
    run = opened(config)
    for scheduler in ("euler", "unipc", "dpm", "ddim"):
        if scheduler in legal:
            assert videos(run, scheduler=scheduler, steps=6).std() > 1
            continue
        with pytest.raises(ConfigError, match=f"scheduler='{scheduler}'.*take one of {', '.join(legal)}"):
            videos(run, scheduler=scheduler)
    with pytest.raises(ConfigError, match=r"shift=3\.0: has no effect"):
        videos(run, scheduler=legal[-1], shift=3.0)


def test_flow_takes_no_ddim(run: LoadedRun) -> None:
    with pytest.raises(ConfigError, match=r"scheduler='ddim'.*take one of euler, unipc, dpm"):
        videos(run, scheduler="ddim")


def test_the_runs_own_shift_is_taken(run: LoadedRun) -> None:
    shifted = dataclasses.replace(run.config.diffusion, shift=3.0)
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, diffusion=shifted))
    assert np.array_equal(videos(other), videos(run, shift=3.0))
    assert np.array_equal(videos(other, shift=1.0), videos(run))


def test_a_shift_by_size_is_taken_too(run: LoadedRun) -> None:
    by_size = dataclasses.replace(run.config.diffusion, shift_by_size=True)
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, diffusion=by_size))
    # two latent frames of 1 x 2 tokens: below 256 tokens a frame, so that only the frames count
    assert np.array_equal(videos(other), videos(run, shift=2**0.5))


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (2, 17, 30), (7, 18, 50), (5, 1, 1), (6, 33, 16)])
def test_any_size_is_written_exactly(flow: TrainRun, tmp_path: Path, frames: int, height: int, width: int) -> None:
    place = {"ckpt": f"{flow.output}/flow", "out": str(tmp_path / "deep" / "a.mp4")}
    cfg = settings(**place, frames=frames, height=height, width=width, steps=2)
    report = sample(cfg, PROMPTS[:1], "")
    assert report.files == (cfg.out,) and report.step == 5 and report.weights == "ema"
    with av.open(cfg.out) as container:
        stream = container.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert float(stream.average_rate) == 8.0
    assert np.stack(decoded).shape == (frames, height, width, 3)
    assert Image.open(report.contact_sheet).size[0] > 0


@pytest.mark.parametrize(
    ("kind", "asked", "dtype"),
    [("cuda", None, torch.bfloat16), ("cuda", "bf16", torch.bfloat16), ("cpu", None, torch.float32),
     ("cpu", "bf16", torch.bfloat16)],
)  # fmt: skip
def test_precision_is_that_of_the_device_unless_it_is_said(
    kind: str, asked: str | None, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened_as(folder: Path, **options: Any) -> None:
        assert (options["dtype"], options["device"]) == (dtype, torch.device(kind))
        raise CheckpointError("opened")

    monkeypatch.setattr("megavideo.generate.run.compute_device", lambda: torch.device(kind))
    monkeypatch.setattr("megavideo.generate.run.load_run", opened_as)
    with pytest.raises(CheckpointError, match="opened"):
        sample(settings(out=str(tmp_path / "a.mp4"), precision=asked), PROMPTS[:1], "")


def test_several_prompts_go_to_a_folder(flow: TrainRun, tmp_path: Path) -> None:
    place = {"ckpt": f"{flow.output}/flow/checkpoints", "out": str(tmp_path / "out")}
    cfg = settings(**place, prompts_per_batch=2, steps=2)
    report = sample(cfg, PROMPTS, "")
    assert [Path(path).name for path in report.files] == [
        "000_a-red-shape.mp4",
        "001_a-blue-shape-moving.mp4",
        "002_a-green-shape.mp4",
    ]
    assert all(Path(path).stat().st_size > 0 for path in (*report.files, report.contact_sheet))
    with av.open(report.files[2]) as container:
        assert float(container.streams.video[0].average_rate) == 8.0


def test_the_rate_is_told_to_a_model_that_knows_rates(tmp_path: Path) -> None:
    config = micro_config(output=tmp_path, data__uri="gone", model__fps_conditioning="true")
    write_run(config)
    run = opened(config)
    assert differs(videos(run, fps=8.0), videos(run, fps=60.0))
    assert np.array_equal(videos(run, fps=8.0), videos(run))  # as most of its clips
    assert np.array_equal(videos(run, frames=1), videos(run, frames=1, fps=1.0))  # as images
    report = sample(settings(ckpt=f"{tmp_path}/{config.name}", out=str(tmp_path / "a.mp4"), fps=60.0), PROMPTS[:1], "")
    with av.open(report.files[0]) as container:
        assert float(container.streams.video[0].average_rate) == 60.0


@pytest.mark.parametrize(("frames", "fps", "is_warned"), [(5, 30.0, True), (5, 7.0, True), (5, 23.976, False),
                                                          (5, 24.1, False), (1, 30.0, False)])  # fmt: skip
def test_a_rate_that_training_never_told_is_warned_of(
    frames: int, fps: float, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    latent = Grid(1 + (frames - 1) // 4, 4, 4)
    assert played_fps(fps, RunRates(16.0, 8.0, 24.0), latent, is_told=True) == fps
    assert (f"fps={fps:g} is not among the rates" in caplog.text) is is_warned
    assert ("8 to 24 frames a second" in caplog.text) is is_warned
    caplog.clear()
    played_fps(fps, RunRates(16.0), latent, is_told=True)  # a run that does not know its range
    assert caplog.text == ""


def test_another_rate_is_refused_by_a_model_that_knows_none(flow: TrainRun, tmp_path: Path) -> None:
    place = {"ckpt": f"{flow.output}/flow", "out": str(tmp_path / "a.mp4")}
    rule = r"fps=60\.0: .*model\.fps_conditioning=false.*8 frames a second\. Remedy: leave"
    with pytest.raises(ConfigError, match=rule):
        sample(settings(**place, fps=60.0), PROMPTS[:1], "")
    assert not (tmp_path / "a.mp4").exists()
    assert sample(settings(**place, fps=8.01), PROMPTS[:1], "").files


@pytest.mark.parametrize(
    ("name", "knows"), [("small", True), ("dit_5b", True), ("dit_30b", True), ("wan_1b", False), ("wan_14b", False)]
)
def test_presets_of_our_own_know_rates_and_those_of_wan_do_not(name: str, knows: bool) -> None:
    assert load(TrainRun, "train", [f"run={name}", "data.uri=data"]).model.fps_conditioning is knows


@pytest.mark.parametrize(("shift", "lowest"), [(None, 0.001), (5.0, 0.0049801), (15.75, 0.0155223)])
def test_every_level_of_euler_is_shifted_once(run: LoadedRun, shift: float | None, lowest: float) -> None:
    scheduler = build_scheduler("euler", run.config.diffusion, shift)
    scheduler.set_timesteps(30)
    even = np.linspace(1.0, 0.001, 30)
    expected = [apply_shift(level, shift or 1.0) for level in even.tolist()]
    assert np.allclose(scheduler.sigmas.numpy(), [*expected, 0.0], atol=1e-6)
    assert float(scheduler.timesteps[-1]) / 1000 == pytest.approx(lowest, rel=1e-4)


def test_texts_are_those_that_training_saw(run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets hold float16."""
    seen: list[torch.Tensor] = []

    def watched(model: Any, scheduler: Any, prompts: Any, guidance: Guidance, *rest: Any) -> Any:
        seen.extend([*(prompt.text for prompt in prompts), guidance.negative])
        return sample_latents(model, scheduler, prompts, guidance, *rest)

    monkeypatch.setattr("megavideo.generate.run.sample_latents", watched)
    videos(run, PROMPTS[:2])
    plain = run.encoders.text_encoder.encode([*PROMPTS[:2], ""])
    for text, exact in zip(seen, plain, strict=True):
        assert text.dtype == torch.float32 and torch.equal(text, exact.half().float())
    assert any(not torch.equal(text, exact) for text, exact in zip(seen, plain, strict=True))


def test_places_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.mp4"):
        output_files(settings(out="folder"), ["one"])
    with pytest.raises(ConfigError, match="give a folder's name"):
        output_files(settings(out="a.mp4"), ["one", "two"])
    files, sheet = output_files(settings(out="samples/v0.1"), ["one. two ", "一个红球"])
    assert [str(path) for path in (*files, sheet)] == [
        "samples/v0.1/000_one-two.mp4", "samples/v0.1/001.mp4", "samples/v0.1/contact_sheet.png"
    ]  # fmt: skip


def test_what_is_sampled_is_written_before_more_is(flow: TrainRun, tmp_path: Path) -> None:
    cfg = settings(ckpt=f"{flow.output}/flow", out=str(tmp_path / "out"), prompts_per_batch=1, steps=2)
    (tmp_path / "out" / "001_a-blue-shape-moving.mp4").mkdir(parents=True)  # no file can take its place
    with pytest.raises(DataError, match="001_a-blue"):
        sample(cfg, PROMPTS, "")
    assert (tmp_path / "out" / "000_a-red-shape.mp4").is_file()


def test_sizes() -> None:
    assert covering_latent((1, 16, 16), 4, 8, (1, 2, 2)) == Grid(1, 2, 2)
    assert covering_latent((2, 17, 33), 4, 8, (1, 2, 2)) == Grid(2, 4, 6)
    assert covering_latent((5, 16, 16), 4, 8, (1, 2, 2)) == Grid(2, 2, 2)
    assert covering_latent((6, 16, 16), 4, 8, (2, 2, 2)) == Grid(4, 2, 2)


def test_runs_that_cannot_be_opened(flow: TrainRun, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        sample(settings(ckpt=str(tmp_path / "gone")), PROMPTS[:1], "")
    config = micro_config(name="bare", output=tmp_path, data__uri="gone")
    (write_run(config) / "sampling.json").unlink()
    with pytest.raises(CheckpointError, match=r"sampling\.json: cannot be read"):
        opened(config)
