"""Same weights in, same numbers out: the reference test against diffusers' WanTransformer3DModel."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel

from megavideo.config.schema.model import ModelConfig
from megavideo.data.patches import patchify
from megavideo.interop.weights import from_wan, to_wan, wan_config
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.types import Grid
from tests.model.packs import make_pack

CONFIG = ModelConfig(layers=3, width=96, ffn=200, heads=4, latent_channels=16, text_dim=32, time_dim=64)
# latent sizes: a clip, a wide clip, a one-frame video and a single square image
SHAPES = [Grid(5, 8, 6), Grid(3, 4, 12), Grid(1, 10, 6), Grid(1, 8, 8)]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample's inputs and the weight that its outputs have in the loss."""

    latent: torch.Tensor
    text: torch.Tensor
    timestep: float
    weight: torch.Tensor


def make_samples(dtype: torch.dtype = torch.float32) -> list[Sample]:
    """One sample of each shape."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return [
        Sample(normal(16, g.t, g.h, g.w), normal(4 + 3 * i, 32), 37.0 + 230.5 * i, normal(16, g.t, g.h, g.w))
        for i, g in enumerate(SHAPES)
    ]


def make_models(config: ModelConfig = CONFIG) -> tuple[WanTransformer3DModel, DiT]:
    """The reference with every parameter random, norms and tables included, and ours with its weights."""
    torch.manual_seed(0)
    reference = WanTransformer3DModel(**wan_config(config))
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.15)
    ours = DiT(config, LocalLayers())
    ours.load_state_dict(from_wan(reference.state_dict(), config))
    return reference, ours


def pack_of(samples: list[Sample], **sizes: int):
    """The samples in one pack."""
    grids = [Grid(s.latent.shape[1], s.latent.shape[2] // 2, s.latent.shape[3] // 2) for s in samples]
    tokens = [patchify(s.latent, CONFIG.patch) for s in samples]
    return make_pack(grids, [s.text for s in samples], tokens, [s.timestep for s in samples], **sizes)


def reference_output(
    reference: WanTransformer3DModel, sample: Sample, image: torch.Tensor | None = None
) -> torch.Tensor:
    """Tokens [N, P] of the reference's output."""
    timestep, image = torch.tensor([sample.timestep]), None if image is None else image[None]
    out = reference(sample.latent[None], timestep, sample.text[None], image, return_dict=False)[0]
    return patchify(out[0], CONFIG.patch)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def compare_gradients(reference: WanTransformer3DModel, ours: DiT) -> float:
    """Largest relative difference over all parameters, in the reference's names."""
    gradients = to_wan({name: p.grad for name, p in ours.named_parameters()}, ours.config)
    theirs = {name: p.grad for name, p in reference.named_parameters()}
    assert gradients.keys() == theirs.keys()
    largest = max(float(g.norm()) for g in theirs.values())
    # a key's bias has no effect on a softmax: its gradient is pure rounding, measured against the largest one
    errors = []
    for name, expected in theirs.items():
        matters = float(expected.norm()) > 1e-6 * largest
        errors.append(relative(gradients[name], expected) if matters else float(gradients[name].norm()) / largest)
    return max(errors)


@pytest.mark.parametrize("which", range(len(SHAPES)))
def test_alone(which: int) -> None:
    """Each shape alone: outputs within 1e-5, gradients within 1e-4 relative."""
    reference, ours = make_models()
    sample = make_samples()[which]
    expected = reference_output(reference, sample)
    actual = ours(pack_of([sample]))
    assert float((expected - actual).detach().abs().max()) < 1e-5
    weight = patchify(sample.weight, CONFIG.patch)
    (expected * weight).sum().backward()
    (actual * weight).sum().backward()
    assert compare_gradients(reference, ours) < 1e-4


def test_pack_equals_each_alone() -> None:
    """A padded pack of all shapes gives the outputs and the summed gradients that the reference gives one by one."""
    reference, ours = make_models()
    samples = make_samples()
    expected = [reference_output(reference, s) for s in samples]
    num_real = sum(e.shape[0] for e in expected)
    actual = ours(pack_of(samples, num_tokens=num_real + 19, num_segments=7, text_tokens=64))
    assert actual.shape[0] == num_real + 19
    weight = torch.cat([patchify(s.weight, CONFIG.patch) for s in samples])
    reference_all = torch.cat(expected)
    assert float((reference_all - actual[:num_real]).detach().abs().max()) < 1e-5
    (reference_all * weight).sum().backward()
    (actual[:num_real] * weight).sum().backward()
    assert compare_gradients(reference, ours) < 1e-4


