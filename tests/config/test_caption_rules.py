"""Settings of captioning and expansion that contradict each other are refused with a remedy."""

from __future__ import annotations

import pytest

from megavideo.config.load import load
from megavideo.config.schema.captions import CaptionRun
from megavideo.config.schema.sample import SampleRun
from megavideo.errors import ConfigError

URL = "captioner.endpoint.url=http://localhost:8000/v1"
MODEL = "captioner.endpoint.model=m"


def test_the_defaults_of_both_captioners() -> None:
    vlm = load(CaptionRun, "caption", ["src=a", "out=b", "captioner.path=x"]).captioner
    assert (vlm.kind, vlm.frames, vlm.frames_as, vlm.longest_side) == ("vlm", 8, "images", 448)
    assert (len(vlm.prompts), vlm.weights) == (2, (0.7, 0.3))
    expand = load(CaptionRun, "caption", ["src=a", "out=b", "captioner=expand", URL, MODEL]).captioner
    assert (expand.kind, expand.path, expand.frames, expand.endpoint.attempts) == ("expand", None, None, 6)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("src=s3://a captioner.path=x", "src"),
        ("out=s3://a captioner.path=x", "out"),
        ("out=a captioner.path=x", "out"),
        ("", "captioner.path"),
        (f"captioner.path=x {URL} {MODEL}", "captioner.path"),
        (f"captioner.path=x {MODEL}", "captioner.endpoint.model"),
        ("captioner.path=x captioner.endpoint.key_variable=K", "captioner.endpoint.key_variable"),
        (URL, "captioner.endpoint.model"),
        (f"captioner.endpoint.url=localhost:8000 {MODEL}", "captioner.endpoint.url"),
        (f"captioner.endpoint.url=ftp://h/v1 {MODEL}", "captioner.endpoint.url"),
        (f"captioner.endpoint.url=http://h/v1?key=1 {MODEL}", "captioner.endpoint.url"),
        (f"{URL} {MODEL} captioner.frames_as=video", "captioner.frames_as"),
        ("captioner.path=x captioner.weights=[1]", "captioner.weights"),
        ("captioner.path=x captioner.weights=[1,0]", "captioner.weights[1]"),
        ("captioner.path=x captioner.prompts=[] captioner.weights=[]", "captioner.prompts"),
        ("captioner.path=x captioner.frames=null", "captioner.frames"),
        ("captioner=expand captioner.path=x captioner.frames=4", "captioner.frames"),
        ("captioner=expand captioner.path=x captioner.longest_side=64", "captioner.longest_side"),
        ("captioner.path=x given_weight=-1", "given_weight"),
    ],
)
def test_captioning(words: str, field: str) -> None:
    given = dict(word.split("=", 1) for word in ["src=a", "out=b", *words.split()])
    with pytest.raises(ConfigError) as caught:
        load(
            CaptionRun,
            "caption",
            [f"{name}='{value}'" if "://" in value else f"{name}={value}" for name, value in given.items()],
        )
    assert caught.value.field == field
    assert "Remedy: " in str(caught.value)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    words = ["src=a", "out=b", "captioner.endpoint.url='http://me:hunter2@h:8000/v1'", MODEL]
    with pytest.raises(ConfigError, match="holds a password") as caught:
        load(CaptionRun, "caption", words)
    assert "hunter2" not in str(caught.value) and caught.value.value is None


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("expand.path=x", "expand.path"),
        ("expand.prompt=x", "expand.prompt"),
        ("expand.endpoint.url=http", "expand.endpoint.url"),
        ("expand=language_model", "expand.path"),
        ("expand=language_model expand.path=x expand.prompt=null", "expand.prompt"),
        ("expand=language_model expand.path=x expand.endpoint.model=m", "expand.endpoint.model"),
        ("expand=yes", "expand"),
    ],
)
def test_expansion(words: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(SampleRun, "sample", ["ckpt=a", "out=b.mp4", *words.split()])
    assert caught.value.field == field


def test_sampling_expands_only_when_told() -> None:
    assert load(SampleRun, "sample", ["ckpt=a", "out=b.mp4"]).expand.kind == "none"
    cfg = load(SampleRun, "sample", ["ckpt=a", "out=b.mp4", "expand=language_model", "expand.path=x"])
    assert cfg.expand.prompt is not None and cfg.expand.endpoint.url is None
