"""The diffusion transformer on packed spacetime tokens, whole or a stage of it.

Shape legend: N video tokens of the pack, n this rank's own, M text tokens, l this rank's own, K segments,
R = 2K conditioning rows, P patch width, G given channels of a patch, D width, I rows of an image embedding, E their
width, e this rank's own of all K * I.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from megavideo.config.schema.model import ModelConfig
from megavideo.config.schema.train import RecomputeConfig
from megavideo.model.block import Block, Conditioning
from megavideo.model.layers import Layers
from megavideo.model.modulation import norm_modulate, sinusoid
from megavideo.model.offload import Offload
from megavideo.model.pack_index import PackFacts, PackIndex
from megavideo.model.place import PLACE_FEATURES, place_features
from megavideo.model.recompute import WHOLE, BlockRecompute
from megavideo.model.rope import rotary_table
from megavideo.model.rows import Rows
from megavideo.types import PackedBatch


class Mlp(nn.Module):
    """Linear, activation, linear: the embedders of timestep, frame rate and text."""

    def __init__(self, in_dim: int, width: int, layers: Layers, *, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = layers.replicated(in_dim, width)
        self.activation = activation
        self.fc2 = layers.replicated(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_dim] -> [..., width]."""
        return self.fc2(self.activation(self.fc1(x)))


class ImageMlp(nn.Module):
    """Norm, linear, GELU, linear, norm: the embedder of an image's features (Wan 2.1; torch's eps, as there)."""

    def __init__(self, in_dim: int, width: int, layers: Layers) -> None:
        super().__init__()
        # the layers' own norm is of own tokens, and every rank of tp holds these rows alike
        self.norm1 = nn.LayerNorm(in_dim)
        self.fc1 = layers.replicated(in_dim, in_dim)
        self.fc2 = layers.replicated(in_dim, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., E] -> [..., D]."""
        return self.norm2(self.fc2(F.gelu(self.fc1(self.norm1(x)))))


@dataclass(frozen=True)
class Hidden:
    """What one stage of the model hands to the next.

    x [n, D] the residual stream; time [R, D] the embedded timestep; modulation [R, 6, D] its shared projection (None
    under `adaln_zero`); text [l, D] of own text tokens; the pack's facts, from which a stage rebuilds indices; image
    [e, D] of own rows of image embeddings (None in models without).
    """

    x: torch.Tensor
    time: torch.Tensor
    modulation: torch.Tensor | None
    text: torch.Tensor
    facts: PackFacts
    image: torch.Tensor | None = None


class Embedder(nn.Module):
    """Tokens, timestep, frame rate, text and image embedding to the model's width."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        self.config = config
        self.layers = layers
        self.patch = layers.per_token(config.patch_dim + config.given_dim, config.width)
        self.time = Mlp(config.time_dim, config.width, layers, activation=nn.SiLU())
        self.text = Mlp(config.text_dim, config.width, layers, activation=nn.GELU(approximate="tanh"))
        if config.image_dim is not None:
            self.image = ImageMlp(config.image_dim, config.width, layers)
        if config.modulation == "adaln":
            self.modulation = layers.replicated(config.width, 6 * config.width)
        if config.fps_conditioning:
            self.fps = Mlp(config.time_dim, config.width, layers, activation=nn.SiLU())
        if config.place_embedding:
            self.place = layers.per_token(PLACE_FEATURES, config.width)

    def forward(self, batch: PackedBatch) -> Hidden:
        """A whole pack to this rank's own hidden state and the conditioning of all blocks."""
        config, layers = self.config, self.layers
        dtype = batch.tokens.dtype
        # second half of the rows: the given (clean) tokens of each segment, at timestep zero
        timestep = torch.cat([batch.timestep, torch.zeros_like(batch.timestep)])
        time = self.time(sinusoid(timestep, config.time_dim).to(dtype))
        if config.fps_conditioning:
            fps = sinusoid(torch.cat([batch.fps, batch.fps]), config.time_dim).to(dtype)
            time = time + self.fps(fps)
        modulation = None
        if config.modulation == "adaln":
            modulation = layers.over_tokens(self.modulation(F.silu(time))).unflatten(-1, (6, -1))
        facts = PackFacts.of(batch)
        x = self.patch(self._inputs(batch))
        if config.place_embedding:
            place = PackIndex.of(facts).place
            x = x + self.place(place_features(layers.own(place), dtype))
        text = layers.over_heads(self.text(layers.own_text(batch.text)))
        return Hidden(x, time, modulation, text, facts, self._image(batch))

    def _image(self, batch: PackedBatch) -> torch.Tensor | None:
        """Own rows of image embeddings, shared out as those of the text are: [K, I, E] -> [e, D]."""
        if self.config.image_dim is None:
            return None
        assert batch.image is not None, "a model with an image embedding is given one in every pack"
        return self.layers.over_heads(self.image(self.layers.own_text(batch.image.flatten(0, 1))))

    def _inputs(self, batch: PackedBatch) -> torch.Tensor:
        """Own tokens, each cell of a patch with the channels that it is given behind its own: [n, P + G]."""
        tokens = self.layers.own(batch.tokens)
        if not self.config.given_channels:
            return tokens
        assert batch.given is not None, "a model with given channels is given them in every pack"
        given = self.layers.own(batch.given).unflatten(-1, (-1, self.config.given_channels))
        return torch.cat([tokens.unflatten(-1, (-1, self.config.latent_channels)), given], dim=-1).flatten(1)


