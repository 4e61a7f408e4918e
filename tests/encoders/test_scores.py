"""Measures by models: the values of transformers' own classes, whatever the batch, and folders that cannot serve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from megavideo.cli.verbs.ingest import VERB
from megavideo.config.load import load
from megavideo.config.schema.clip_scores import (
    ClipFitConfig,
    EmbeddingConfig,
    LabelConfig,
    LearnedAestheticConfig,
    ScoresConfig,
    TextAreaConfig,
)
from megavideo.config.schema.prepare import IngestRun
from megavideo.data.ingest.rows import ClipRow, read_clip_list
from megavideo.data.ingest.scoring.measure import ClipFrames, Measure
from megavideo.data.ingest.scoring.views import clip_frames
from megavideo.encoders.scores import folder as folder_module
from megavideo.encoders.scores.build import build_measures
from megavideo.encoders.scores.folder import choose_device
from megavideo.errors import ConfigError
from tests.data.clip_files import moving_square, write_captions, write_clip
from tests.encoders.tiny_scorers import make_classifier, make_clip, make_detector, make_head, make_segmenter

CAPTIONS = ("a red square moves right", "two people watch the sea", "the dark street at night . , " * 12)


def clips() -> list[ClipFrames]:
    """Three clips of other sizes and numbers of frames."""
    random = np.random.default_rng(0)
    found = []
    for number, (frames, height, width) in enumerate(((4, 48, 64), (1, 40, 40), (3, 64, 36))):
        pictures = random.integers(0, 255, (frames, height // 4, width // 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
        row = ClipRow(
            clip_id=str(number), file="x.mp4", caption=CAPTIONS[number], frames=9, fps=8.0, width=width, height=height,
            pixel_aspect=1.0, is_image=False,
        )  # fmt: skip
        found.append(ClipFrames(row, pictures))
    return found


def values(measures: Sequence[Measure]) -> dict[str, Any]:
    return {measure.name: measure.measure(clips()) for measure in measures}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_embeddings_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = str(make_clip(tmp_path / "model", kind=kind))
    head = make_head(tmp_path / "head.safetensors", 24 if kind == "clip" else 32)
    cfg = ScoresConfig(
        device="cpu",
        clip=ClipFitConfig(folder=folder),
        embedding=EmbeddingConfig(folder=folder, duplicate_cosine=0.9),
        learned_aesthetic=LearnedAestheticConfig(folder=folder, head=str(head), activation="relu"),
    )
    found = values(build_measures(cfg))
    model, tokens = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    images, layers = AutoImageProcessor.from_pretrained(folder), load_file(head)
    for number, clip in enumerate(clips()):
        with torch.no_grad():
            frames = model.get_image_features(**images(images=list(clip.frames), return_tensors="pt"))
            words = tokens(
                [clip.row.caption], padding="max_length", truncation=True, max_length=16, return_tensors="pt"
            )
            named = ("input_ids", "attention_mask")[: 2 if kind == "clip" else 1]
            text = model.get_text_features(**{name: words[name] for name in named})
        frames, text = F.normalize(frames, dim=-1), F.normalize(text, dim=-1)
        assert found["clip"][number] == pytest.approx(float((frames @ text[0]).mean()), abs=1e-5)
        whole = F.normalize(frames.mean(0), dim=0).numpy()
        np.testing.assert_allclose(found["embedding"][number], whole, atol=1e-5)
        hidden = F.relu(F.linear(frames, layers["layers.0.weight"], layers["layers.0.bias"]))
        taste = F.linear(hidden, layers["layers.7.weight"], layers["layers.7.bias"]).mean()
        assert found["learned_aesthetic"][number] == pytest.approx(float(taste), abs=1e-5)
    assert len(set(np.round(found["clip"], 3))) == 3


def test_labels_and_areas_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import (
        AutoImageProcessor,
        SegformerForSemanticSegmentation,
        ViTForImageClassification,
        YolosForObjectDetection,
    )

    one = str(make_classifier(tmp_path / "one"))
    several = str(make_classifier(tmp_path / "several", problem_type="multi_label_classification"))
    points, boxes = str(make_segmenter(tmp_path / "points")), str(make_detector(tmp_path / "boxes"))
    cfg = ScoresConfig(
        device="cpu",
        watermark=LabelConfig(folder=one, label="marked"),
        nsfw=LabelConfig(folder=several, label="Marked"),
        text_area=TextAreaConfig(folder=points, label="other"),
    )
    found = values(build_measures(cfg))
    boxed = values(build_measures(ScoresConfig(text_area=TextAreaConfig(folder=boxes, label="other", confidence=0.3))))
    for number, clip in enumerate(clips()):
        pictures = list(clip.frames)
        with torch.no_grad():
            inputs = AutoImageProcessor.from_pretrained(one)(images=pictures, return_tensors="pt")
            share = ViTForImageClassification.from_pretrained(one)(**inputs).logits.softmax(-1)[:, 2]
            most = ViTForImageClassification.from_pretrained(several)(**inputs).logits.sigmoid()[:, 2]
            inputs = AutoImageProcessor.from_pretrained(points)(images=pictures, return_tensors="pt")
            classes = SegformerForSemanticSegmentation.from_pretrained(points)(**inputs).logits.argmax(1)
            images = AutoImageProcessor.from_pretrained(boxes)
            outputs = YolosForObjectDetection.from_pretrained(boxes)(**images(images=pictures, return_tensors="pt"))
        assert found["watermark"][number] == pytest.approx(float(share.mean()), abs=1e-5)
        assert found["nsfw"][number] == pytest.approx(float(most.max()), abs=1e-5)
        assert found["text_area"][number] == pytest.approx(float((classes == 1).float().mean()), abs=1e-5)
        height, width = clip.frames.shape[1:3]
        covered = []
        for frame in images.post_process_object_detection(outputs, 0.3, [(height, width)] * len(pictures)):
            mask = np.zeros((height, width), bool)
            for box in frame["boxes"][frame["labels"] == 1].numpy():
                left, top, right, bottom = np.rint(box).clip(0, [width, height, width, height]).astype(int)
                mask[top:bottom, left:right] = True
            covered.append(mask.mean())
        assert boxed["text_area"][number] == pytest.approx(np.mean(covered), abs=1e-6)
    assert len(set(found["watermark"])) == 3 and max(boxed["text_area"]) > 0 < max(found["text_area"]) < 1


def test_the_batch_changes_nothing(tmp_path: Path) -> None:
    """Nor does what else is measured with a clip."""
    folder, labels = str(make_clip(tmp_path / "model")), str(make_classifier(tmp_path / "labels"))
    found = []
    for batch in (1, 3, 64):
        cfg = ScoresConfig(
            batch=batch, clip=ClipFitConfig(folder=folder), nsfw=LabelConfig(folder=labels, label="marked"),
            text_area=TextAreaConfig(folder=str(make_detector(tmp_path / "boxes")), label="other", confidence=0.3),
        )  # fmt: skip
        measures = build_measures(cfg)
        found.append(values(measures))
        alone = {measure.name: [measure.measure([clip])[0] for clip in clips()] for measure in measures}
        for name, whole in found[-1].items():
            np.testing.assert_allclose(whole, alone[name], atol=1e-5)
            np.testing.assert_allclose(whole, found[0][name], atol=1e-5)


def test_keys_tell_weights_and_settings(tmp_path: Path) -> None:
    first, second = make_classifier(tmp_path / "first"), make_classifier(tmp_path / "second", seed=1)

    def key(folder: Path, label: str = "marked") -> str:
        (measure,) = build_measures(ScoresConfig(nsfw=LabelConfig(folder=str(folder), label=label)))
        return measure.key

    keys = [key(first), key(second), key(first, "safe")]
    assert len(set(keys)) == 3 and key(first) == keys[0]
    settings = json.loads((first / "preprocessor_config.json").read_text())
    (first / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.1, 0.1, 0.1]}))
    assert key(first) != keys[0]


def test_the_device_is_the_setting_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"scores\.device='cuda': there is no GPU here"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")


def test_models_go_to_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and inputs: the meta device takes what a GPU would."""
    moved = []
    monkeypatch.setattr(folder_module, "choose_device", lambda asked: torch.device("meta"))
    (measure,) = build_measures(ScoresConfig(nsfw=LabelConfig(folder=str(make_classifier(tmp_path)), label="safe")))
    model: Any = measure._model  # type: ignore[attr-defined]
    model.register_forward_pre_hook(lambda one, args, named: moved.extend(named.values()), with_kwargs=True)
    with pytest.raises(NotImplementedError, match="meta"):
        measure.measure(clips())
    assert {value.device.type for value in (*moved, *model.parameters())} == {"meta"}


