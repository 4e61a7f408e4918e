"""All checks in order. Started by tools/gpu_check.sh; `--rehearse` tries the checks' own arithmetic without GPU.

A rehearsal puts local layers in the place of Transformer Engine's and leaves FP8 out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from attention import check_attention
from harness import Checks, difference
from linear import check_linears, check_refusals
from training import check_training

from megavideo.config.layout import parse_layout
from megavideo.config.schema.precision import Fp8Kind, LayersConfig
from megavideo.model.layers import Layers
from megavideo.parallel.layers.te_layers import build_layers
from megavideo.parallel.machine.accelerators import detect, load_te
from megavideo.parallel.processes.groups import Groups
from megavideo.parallel.processes.mesh import ProcessMesh


def main() -> int:
    """Run everything; 0 where all passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the summary to this file too")
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    mesh = ProcessMesh.of(parse_layout("zero1"), 4, 0, 1)
    groups = Groups.of(mesh)

    def make(config: LayersConfig) -> Layers:
        return build_layers(LayersConfig() if arguments.rehearse else config, mesh, groups, device)

    kinds: tuple[Fp8Kind, ...] = () if arguments.rehearse else ("current", "delayed", "block")
    found = detect()
    print(f"torch {found.torch}, {found.gpus[0].name if found.gpus else 'no GPU'}", flush=True)
    checks = Checks()
    if not arguments.rehearse:
        checks.run("Transformer Engine loads", _te_loads)
        checks.run("te.Linear, smoke test in FP8", _smoke, 8e-2)
        check_refusals(checks, device)
    check_linears(checks, make, kinds, device)
    check_attention(checks, device)
    check_training(checks, make, kinds, device)
    dist.destroy_process_group()
    summary = checks.summary({"rehearsal": arguments.rehearse, "machine": dataclasses.asdict(found)})
    text = json.dumps(summary)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    print(text, flush=True)
    return 1 if summary["failed"] else 0


def _te_loads() -> None:
    te, missing = load_te()
    assert te is not None, missing


def _smoke() -> float:
    """TE alone, without anything of ours."""
    import transformer_engine.pytorch as te
    from transformer_engine.common import recipe

    torch.manual_seed(0)
    layer = te.Linear(1024, 2048, params_dtype=torch.bfloat16)
    x = torch.randn(512, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with te.autocast(enabled=True, recipe=recipe.Float8CurrentScaling()):
        out = layer(x)
    out.float().square().mean().backward()
    assert x.grad is not None, "no gradient"
    assert x.grad.isfinite().all(), "the gradient is not finite"
    exact = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    return difference(out.detach(), exact.detach())


if __name__ == "__main__":
    sys.exit(main())
