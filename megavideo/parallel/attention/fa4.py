"""Flash attention 4 (package flash-attn-4): kernels written in Python and compiled when they are first called.

Its public function cannot take an output and log-sum-exp that come from more keys than it is given, which a ring needs.
So the pair of functions behind it is called, which may change with any release: exactly `VERSION` is accepted.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from megavideo.model.attention.kernel import Inputs, Lengths
from megavideo.parallel.attention.lengths import rounded_up

VERSION = "4.0.0b36"
_ENABLED, _FOLDER = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"
# Longer than what one block of any of its kernels covers (256): bounds below that are compiled for by themselves.
_LEAST = 512


@dataclass(frozen=True)
class Fa4:
    """`flash_attn.cute.interface`, on Hopper and Blackwell, bf16 and fp16.

    It writes no row past the last segment and may read up to 191 of them. The gradient of the query is summed in an
    order that differs from call to call, unless torch is told to be deterministic.
    """

    name: ClassVar[str] = "fa4"

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: Lengths, keys: Lengths
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel.attend`."""
        from flash_attn.cute.interface import _flash_attn_fwd

        out, lse, *_ = _flash_attn_fwd(
            query,
            key,
            value,
            cu_seqlens_q=queries.cu_seqlens,
            cu_seqlens_k=keys.cu_seqlens,
            max_seqlen_q=rounded_up(queries.longest, _LEAST),
            max_seqlen_k=rounded_up(keys.longest, _LEAST),
            softmax_scale=query.shape[-1] ** -0.5,
            return_lse=True,
        )
        return out, lse

    def attend_backward(
        self,
        grad: torch.Tensor,
        inputs: Inputs,
        out: torch.Tensor,
        lse: torch.Tensor,
        queries: Lengths,
        keys: Lengths,
    ) -> Inputs:
        """See `Kernel.attend_backward`."""
        from flash_attn.cute.interface import _flash_attn_bwd

        query, key, value = inputs
        # its own would have the strides of the inputs, which may be parts of a fused projection
        dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs)
        _flash_attn_bwd(
            query,
            key,
            value,
            out,
            grad,
            lse,
            softmax_scale=query.shape[-1] ** -0.5,
            cu_seqlens_q=queries.cu_seqlens,
            cu_seqlens_k=keys.cu_seqlens,
            max_seqlen_q=rounded_up(queries.longest, _LEAST),
            max_seqlen_k=rounded_up(keys.longest, _LEAST),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            dq=dq,
            dk=dk,
            dv=dv,
        )
        return dq, dk, dv


def load() -> Fa4:
    """Import it, with its cache of compiled kernels on disk. Raises ImportError where what it needs is missing."""
    keep_compiled()
    import flash_attn.cute.interface  # noqa: F401

    return Fa4()


def keep_compiled() -> Path:
    """The folder of compiled kernels, which a machine's processes and starts share; must come before the import.

    What the environment says already stays.
    """
    os.environ.setdefault(_ENABLED, "1")
    default = Path(tempfile.gettempdir()) / f"megavideo-{os.getuid()}" / "flash_attention_4"
    folder = Path(os.environ.setdefault(_FOLDER, str(default)))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def warm_up(kernel: Fa4, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compile what training calls, ahead of the first step: one process of a machine does, the others load it.

    Compiling takes some ten seconds a kernel, and longer where eight processes do it at once. Lengths, numbers of
    tokens, heads and segments (to 256) are no part of what is compiled for.
    """
    with _one_at_a_time(keep_compiled() / "warm_up.lock"):
        generator = torch.Generator(device).manual_seed(0)
        tokens = [
            torch.randn(8, 2, head_dim, generator=generator, device=device, dtype=torch.float32).to(dtype)
            for _ in range(4)
        ]
        cu_seqlens = torch.arange(0, 9, 4, dtype=torch.int32, device=device)
        lengths = Lengths(cu_seqlens, total=8, longest=4)
        query, key, value, grad = tokens
        out, lse = kernel.attend(query, key, value, lengths, lengths)
        kernel.attend_backward(grad, (query, key, value), out, lse, lengths, lengths)
        if device.type == "cuda":
            torch.cuda.synchronize(device)


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait until no other process of this machine is inside; the lock of one that ends is free."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
