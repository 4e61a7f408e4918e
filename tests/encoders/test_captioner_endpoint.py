"""Models behind a real HTTP server: what is sent, what is made of answers and faults, and that the key stays unseen."""

from __future__ import annotations

import base64
import io
import logging
import socket
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megavideo.config.schema.captions import EndpointConfig
from megavideo.encoders.captioner.answer import Answer, ClipView, Request
from megavideo.encoders.captioner.endpoint import EndpointModel
from megavideo.errors import FAULT_STATUS, RETRY_STATUS, ConfigError, DataError, MegavideoError, ServerUnavailable
from tests.encoders.chat_server import KEY, Reply, chat_server, completion

VARIABLE = "MEGAVIDEO_TEST_KEY"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f" {KEY}\n")


def model(url: str, **settings: Any) -> EndpointModel:
    given = {"key_variable": VARIABLE, "timeout_seconds": 5.0, "attempts": 3, "backoff_seconds": 0.01} | settings
    return EndpointModel("captioner", EndpointConfig(url=url, model="tiny", **given), 64, 4)


def said(content: dict[str, Any]) -> str:
    return str(content["messages"][0]["content"])


def test_answers_come_in_order_with_requests_at_the_same_time() -> None:
    def reply(number: int, content: dict[str, Any]) -> Reply:
        answer = completion(f"about {said(content)}")
        answer.seconds = 0.3 if said(content) == "0" else 0.1
        return answer

    with chat_server(reply) as server:
        begin = time.monotonic()
        answers = model(server.url + "/").answer([Request(str(i)) for i in range(4)])
        assert time.monotonic() - begin < 0.55  # one after another they take 0.6 s
    assert answers == [Answer(f"about {i}", False) for i in range(4)]
    assert {row["path"] for row in server.requests} == {"/v1/chat/completions"}
    assert {(row["model"], row["max_tokens"], row["temperature"]) for row in server.requests} == {("tiny", 64, 0)}
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_frames_are_sent_as_images() -> None:
    frames = np.stack([np.full((20, 30, 3), value, np.uint8) for value in (10, 200)])
    with chat_server(lambda number, content: completion("seen")) as server:
        model(server.url).answer([Request("Describe.", ClipView(frames, (0, 1), 2, 8.0))])
    first, second, text = server.requests[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "Describe."}
    for part, value in ((first, 10), (second, 200)):
        head, data = part["image_url"]["url"].split(",")
        assert head == "data:image/jpeg;base64"
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert picture.shape == (20, 30, 3) and abs(int(picture.mean()) - value) <= 2


def test_texts_are_tidied_and_cut_ones_marked() -> None:
    replies = [
        completion('<think>Well,\nlet me see.</think>\n\n"A dog\n runs."'),
        completion("A dog runs. It is bro", "length"),
        completion(None),
        Reply(body={"choices": []}),
        Reply(body="<html>"),
    ]
    with chat_server(lambda number, content: replies[int(said(content))]) as server:
        answers = model(server.url).answer([Request(str(i)) for i in range(5)])
    assert answers[:2] == [Answer("A dog runs.", False), Answer("A dog runs.", True)]
    assert [type(answer) for answer in answers[2:]] == [DataError] * 3
    assert "empty" in str(answers[2]) and "no chat completion" in str(answers[3]) and "<html>" in str(answers[4])


def test_one_refused_request_leaves_the_others() -> None:
    def reply(number: int, content: dict[str, Any]) -> Reply:
        return Reply(400, {"error": "unsafe"}) if said(content) == "1" else completion("good")

    with chat_server(reply) as server:
        answers = model(server.url).answer([Request(str(i)) for i in range(3)])
    assert [isinstance(answer, DataError) for answer in answers] == [False, True, False]
    assert "400" in str(answers[1]) and "unsafe" in str(answers[1])
    assert len(server.requests) == 3  # a refusal is not repeated


