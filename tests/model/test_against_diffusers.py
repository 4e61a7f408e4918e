"""Same weights in, same numbers out: the reference test against diffusers' WanTransformer3DModel."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import WanTransformer3DModel

from megavideo.config.schema.model import ModelConfig
from megavideo.data.patches import patchify
from megavideo.errors import ConfigError
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


def make_models() -> tuple[WanTransformer3DModel, DiT]:
    """The reference with every parameter random, norms and tables included, and ours with its weights."""
    torch.manual_seed(0)
    reference = WanTransformer3DModel(**wan_config(CONFIG))
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.15)
    ours = DiT(CONFIG, LocalLayers())
    ours.load_state_dict(from_wan(reference.state_dict(), CONFIG))
    return reference, ours


def pack_of(samples: list[Sample], **sizes: int):
    """The samples in one pack."""
    grids = [Grid(s.latent.shape[1], s.latent.shape[2] // 2, s.latent.shape[3] // 2) for s in samples]
    tokens = [patchify(s.latent, CONFIG.patch) for s in samples]
    return make_pack(grids, [s.text for s in samples], tokens, [s.timestep for s in samples], **sizes)


def reference_output(reference: WanTransformer3DModel, sample: Sample) -> torch.Tensor:
    """Tokens [N, P] of the reference's output."""
    out = reference(sample.latent[None], torch.tensor([sample.timestep]), sample.text[None], return_dict=False)[0]
    return patchify(out[0], CONFIG.patch)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def compare_gradients(reference: WanTransformer3DModel, ours: DiT) -> float:
    """Largest relative difference over all parameters, in the reference's names."""
    gradients = to_wan({name: p.grad for name, p in ours.named_parameters()}, CONFIG)
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


def test_an_image_embedding_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.image_dim=1280: models with an image embedding"):
        DiT(dataclasses.replace(CONFIG, image_dim=1280), LocalLayers())


def test_names_round_trip() -> None:
    """Ours to diffusers and back is the identity, and diffusers accepts the result strictly."""
    reference, ours = make_models()
    exported = to_wan(ours.state_dict(), CONFIG)
    reference.load_state_dict(exported, strict=True)
    again = from_wan(exported, CONFIG)
    assert all(torch.equal(again[name], value) for name, value in ours.state_dict().items())
