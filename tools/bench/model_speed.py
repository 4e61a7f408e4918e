"""Training steps per second beside diffusers' WanTransformer3DModel: same weights, same tokens, same run.

    python tools/bench/model_speed.py [--json] [--pairs 7] [--threads 2]

Each figure is the median over interleaved pairs of (ours / diffusers) steps per second; above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

sys.path.insert(0, str(Path(__file__).parents[2]))

from megavideo.config.load import load
from megavideo.config.schema.train import TrainRun
from megavideo.data.patches import patchify
from megavideo.interop.weights import from_wan, wan_config
from megavideo.model.dit import DiT
from megavideo.model.layers import LocalLayers
from megavideo.types import PackedBatch

LATENTS = {"one clip of 2,016 tokens": [(9, 32, 28)], "four clips of 504 tokens": [(9, 16, 14)] * 4}
TEXT_TOKENS = 16


def pack(latents: list[torch.Tensor], texts: list[torch.Tensor], timestep: torch.Tensor) -> PackedBatch:
    """Clips of one shape as a full pack."""
    _, t, h, w = latents[0].shape
    count, tokens = len(latents), t * h * w // 4
    return PackedBatch(
        tokens=torch.cat([patchify(x, (1, 2, 2)) for x in latents]),
        cu_seqlens=torch.arange(count + 1, dtype=torch.int32) * tokens,
        grid=torch.tensor([[t, h // 2, w // 2]] * count),
        text=torch.cat(texts),
        cu_seqlens_text=torch.arange(count + 1, dtype=torch.int32) * TEXT_TOKENS,
        fps=torch.full((count,), 8.0),
        timestep=timestep,
        condition_mask=torch.zeros(count * tokens, dtype=torch.bool),
        sample_ids=("s",) * count,
        visits=(0,) * count,
    )


def timed(step: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> float:
    """Seconds of forward, backward and AdamW."""
    begin = time.perf_counter()
    step().backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - begin


def ratio(sizes: list[tuple[int, int, int]], dtype: torch.dtype, pairs: int) -> dict[str, float]:
    """Median, minimum and maximum of the paired speed ratio for clips of one shape."""
    config = load(TrainRun, "train", ["run=small", "model.fps_conditioning=false", "data.uri=unused"]).model
    torch.manual_seed(0)
    reference = WanTransformer3DModel(**wan_config(config)).to(dtype)
    ours = DiT(config, LocalLayers()).to(dtype)
    ours.load_state_dict(from_wan(reference.state_dict(), config))
    latents = [torch.randn(config.latent_channels, *size, dtype=dtype) for size in sizes]
    texts = [torch.randn(TEXT_TOKENS, config.text_dim, dtype=dtype) for _ in sizes]
    timestep = torch.linspace(100, 900, len(sizes))
    batch, stacked, captions = pack(latents, texts, timestep), torch.stack(latents), torch.stack(texts)
    both = {
        "ours": lambda: ours(batch).square().mean(),
        "diffusers": lambda: reference(stacked, timestep, captions, return_dict=False)[0].square().mean(),
    }
    optimizers = {"ours": torch.optim.AdamW(ours.parameters()), "diffusers": torch.optim.AdamW(reference.parameters())}
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for i in range(pairs + 1):
        for name in sorted(both, reverse=bool(i % 2)):
            elapsed = timed(both[name], optimizers[name])
            if i:  # the first pair warms up
                seconds[name].append(elapsed)
    ratios = [d / o for o, d in zip(seconds["ours"], seconds["diffusers"], strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = {
        f"{name}, {str(dtype).removeprefix('torch.')}": ratio(sizes, dtype, arguments.pairs)
        for name, sizes in LATENTS.items()
        for dtype in (torch.float32, torch.bfloat16)
    }
    if arguments.json:
        print(json.dumps({"ratio_ours_over_diffusers": rows}))
        return
    for name, row in rows.items():
        print(f"{name:40s} ours/diffusers steps per second: {row['median']:.3f} ({row['min']:.3f}-{row['max']:.3f})")


if __name__ == "__main__":
    main()
