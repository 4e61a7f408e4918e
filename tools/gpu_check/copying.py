"""Copies to and from the host beside kernels: values, and that nobody waits for more than the copies."""

from __future__ import annotations

import threading

import torch
from harness import Checks

from megavideo.device.choice import copies_for
from megavideo.model.offload import Offload
from megavideo.model.recompute import BlockRecompute

SIZES, LAYERS, STEPS = {"cuda": 2048, "cpu": 128}, 12, 3
BUSY_CYCLES = 2_000_000_000  # about a second
EXACT = 1e-12  # differences are 0


def check_copies(checks: Checks, device: torch.device) -> None:
    """A snapshot by a thread, offloaded inputs, and inputs from the host."""
    checks.run("snapshot beside kernels: values; nobody waits for kernels", lambda: _snapshot(device), EXACT)
    checks.run("offloaded inputs: gradients against kept ones", lambda: _offloaded(device), EXACT)
    checks.run("inputs cast on the host against cast on the device", lambda: _loaded(device), EXACT)


def _snapshot(device: torch.device) -> float:
    copies = copies_for(device)
    size = SIZES[device.type]
    state = torch.zeros(8 * size, size, device=device)
    for _ in range(20):
        state += 1.0
    place = copies.buffer(state.shape, state.dtype)
    final = copies.final([state])
    if device.type == "cuda":
        torch.cuda._sleep(BUSY_CYCLES)
        after = torch.cuda.Event()
        after.record()
    thread = threading.Thread(target=lambda: final.to_host([(place, state)]).wait())
    thread.start()
    thread.join()
    if device.type == "cuda":
        assert not after.query(), "the copy was waited for as long as kernels that were queued after the states"
    state.zero_()
    return (place - 20.0).abs().max().item()


def _offloaded(device: torch.device) -> float:
    offload = Offload(copies_for(device))
    expected = _gradients(device, BlockRecompute(frozenset(("layer",))))
    found = [_gradients(device, BlockRecompute(frozenset(("layer",)), offload)) for _ in range(STEPS)]
    return max((gradients - expected).abs().max().item() for gradients in found)


def _gradients(device: torch.device, share: BlockRecompute) -> torch.Tensor:
    x, *matrices = _random(LAYERS + 1, SIZES[device.type])
    x, weights = x.to(device), [(m / len(m) ** 0.5).to(device).requires_grad_() for m in matrices]
    for weight in weights:
        x = share.run("layer", lambda x, weight=weight: torch.tanh(x @ weight), x)
    x.square().mean().backward()
    return torch.stack([weight.grad for weight in weights if weight.grad is not None])


def _loaded(device: torch.device) -> float:
    copies, errors = copies_for(device), []
    given = _random(LAYERS, SIZES[device.type])
    begun = [copies.to_device([copies.staged(values, torch.bfloat16)]) for values in given]
    for coming, values in zip(begun, given, strict=True):
        (found,) = coming.get()
        errors.append((found.float() - values.to(device).to(torch.bfloat16).float()).abs().max())
    return torch.stack(errors).max().item()


def _random(count: int, size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, size, generator=generator) for _ in range(count)]
