"""Every attention kernel against the contract: those of a CPU, and the others over pretended libraries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megavideo.model.attention.cpu_flash import CpuFlash
from megavideo.model.attention.kernel import Kernel
from megavideo.model.attention.operator import Attention
from megavideo.parallel.attention.stand_in import StandIn
from tests.parallel.attention_fakes import LIBRARIES
from tools.gpu_check.cases import Subject
from tools.gpu_check.contract import CONTRACT
from tools.gpu_check.gpu_contract import GPU_CONTRACT
from tools.gpu_check.unasked import Unasked

CPU = torch.device("cpu")
HERE = {"cpu": CpuFlash, "stand_in": StandIn}
ASKED = [name for name in CONTRACT if name not in GPU_CONTRACT]


@pytest.fixture(params=[*HERE, *LIBRARIES], scope="module")
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel after the other."""
    name = request.param
    if name in HERE:
        yield HERE[name]()
        return
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
        monkeypatch.setenv("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        with LIBRARIES[name](monkeypatch) as made:
            yield made


@pytest.mark.parametrize("check", ASKED)
def test_kernel_keeps_the_contract(kernel: Kernel, check: str) -> None:
    if kernel.name == "stand_in" and check == "loose bounds change nothing":
        with pytest.raises(Unasked):
            CONTRACT[check](Subject(Attention(kernel), CPU, torch.bfloat16))
        return
    share = CONTRACT[check](Subject(Attention(kernel), CPU, torch.bfloat16))
    assert share is None or share <= 1


@pytest.mark.parametrize("name", HERE)
def test_kernels_of_a_cpu_keep_it_in_float32_too(name: str) -> None:
    for check in ASKED:
        if (name, check) != ("stand_in", "loose bounds change nothing"):
            share = CONTRACT[check](Subject(Attention(HERE[name]()), CPU, torch.float32))
            assert share is None or share <= 1, check


@pytest.mark.parametrize("check", GPU_CONTRACT)
def test_what_only_a_gpu_can_answer_says_so(check: str) -> None:
    with pytest.raises(Unasked, match="needs a GPU"):
        CONTRACT[check](Subject(Attention(CpuFlash()), CPU, torch.bfloat16))
