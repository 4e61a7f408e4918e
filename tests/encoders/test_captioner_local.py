"""Local models: the real loading path, beside transformers used by hand, one request at a time and without padding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megavideo.encoders.captioner.answer import Answer, ClipView, Request, instructed, to_answer
from megavideo.encoders.captioner.local import LocalModel
from megavideo.errors import ConfigError, DataError
from tests.encoders.tiny_captioners import make_language_model, make_llava, make_qwen

LENGTH = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "text": make_language_model(root / "text"),
        "llava": make_llava(root / "llava"),
        "qwen": make_qwen(root / "qwen"),
    }


def view(seed: int, frames: int = 3, height: int = 40, width: int = 60) -> ClipView:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)
    return ClipView(pixels, tuple(range(0, 4 * frames, 4)), 4 * frames, 8.0)


def answers(model: LocalModel, *requests: Request) -> list[Answer]:
    found = model.answer(requests)
    assert all(isinstance(answer, Answer) for answer in found), found
    return [answer for answer in found if isinstance(answer, Answer)]


def by_hand(model: Any, tokenizer: Any, inputs: Any) -> Answer | DataError:
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=LENGTH)[0, inputs["input_ids"].shape[1] :]
    ended = tokenizer.eos_token_id in ids.tolist()
    return to_answer(tokenizer.decode(ids, skip_special_tokens=True), not ended)


def test_text_agrees_with_transformers(folders: dict[str, Path]) -> None:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    model = LocalModel("captioner", str(folders["text"]), LENGTH, None)
    prompts = ["Rewrite a small dog runs", "Say it slowly", "Describe this video at length , the red car turns left"]
    reference = LlamaForCausalLM.from_pretrained(folders["text"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders["text"])
    expected = []
    for prompt in prompts:
        inputs = tokenizer(f"USER : {prompt} ASSISTANT :", return_tensors="pt", return_token_type_ids=False)
        expected.append(by_hand(reference, tokenizer, inputs))
    found = answers(model, *(Request(prompt) for prompt in prompts))
    assert found == expected
    assert len({answer.text for answer in found}) == 3


def test_images_agree_with_transformers(folders: dict[str, Path]) -> None:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = LocalModel("captioner", str(folders["llava"]), LENGTH, "images")
    requests = [Request("Describe this video", view(0)), Request("Say it at length .", view(1, height=60, width=30))]
    reference = LlavaForConditionalGeneration.from_pretrained(folders["llava"])
    processor = LlavaProcessor.from_pretrained(folders["llava"])
    expected = []
    for request in requests:
        assert request.view is not None
        prompt = "USER : " + "<image> " * 3 + request.prompt + " ASSISTANT :"
        inputs = processor(text=prompt, images=list(request.view.frames), return_tensors="pt")
        expected.append(by_hand(reference, processor.tokenizer, {k: v for k, v in inputs.items() if "type" not in k}))
    assert answers(model, *requests) == expected
    # What is seen decides, and so does its order.
    one = requests[0].view
    assert one is not None
    turned = ClipView(one.frames[::-1].copy(), one.numbers, one.total, one.fps)
    texts = {answer.text for answer in answers(model, *(Request("Say it", v) for v in (one, view(2), turned)))}
    assert len(texts) == 3


def test_video_agrees_with_transformers(folders: dict[str, Path]) -> None:
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    model = LocalModel("captioner", str(folders["qwen"]), LENGTH, "video")
    requests = [Request("Describe", view(0, 4)), Request("Say it all", view(1, 4, 30, 30))]
    reference = Qwen2VLForConditionalGeneration.from_pretrained(folders["qwen"])
    processor = Qwen2VLProcessor.from_pretrained(folders["qwen"])
    expected = []
    for request in requests:
        assert request.view is not None
        prompt = f"<|vision_start|><|video_pad|><|vision_end|>{request.prompt}"
        inputs = processor(text=[prompt], videos=[request.view.frames], return_tensors="pt")
        expected.append(by_hand(reference, processor.tokenizer, inputs))
    assert answers(model, *requests) == expected
    # A clip of one frame is a video too; a picture that the processor refuses fails alone.
    strip = Request("Say it", view(2, 1, 10, 3000))
    good, bad = model.answer([Request("Say it", view(3, 1)), strip])
    assert isinstance(good, Answer) and isinstance(bad, DataError) and "aspect ratio" in str(bad)


def test_no_pickle_and_no_code_of_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["text"], tmp_path / "code")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match=r"captioner\.path.*of type own"):
        LocalModel("captioner", str(folder), LENGTH, None)
    assert not (tmp_path / "ran").exists()
    pickled = shutil.copytree(folders["text"], tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        LocalModel("captioner", str(pickled), LENGTH, None)


def test_unusable_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    damaged = shutil.copytree(folders["llava"], tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"x" * 64)
    base = make_language_model(tmp_path / "base", template=None)
    broken = make_language_model(tmp_path / "broken", template="{{ raise_exception('no user may speak') }}")
    cases: list[tuple[Path | None, str | None, str]] = [
        (None, None, "loaded from a folder"),
        (tmp_path / "gone", None, "no such folder"),
        (damaged, "images", "its weights"),
        (base, None, "no chat template"),
        (folders["text"], "images", "of a model of type llama"),
        (folders["llava"], "video", "takes no video"),
    ]
    for path, frames_as, part in cases:
        with pytest.raises(ConfigError, match=part) as caught:
            LocalModel("captioner", path and str(path), LENGTH, frames_as)
        assert caught.value.field in ("captioner.path", "captioner.frames_as")
    with pytest.raises(ConfigError, match="no user may speak"):
        LocalModel("captioner", str(broken), LENGTH, None).answer([Request("x")])


@pytest.mark.parametrize(
    ("raw", "cut", "text"),
    [
        (" A dog.\n\nIt runs.  ", False, "A dog. It runs."),
        ("<think>a</think>b", False, "b"),
        ('"A dog."', False, "A dog."),
        ('"A" and "B"', False, '"A" and "B"'),
        ("“Hund”", False, "Hund"),
        ("A dog. It ru", True, "A dog."),
        ("3.5 dogs ru", True, "3.5 dogs ru"),
        ("狗在跑。它很", True, "狗在跑。"),
        ("a\x1b[31mred\x07", False, "a [31mred"),
        ("<think>never ends", False, None),
        (" \n ", False, None),
    ],
)
def test_tidying(raw: str, cut: bool, text: str | None) -> None:
    found = to_answer(raw, cut)
    assert found == Answer(text, cut) if text is not None else isinstance(found, DataError)


def test_the_text_stands_below_its_instruction() -> None:
    assert instructed(" Rewrite: \n", " a dog ") == "Rewrite:\n\na dog"
