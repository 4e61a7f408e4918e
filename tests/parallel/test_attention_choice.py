"""Which attention kernel a machine takes, from facts alone; what is refused, and what is said of it."""

from __future__ import annotations

import logging
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from megavideo.config.schema.precision import CPU_ATTENTION, AttentionName
from megavideo.errors import ConfigError
from megavideo.model.attention.cpu_flash import CpuFlash
from megavideo.model.attention.kernel import Kernel
from megavideo.parallel.attention import machine_facts
from megavideo.parallel.attention.candidates import CANDIDATES, Candidate, Need
from megavideo.parallel.attention.choose import Choice, choose, choose_attention, disagreement
from megavideo.parallel.attention.machine_facts import CUDNN, FA3, FA4, TE, TORCH, MachineFacts
from megavideo.parallel.attention.report import list_kernels
from megavideo.testing.ranks import run_ranks
from tests.parallel.attention_ranks import choose_on_ranks

NEED = Need(128, torch.bfloat16)
CPU = MachineFacts("cpu")
ALL = {FA4: "4.0.0b36", FA3: "3.0.0", CUDNN: "1.32.0", TE: "2.20.2", TORCH: "2.11.0"}


def hopper(*without: str, cudnn: int = 92800, **versions: str) -> MachineFacts:
    """An H100 with everything but some packages, or with other versions of those named as `fa4`."""
    names = {"fa4": FA4, "fa3": FA3, "cudnn_package": CUDNN, "te": TE}
    packages = {name: version for name, version in ALL.items() if name not in without}
    packages |= {names[name]: version for name, version in versions.items()}
    return MachineFacts("cuda", "NVIDIA H100", (9, 0), packages, cudnn)


def chip(major: int, minor: int = 0, *without: str) -> MachineFacts:
    """A GPU of another capability, with everything."""
    packages = {name: version for name, version in ALL.items() if name not in without}
    return MachineFacts("cuda", f"chip {major}.{minor}", (major, minor), packages, 92800)


def without_import(candidate: Candidate) -> Kernel:
    """Every package loads."""
    del candidate
    return CpuFlash()


def taken(facts: MachineFacts, setting: str = "auto", need: Need = NEED) -> Choice:
    """The choice where every package loads."""
    return choose(setting, need, facts, without_import)


def refusal(facts: MachineFacts, setting: str, need: Need = NEED) -> ConfigError:
    """The error of the choice."""
    with pytest.raises(ConfigError) as caught:
        taken(facts, setting, need)
    assert (caught.value.field, caught.value.value) == ("layers.attention", setting)
    return caught.value


def test_settings_are_the_kernels() -> None:
    assert set(get_args(AttentionName)) == {"auto", *CANDIDATES}
    assert {name for name, candidate in CANDIDATES.items() if not candidate.widths} == set(CPU_ATTENTION)
    assert all(name == candidate.name for name, candidate in CANDIDATES.items())


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (CPU, "cpu"),
        (hopper(), "fa4"),
        (hopper(FA4), "fa3"),
        (hopper(fa4="4.0.0b37"), "fa3"),
        (hopper(FA4, FA3), "te"),
        (hopper(FA4, FA3, TE), "cudnn"),
        (hopper(FA4, FA3, te="2.9.1"), "cudnn"),
        (hopper(FA4, FA3, TE, CUDNN), "fa2"),
        (hopper(FA4, FA3, cudnn=91900), "fa2"),
        (hopper(FA4, FA3, cudnn=92500), "te"),
        (chip(10), "fa4"),
        (chip(10, 3, FA4), "cudnn"),
        (chip(10, 0, FA4, CUDNN), "te"),
        (chip(8), "fa2"),
        (chip(8, 9), "fa2"),
        (chip(12), "fa2"),
    ],
)
def test_auto_takes_the_fastest_that_is_there(facts: MachineFacts, expected: str) -> None:
    choice = taken(facts)
    assert choice.candidate.name == expected
    assert choice.version == facts.packages.get(CANDIDATES[expected].package, "")
    # what is slow on a chip of today says so, and nothing else does
    assert bool(choice.warning) == (expected == "fa2" and facts.capability >= (9, 0))