def test_folders_that_cannot_serve(tmp_path: Path) -> None:
    clip, labels = make_clip(tmp_path / "clip"), make_classifier(tmp_path / "labels")
    pickled = make_classifier(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    strange = make_classifier(tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    code = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    (strange / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": code}))
    (strange / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    bare = make_classifier(tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()

    def nsfw(folder: Path, label: str = "marked") -> ScoresConfig:
        return ScoresConfig(nsfw=LabelConfig(folder=str(folder), label=label))

    faults = [
        (nsfw(tmp_path / "none"), r"scores\.nsfw\.folder='.*none': no such folder"),
        (nsfw(pickled), r"pickles \(pytorch_model\.bin\).*never loaded\. Remedy: .*safe_serialization=True"),
        (nsfw(clip), "holds CLIPModel, and one of transformers' ImageClassification classes"),
        (nsfw(labels, "nude"), r"scores\.nsfw\.label='nude': .*take one of: marked, other, safe"),
        (ScoresConfig(clip=ClipFitConfig(folder=str(labels))), "a model of type vit, and one of clip, siglip"),
        (
            ScoresConfig(text_area=TextAreaConfig(folder=str(labels), label="other")),
            "SemanticSegmentation classes or one of transformers' ObjectDetection classes",
        ),
    ]
    for cfg, words in faults:
        with pytest.raises(ConfigError, match=words):
            build_measures(cfg)
    for folder, words in (
        (strange, "its weights .*cannot be loaded"),
        (bare, "its image processor .*cannot be loaded"),
    ):
        (measure,) = build_measures(nsfw(folder))
        with pytest.raises(ConfigError, match=words):
            measure.measure(clips())
    assert not (tmp_path / "ran").exists()


def test_heads_that_cannot_serve(tmp_path: Path) -> None:
    folder = str(make_clip(tmp_path / "clip"))

    def build(head: Path) -> None:
        build_measures(ScoresConfig(learned_aesthetic=LearnedAestheticConfig(folder=folder, head=str(head))))

    path = tmp_path / "head.safetensors"
    with pytest.raises(ConfigError, match="cannot be read"):
        build(path)
    for tensors, words in (
        ({"0.weight": torch.zeros(1, 25)}, "takes 25 numbers, and the embeddings .* have 24"),
        ({"0.weight": torch.zeros(2, 24)}, "has not one output"),
        ({"0.weight": torch.zeros(4, 24), "1.weight": torch.zeros(1, 5)}, "gives 4 numbers, and the next takes 5"),
        ({"0.weight": torch.zeros(1, 24, 1)}, "is no linear layer"),
        ({"other": torch.zeros(1)}, "has not one output"),
    ):
        save_file(tensors, path)
        with pytest.raises(ConfigError, match=words):
            build(path)
    save_file({"weight": torch.zeros(1, 24), "bias": torch.ones(1)}, path)
    build(path)


def test_the_command_scores_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields of the list are what the measures say of the clip's frames; a rerun loads no model."""
    monkeypatch.setattr("megavideo.data.ingest.page.draw_charts", lambda charts: b"")
    clip, labels = make_clip(tmp_path / "clip"), make_classifier(tmp_path / "labels")
    src = tmp_path / "clips"
    src.mkdir()
    write_clip(src / "a.mp4", moving_square(12, 64, 96))
    write_captions(src, {"a.mp4": "a red square moves right"})
    words = [f"src={src}", f"out={tmp_path / 'out'}", f"scores.clip.folder={clip}", f"scores.nsfw.folder={labels}"]
    cfg = load(IngestRun, "ingest", [*words, "scores.nsfw.label=marked"])
    VERB.run(cfg, {})
    (row,) = read_clip_list(tmp_path / "out").rows
    seen = ClipFrames(row, clip_frames(src / "a.mp4", row, 4, 512))
    for measure in build_measures(cfg.scores):
        assert row.scores[measure.name] == pytest.approx(measure.measure([seen])[0], abs=1e-4)
    (labels / "model.safetensors").write_bytes((labels / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"scores\.nsfw\.folder=.*cannot be loaded"):
        VERB.run(cfg, {})
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", None)
    VERB.run(load(IngestRun, "ingest", [*words[:3], "scores.clip.minimum=-1"]), {})
    assert read_clip_list(tmp_path / "out").rows[0].scores["clip"] == row.scores["clip"]
