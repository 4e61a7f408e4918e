"""Pretended kernel libraries that compute on a CPU, with the calls of the real ones as far as they are made.

Each checks what its library demands, refuses arguments that it does not know, leaves NaN where the library writes
nothing, and says of queries without keys what the library says.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import pytest
import torch

from megavideo.model.attention.kernel import Inputs, Kernel, Lengths
from megavideo.parallel.attention import cudnn, fa2, fa3, fa4, te
from megavideo.parallel.attention.stand_in import StandIn

Call = types.SimpleNamespace


def signature(arguments: str) -> Callable[[Callable[[Call], Any]], Callable[..., Any]]:
    """A function of these arguments, given to the decorated one by name; others, or too few, raise TypeError."""
    known = inspect.signature(eval(f"lambda {arguments}: None"))  # defaults are plain values

    def decorate(function: Callable[[Call], Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            bound = known.bind(*given, **named)
            bound.apply_defaults()
            return function(Call(**bound.arguments))

        return call

    return decorate


_LENGTHS = "cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None, max_seqlen_k=None"


@contextmanager
def fa4_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """`flash_attn.cute.interface` of flash-attn-4 4.0.0b36."""
    module = _module(monkeypatch, "flash_attn.cute.interface")

    @signature(
        f"q, k, v, qv=None, {_LENGTHS}, min_seqlen_k=None, page_table=None, softmax_scale=None, causal=False, "
        "softcap=None, window_size_left=None, window_size_right=None, learnable_sink=None, tile_mn=None, num_splits=1, "
        "pack_gqa=None, return_lse=False, out=None, lse=None"
    )
    def forward(call: Call) -> Any:
        _unmasked(call, None)
        assert call.return_lse and call.num_splits == 1
        _not_given(call, "qv", "seqused_q", "seqused_k", "page_table", "softcap", "learnable_sink", "out", "lse")
        return *_forward(call, call.cu_seqlens_q, call.cu_seqlens_k, call.softmax_scale), None, None, None

    @signature(
        "q, k, v, out, dout, lse, softmax_scale=None, causal=False, softcap=0.0, window_size_left=None, "
        f"window_size_right=None, m_block_size=64, n_block_size=128, num_threads=256, pack_gqa=False, {_LENGTHS}, "
        "deterministic=False, dq=None, dk=None, dv=None, dlse=None, learnable_sink=None"
    )
    def backward(call: Call) -> Any:
        _unmasked(call, None)
        assert call.softcap == 0.0 and isinstance(call.deterministic, bool)
        _not_given(call, "seqused_q", "seqused_k", "dlse", "learnable_sink")
        return _backward(call, call.cu_seqlens_q, call.cu_seqlens_k, call.softmax_scale, call.dout, call.lse)

    module._flash_attn_fwd, module._flash_attn_bwd = forward, backward
    yield fa4.load()


@contextmanager
def fa3_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """`torch.ops.flash_attn_3`, by its schema."""
    _module(monkeypatch, "flash_attn_3._C")
    lengths = (
        "Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? cu_seqlens_k_new=None, Tensor? seqused_q=None, "
        "Tensor? seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None"
    )
    window = "int window_size_left=-1, int window_size_right=-1"

    @signature(
        f"q, k, v, k_new=None, v_new=None, q_v=None, out=None, {_LENGTHS.replace('seqused_q', 'new=None, seqused_q')}, "
        "softmax_scale=None, causal=False, window_size_left=-1, window_size_right=-1, num_splits=0"
    )
    def forward(call: Call) -> Any:
        _unmasked(call, -1)
        assert call.num_splits == 1
        _not_given(call, "k_new", "v_new", "q_v", "out", "new", "seqused_q", "seqused_k")
        found = _forward(call, call.cu_seqlens_q, call.cu_seqlens_k, call.softmax_scale)
        return *found, torch.empty(0), torch.empty(0)

    @signature(
        f"dout, q, k, v, out, lse, dq=None, dk=None, dv=None, {_LENGTHS}, softmax_scale=None, causal=False, "
        "window_size_left=-1, window_size_right=-1, softcap=0.0, deterministic=False, sm_margin=0"
    )
    def backward(call: Call) -> Any:
        _unmasked(call, -1)
        _not_given(call, "seqused_q", "seqused_k")
        assert all(t.stride(-1) == 1 for t in (call.dout, call.out)) and call.lse.is_contiguous()
        _backward(call, call.cu_seqlens_q, call.cu_seqlens_k, call.softmax_scale, call.dout, call.lse)
        return call.lse.clone()

    with _operators(
        "flash_attn_3",
        {
            "fwd(Tensor q, Tensor k, Tensor v, Tensor? k_new=None, Tensor? v_new=None, Tensor? q_v=None, "
            f"Tensor(out!)? out=None, {lengths}, float? softmax_scale=None, bool is_causal=False, {window}, "
            "int num_splits=0) -> (Tensor, Tensor, Tensor, Tensor)": forward,
            "bwd(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor(dq!)? dq=None, "
            f"Tensor(dk!)? dk=None, Tensor(dv!)? dv=None, {lengths.replace('Tensor? cu_seqlens_k_new=None, ', '')}, "
            f"float? softmax_scale=None, bool is_causal=False, {window}, float softcap=0.0, bool deterministic=False, "
            "int sm_margin=0) -> Tensor": backward,
        },
    ):
        yield fa3.load()


@contextmanager
def fa2_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """torch's own operators, over pretended CPU kernels of what they call."""
    del monkeypatch
    rest = "scale=None, window_size_left=None, window_size_right=None"

    @signature(f"q, k, v, cu_q, cu_k, max_seqlen_q, max_seqlen_k, dropout, causal, debug, *, {rest}")
    def forward(call: Call) -> Any:
        _unmasked(call, -1)
        assert (call.dropout, call.debug) == (0.0, False)
        out, lse = _forward(call, call.cu_q, call.cu_k, call.scale)
        empty = out.new_empty(0)
        return out, lse.masked_fill(lse == -torch.inf, torch.inf), empty, empty, empty

    @signature(
        "dout, q, k, v, out, lse, cu_q, cu_k, max_seqlen_q, max_seqlen_k, dropout, causal, random, unused, *, " + rest
    )
    def backward(call: Call) -> Any:
        _unmasked(call, -1)
        assert (call.dropout, call.random.dtype, tuple(call.random.shape)) == (0.0, torch.uint64, (2,))
        return _backward(call, call.cu_q, call.cu_k, call.scale, call.dout, call.lse)

    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield fa2.load()
    finally:
        library._destroy()