def test_a_package_that_does_not_load_is_passed_over() -> None:
    def load(candidate: Candidate) -> Kernel:
        if candidate.name == "fa4":
            raise ImportError("libnvrtc.so.13: cannot open shared object file\nand more")
        return CpuFlash()

    choice = choose("auto", NEED, hopper(), load)
    assert choice.candidate.name == "fa3"
    assert choice.passed_over == (
        ("fa4", "flash-attn-4 does not load: ImportError: libnvrtc.so.13: cannot open shared object file"),
    )
    with pytest.raises(ConfigError, match=r"does not load.*Remedy: pip install .*flash-attn-4.*==4.0.0b36"):
        choose("fa4", NEED, hopper(), load)


def test_flash_attention_2_on_hopper_tells_its_cost_and_what_to_install() -> None:
    warning = taken(hopper(FA4, FA3, TE, CUDNN)).warning
    assert warning.startswith("SLOW ATTENTION: NVIDIA H100 runs flash attention 2")
    assert "1.6 times as long" in warning
    assert 'pip install "flash-attn-4[cu13]==4.0.0b36"' in warning
    for part in ("fa4: flash-attn-4 is not installed", "fa3: flash-attn-3 is not", "te: ", "cudnn: "):
        assert part in warning
    assert "layers.attention=auto takes the fastest" in taken(hopper(), "fa2").warning
    assert "cuDNN is 9.19" in taken(hopper(FA4, FA3, cudnn=91900)).warning
    assert "No other is known to run on this chip" in taken(chip(12)).warning
    assert not taken(chip(8), "fa2").warning


@pytest.mark.parametrize(
    ("facts", "setting", "rule", "remedy"),
    [
        (CPU, "fa4", "runs on NVIDIA GPUs", "take layers.attention=cpu, or auto"),
        (hopper(), "cpu", "computes on a CPU", "take layers.attention=fa4, or auto"),
        (hopper(FA4), "stand_in", "computes on a CPU", "take layers.attention=fa3, or auto"),
        (chip(8), "fa4", "runs on compute capability 9.x, 10.x, and chip 8.0 has 8.0", "take layers.attention=fa2"),
        (chip(10), "fa3", "9.x, and chip 10.0 has 10.0", "take layers.attention=fa4"),
        (hopper(FA4), "fa4", "flash-attn-4 is not installed", 'pip install "flash-attn-4[cu13]==4.0.0b36"'),
        (hopper(fa4="4.0.0b35"), "fa4", "is 4.0.0b35, and only 4.0.0b36", "or take layers.attention=fa3, or auto"),
        (hopper(cudnn_package="1.9.0"), "cudnn", "is 1.9.0, and 1.32 is the oldest", ">=1.32"),
        (hopper(cudnn=91900), "te", "cuDNN is 9.19, and before 9.25 it gives NaN", "cuDNN 9.25"),
        (hopper(cudnn=0), "te", "cuDNN is missing", "cuDNN 9.25"),
    ],
)
def test_a_named_kernel_that_cannot_run_is_refused(facts: MachineFacts, setting: str, rule: str, remedy: str) -> None:
    error = refusal(facts, setting)
    assert rule in error.rule
    assert remedy in error.remedy


def test_what_no_package_mends_asks_for_none() -> None:
    wide, exact = Need(192, torch.bfloat16), Need(128, torch.float32)
    assert taken(hopper(), need=wide).candidate.name == "fa4"
    assert taken(chip(10), need=wide).candidate.name == "fa2"
    error = refusal(hopper(), "te", wide)
    assert "heads are 192 wide, and it takes multiples of 8 up to 128" in error.rule
    assert error.remedy == "take layers.attention=fa4, or auto"
    error = refusal(hopper(), "fa4", exact)
    assert "computes in bf16, not float32" in error.rule
    assert error.remedy == "nothing else runs here either"
    assert "heads are 20 wide" in refusal(hopper(), "auto", Need(20, torch.bfloat16)).rule
    assert taken(CPU, need=Need(20, torch.float64)).candidate.name == "cpu"


