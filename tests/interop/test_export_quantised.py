"""A quantised export: its bytes beside a plain reference, its report, its readers, and what is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from safetensors.torch import load_file

from megavideo.checkpoint.read import CheckpointReader, find_checkpoint
from megavideo.cli.main import main
from megavideo.cli.verbs.export import VERB
from megavideo.config.dump import read_config
from megavideo.config.load import load
from megavideo.config.schema.export import CompareConfig, ExportRun
from megavideo.config.schema.train import TrainRun
from megavideo.data.patches import unpatchify
from megavideo.diffusion.randomness import SampleKey
from megavideo.errors import CheckpointError
from megavideo.generate.loaded_run import load_run
from megavideo.generate.quantised import compared, psnr_db, sample_both
from megavideo.interop.export.quantised import Quantiser, QuantizationReport
from megavideo.interop.export.run import ExportReport
from megavideo.interop.export.run import export as write_export
from megavideo.interop.export.tensor_files import plan_files, write_tensor_file, written_dtype
from megavideo.interop.names import Dialect, TensorRule, tensor_rules
from megavideo.interop.quantised_files import load_transformer
from megavideo.interop.quantization import SCHEMES
from megavideo.interop.weights import to_wan, wan_config
from megavideo.testing.settings import micro_config
from megavideo.testing.spoil import spoil_values
from megavideo.types import Grid
from tests.interop.runs import export, wan_run, with_wan_encoders

LARGEST = {"fp8": 448.0, "int8": 127.0}
CODES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
MATRIX = re.compile(r"blocks\.\d+\.(attn|self_attn|cross_attn|ffn).*(?<!norm_q)(?<!norm_k)\.weight")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    wan_run(folder, diffusion__shift=3.0)
    with_wan_encoders(folder / "run", folder / "weights")
    return folder / "run"


def reference(run: Path, scheme: str, dialect: Dialect, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All tensors of the export, by plain torch."""
    config = read_config(TrainRun, run / "config.yaml").model
    whole = CheckpointReader(find_checkpoint(run)).whole("ema")
    types = {name: written_dtype(rule.ours, dtype) for rule in tensor_rules(config, dialect) for name in rule.theirs}
    expected: dict[str, torch.Tensor] = {}
    for name, value in to_wan(whole, config, dialect).items():
        if not MATRIX.fullmatch(name):
            expected[name] = value.to(types[name])
            continue
        scale = value.abs().amax(dim=1, keepdim=True) / LARGEST[scheme]
        codes = value / scale
        expected[f"{name}_scale"] = scale
        expected[name] = (codes.round() if scheme == "int8" else codes.clamp(-448, 448)).to(CODES[scheme])
    return expected


def bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


CASES = [
    ("transformer", "diffusers", "fp8", "bf16"), ("transformer", "diffusers", "int8", "fp32"),
    ("single", "wan", "fp8", "fp32"), ("single", "wan", "int8", "bf16"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "dialect", "scheme", "dtype"), CASES)
