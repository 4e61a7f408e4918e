"""All checks in order. Started by tools/gpu_check.sh; `--rehearse` tries the checks' own arithmetic without GPU.

A rehearsal puts local layers in the place of Transformer Engine's and leaves FP8 out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from copying import check_copies
from engine_steps import check_engine
from gradients import check_gradients
from harness import Checks, difference
from kernels import check_kernel
from linear import MakeLayers, check_linears, check_refusals
from one_rank import OneRank, one_rank
from training import check_training

from megavideo.config.schema.precision import Fp8Kind, LayersConfig
from megavideo.parallel.attention.candidates import CANDIDATES
from megavideo.parallel.machine.accelerators import detect, load_te


def main() -> int:
    """Run everything; 0 where all passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the summary to this file too")
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    if arguments.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is asked for a GPU
    checks = Checks(arguments.json, {"rehearsal": arguments.rehearse})
    _run(checks, torch.device("cpu" if arguments.rehearse else "cuda"), rehearse=arguments.rehearse)
    summary = checks.summary()
    print(json.dumps(summary), flush=True)
    return 1 if summary["failed"] else 0


def _run(checks: Checks, device: torch.device, *, rehearse: bool) -> None:
    """All checks; what is quick and tells most comes first."""
    checks.apart("the machine", lambda: _look(checks))
    for name in CANDIDATES:
        checks.apart(f"attention {name}", partial(check_kernel, checks, name, device))
    checks.apart("copies", lambda: check_copies(checks, device))
    kinds: tuple[Fp8Kind, ...] = () if rehearse else ("current", "delayed", "block")

    def layers(rank: OneRank) -> MakeLayers:
        return lambda config: rank.layers(LayersConfig() if rehearse else config)

    checks.apart("engine", lambda: _alone(lambda rank: check_engine(checks, rank)))
    if not rehearse:
        checks.apart("Transformer Engine", lambda: _check_te(checks, device))
    checks.apart("linear layers", lambda: _alone(lambda rank: check_linears(checks, layers(rank), kinds, rank.device)))
    checks.apart("training", lambda: _alone(lambda rank: check_training(checks, layers(rank), kinds, rank.device)))
    checks.apart("gradients", lambda: check_gradients(checks, device, "aot_eager" if rehearse else "inductor"))


def _look(checks: Checks) -> None:
    found = detect()
    print(f"torch {found.torch}, {found.gpus[0].name if found.gpus else 'no GPU'}", flush=True)
    checks.add_facts({"machine": dataclasses.asdict(found)})


def _alone(check: Callable[[OneRank], None]) -> None:
    """Run what needs a process group, with one of this process alone."""
    with one_rank() as rank:
        check(rank)


def _check_te(checks: Checks, device: torch.device) -> None:
    checks.run("Transformer Engine loads", _te_loads)
    checks.run("te.Linear, smoke test in FP8", _smoke, 8e-2)
    check_refusals(checks, device)


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
