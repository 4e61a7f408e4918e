"""Passwords, keys and tokens, taken out of everything that is shown or kept.

What is secret is known in two ways. Values of environment variables that are named like a secret, and passwords in
addresses that the environment or the command line holds, are searched for literally, also as a URL, Python, JSON or
HTML spells them. And what has the form of a secret is taken out wherever it comes from: user and password in front of a
host, tokens and signatures in a query, headers that authorise, keys of known services.

The streams of the command line, the rows and pages of a run and the dump of its settings pass here. A setting that
holds a secret is refused before anything is kept (`config/build.py`).
"""

from __future__ import annotations

import functools
import html
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "[hidden]"
_LEAST_VALUE = 8  # characters of a variable's value; shorter ones are stand-ins, and part of many words
_LEAST_PASSWORD = 4  # also of a part of one, as a parser of addresses takes it apart

_SECRET_NAME = re.compile(
    r"(?:^|[_.-])(?:secret|token|password|passwd|passphrase|apikey|credentials?|auth|signature|sas|pat|key)(?:$|[_.-])",
    re.IGNORECASE,
)
_ABOUT_A_SECRET = re.compile(r"(?:file|path|dir|sock|url|uri|endpoint|host|expir\w*|name)$", re.IGNORECASE)
_ADDRESS_NAME = re.compile(r"(?:url|uri|endpoint|proxy|host|dsn|address)", re.IGNORECASE)
_KEY_VARIABLE = "key_variable"  # the setting that names a variable, and in place of which a key may be given
_NO_SECRETS = frozenset({"", "true", "false", "none", "null", "auto", "disabled", "enabled", "required", "optional"})

# Lengths are bounded, so that time is linear in the text.
# up to the last @ of a word: whoever wrote an address may not have encoded @, / and : of the password
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}://)([^\s\"'<>]{0,1024})@")
_WHOLE_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}://(.{1,1024})@", re.DOTALL)
_BARE = re.compile(r"(?<![\w.+@%/:-])([\w.+%-]{1,64}):(?!//)[^\s\"'<>(){}\[\],]{1,256}@(?=[\w\[])")
_WHOLE_BARE = re.compile(r"[^\s:/@]{1,64}:(.{1,1024})@[\w.\[\]:/-]+", re.DOTALL)
_PARAMETERS = (
    r"x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|awsaccesskeyid|signature|sig|"
    r"(?:\w{1,32}[_-])?(?:token|api_?key|secret|password|passwd|(?:access|secret|private)_?key)|key|auth|pwd"
)
_QUERY = re.compile(rf"([?&;](?:amp;)?(?:{_PARAMETERS})=)[^\s&\"'<>#;]+", re.IGNORECASE)
_HEADER = re.compile(r"(authorization\\*[\"']?\s*[:=]\s*\\*[\"']?)[^\"'<>\r\n]+", re.IGNORECASE)
_BEARER = re.compile(r"(\bbearer\s+)[A-Za-z0-9._~+/=-]{16,}", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"((?<![A-Za-z0-9])(?:[A-Za-z0-9]{1,32}[_.-]){0,6}(?:password|passwd|passphrase|secret|secret_?(?:access_?)?key|api_?key|"
    r"access_?key|private_?key|(?:access|auth|session|security)_?token)(?:\s*=\s*|\\*[\"']\s*[:=]\s*|:(?=\S))\\*[\"']?)"
    r"(?!\[hidden)[^\s\"'<>,;&)}\]]{4,}",
    re.IGNORECASE,
)
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:AKIA|ASIA)[A-Z0-9]{16}|hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|"
    r"github_pat_\w{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{30,}|"
    r"nvapi-[A-Za-z0-9_-]{20,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,})"
)