@contextmanager
def cudnn_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """`torch.ops.cudnn` of nvidia-cudnn-frontend 1.32, by its schema."""
    module = _module(monkeypatch, "cudnn.sdpa.fwd.torch_op")
    band = "causal=False, bottom_right=False, window_size_left=-1, window_size_right=-1, sinks=None"
    lengths = "cu_q=None, cu_k=None, max_seqlen_q=0, max_seqlen_k=0"
    typed = (
        "bool is_causal=False, bool causal_bottom_right=False, int window_left=-1, int window_right=-1, "
        "Tensor? sinks=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_kv=None, int max_seqlen_q=0, "
        "int max_seqlen_kv=0"
    )

    @signature(f"q, k, v, scale, {band}, {lengths}, return_lse=True")
    def forward(call: Call) -> Any:
        _unmasked(call, -1)
        assert call.return_lse and (call.max_seqlen_q, call.max_seqlen_k) != (1, 1)
        out, lse = _forward(call, call.cu_q, call.cu_k, call.scale)
        return out, lse.masked_fill(lse == -torch.inf, 0.0).transpose(0, 1).unsqueeze(-1).contiguous()

    @signature(f"dout, q, k, v, out, lse, scale, {band}, {lengths}, is_deterministic=False")
    def backward(call: Call) -> Any:
        _unmasked(call, -1)
        heads, longest = call.q.shape[1], call.max_seqlen_q
        assert call.lse.shape == (len(call.cu_q) - 1, heads, longest, 1) and longest > 1
        packed = torch.full((heads, call.q.shape[0]), torch.nan)
        for i, (begin, end) in enumerate(itertools.pairwise(call.cu_q.tolist())):
            packed[:, begin:end] = call.lse[i, :, : end - begin, 0]
        return _backward(call, call.cu_q, call.cu_k, call.scale, call.dout, packed)

    def thd_lse_to_padded(lse_th: torch.Tensor, cu_seqlens_q: torch.Tensor, max_seqlen_q: int) -> torch.Tensor:
        bounds = cu_seqlens_q.tolist()
        assert lse_th.shape[0] == bounds[-1], "a token of no segment is written outside of the result"
        padded = torch.zeros(len(bounds) - 1, lse_th.shape[1], max_seqlen_q, 1)
        for i, (begin, end) in enumerate(itertools.pairwise(bounds)):
            padded[i, :, : end - begin, 0] = lse_th[begin:end].T
        return padded

    module.thd_lse_to_padded = thd_lse_to_padded
    with _operators(
        "cudnn",
        {
            f"sdpa_fwd(Tensor q, Tensor k, Tensor v, float attn_scale, {typed}, bool return_lse=True)"
            " -> (Tensor, Tensor)": forward,
            f"sdpa_bwd(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, float attn_scale, {typed}, "
            "bool is_deterministic=False) -> (Tensor, Tensor, Tensor)": backward,
        },
    ):
        yield cudnn.load()


