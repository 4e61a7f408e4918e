"""The loss, the adversary, the model and the corpus, each by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megavideo.autoencoder.corpus import BatchReader, Draw, open_corpus
from megavideo.autoencoder.discriminator import PatchDiscriminator, discriminator_hinge, generator_hinge
from megavideo.autoencoder.features import PerceptualDistance
from megavideo.autoencoder.held_out import hold_out
from megavideo.autoencoder.loss import adversarial_weight, kl_divergence, loss_terms, total
from megavideo.autoencoder.model import Reconstruction, build_model
from megavideo.config.schema.vae import VaeDataConfig, VaeLossConfig, VaeModelConfig
from megavideo.data.clips.resize import FrameSize, FrameWindow
from megavideo.data.ingest import ClipRow
from megavideo.diffusion.randomness import SampleKey
from megavideo.encoders.encode.clips import PlannedClip
from megavideo.errors import ConfigError
from tests.autoencoder.settings import tiny_run

SHAPES = VaeDataConfig(size=32, frames=5, clips=4, images=2, held_out=3)


def test_kl_by_its_formula() -> None:
    mean, log_variance = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])
    prior = torch.distributions.Normal(0.0, 1.0)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, prior).mean(1)
    assert torch.allclose(kl_divergence(mean, log_variance), expected)


def test_every_sample_counts_the_same() -> None:
    def batch(count: int, frames: int, error: float) -> tuple[Reconstruction, torch.Tensor]:
        video = torch.zeros(count, 3, frames, 16, 16)
        latent = torch.zeros(count, 2, 1, 2, 2)
        return Reconstruction(video + error, latent, latent), video

    pairs = [batch(1, 9, 0.1), batch(3, 1, 0.5)]
    keys = [[SampleKey(0, str(place), 0) for place in range(count)] for count in (1, 3)]
    config = VaeLossConfig(l1=1.0, l2=2.0, kl=1.0)
    terms = loss_terms(config, [p[0] for p in pairs], [p[1] for p in pairs], keys, PerceptualDistance(None))
    expected = ((0.1 + 2 * 0.01) + 3 * (0.5 + 2 * 0.25)) / 4
    assert float(terms.reconstruction) == pytest.approx(expected, rel=1e-5)
    assert terms.perceptual is None and float(terms.kl) == 0.0
    assert float(total(config, terms)) == pytest.approx(expected, rel=1e-5)


def test_adversary_starts_late_and_softly() -> None:
    config = VaeLossConfig(adversarial=0.5, adversarial_start=10, disc_width=8, disc_lr=1e-4)
    assert adversarial_weight(config, 9) == 0.0
    assert 0 < adversarial_weight(config, 10) < 0.01
    assert adversarial_weight(config, 1000) == 0.5
    assert adversarial_weight(VaeLossConfig(), 1000) == 0.0


def test_discriminator_learns_to_tell() -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator(8)
    optimizer = torch.optim.Adam(critic.parameters(), 2e-3)
    real, fake = torch.rand(2, 3, 5, 32, 32), torch.rand(2, 3, 5, 32, 32) * 0.5
    stills = real[:, :, :1], fake[:, :, :1]
    for _ in range(12):
        loss = discriminator_hinge(critic([real, stills[0]]), critic([fake, stills[1]]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7
    assert generator_hinge(critic([real])).item() < generator_hinge(critic([fake])).item()


def test_new_model_is_wan_by_diffusers() -> None:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    config = tiny_run(Path("runs")).model
    model = build_model(config)
    assert isinstance(model.model, AutoencoderKLWan)
    assert (model.time_ratio, model.space_ratio, model.latent_channels) == (4, 8, 4)
    video = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    noise = torch.randn(2, *model.latent_shape(video[0]))
    found = model([video], [noise])[0]
    latent = model.model.encode(video).latent_dist
    assert torch.allclose(found.mean, latent.mean, atol=1e-5)
    assert torch.allclose(found.log_variance, latent.logvar, atol=1e-5)
    assert found.log_variance.mean() < -5  # narrow at the start
    expected = model.model.decode(found.mean + (0.5 * found.log_variance).exp() * noise).sample
    assert torch.allclose(found.video.clamp(-1, 1), expected, atol=1e-4)


def test_shapes_are_a_function_of_seed_and_step() -> None:
    corpus = open_corpus(SHAPES, 3, 4, 8)
    draw = Draw("clips", 7, 1)
    first = corpus.read(draw, 5)
    assert first.shape == (5, 32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, open_corpus(SHAPES, 3, 4, 8).read(draw, 5))
    others = [corpus.read(Draw("clips", 8, 1), 5), corpus.read(Draw("clips", 7, 0), 5)]
    assert not any(np.array_equal(first, other) for other in others)
    held_out = list(corpus.held_out())
    assert len(held_out) == 3
    assert all(clip.video.shape[2:] == (64, 64) and clip.video.shape[1] % 4 == 1 for clip in held_out)


def test_ranks_share_a_step() -> None:
    corpus = open_corpus(SHAPES, 0, 4, 8)

    def batches(rank: int, ranks: int) -> list[tuple[torch.Tensor, ...]]:
        reader = BatchReader(corpus, SHAPES, 0, rank, ranks)
        with reader.steps(2, 5) as steps:
            return [batch.videos for batch in steps]

    whole, halves = batches(0, 1), [batches(rank, 2) for rank in range(2)]
    assert len(whole) == 3
    for step, videos in enumerate(whole):
        for kind, video in enumerate(videos):
            assert torch.equal(video, torch.cat([half[step][kind] for half in halves]))
    with pytest.raises(ConfigError, match=r"data\.clips.*3 processes"):
        BatchReader(corpus, SHAPES, 0, 0, 3)


@pytest.mark.parametrize(
    ("words", "field", "message"),
    [
        (["model.path=x"], "model.latent_channels", "no effect with model.path"),
        (["model.width=null"], "model.width", "a new autoencoder needs it"),
        (["model.halve_time=[true]"], "model.halve_time", "one entry less"),
        (["model.halve_time=[true,false]"], "model.halve_time", "twice"),
        (["model.width_factors=[1,2,4]"], "model.width_factors", "last two"),
        (["data.size=36"], "data.size", "divide by 8"),
        (["data.frames=6"], "data.frames", "1 \\+ 4n"),
        (["data.area=9000"], "data.area", "no effect without data.src"),
        (["data.src=clips"], "data.area", "data.src needs it"),
        (["data.src=clips", "data.area=300"], "data.area", "must hold a square"),
        (["data.size=96"], "data.size", "at most 64"),
        (["data.clips=0", "data.images=0"], "data.clips", "clips or images"),
        (["loss.l1=0", "loss.l2=0"], "loss.l1", "must count"),
        (["loss.adversarial=0.1"], "loss.adversarial_start", "needs it"),
        (["loss.disc_width=8"], "loss.disc_width", "no effect"),
        (["loss.perceptual=0"], "loss.perceptual_frames", "no effect"),
        (["train.steps=0"], "train.steps", "has to be trained"),
        (["optim.warmup_steps=4"], "optim.warmup_steps", "train.steps=4"),
    ],
)
def test_rules(words: list[str], field: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tiny_run(Path("runs"), *words)
    assert caught.value.field == field


def test_a_model_must_fit_the_data(tmp_path: Path) -> None:
    assert VaeModelConfig().path is None
    with pytest.raises(ConfigError, match=r"must be < train\.steps"):
        tiny_run(tmp_path, "loss.adversarial=0.1", "loss.adversarial_start=4", "loss.disc_width=8", "loss.disc_lr=1e-4")


def _clips_of(files: dict[str, int], frames: int = 9) -> list[PlannedClip]:
    """So many clips of each file."""
    return [
        PlannedClip(
            ClipRow(
                frames, 8.0, 64, 64, 1.0, False, clip_id=f"{file}#{number}", file=file, caption="a film",
                start=number * frames,
            ),
            Path(file), FrameWindow(0, frames), FrameSize(64, 64, (0, 0, 64, 64)),
        )
        for file, count in files.items()
        for number in range(count)
    ]  # fmt: skip


def test_held_out_clips_share_no_film_with_trained_ones() -> None:
    clips = _clips_of({"a.mp4": 5, "b.mp4": 1, "c.mp4": 3, "d.mp4": 2})
    held_out, trained = hold_out(clips, clips, 2)
    films = {clip.row.file for clip in held_out}
    assert len(held_out) == len(films) == 2
    assert [clip for clip in clips if clip.row.file not in films] == trained
    # further films leave most of those held out where they were
    later, _ = hold_out([*clips, *_clips_of({"e.mp4": 1})], [*clips, *_clips_of({"e.mp4": 1})], 2)
    assert {clip.row.file for clip in later} & films


def test_one_film_is_divided_by_its_clips(caplog: pytest.LogCaptureFixture) -> None:
    clips = _clips_of({"a.mp4": 6})
    held_out, trained = hold_out(clips, clips, 2)
    assert len(held_out) == 2 and len(trained) == 4 and not set(map(_id, held_out)) & set(map(_id, trained))
    assert "share their files" in caplog.text


def _id(clip: PlannedClip) -> str:
    return clip.row.clip_id