def test_the_bytes_are_those_of_plain_torch(
    kind: str, dialect: Dialect, scheme: str, dtype: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("out.safetensors" if kind == "single" else "out")
    shards = [] if kind == "single" else ["shard_gb=3e-5"]
    words = [f"ckpt={run}", f"out={out}", f"format={kind}", f"quantization={scheme}", f"dtype={dtype}", *shards]
    report = export([*words, "verify=false"], capfd)
    files = [out] if kind == "single" else sorted(out.glob("*.safetensors"))
    found = {name: (tensor, path.name) for path in files for name, tensor in load_file(path).items()}
    expected = reference(run, scheme, dialect, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    assert found.keys() == expected.keys() and report["num_tensors"] == len(expected)
    for name, value in expected.items():
        assert found[name][0].dtype == value.dtype and found[name][0].shape == value.shape
        assert bytes_of(found[name][0]) == bytes_of(value), name
    scales = [name for name in expected if name.endswith("weight_scale")]
    assert len(scales) == 20 == report["quantization"]["num_matrices"]  # 10 in each of two blocks
    if kind == "transformer":
        assert len(files) > 3
        index = json.loads((out / "diffusion_pytorch_model.safetensors.index.json").read_text())
        assert index["weight_map"] == {name: file for name, (_, file) in found.items()}
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in expected.values())
    left = [tensor.dtype for name, (tensor, _) in found.items() if not MATRIX.fullmatch(name) and name not in scales]
    assert set(left) == ({torch.float32, torch.bfloat16} if dtype == "bf16" else {torch.float32})


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_config_json_says(scheme: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each linear layer of diffusers' model is quantised or among those that are ignored."""
    words = [f"ckpt={run}", f"out={tmp_path / 'out'}", "format=transformer", f"quantization={scheme}", "verify=false"]
    export(words, capfd)
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    kind = {"fp8": "float", "int8": "int"}[scheme]
    assert (told["quant_method"], told["format"]) == ("compressed-tensors", f"{kind}-quantized")
    weights = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "channel", "dynamic": False}
    assert told["config_groups"]["group_0"]["weights"] == weights
    tensors = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    quantised = {name.removesuffix(".weight_scale") for name in tensors if name.endswith("_scale")}
    with torch.device("meta"):
        model: Any = WanTransformer3DModel(**wan_config(read_config(TrainRun, run / "config.yaml").model))
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert quantised | set(told["ignore"]) == linear and not quantised & set(told["ignore"])


@dataclass(frozen=True)
class Held:
    """Weights in memory."""

    values: dict[str, torch.Tensor]

    def value(self, name: str) -> torch.Tensor:
        return self.values[name]

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        out.copy_(self.values[name].flatten()[start : start + len(out)])


def test_scales_are_aligned_behind_odd_matrices(tmp_path: Path) -> None:
    """As in files of the safetensors library, every tensor begins at a multiple of its numbers' width."""
    names = [f"blocks.{number}.ffn.up.weight" for number in range(3)]
    values = {name: torch.randn(3, 5, generator=torch.Generator().manual_seed(len(name))) for name in names}
    rules = [TensorRule(name, (name,)) for name in names]
    config = micro_config(data__uri="none").model
    quantiser = Quantiser(SCHEMES["int8"], torch.float32)
    (groups,) = plan_files(rules, config, dict.fromkeys(names, (3, 5)), torch.float32, math.inf, quantiser.group)
    size = write_tensor_file(tmp_path / "a.safetensors", groups, config, Held(values), lambda count: None)
    assert size == (tmp_path / "a.safetensors").stat().st_size
    content = (tmp_path / "a.safetensors").read_bytes()
    rows = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    begins = {name: row["data_offsets"][0] for name, row in rows.items() if name.endswith("_scale")}
    assert len(begins) == 3 and not any(begin % 4 for begin in begins.values())
    found = load_file(tmp_path / "a.safetensors")
    for name, value in values.items():
        assert (found[name].float() * found[f"{name}_scale"] - value).abs().max() <= value.abs().max() / 127


@dataclass(frozen=True)
class Exported:
    """A pipeline in int8 or FP8, its settings and its report."""

    cfg: ExportRun
    report: ExportReport
    found: QuantizationReport


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("exported")
    return {scheme: made(run, folder / scheme, f"quantization={scheme}", "compare.steps=3") for scheme in SCHEMES}


def made(run: Path, out: Path, *words: str) -> Exported:
    cfg = load(ExportRun, "export", [f"ckpt={run}", f"out={out}", *words])
    checkpoint = find_checkpoint(run)
    report = compared(write_export(cfg, checkpoint), cfg, checkpoint)
    assert report.quantization is not None
    return Exported(cfg, report, report.quantization)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_report_on_each_matrix(scheme: str, exported: dict[str, Exported], run: Path) -> None:
    one = exported[scheme]
    whole = CheckpointReader(find_checkpoint(run)).whole("ema")
    plain = to_wan(whole, read_config(TrainRun, run / "config.yaml").model, "diffusers")
    tensors = load_file(Path(one.report.out) / "transformer" / "diffusion_pytorch_model.safetensors")
    squares = error_squares = 0.0
    for loss in one.found.matrices:
        value = plain[loss.name].double()
        codes = tensors[loss.name].double()
        error = codes * tensors[f"{loss.name}_scale"].double() - value
        assert loss.relative_error == pytest.approx(float(error.norm() / value.norm()), rel=1e-4)
        assert loss.max_abs_error == pytest.approx(float(error.abs().max()), rel=1e-4)
        assert loss.saturated_share == float((codes.abs() == LARGEST[scheme]).double().mean())
        squares, error_squares = squares + float(value.square().sum()), error_squares + float(error.square().sum())
    errors = [loss.relative_error for loss in one.found.matrices]
    assert errors == sorted(errors, reverse=True) and len(errors) == one.found.num_matrices == 20
    assert one.found.relative_error == pytest.approx(math.sqrt(error_squares / squares), rel=1e-4)
    assert one.report.verify is not None and one.report.verify.passed
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert one.found.bytes_share == size / sum(value.nbytes for value in plain.values())


def test_what_it_does_to_the_output(exported: dict[str, Exported]) -> None:
    """e4m3 keeps 4 digits of two, integers of 127 steps 7 of the largest."""
    fp8, int8 = exported["fp8"].found, exported["int8"].found
    assert fp8.forward_error is not None and int8.forward_error is not None
    assert fp8.video is not None and int8.video is not None
    assert 0.015 < fp8.relative_error < 0.04 and 0.002 < int8.relative_error < 0.015
    assert 0.0 < int8.forward_error < fp8.forward_error < 0.1
    assert 30.0 < fp8.video.psnr_db < int8.video.psnr_db < 80.0
    assert fp8.no_video is None and fp8.video.steps == 3 and fp8.video.prompt == CompareConfig().prompt


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_and_the_text(scheme: str, exported: dict[str, Exported]) -> None:
    found = exported[scheme].found
    page = Path(found.page).read_text()
    assert found.page == f"{exported[scheme].report.out}.html" and f"quantization={scheme}" in page
    assert page.count("data:image/png;base64,") == 2 and "<script" not in page
    places = [page.index(f"<td>{loss.name}</td>") for loss in found.matrices]
    assert places == sorted(places) and f"{found.matrices[0].relative_error:.4%}" in page
    assert found.video is not None and f"{found.video.psnr_db:.2f} dB" in page
    text = VERB.describe(exported[scheme].report)
    assert "worst 5 of 20 matrices" in text and found.matrices[4].name in text
    assert found.matrices[5].name not in text and f"forward error   {found.forward_error:.6g}" in text


def test_diffusers_samples_the_same_from_it(exported: dict[str, Exported], run: Path) -> None:
    """By the transformer that is read back, given to its pipeline; alone it refuses the folder."""
    pytest.importorskip("accelerate", reason="diffusers loads Wan pipelines only with the package accelerate")
    from diffusers import WanPipeline

    cfg, out = exported["fp8"].cfg, Path(exported["fp8"].report.out)
    with pytest.raises(ValueError, match="got compressed-tensors"):
        WanPipeline.from_pretrained(out, local_files_only=True)
    transformer = load_transformer(out / "transformer", torch.float32)
    pipe = WanPipeline.from_pretrained(out, local_files_only=True, transformer=transformer)
    pipe.set_progress_bar_config(disable=True)
    size, loaded = cfg.compare, load_run(run, weights="ema", dtype=torch.float32, device=torch.device("cpu"))
    prompt, negative = (text[None].float() for text in loaded.encoders.text_encoder.encode([size.prompt, ""]))
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    channels = loaded.config.model.latent_channels
    grid = Grid(3, size.height // 16, size.width // 16)
    tokens = SampleKey(0, "prompt/0", 0).normal("sample", (grid.num_tokens, 4 * channels))
    video = pipe(
        height=size.height, width=size.width, num_frames=size.frames, num_inference_steps=size.steps,
        guidance_scale=5.0, output_type="np", prompt_embeds=prompt, negative_prompt_embeds=negative,
        latents=unpatchify(tokens, grid, (1, 2, 2))[None],
    ).frames[0] * 255.0  # fmt: skip
    plain, quantised = sample_both(cfg, find_checkpoint(run))
    found = exported["fp8"].found.video
    assert found is not None and found.psnr_db == psnr_db(plain, quantised)
    assert psnr_db(video, quantised) > psnr_db(video, plain) + 3
    assert psnr_db(video, quantised) > 50


def test_a_read_back_transformer_keeps_what_is_precise(exported: dict[str, Exported]) -> None:
    model = load_transformer(Path(exported["int8"].report.out), torch.bfloat16)
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert types["blocks.0.ffn.net.2.weight"] == types["proj_out.weight"] == torch.bfloat16
    assert types["blocks.0.norm2.weight"] == types["scale_shift_table"] == torch.float32


def test_a_run_without_encoders_has_no_video(run: Path, tmp_path: Path) -> None:
    """The network's output is compared all the same."""
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "encoders")
    one = made(tmp_path / "run", tmp_path / "out", "format=transformer", "quantization=int8")
    assert one.found.video is None and "encoders" in str(one.found.no_video)
    assert one.found.forward_error is not None
    page = Path(one.found.page).read_text()
    assert "No video was sampled" in page and page.count("data:image/png;base64,") == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(
    value: float, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    spoil_values(find_checkpoint(tmp_path / "run"), "ema", "blocks.1.ffn.up.weight", value)
    words = ["export", f"ckpt={tmp_path / 'run'}", f"out={tmp_path / 'out'}", "format=transformer", "quantization=fp8"]
    assert main(words) == 2
    assert "ema of 'blocks.1.ffn.up.weight' (1 of " in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_page_that_is_there(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out.html").write_text("mine")
    words = ["export", f"ckpt={run}", f"out={tmp_path / 'out.safetensors'}", "format=single", "quantization=fp8"]
    assert main(words) == 2
    assert "out.html, which shows what quantising loses, is there already" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"]
    assert (tmp_path / "out.html").read_text() == "mine"


@pytest.mark.parametrize(("scheme", "stored"), [("fp8", "F8_E4M3"), ("int8", "I8")])
def test_it_is_not_imported(
    scheme: str, stored: str, exported: dict[str, Exported], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert main(["import", f"src={exported[scheme].report.out}", f"out={tmp_path / 'run'}"]) == 2
    told = capfd.readouterr().err
    assert f"quantised weights ({stored}), which cannot be trained on" in told and "Remedy: take the bf16" in told
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_model_is_not_read_back(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    export([f"ckpt={run}", f"out={out}", "format=transformer", "quantization=fp8", "verify=false"], capfd)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "ffn_dim": 32}))
    with pytest.raises(CheckpointError, match=r"not the model of its config\.json .*Remedy"):
        load_transformer(out)