def test_given_channels() -> None:
    """36 input channels and 16 output channels, as image-to-video models of Wan have: 16 noised, 4 of a mask, 16 clean.

    Outputs within 1e-5 for all samples in a pack, gradients of the patch embedding within 1e-4 relative.
    """
    config = dataclasses.replace(CONFIG, given_channels=20)
    torch.manual_seed(0)
    reference = WanTransformer3DModel(**wan_config(CONFIG) | {"in_channels": 36, "out_channels": 16})
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.15)
    ours = DiT(config, LocalLayers())
    ours.load_state_dict(from_wan(reference.state_dict(), config))
    assert ours.embed is not None and ours.embed.patch.weight.shape == (96, 4 * 36)
    samples, given = make_samples(), []
    for sample in samples:
        condition = torch.zeros(20, *sample.latent.shape[1:])  # as WanImageToVideoPipeline lays them out
        condition[:4, 0] = 1.0
        condition[4:, 0] = sample.weight[:, 0]
        given.append(condition)
    whole = [dataclasses.replace(s, latent=torch.cat([s.latent, g])) for s, g in zip(samples, given, strict=True)]
    expected = torch.cat([reference_output(reference, sample) for sample in whole])
    pack = dataclasses.replace(pack_of(samples), given=torch.cat([patchify(g, CONFIG.patch) for g in given]))
    actual = ours(pack)
    worst = float((expected - actual).detach().abs().max())
    print(f"36 input channels: largest difference {worst:.1e}")
    assert worst < 1e-5
    weight = torch.cat([patchify(s.weight, CONFIG.patch) for s in samples])
    (expected * weight).sum().backward()
    (actual * weight).sum().backward()
    theirs = reference.patch_embedding.weight.grad.permute(0, 2, 3, 4, 1).flatten(1)
    assert relative(ours.embed.patch.weight.grad, theirs) < 1e-4


def test_given_channels_and_an_image_embedding() -> None:
    """As Wan 2.1's image-to-video models: the embedding of an image [I, E] beside 512 rows of text.

    Outputs within 1e-5 for all samples in a pack with an unused segment, all gradients within 1e-4 relative.
    """
    config = dataclasses.replace(CONFIG, given_channels=20, image_dim=40)
    reference, ours = make_models(config)
    samples = [dataclasses.replace(s, text=F.pad(s.text, (0, 0, 0, 512 - len(s.text)))) for s in make_samples()]
    generator = torch.Generator().manual_seed(4)
    given = [torch.randn(20, *s.latent.shape[1:], generator=generator) for s in samples]
    images = torch.randn(len(samples), 257, 40, generator=generator)
    whole = [dataclasses.replace(s, latent=torch.cat([s.latent, g])) for s, g in zip(samples, given, strict=True)]
    expected = [reference_output(reference, sample, image) for sample, image in zip(whole, images, strict=True)]
    pack = pack_of(samples, num_segments=len(samples) + 1)
    channels = torch.cat([patchify(g, CONFIG.patch) for g in given])
    pack = dataclasses.replace(pack, given=channels, image=F.pad(images, (0, 0, 0, 0, 0, 1), value=30.0))
    actual = ours(pack)
    worst = float((torch.cat(expected) - actual).detach().abs().max())
    print(f"image embedding: largest difference {worst:.1e}")
    assert worst < 1e-5
    weight = torch.cat([patchify(s.weight, CONFIG.patch) for s in samples])
    (torch.cat(expected) * weight).sum().backward()
    (actual * weight).sum().backward()
    assert compare_gradients(reference, ours) < 1e-4
    # of the image of its own segment alone
    lengths = [len(part) for part in expected]
    with torch.no_grad():
        others = ours(dataclasses.replace(pack, image=pack.image.roll(1, 0))).split(lengths)
    for part, other in zip(actual.detach().split(lengths), others, strict=True):
        assert float((part - other).abs().max()) > 1e-3


def test_names_round_trip() -> None:
    """Ours to diffusers and back is the identity, and diffusers accepts the result strictly."""
    reference, ours = make_models()
    exported = to_wan(ours.state_dict(), CONFIG)
    reference.load_state_dict(exported, strict=True)
    again = from_wan(exported, CONFIG)
    assert all(torch.equal(again[name], value) for name, value in ours.state_dict().items())