def test_auto_refused_lists_what_each_lacks() -> None:
    error = refusal(MachineFacts("cuda", "NVIDIA H100", (9, 0)), "auto")
    assert all(f"{name}: " in error.rule for name in ("fa4", "fa3", "te", "cudnn", "fa2"))
    assert "flash-attn-4" in error.remedy
    error = refusal(chip(7, 5), "auto")
    assert "fa2: it runs on compute capability" in error.rule


def test_the_extra_installs_the_version_that_is_called(repo_root: Path) -> None:
    extras = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"flash-attn-4[cu13]=={CANDIDATES['fa4'].exact}" in extras["attention"]


def test_a_setting_of_another_name_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^attention='fa4': .*take attention=cpu, or auto"):
        choose("fa4", NEED, CPU, without_import, field="attention")


def test_processes_that_would_run_different_kernels_name_their_hosts() -> None:
    assert disagreement([("a", "fa4"), ("a", "fa4"), ("b", "fa4")]) == ""
    found = disagreement([("a", "fa4"), ("a", "fa4"), ("b", "fa2"), ("c", "fa4"), ("d", "")])
    assert found == "fa2 on b; none on d; fa4 on a, c"


def test_this_machine_says_which(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        attention = choose_attention("stand_in", Need(20, torch.float32), torch.device("cpu"))
    assert attention.kernel.name == "stand_in"
    assert [record.message for record in caplog.records] == ["attention: stand_in (a stand-in for tests) on CPU"]
    caplog.clear()
    monkeypatch.setattr(MachineFacts, "of", lambda device: hopper(FA4, FA3, TE, CUDNN))
    monkeypatch.setitem(CANDIDATES, "fa2", replace(CANDIDATES["fa2"], load=CpuFlash))  # type: ignore[arg-type]
    choose_attention("auto", NEED, torch.device("cpu"))
    assert [record.levelname for record in caplog.records if "SLOW ATTENTION" in record.message] == ["WARNING"]


def test_ranks_that_differ_all_refuse(tmp_path: Path) -> None:
    told = run_ranks(choose_on_ranks, (), tmp_path, processes=2)
    assert told[0]["same"] == told[1]["same"] == "cpu"
    for rank in told:
        assert rank["differ"].startswith("layers.attention='auto': processes would run different kernels: ")
        assert "cpu on " in rank["differ"] and "none on " in rank["differ"]
        assert "install the same packages on every node" in rank["differ"]


def test_facts_of_this_machine() -> None:
    facts = MachineFacts.of(torch.device("cpu"))
    assert (facts.device, facts.capability) == ("cpu", (0, 0))
    assert facts.cudnn == (torch.backends.cudnn.version() or 0)
    assert (TORCH in facts.packages) == torch.backends.cuda.is_flash_attention_available()


def test_packages_are_found_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package in (FA4, CUDNN):
            return {FA4: "4.0.0b36", CUDNN: "1.32.0"}[package]
        raise machine_facts.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(machine_facts.metadata, "version", version)
    monkeypatch.setattr(machine_facts, "find_spec", lambda name: object() if name != "cudnn" else None)
    found = MachineFacts.of(torch.device("cpu")).packages
    # an own build of flash attention 3 tells no version; a package whose module is gone is not there
    assert (found[FA4], found[FA3], found[TE]) == ("4.0.0b36", "?", "?")
    assert CUDNN not in found
    assert choose("te", NEED, MachineFacts("cuda", "H", (9, 0), found, 92800), without_import).version == "?"


def test_the_report_marks_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for candidate in CANDIDATES.values():
        monkeypatch.setitem(CANDIDATES, candidate.name, replace(candidate, load=CpuFlash))  # type: ignore[arg-type]
    rows = {row.name: row for row in list_kernels(hopper(FA4), NEED)}
    assert list(rows) == ["fa4", "fa3", "te", "cudnn", "fa2", "cpu"]
    assert [name for name, row in rows.items() if row.taken] == ["fa3"]
    assert (rows["fa4"].version, rows["fa4"].missing) == (None, "flash-attn-4 is not installed")
    assert rows["fa4"].install.startswith("pip install") and not rows["cpu"].install
    assert (rows["te"].version, rows["te"].missing) == ("2.20.2", "")