class Head(nn.Module):
    """Final modulated norm and projection back to patches."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        self.eps = config.eps
        self.layers = layers
        if config.modulation == "adaln":
            self.modulation_table = nn.Parameter(torch.empty(2, config.width))
        else:
            self.modulation = layers.replicated(config.width, 2 * config.width)
        self.proj = layers.per_token(config.width, config.patch_dim)

    def forward(self, x: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """[n, D] -> [n, P]."""
        if cond.modulation is not None:
            table = self.layers.over_tokens(cond.time[:, None] + self.modulation_table)
        else:
            table = self.layers.over_tokens(self.modulation(F.silu(cond.time))).unflatten(-1, (2, -1))
        shift, scale = table.unbind(1)
        return self.proj(norm_modulate(x, shift, scale, cond.rows, self.eps))


class DiT(nn.Module):
    """A Wan-shaped video DiT, or the stage of it that holds the blocks of `part`.

    The first stage has the embedder too, the last one the head; parameters have the names of the whole model.
    `recompute` says what is computed again in the backward pass in place of being kept; None keeps everything.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: Layers,
        *,
        part: range | None = None,
        recompute: RecomputeConfig | None = None,
    ) -> None:
        super().__init__()
        part = range(config.layers) if part is None else part
        self.config = config
        self.layers = layers
        self.embed = Embedder(config, layers) if part.start == 0 else None
        offload = Offload(layers.copies)
        self.recompute = {str(i): BlockRecompute.of(recompute, i, config.layers, offload) for i in part}
        self.blocks = nn.ModuleDict({i: Block(config, layers, share) for i, share in self.recompute.items()})
        self.head = Head(config, layers) if part.stop == config.layers else None

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Prediction for this rank's own tokens of the pack, [n, P]; rows of padding tokens have no meaning."""
        assert self.embed is not None and self.head is not None, "a stage of the model is run by `stage`"
        hidden = self.embed(batch)
        cond = self.conditioning(hidden)
        return self.head(self.run_blocks(hidden.x, cond), cond)

    def stage(self, given: PackedBatch | Hidden) -> Hidden | torch.Tensor:
        """This stage's part of `forward`: the pack in at the first stage, the prediction out of the last."""
        hidden = self.embed(given) if self.embed is not None else given
        assert isinstance(hidden, Hidden), "only the first stage takes a pack"
        cond = self.conditioning(hidden)
        x = self.run_blocks(hidden.x, cond)
        return replace(hidden, x=x) if self.head is None else self.head(x, cond)

    def run_blocks(self, x: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """[n, D] -> [n, D] through the blocks held here."""
        for number, block in self.blocks.items():
            # a partial would bind compiled code to this pack's bounds on the host, and a new pack would compile anew
            x = self.recompute[number].run(WHOLE, lambda x, block=block: block(x, cond), x)  # type: ignore[misc]
        return x

    def conditioning(self, hidden: Hidden) -> Conditioning:
        """What every block is told, from what the stages hand on."""
        layers, dtype = self.layers, hidden.x.dtype
        facts = hidden.facts
        index = PackIndex.of(facts)
        attention = layers.plan_attention(facts.video, facts.text, facts.given.shape[0])
        return Conditioning(
            time=hidden.time,
            modulation=hidden.modulation,
            text=hidden.text,
            rotary=rotary_table(layers.attended(index.position), self.config.head_dim, dtype),
            rows=Rows.of(layers.own(index.row), hidden.time.shape[0], dtype),
            attention=attention,
            image=hidden.image,
            image_attention=None if hidden.image is None else replace(attention, text=facts.image),
        )