@contextmanager
def te_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """`cpp_extensions.fused_attn` of Transformer Engine 2.20."""
    _module(monkeypatch, "transformer_engine.pytorch")
    module = _module(monkeypatch, "transformer_engine.pytorch.cpp_extensions.fused_attn")
    padded = "cu_seqlens_q_padded=None, cu_seqlens_kv_padded=None"
    rest = "attn_bias_type='no_bias', attn_mask_type='padding', softmax_type='vanilla', window_size=(-1, -1)"

    class FusedAttnBackend(IntEnum):
        No_Backend = -1
        F16_arbitrary_seqlen = 1

    @signature(
        "is_training, max_seqlen_q, max_seqlen_k, cu_q, cu_k, q, k, v, fake_dtype, backend, attn_bias=None, "
        f"{padded}, attn_scale=None, dropout=0.0, qkv_layout='sbh3d', o_format='sbhd', {rest}"
    )
    def fused_attn_fwd(call: Call) -> Any:
        check(call, call.q, call.k, call.v)
        assert call.is_training and call.attn_bias is None
        out, lse = _forward(call, call.cu_q, call.cu_k, call.attn_scale)
        stats = lse.masked_fill(lse == -torch.inf, 0.0).transpose(0, 1).unsqueeze(-1).contiguous()
        return out.nan_to_num(0.0), [stats, torch.zeros(2, dtype=torch.int64)]

    @signature(
        f"max_seqlen_q, max_seqlen_k, cu_q, cu_k, q, k, v, out, dout, fake_dtype, aux, backend, {padded}, "
        "attn_scale=None, dropout=0.0, qkv_layout='sbh3d', o_format='sbhd', do_format='sbhd', dqkv_layout='sbh3d', "
        f"{rest}, deterministic=False"
    )
    def fused_attn_bwd(call: Call) -> Any:
        stats, random = call.aux
        check(call, call.q, call.k, call.v, call.out, call.dout, stats)
        assert (call.do_format, call.dqkv_layout) == ("thd", "thd_thd_thd") and isinstance(call.deterministic, bool)
        assert (random.dtype, tuple(random.shape)) == (torch.int64, (2,))
        assert stats.shape == (call.q.shape[0], call.q.shape[1], 1)
        lse = stats[:, :, 0].T.contiguous()
        grads = _backward(call, call.cu_q, call.cu_k, call.attn_scale, call.dout, lse)
        return [*(grad.nan_to_num(0.0) for grad in grads), None, None]

    def check(call: Call, *tensors: torch.Tensor) -> None:
        assert call.backend is FusedAttnBackend.F16_arbitrary_seqlen and call.fake_dtype == call.q.dtype
        assert (call.qkv_layout, call.o_format, call.attn_mask_type) == ("thd_thd_thd", "thd", "padding")
        assert (call.attn_bias_type, call.softmax_type, call.window_size) == ("no_bias", "vanilla", (-1, -1))
        assert call.dropout == 0.0
        _not_given(call, "cu_seqlens_q_padded", "cu_seqlens_kv_padded")
        assert all(tensor.is_contiguous() for tensor in tensors), "pointers alone are read"

    module.FusedAttnBackend = FusedAttnBackend
    module.fused_attn_fwd, module.fused_attn_bwd = fused_attn_fwd, fused_attn_bwd
    yield te.load()