class Secrets:
    """Takes `known` secrets, and all that has the form of one, out of texts."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        spellings = {spelling for secret in known for spelling in _spellings(secret)}
        longest_first = sorted(spellings, key=lambda text: (-len(text), text))
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    @classmethod
    def of(cls, environment: Mapping[str, str], words: Sequence[str]) -> Secrets:
        """Those that these variables and these words of a command line hold."""
        return _known_to(tuple(environment.items()), tuple(words))

    @classmethod
    def of_process(cls) -> Secrets:
        """Those that this process was started with."""
        return cls.of(os.environ, sys.argv[1:])

    def hide(self, text: str) -> str:
        """`text` with `[hidden]` in place of each secret."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        if "@" in text:
            text = _ADDRESS.sub(_without_user, text)
            text = _BARE.sub(rf"\1:{HIDDEN}@", text)
        for pattern in (_HEADER, _BEARER, _QUERY, _ASSIGNED):
            text = pattern.sub(rf"\1{HIDDEN}", text)
        return _FORMS.sub(HIDDEN, text)

    def hide_all(self, value: Any) -> Any:
        """The same for every text in lists and mappings, and for their names; other values as they are."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            return {self.hide_all(key): self.hide_all(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide_all(item) for item in value]
        return value


@functools.lru_cache(maxsize=4)  # as rows and lines ask for the same again and again
def _known_to(environment: tuple[tuple[str, str], ...], words: tuple[str, ...]) -> Secrets:
    variables = dict(environment)
    return Secrets([*_of_environment(variables), *_of_words(words, variables)])


def without_secrets(text: str) -> str:
    """`text` without the secrets that this process was started with, and without all that has the form of one."""
    return Secrets.of_process().hide(text)


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret, as AWS_SECRET_ACCESS_KEY does, and no place or name of one."""
    return _SECRET_NAME.search(name) is not None and _ABOUT_A_SECRET.search(name) is None


def holds_secret(text: str) -> bool:
    """Whether a text has the form of a secret, beyond doubt: credentials in an address, a query or a header, a key."""
    if "@" in text:
        whole = _WHOLE_ADDRESS.search(text)  # a password may hold spaces and quotes
        users = [match[2] for match in _ADDRESS.finditer(text)] + ([] if whole is None else [whole[1]])
        if any(_password(user) is not None for user in users):
            return True
    return any(pattern.search(text) for pattern in (_QUERY, _HEADER, _BEARER, _FORMS))


class HidingStream:
    """A text stream that secrets do not pass; everything else is the stream's own."""

    def __init__(self, stream: Any, secrets: Secrets) -> None:
        self._stream = stream
        self._secrets = secrets

    def write(self, text: str) -> int:
        """Write `text` without its secrets; the number of characters that were given."""
        self._stream.write(self._secrets.hide(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _of_environment(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if is_secret_name(name) and len(value) >= _LEAST_VALUE and value.lower() not in _NO_SECRETS:
            yield value
        yield from _of_address(value)
        if _ADDRESS_NAME.search(name):
            yield from _of_bare(value)


def _of_words(words: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    for word in words:
        key, _, value = word.partition("=")
        yield from _of_address(word)
        yield from _of_bare(value)
        if key.rsplit(".", 1)[-1] == _KEY_VARIABLE and value in environment:
            value = environment[value]
        elif not (key.endswith(_KEY_VARIABLE) or is_secret_name(key)):
            continue
        if len(value) >= _LEAST_PASSWORD and value.lower() not in _NO_SECRETS:
            yield value


def _of_address(text: str) -> Iterator[str]:
    match = _WHOLE_ADDRESS.search(text) if "@" in text else None
    password = None if match is None else _password(match[1])
    if password is not None:
        yield from _parts(password)


def _of_bare(text: str) -> Iterator[str]:
    """The same of an address without a scheme, which is one word."""
    match = _WHOLE_BARE.fullmatch(text) if "@" in text and "://" not in text and len(text.split()) == 1 else None
    if match is not None:
        yield from _parts(match[1])


def _password(user: str) -> str | None:
    """What stands before the @ of an address as its secret part, None where that @ belongs to a path."""
    name, colon, password = user.partition(":")
    if "/" in name or user == HIDDEN:
        return None
    return password if colon else name


def _without_user(match: re.Match[str]) -> str:
    scheme, user = match[1], match[2]
    if user == HIDDEN or _password(user) is not None:
        return f"{scheme}{HIDDEN}@"
    return scheme + _ADDRESS.sub(_without_user, user + "@")


def _parts(password: str) -> Iterator[str]:
    """The password, and what is left of it in the messages of a parser that took it for host, port and path."""
    yield from (part for part in (password, *re.split(r"[/@:?#\s]", password)) if len(part) >= _LEAST_PASSWORD)


def _spellings(secret: str) -> set[str]:
    """A secret as messages, JSON, HTML and addresses spell it, and as they spell each other."""
    found = {secret, unquote(secret), quote(secret, safe=""), quote(secret)}
    for _ in range(2):
        found |= {spell(text) for text in found for spell in (_in_python, _in_json, _in_ascii_json, html.escape)}
    return found - {""}


def _in_python(text: str) -> str:
    return repr(text)[1:-1]


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _in_ascii_json(text: str) -> str:
    return json.dumps(text)[1:-1]
