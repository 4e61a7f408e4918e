"""What one rank of `test_attention_choice.py` does, and what one process of `test_attention_warm_up.py`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megavideo.errors import ConfigError
from megavideo.parallel.attention import fa4
from megavideo.parallel.attention.candidates import Need
from megavideo.parallel.attention.choose import choose_attention
from megavideo.parallel.attention.machine_facts import MachineFacts
from megavideo.parallel.processes.distributed import Launch
from tests.parallel.attention_fakes import fa4_library

NEED = Need(64, torch.float32)
COMPILING_SECONDS = 0.5


def choose_on_ranks(launch: Launch) -> dict[str, Any]:
    """The choice where all ranks are alike, and where rank 1 has a GPU without any kernel."""
    told = {"same": choose_attention("auto", NEED, launch.device).kernel.name}
    with pytest.MonkeyPatch.context() as monkeypatch:
        if launch.rank == 1:
            monkeypatch.setattr(MachineFacts, "of", lambda device: MachineFacts("cuda", "NVIDIA H100", (9, 0)))
        try:
            choose_attention("auto", NEED, launch.device)
        except ConfigError as error:
            told["differ"] = str(error)
    return told


def warm_up(folder: Path, number: int) -> None:
    """Warm up kernels that take their time to compile, unless they are found in the folder; tell what was compiled."""
    compiled: list[str] = []

    def compile_or_find(name: str) -> None:
        place = fa4.keep_compiled() / f"{name}.o"
        if not place.exists():
            time.sleep(COMPILING_SECONDS)
            compiled.append(name)
            place.touch()

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(folder / "compiled"))
        monkeypatch.setenv("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
        with fa4_library(monkeypatch) as kernel:
            from flash_attn.cute import interface

            for name in ("_flash_attn_fwd", "_flash_attn_bwd"):
                original = getattr(interface, name)

                def call(*given: Any, name: str = name, original: Any = original, **named: Any) -> Any:
                    compile_or_find(name)
                    return original(*given, **named)

                monkeypatch.setattr(interface, name, call)
            assert isinstance(kernel, fa4.Fa4)
            fa4.warm_up(kernel, 64, torch.bfloat16, torch.device("cpu"))
    (folder / f"{number}.json").write_text(json.dumps(compiled))
