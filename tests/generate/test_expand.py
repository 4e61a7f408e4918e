"""Prompts rewritten before sampling: by a tiny language model of transformers, and by a real HTTP server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megavideo.cli.main import main
from megavideo.config.load import load
from megavideo.config.schema.captions import ExpandConfig
from megavideo.config.schema.sample import SampleRun
from megavideo.errors import FAULT_STATUS, RETRY_STATUS, DataError, ServerUnavailable
from megavideo.generate.expand import SampledPrompt, expand_prompts
from megavideo.testing.saved_run import write_run
from megavideo.testing.settings import micro_config
from tests.encoders.chat_server import Reply, chat_server, completion
from tests.encoders.tiny_captioners import make_language_model


def expansion(*words: str) -> ExpandConfig:
    return load(SampleRun, "sample", ["ckpt=a", "out=b.mp4", *words]).expand


def at(url: str) -> list[str]:
    return ["expand=language_model", f"expand.endpoint.url={url}", "expand.endpoint.model=tiny"]


def longer(number: int, content: dict[str, Any]) -> Reply:
    return completion(f"A long shot of {content['messages'][0]['content'].splitlines()[-1]}.")


def test_none_takes_prompts_as_they_are() -> None:
    assert expand_prompts(expansion(), ["a", ""]) == (SampledPrompt("a", "a"), SampledPrompt("", ""))


def test_a_server_expands_each_prompt_once() -> None:
    prompts = ["a dog", "a cat", "a dog", " "]
    with chat_server(longer) as server:
        found = expand_prompts(expansion(*at(server.url), "expand.prompt=Say more."), prompts)
    assert found == tuple(
        SampledPrompt(prompt, f"A long shot of {prompt}." if prompt.strip() else prompt) for prompt in prompts
    )
    said = sorted(row["messages"][0]["content"] for row in server.requests)
    assert said == ["Say more.\n\na cat", "Say more.\n\na dog"]


def test_a_prompt_that_is_refused_is_named() -> None:
    with chat_server(lambda number, content: Reply(400, "unsafe")) as server:
        with pytest.raises(DataError, match=r"prompt 'a dog'.*unsafe.*expand=none") as caught:
            expand_prompts(expansion(*at(server.url)), ["a dog"])
    assert caught.value.exit_status == FAULT_STATUS


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_fails_may_be_back(status: int) -> None:
    quick = ("expand.endpoint.attempts=2", "expand.endpoint.backoff_seconds=0.01")
    with chat_server(lambda number, content: Reply(status, "boom")) as server:
        with pytest.raises(ServerUnavailable, match="the same command again") as caught:
            expand_prompts(expansion(*at(server.url), *quick), ["a dog"])
    assert caught.value.exit_status == RETRY_STATUS


def test_a_local_model_expands(tmp_path: Path) -> None:
    folder = make_language_model(tmp_path / "model")
    words = ["expand=language_model", f"expand.path={folder}", "expand.max_new_tokens=8", "expand.prompt=Rewrite"]
    prompts = ["a small dog runs", "the red car turns left"]
    found = expand_prompts(expansion(*words), prompts)
    assert [prompt.given for prompt in found] == prompts
    assert len({prompt.used for prompt in found} | set(prompts)) == 4


def test_the_expanded_prompt_is_what_is_sampled(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = micro_config(name="run", output=tmp_path, data__uri="gone")
    write_run(config)
    common = [f"ckpt={tmp_path}/run", "steps=1", "frames=1", "height=16", "width=16", "--json"]

    def result(out: str, *words: str) -> tuple[dict[str, Any], bytes]:
        assert main(["sample", *common, f"out={tmp_path}/{out}.mp4", *words]) == 0
        return json.loads(capfd.readouterr().out), (tmp_path / f"{out}.mp4").read_bytes()

    with chat_server(longer) as server:
        report, expanded = result("a", *at(server.url), "--prompt", "a dog")
    assert report["prompts"] == [{"given": "a dog", "used": "A long shot of a dog."}]
    report, by_hand = result("b", "--prompt", "A long shot of a dog.")
    assert report["prompts"] == [{"given": "A long shot of a dog.", "used": "A long shot of a dog."}]
    assert expanded == by_hand
    _, plain = result("c", "--prompt", "a dog")
    assert plain != expanded
