"""Secrets by their names and forms, and that none comes out where it was planted: settings, variables, tracebacks."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin
from urllib.parse import quote

import pytest

from megavideo.border.secrets import HIDDEN, Secrets, holds_secret, is_secret_name
from megavideo.cli.main import main
from megavideo.cli.verb_table import find_verb, verb_names
from megavideo.config.build import build, unwrap_optional
from megavideo.config.curriculum import STAGES
from megavideo.config.load import compose_values
from megavideo.config.names import walk
from megavideo.errors import ConfigError
from megavideo.observe.page import render
from megavideo.observe.rows import row_line
from megavideo.observe.run_folder import create_run_folder
from megavideo.testing.dataset import write_dataset

PLANTED = "Pl4ntedSecret"
PLAIN = Secrets()

SHOWN = [
    ("http://me:Pl4ntedSecret@host:9000/x", "http://[hidden]@host:9000/x"),
    ("'s3://me:Pl4@nted/Secret:Pl4ntedSecret@bucket/x'", "'s3://[hidden]@bucket/x'"),
    ("s3://a/b,http://me:Pl4ntedSecret@h/x", "s3://a/b,http://[hidden]@h/x"),
    ("http://Pl4ntedSecret@host", "http://[hidden]@host"),
    ("to me:Pl4ntedSecret@host:9000 and", "to me:[hidden]@host:9000 and"),
    ("me:Pl4ntedSecret/@x@host", "me:[hidden]@host"),
    ("/k?X-Amz-Credential=Pl4ntedSecret&X-Amz-Date=3&X-Amz-Signature=Pl4ntedSecret",
     "/k?X-Amz-Credential=[hidden]&X-Amz-Date=3&X-Amz-Signature=[hidden]"),
    ("/k?a=1&token=Pl4ntedSecret", "/k?a=1&token=[hidden]"),
    ("/k?sig=Pl4ntedSecret&se=5", "/k?sig=[hidden]&se=5"),
    ("/k?api_key=Pl4ntedSecret", "/k?api_key=[hidden]"),
    ("/k?x=1&amp;access_token=Pl4ntedSecret", "/k?x=1&amp;access_token=[hidden]"),
    ("Authorization: Bearer Pl4ntedSecret", "Authorization: [hidden]"),
    ("{'Authorization': 'Basic Pl4ntedSecret', 'x': 1}", "{'Authorization': '[hidden]', 'x': 1}"),
    ("Authorization: AWS4-HMAC-SHA256 Credential=Pl4ntedSecret/x, Signature=Pl4ntedSecret", "Authorization: [hidden]"),
    ("sent Bearer Pl4ntedSecret0123456789", "sent Bearer [hidden]"),
    ("AWS_SECRET_ACCESS_KEY=Pl4ntedSecret x", "AWS_SECRET_ACCESS_KEY=[hidden] x"),
    ('{"password": "Pl4ntedSecret"}', '{"password": "[hidden]"}'),
    ("key AKIAPLANTEDSECRET123 x", "key [hidden] x"),
    ("hf_Pl4ntedSecretPl4ntedSecret", "[hidden]"),
    ("sk-Pl4ntedSecret0123456789", "[hidden]"),
]  # fmt: skip

UNTOUCHED = [
    "s3://bucket/run@v2/latents: is not there. Remedy: check the name",
    "tokens_per_pack=32768 text_tokens=77 max_new_tokens=256 key_variable=CHAT_KEY",
    "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may use this bucket",
    "12:30:01 [rank 3] warning: step 4 of 'a:b': mail to me@host.org",
    "git@github.com:owner/name.git", "password: must be given", "export NAME=KEY and give NAME",
    "/data/user@host/clips/a.mp4", "http://localhost:8000/v1/chat/completions", "a basic understanding of bearings",
    "a video of a key, a token and a secret door", "layout tp2-sp-dp4-zero1 @ 3 of 4", "tokenizer=bert token: [SEP]",
]  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_forms_of_secrets(text: str, shown: str) -> None:
    assert PLAIN.hide(text) == shown
    assert PLAIN.hide(shown) == shown
    assert PLANTED not in PLAIN.hide(json.dumps({"x": text})) and PLANTED not in PLAIN.hide(repr(ValueError(text)))


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_is_no_secret(text: str) -> None:
    assert PLAIN.hide(text) == text and not holds_secret(text)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", True), ("AWS_SESSION_TOKEN", True), ("HF_TOKEN", True), ("WANDB_API_KEY", True),
        ("DB_PASSWORD", True), ("CHAT_KEY", True), ("GITHUB_PAT", True), ("TOKENIZERS_PARALLELISM", False),
        ("PWD", False), ("SSH_AUTH_SOCK", False), ("AWS_SHARED_CREDENTIALS_FILE", False), ("KEYBOARD", False),
        ("MEGAVIDEO_RUN", False), ("PATH", False), ("TOKEN_URL", False),
    ],
)  # fmt: skip
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) == secret


def test_secrets_that_are_known_are_found_in_every_spelling() -> None:
    password = "p@ss/w0rd:'\"<ä> x%41"
    secrets = Secrets.of(
        {"S3_ENDPOINT_URL": f"http://me:{password}@host:9000", "HTTPS_PROXY": "me:Pl4nt@ed/x@proxy:3128",
         "WANDB_API_KEY": PLANTED, "ODD_NAME": "an odd value", "LOG_LEVEL": "information"},
        ["captioner.endpoint.key_variable=ODD_NAME", "expand.endpoint.key_variable=THEKEY", "x=1"],
    )  # fmt: skip
    for text in (password, "an odd value", "THEKEY", PLANTED):
        for spelled in (text, repr(text), json.dumps(text), json.dumps(text, ensure_ascii=False), html.escape(text),
                        quote(text), quote(text, safe="")):  # fmt: skip
            assert secrets.hide(f"it is {spelled}.").strip("\"'").replace('"', "'") in (
                f"it is {HIDDEN}.", f"it is '{HIDDEN}'."
            ), spelled  # fmt: skip
    # what a parser takes for a port, and for a host
    assert secrets.hide("port 'w0rd' of host 'Pl4nt'") == f"port '{HIDDEN}' of host '{HIDDEN}'"
    assert secrets.hide("information ODD_NAME") == "information ODD_NAME"
    assert secrets.hide_all({"a": [PLANTED, 3, None], PLANTED: ("x",)}) == {"a": [HIDDEN, 3, None], HIDDEN: ["x"]}


@pytest.mark.parametrize("text", ["http://", "a_", "A", "a:", "&x_", "a.token=", "://a:", "x=1&sig", "https://h/?a=1&"])
def test_long_texts_take_time_in_proportion(text: str) -> None:
    def seconds(length: int) -> float:
        begin = time.perf_counter()
        PLAIN.hide(text * (length // len(text)))
        return time.perf_counter() - begin

    short = min(seconds(1 << 13) for _ in range(5))
    assert min(seconds(1 << 16) for _ in range(3)) < 40 * short + 0.02  # 8 times as long; squared it were 64


PLANTS = (
    f"http://me:{PLANTED}@host/x", f"s3://me:{PLANTED}/@@:@bucket", f"s3://me:a {PLANTED}'@bucket",
    f"hf_{PLANTED}01234567",
    f"http://h/x?X-Amz-Signature={PLANTED}", f"http://h/x?token={PLANTED}&x=1", f"Authorization: Bearer {PLANTED}",
)  # fmt: skip


def text_settings(schema: type[Any]) -> Iterator[tuple[str, Any]]:
    """Path and a maker of a value from a text, of every setting that holds free texts."""
    for field in walk(schema):
        inner, _ = unwrap_optional(field.hint)
        if inner is str:
            yield field.path, lambda text: text
        elif get_origin(inner) is tuple and str in get_args(inner):
            yield field.path, lambda text: [text]
        elif get_origin(inner) is dict and get_args(inner)[1] is str:
            yield field.path, lambda text: {"NAME": text}


def planted(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    inner = planted(values.get(name) or {}, rest, value) if rest else value
    return {**values, name: inner}


@pytest.mark.parametrize("name", verb_names())
def test_no_setting_takes_a_secret_and_none_is_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verb = find_verb(name)
    values = compose_values(verb.schema, verb.primary, [])
    tried = 0
    for path, make in text_settings(verb.schema):
        if path.split(".")[0] == STAGES:
            continue
        for plant in PLANTS:
            with pytest.raises(ConfigError) as caught:
                build(verb.schema, _filled(verb.schema, planted(values, path, make(plant))))
            assert PLANTED not in str(caught.value) and PLANTED not in repr(caught.value.value), path
            assert caught.value.field.startswith(path) and "is not shown" in str(caught.value), path
            tried += 1
    assert tried or not list(text_settings(verb.schema))


def _filled(schema: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """The values with a text in place of those that must be said."""
    for field in walk(schema):
        found: Any = values
        for part in field.path.split("."):
            found = found.get(part, "???") if isinstance(found, Mapping) else "set"
        if found == "???" and field.default is dataclasses.MISSING and unwrap_optional(field.hint)[0] is str:
            values = planted(values, field.path, "text")
    return values


@pytest.mark.parametrize("as_json", [False, True])
def test_no_word_of_the_command_line_is_shown(
    as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every verb, with secrets as a setting, as a wrong setting, as a word and as a text."""
    monkeypatch.chdir(tmp_path)
    plants = [f"http://me:{PLANTED}@host/x", f"s3://me:a {PLANTED}@bucket/x", f"me:{PLANTED}@host"]
    for name in verb_names():
        for plant in plants:
            words = (plant, f"nosuch='{plant}'", f"nosuch={plant}", f"--prompt={plant}", f"out=[{plant}")
            for word in words[name == "parity" :]:  # whose words are layouts, tried in processes of their own
                main([name, word, *(["--json"] if as_json else [])])
    monkeypatch.setenv("GIVEN", "x")
    main(["caption", "src=a", "out=b", "captioner.endpoint.url=http://h/v1", "captioner.endpoint.model=m",
          f"captioner.endpoint.key_variable={PLANTED}", "captioner.endpoint.nosuch=1"])  # fmt: skip
    told = capfd.readouterr()
    assert PLANTED not in told.out and PLANTED not in told.err
    assert told.err.count("error: ") >= 4 * len(plants) * len(verb_names()) and "Traceback" not in told.err
    assert not any(PLANTED.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


_DEFECT = """
import os, sys
from megavideo.cli import main
from megavideo.config import load

def broken(schema, primary, words):
    raise RuntimeError(f"{words} {dict(os.environ)}")

load.load = broken
sys.argv = ["megavideo", "status", *sys.argv[1:]]
sys.exit(main.main())
"""


def test_a_traceback_shows_none(repo_root: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(repo_root), "AWS_SECRET_ACCESS_KEY": f"{PLANTED}/+1", "AWS_SESSION_TOKEN": f"{PLANTED}2",
        "S3_ENDPOINT_URL": f"http://me:a@/{PLANTED}@host", "HTTPS_PROXY": f"me:{PLANTED}3@host:1", "CHAT_KEY": PLANTED,
        "WANDB_API_KEY": f"{PLANTED}4", "HF_TOKEN": f"{PLANTED}5",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _DEFECT, f"run=http://me:{PLANTED}@host/a b"], env=environment, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" in done.stderr and "RuntimeError: " in done.stderr
    assert HIDDEN in done.stderr and PLANTED not in done.stderr + done.stdout


def test_files_of_a_run_hold_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", PLANTED)
    said = [PLANTED, f"http://me:x{PLANTED}@host"]
    line = row_line(
        {"step": 3, "reason": f"it said {PLANTED}", "samples": [{"error": f"s3://a:{PLANTED}@b"}], "n": 1.5}
    )
    assert json.loads(line) == {
        "step": 3, "reason": f"it said {HIDDEN}", "samples": [{"error": f"s3://{HIDDEN}@b"}], "n": 1.5
    }  # fmt: skip
    folder = create_run_folder(tmp_path / "run", "name: x\n", ["megavideo", *said])
    assert json.loads(folder.code_version.read_text())["command"] == ["megavideo", HIDDEN, f"http://{HIDDEN}@host"]
    page = render("dataset.html.j2", _Report(said[1]), "megavideo.evaluation")
    assert f"http://{HIDDEN}@host" in page and PLANTED not in page and "data:image/png;base64,aaaa" in page


class _Report(dict):  # type: ignore[type-arg]
    """What the page of a dataset shows, with one text in place of all of them."""

    def __init__(self, text: str) -> None:
        class Texts:
            data, faults, warnings, version, page = text, (text,), (text,), 1, None

        super().__init__(report=Texts, rows=[(text, text)], histograms="data:image/png;base64,aaaa", lists=[])


@pytest.mark.parametrize("scheme", ["http://", "s3://", ""])
@pytest.mark.parametrize("where", ["variable", "word", "nowhere"])
def test_no_password_of_any_characters_is_shown(scheme: str, where: str) -> None:
    """Whatever stands around a recognisable part, in an address that this process holds, or that merely comes by."""
    rng = random.Random(0)
    strange = "@/:?#&=%+|^~`!$*-._" if where == "nowhere" else "@/:?#&=%+|^~`!$*-._ '\"<>\\,;(){}[]äß"
    strange = strange if scheme else strange.replace(" ", "")
    for _ in range(60):
        before, after = ("".join(rng.choices(strange, k=rng.randrange(6))) for _ in range(2))
        address = f"{scheme}me:{before}{PLANTED}{after}@host:9000/x"
        environment = {"S3_ENDPOINT_URL": address} if where == "variable" else {}
        secrets = Secrets.of(environment, [f"data.uri={address}"] if where == "word" else [])
        for text in (address, repr(address), json.dumps(address), html.escape(address), repr(ValueError(address))):
            assert PLANTED not in secrets.hide(f"see {text} for it"), text
        assert not scheme or holds_secret(address)


@pytest.mark.slow
def test_neither_output_nor_files_of_a_run_hold_a_variable(repo_root: Path, tmp_path: Path) -> None:
    """A run that is trained, looked at, told of and sampled, with every variable that is read holding a secret."""
    write_dataset(str(tmp_path / "data"), 12)
    environment = os.environ | {
        "PYTHONPATH": str(repo_root), "AWS_ACCESS_KEY_ID": f"{PLANTED}0", "AWS_SECRET_ACCESS_KEY": f"{PLANTED}/+1",
        "AWS_SESSION_TOKEN": f"{PLANTED}2", "S3_ENDPOINT_URL": f"http://me:a@/{PLANTED}@host", "CHAT_KEY": PLANTED,
        "HTTPS_PROXY": f"me:{PLANTED}3@host:1", "WANDB_API_KEY": f"{PLANTED}4", "HF_TOKEN": f"{PLANTED}5",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    train = [
        "train", "run=micro", "name=x", "train.steps=2", "optim.warmup_steps=1", "data.uri=data",
        "data.tokens_per_pack=128", "data.text_tokens_per_pack=256", "model.latent_channels=4", "model.text_dim=32",
    ]  # fmt: skip
    told = ""
    for words, status in (
        (train, 0), ([*train, f"checkpoint.uri=s3://me:{PLANTED}@bucket"], 2), ([*train, "data.uri=s3://bucket/x"], 2),
        (["status", "runs/x"], 0), (["report", "run=runs/x"], 0), (["checkpoint", "show", "runs/x"], 0),
        (["doctor", "data=s3://bucket/x"], 2), (["doctor", "data=data", "out=looked", "tokens_per_pack=128"], 0),
        (["sample", "ckpt=runs/x", "out=a.mp4", "steps=1", "frames=1", "height=16", "width=16", "--prompt=x"], 0),
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "megavideo", *words, "-v"], env=environment, cwd=tmp_path, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, (words, done.stderr)
        told += done.stdout + done.stderr
    assert "S3_ENDPOINT_URL: holds credentials" in told and PLANTED not in told
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "code_version.json", "metrics.jsonl", "run.html", "report.html"} & {p.name for p in files}
    assert [path for path in files if PLANTED.encode() in path.read_bytes()] == []