LIBRARIES = {
    "fa4": fa4_library, "fa3": fa3_library, "fa2": fa2_library, "cudnn": cudnn_library, "te": te_library,
}  # fmt: skip


def _forward(call: Call, cu_q: Any, cu_k: Any, scale: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """By the stand-in, which checks tensors, leaves NaN, and has -inf for queries without keys."""
    _check((call.q, call.k, call.v), scale)
    return StandIn().attend(call.q, call.k, call.v, *_lengths(call, cu_q, cu_k))


def _backward(call: Call, cu_q: Any, cu_k: Any, scale: Any, dout: torch.Tensor, lse: torch.Tensor) -> Any:
    inputs = (call.q, call.k, call.v)
    _check(inputs, scale)
    grads = StandIn().attend_backward(dout, inputs, call.out, lse, *_lengths(call, cu_q, cu_k))
    if hasattr(call, "dq"):
        for given, grad in zip((call.dq, call.dk, call.dv), grads, strict=True):
            given.copy_(grad)
    return grads


def _check(inputs: Inputs, scale: float | None) -> None:
    assert inputs[0].dtype in (torch.bfloat16, torch.float16), "bf16 or fp16"
    assert scale == inputs[0].shape[-1] ** -0.5


def _unmasked(call: Call, no_window: int | None) -> None:
    assert not getattr(call, "causal", False)
    assert call.window_size_left == call.window_size_right == no_window


def _not_given(call: Call, *names: str) -> None:
    assert all(getattr(call, name) is None for name in names)


def _lengths(call: Call, cu_q: torch.Tensor, cu_k: torch.Tensor) -> list[Lengths]:
    """Exact, from the device; what was told on the host must be no shorter."""
    made = []
    for each, told in ((cu_q, call.max_seqlen_q), (cu_k, call.max_seqlen_k)):
        sizes = each.diff().tolist()
        assert isinstance(told, int) and told >= max(sizes), f"a bound of {told} tokens for segments of {sizes}"
        made.append(Lengths(each, sum(sizes), max(sizes)))
    return made


def _module(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    """An empty module of this dotted name, in packages of its own."""
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        path = ".".join(parts[:i])
        if path not in sys.modules or i == len(parts):
            monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        if i > 1:
            monkeypatch.setattr(sys.modules[".".join(parts[: i - 1])], parts[i - 1], sys.modules[path], raising=False)
    return sys.modules[name]


@contextmanager
def _operators(namespace: str, schemas: dict[str, Callable[..., Any]]) -> Iterator[None]:
    library = torch.library.Library(namespace, "FRAGMENT")
    try:
        for schema, function in schemas.items():
            library.define(schema)
            library.impl(schema.partition("(")[0], function, "CPU")
        yield
    finally:
        library._destroy()