def test_one_request_that_the_server_fails_on_leaves_the_others() -> None:
    """A server says 500 to a picture that its model cannot take, each time: the run must not end there each time."""
    with chat_server(lambda number, content: Reply(500, "boom") if "x" in said(content) else completion("good")) as it:
        asked = model(it.url)
        assert asked.answer([Request("a"), Request("b")]) == [Answer("good", False)] * 2
        (answer,) = asked.answer([Request("x")])
        assert isinstance(answer, ServerUnavailable) and "500: boom" in str(answer)
        with pytest.raises(ServerUnavailable, match="gives no answer in 3 attempts"):
            asked.answer([Request(f"x{i}") for i in range(8)])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_fault_is_tried_again(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with chat_server(lambda number, content: Reply(status, "busy") if number < 2 else completion("good")) as server:
        assert model(server.url).answer([Request("x")]) == [Answer("good", False)]
    assert len(server.requests) == 3
    assert [f"answers {status} (busy)" in record.message for record in caplog.records] == [True, True]


def test_waits_grow_and_follow_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("megavideo.encoders.captioner.endpoint.time.sleep", waits.append)
    headers = {
        2: {"Retry-After": "7"},
        3: {"Retry-After": "86400"},
        4: {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"},
    }
    with chat_server(lambda number, content: Reply(503, "", headers.get(number, {}))) as server:
        with pytest.raises(DataError, match="6 attempts"):
            model(server.url, attempts=6, backoff_seconds=1.0).answer([Request("x")])
    assert waits == [1.0, 2.0, 7.0, 60.0, 16.0]


def test_a_server_that_is_silent_or_gone() -> None:
    slow = Reply(body={}, seconds=5.0)
    with chat_server(lambda number, content: slow) as server:
        with pytest.raises(ServerUnavailable, match=r"2 attempts: it does not answer within 0\.2 s.*Remedy"):
            model(server.url, timeout_seconds=0.2, attempts=2).answer([Request("x")])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerUnavailable, match="cannot be reached") as caught:
        model(f"http://127.0.0.1:{port}/v1", attempts=2).answer([Request("x")])
    assert caught.value.exit_status == RETRY_STATUS


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "ftp://127.0.0.1/v1", "http:///v1"])
def test_what_is_no_address_is_not_tried_again(url: str) -> None:
    with pytest.raises(ConfigError, match=r"captioner\.endpoint\.url=.*is no address"):
        model(url).answer([Request("x")])


@pytest.mark.parametrize(
    ("reply", "field"),
    [
        (Reply(401, f"Incorrect API key provided: {KEY}"), "captioner.endpoint.key_variable"),
        (Reply(403, "no"), "captioner.endpoint.key_variable"),
        (Reply(404, "model tiny not found"), "captioner.endpoint.url"),
        (Reply(308, "", {"Location": "https://elsewhere/v1"}), "captioner.endpoint.url"),
    ],
)
def test_settings_that_the_server_refuses(reply: Reply, field: str) -> None:
    with chat_server(lambda number, content: reply) as server:
        with pytest.raises(ConfigError) as caught:
            model(server.url).answer([Request(str(i)) for i in range(3)])
    assert (caught.value.field, caught.value.exit_status) == (field, FAULT_STATUS)
    assert KEY not in str(caught.value) and str(reply.status) in str(caught.value)


def test_the_key_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    for status in (200, 400, 401, 500):
        with chat_server(lambda number, content, status=status: Reply(status, f"you sent {KEY}")) as server:
            try:
                said += map(str, model(server.url, attempts=2).answer([Request("x")]))
            except MegavideoError as error:
                said.append(str(error))
    assert len(said) == 4 and all("[hidden]" in text for text in said)
    assert caplog.records and not any(KEY in record.getMessage() for record in caplog.records)
    assert KEY not in repr(model("http://localhost/v1")) and KEY not in " ".join(said)


def test_keys_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "two words", "kéy"):
        monkeypatch.setenv(VARIABLE, value)
        with pytest.raises(ConfigError, match=VARIABLE) as caught:
            model("http://localhost/v1")
        assert not value or value not in str(caught.value)
    for key in (KEY, "THEKEY"):
        with pytest.raises(ConfigError, match="key_variable: names no environment variable") as caught:
            model("http://localhost/v1", key_variable=key)
        assert key not in str(caught.value) and caught.value.value is None
    with chat_server(lambda number, content: completion("good")) as server:
        model(server.url, key_variable=None).answer([Request("x")])
    assert server.keys == [None]
