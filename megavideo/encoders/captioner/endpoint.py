"""Models behind a server that speaks OpenAI's chat completions."""

from __future__ import annotations

import base64
import io
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests as http
from PIL import Image

from megavideo.border.secrets import Secrets
from megavideo.config.schema.captions import EndpointConfig
from megavideo.encoders.captioner.answer import Answer, Request, to_answer
from megavideo.errors import ConfigError, DataError, MegavideoError, ServerUnavailable

_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))  # busy or failing: another attempt may succeed
_ITS_OWN = 500  # what a server also says to a request that it cannot work on, as a picture its model does not take
_MOST_FAILED = 8  # such requests in a row, after which it is the server that fails
_CONNECT_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 60.0
_SHOWN = 300
_MOST_READ = 1 << 16  # characters of an answer that is shown

_NO_ADDRESS = (http.exceptions.InvalidURL, http.exceptions.MissingSchema, http.exceptions.InvalidSchema)

_log = logging.getLogger(__name__)


class _Bearer(http.auth.AuthBase):
    """The key as a header; being set explicitly, no .netrc takes its place."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Any) -> Any:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class EndpointModel:
    """The model `endpoint.model` of the server at `endpoint.url`; requests of a call are sent at the same time."""

    def __init__(self, section: str, endpoint: EndpointConfig, max_new_tokens: int, concurrency: int) -> None:
        self._place = f"{section}.endpoint"
        self._url = f"{(endpoint.url or '').rstrip('/')}/chat/completions"
        self._model = endpoint.model
        self._key_variable = endpoint.key_variable
        self._key = _read_key(self._place, endpoint.key_variable)
        self._timeouts = (min(_CONNECT_SECONDS, endpoint.timeout_seconds), endpoint.timeout_seconds)
        self._attempts, self._backoff_seconds = endpoint.attempts, endpoint.backoff_seconds
        self._max_new_tokens = max_new_tokens
        self._concurrency = concurrency
        self._failed_in_a_row = 0
        self._session = http.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, http.adapters.HTTPAdapter(pool_maxsize=concurrency))
        self.identity: Mapping[str, str] = {"model": str(endpoint.model)}

    def answer(self, requests: Sequence[Request]) -> list[Answer | DataError]:
        """Answers in the order of the requests.

        A request on which the server fails over all attempts has a ServerUnavailable in place of an answer, and one
        that it refuses another DataError. Raises ConfigError where the server does not know the address, the model or
        the key, and ServerUnavailable where it cannot be reached, stays busy, or fails on many requests one after
        another.
        """
        with ThreadPoolExecutor(min(self._concurrency, len(requests))) as pool:
            waiting = [pool.submit(self._ask, request) for request in requests]
            try:
                return [future.result() for future in waiting]
            except BaseException:
                for future in waiting:
                    future.cancel()
                raise

    def _ask(self, request: Request) -> Answer | DataError:
        content = {
            "model": self._model,
            "messages": [{"role": "user", "content": _content(request)}],
            "max_tokens": self._max_new_tokens,
            "temperature": 0,
        }
        response = self._post(content)
        if response.status_code == 200:
            self._failed_in_a_row = 0
        else:
            fault = self._fault(response)
            if isinstance(fault, DataError):
                return fault
            raise fault
        try:
            choice = response.json()["choices"][0]
            text = choice["message"]["content"] or ""
            return to_answer(text, choice.get("finish_reason") == "length")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return DataError(f"the server's answer is no chat completion: {self._shown(response)}")

    def _post(self, content: dict[str, Any]) -> Any:
        """The server's last word. Raises ServerUnavailable where it stays away or busy, or fails on many requests."""
        reason = ""
        for attempt in range(1, self._attempts + 1):
            wait = self._backoff_seconds * 2 ** (attempt - 1)
            response = None
            try:
                response = self._session.post(
                    self._url, json=content, timeout=self._timeouts, allow_redirects=False, auth=_Bearer(self._key)
                )
                if response.status_code not in _PASSING:
                    return response
                reason = f"it answers {response.status_code} ({self._shown(response)})"
                wait = max(wait, _asked_wait(response))
            except _NO_ADDRESS as error:
                remedy = "write it as http://HOST:PORT/v1"
                raise ConfigError(f"{self._place}.url", self._url, f"is no address ({error})", remedy) from error
            except http.exceptions.Timeout:
                reason = f"it does not answer within {self._timeouts[1]:g} s"
            except http.exceptions.RequestException as error:
                reason = self._hidden(f"it cannot be reached ({error})")
            if attempt < self._attempts:
                wait = min(wait, _LONGEST_WAIT_SECONDS)
                _log.warning("%s: %s; attempt %d follows in %.1f s", self._url, reason, attempt + 1, wait)
                time.sleep(wait)
            elif response is not None and response.status_code == _ITS_OWN:
                self._failed_in_a_row += 1
                if self._failed_in_a_row < _MOST_FAILED:
                    return response
        raise ServerUnavailable(
            f"{self._url}: gives no answer in {self._attempts} attempts: {reason}. Remedy: look at the server and run "
            f"the same command again, which goes on from here, or raise {self._place}.attempts"
        )

    def _fault(self, response: Any) -> MegavideoError:
        status, said = response.status_code, self._shown(response)
        if status in (401, 403):
            rule = f"the server refuses the key ({status}: {said})"
            return ConfigError(
                f"{self._place}.key_variable", self._key_variable, rule, "name the variable that holds a valid key"
            )
        if status in (404, 405) or 300 <= status < 400:
            place = f" to {self._hidden(str(response.headers.get('Location')))}" if 300 <= status < 400 else ""
            rule = f"the server answers {status}{place} ({said})"
            remedy = f"correct the address, which must go on with /chat/completions, or {self._place}.model"
            return ConfigError(f"{self._place}.url", self._url, rule, remedy)
        if status >= 500:
            return ServerUnavailable(f"the server fails on it ({status}: {said})")
        return DataError(f"the server refuses it ({status}: {said})")

    def _shown(self, response: Any) -> str:
        text = self._hidden(response.text[:_MOST_READ])  # before it is cut, which could leave a part of the key
        return " ".join(text.split())[:_SHOWN] or "no text"

    def _hidden(self, text: str) -> str:
        """`text` without the key, which some servers repeat, and other secrets."""
        return Secrets([self._key] if self._key else []).hide(text)


def _read_key(place: str, variable: str | None) -> str:
    if variable is None:
        return ""
    if variable not in os.environ:
        rule = "names no environment variable that is set (it is not shown, as it may be a key itself)"
        raise ConfigError(f"{place}.key_variable", None, rule, "export NAME=KEY and give NAME, or drop the setting")
    key = os.environ[variable].strip()
    if not key:
        raise ConfigError(f"{place}.key_variable", variable, "this environment variable is empty", "export the key")
    if not (key.isascii() and key.isprintable()) or " " in key:
        rule = "this environment variable holds characters that no key has"
        raise ConfigError(f"{place}.key_variable", variable, rule, "export the key alone")
    return key


def _asked_wait(response: Any) -> float:
    """Seconds that the server asks to wait; 0 where it gives none, or a date."""
    asked = str(response.headers.get("Retry-After", ""))
    return float(asked) if asked.isdigit() else 0.0


def _content(request: Request) -> Any:
    if request.view is None:
        return request.prompt
    images = [{"type": "image_url", "image_url": {"url": _data_url(frame)}} for frame in request.view.frames]
    return [*images, {"type": "text", "text": request.prompt}]


def _data_url(frame: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
