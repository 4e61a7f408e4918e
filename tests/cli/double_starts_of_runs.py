"""Two starts of the verbs that make something of a run, and of those that make a run from other things.

And those of verbs that look at a run and write nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.cli.main import main
from megavideo.data.clips.media import probe
from megavideo.testing.saved_run import write_run
from megavideo.testing.settings import micro_config
from tests.cli.double_starts import DoubleStart, Ended, Maker, rows
from tests.interop.adapter_cases import write_adapted, write_base

_PROMPTS = ("--prompt", "a ball", "--prompt", "a cube")


def saved_run(root: Path) -> Path:
    """A run folder with one checkpoint."""
    return write_run(micro_config(output=root / "runs", data__uri="gone", model__layers=1))


def _sample(root: Path, fixture: Callable[[str], Any], prompts: Sequence[str] = _PROMPTS[:2]) -> DoubleStart:
    run, frames = saved_run(root), (5, 9)
    name, files = ("ball.mp4", {"ball.mp4", "ball.png"})
    if len(prompts) > 2:
        name, files = ("balls", {"000_a-ball.mp4", "001_a-cube.mp4", "contact_sheet.png"})

    def commands(place: Path) -> list[list[str]]:
        words = ["sample", f"ckpt={run}", f"out={place / name}", "height=32", "width=32", "steps=1", *prompts]
        return [[*words, f"frames={count}"] for count in frames]

    def whose(ended: Ended) -> set[int]:
        place = ended.place if name.endswith(".mp4") else ended.place / name
        assert {path.name for path in place.iterdir()} == files
        counts = {probe(path).frames for path in place.glob("*.mp4")}
        (count,) = counts
        return {frames.index(count)}

    return DoubleStart(commands, whose)


def _sample_into_a_folder(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    return _sample(root, fixture, _PROMPTS)


def _report(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    run = saved_run(root)

    def commands(place: Path) -> list[list[str]]:
        return [["report", str(run), f"out={place / 'page.html'}"]] * 2

    def whose(ended: Ended) -> set[int]:
        assert (ended.place / "page.html").read_text().rstrip().endswith("</html>")
        assert ended.all_done
        return {0, 1}

    return DoubleStart(commands, whose)


def _fit(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    table = root / "points.csv"
    sizes = [(n, d) for n in (1e7, 1e8, 1e9) for d in (1e9, 1e10, 1e11)]
    lines = [f"{n},{d},{6 * n * d},{2 + 500 / n**0.35 + 2000 / d**0.36}\n" for n, d in sizes]
    table.write_text("params,tokens,flops,loss\n" + "".join(lines))

    def commands(place: Path) -> list[list[str]]:
        words = ["fit", str(table), f"out={place / 'page.html'}", f"export={place / 'model.yaml'}", "clip_tokens=1024",
                 "resamples=0"]  # fmt: skip
        return [[*words, f"budget={budget}"] for budget in ("1e20", "2e20")]

    def whose(ended: Ended) -> set[int]:
        page, model = (ended.place / "page.html").read_text(), (ended.place / "model.yaml").read_text()
        assert page.rstrip().endswith("</html>") and model.endswith("eps: 1.0e-06\n")
        (whose,) = [number for number, budget in enumerate(("1e+20", "2e+20")) if f"for {budget} FLOPs" in model]
        return {whose}

    return DoubleStart(commands, whose, "is there already")


def _reshard(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    run = saved_run(root)

    def commands(place: Path) -> list[list[str]]:
        return [["checkpoint", "reshard", str(run), f"out={place / 'moved'}", f"ranks={ranks}"] for ranks in (2, 3)]

    def whose(ended: Ended) -> set[int]:
        assert {path.name for path in (ended.place / "moved").iterdir()} == {"step_00000005"}
        assert main(["checkpoint", "verify", str(ended.place / "moved" / "step_00000005")]) == 0
        return {len(CheckpointReader(ended.place / "moved" / "step_00000005").manifest.files) - 2}

    return DoubleStart(commands, whose, "is there already")


def _as_made_alone(root: Path, commands: Callable[[Path], Sequence[Sequence[str]]], late: str) -> DoubleStart:
    """The outcome is that of one of the commands, started by itself, to the last byte of its tensors."""
    alone = []
    for number in range(2):
        place = root / f"alone_{number}"
        place.mkdir(parents=True)
        assert main(commands(place)[number]) == 0
        alone.append(_tensors(place))
    assert alone[0] != alone[1]

    def whose(ended: Ended) -> set[int]:
        return {alone.index(_tensors(ended.place))}

    return DoubleStart(commands, whose, late)


def _tensors(place: Path) -> Mapping[str, str]:
    """Names of all files, and what the tensors in them are."""
    return {
        path.relative_to(place).as_posix(): _digest(path)
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }  # fmt: skip


def _digest(path: Path) -> str:
    if path.suffix != ".safetensors":
        return ""
    found = hashlib.sha256()
    for name, value in sorted(load_file(path).items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.numpy(force=True).tobytes())
    return found.hexdigest()


def _lora(root: Path) -> list[Path]:
    base = write_base(root)
    return [write_adapted(base, root / f"rank_{rank}", rank=rank) for rank in (2, 3)]


def _lora_export(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    run, _ = _lora(root)

    def commands(place: Path) -> list[list[str]]:
        return [["lora", "export", str(run), f"out={place / 'adapters'}", f"weights={w}"] for w in ("ema", "raw")]

    return _as_made_alone(root, commands, "in use by")


def _lora_merge(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    runs = _lora(root)

    def commands(place: Path) -> list[list[str]]:
        return [["lora", "merge", str(run), f"out={place / 'merged'}"] for run in runs]

    return _as_made_alone(root, commands, "is there already")


def _lora_load(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    runs = _lora(root)
    for run in runs:
        assert main(["lora", "export", str(run), f"out={root / 'files' / run.name}"]) == 0

    def commands(place: Path) -> list[list[str]]:
        files = [root / "files" / run.name for run in runs]
        return [["lora", "load", str(file), f"base={root / 'base'}", f"out={place / 'loaded'}"] for file in files]

    return _as_made_alone(root, commands, "is there already")


def _export(root: Path, fixture: Callable[[str], Any], kind: str = "transformer", name: str = "out") -> DoubleStart:
    run = write_base(root)

    def commands(place: Path) -> list[list[str]]:
        words = ["export", f"ckpt={run}", f"out={place / name}", f"format={kind}", "verify=false"]
        return [[*words, f"weights={weights}"] for weights in ("ema", "raw")]

    return _as_made_alone(root, commands, "is there already")


def _export_of_one_file(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    return _export(root, fixture, "single", "wan.safetensors")


def _import(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    from tests.interop.wan_files import transformer  # brings diffusers

    sources = [root / f"seed_{seed}" for seed in range(2)]
    for seed, source in enumerate(sources):
        transformer(seed=seed).save_pretrained(source)

    def commands(place: Path) -> list[list[str]]:
        return [["import", f"src={source}", f"out={place / 'run'}"] for source in sources]

    made = _as_made_alone(root, commands, "is there already")

    def whose(ended: Ended) -> set[int]:
        found = made.whose(ended)
        told = CheckpointReader(find_checkpoint(ended.place / "run")).manifest.config
        assert {number for number, source in enumerate(sources) if str(source) in told} == found
        return found

    return DoubleStart(commands, whose, made.late)


def _demo(root: Path, fixture: Callable[[str], Any]) -> DoubleStart:
    def commands(place: Path) -> list[list[str]]:
        words = ["demo", f"out={place / 'demo'}", "clips=24", "images=0", "processes=1", "sampling_steps=1",
                 "frames=5", "height=32", "width=32"]  # fmt: skip
        return [[*words, f"steps={steps}"] for steps in (1, 2)]

    def whose(ended: Ended) -> set[int]:
        out = ended.place / "demo"
        steps = [row["step"] for row in rows(out / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1))
        prompts = json.loads((out / "score.json").read_bytes())["prompts"]
        assert len(list((out / "samples").glob("*.mp4"))) == prompts
        assert f"steps: {len(steps)}\n" in (out / "demo.yaml").read_text()
        return {len(steps) - 1}

    return DoubleStart(commands, whose, "holds a demo with")


MAKERS: Mapping[str, Maker] = {
    "report": _report,
    "fit": _fit,
    "checkpoint reshard": _reshard,
    "lora export": _lora_export,
    "lora merge": _lora_merge,
    "lora load": _lora_load,
    "sample": _sample,
    "sample into a folder": _sample_into_a_folder,
    "export": _export,
    "export of one file": _export_of_one_file,
    "import": _import,
    "demo": _demo,
}


# from a run and a dataset to the command lines of those that only look
LOOKS: Mapping[str, Callable[[Path, Path], Sequence[str]]] = {
    "status": lambda run, latents: ["status", str(run)],
    "checkpoint ls": lambda run, latents: ["checkpoint", "ls", str(run)],
    "checkpoint verify": lambda run, latents: ["checkpoint", "verify", str(run)],
    "checkpoint show": lambda run, latents: ["checkpoint", "show", str(run)],
    "doctor of a dataset": lambda run, latents: [
        "doctor", f"data={latents}", "tokens_per_pack=64", "text_tokens_per_pack=64",
    ],
    "doctor": lambda run, latents: ["doctor", "attention.tokens=64", "attention.segments=1"],
    "plan": lambda run, latents: ["plan", "run=wan_1b", "cluster=h100_ib", "--json"],
    "parity": lambda run, latents: ["parity", "dp2-zero1", "--steps", "1", "--layers", "1", "--tokens", "16"],
}  # fmt: skip


def content(root: Path) -> Mapping[str, tuple[int, bytes]]:
    """Names of all files and folders below `root`, when they were changed, and what the files hold."""
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
    }
