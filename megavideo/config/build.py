"""The strict builder: a mapping of plain values becomes nested frozen dataclasses, or one `ConfigError`.

Hydra composes text; this module is the only judge of what the text may say. It refuses unknown keys, missing required
fields, wrong types, values outside a `Literal` and values outside the range kept in a field's metadata.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from megavideo.border.secrets import holds_secret
from megavideo.config.names import nearest
from megavideo.errors import ConfigError

T = TypeVar("T")

MISSING = "???"
_WITHOUT_SECRET = (
    "write the address without it; keys of a store belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, that of a "
    "server in the variable that key_variable names"
)
_EXAMPLES: Mapping[Any, str] = {
    int: "give a whole number, as {place}=10",
    float: "give a number, as {place}=0.5",
    bool: "write {place}=true or {place}=false",
}


def build(schema: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Build `schema`, a dataclass, from `values`; `path` is the dotted place of the mapping in the whole config.

    Raises ConfigError naming the dotted field, its value, the rule and the remedy.
    """
    fields = {field.name: field for field in dataclasses.fields(cast(Any, schema))}
    hints = get_type_hints(schema)
    _refuse_unknown(fields, values, path)
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        place = f"{path}.{name}" if path else name
        if name not in values:
            if _has_default(field):
                continue
            if dataclasses.is_dataclass(hints[name]):
                arguments[name] = build(cast(type[Any], hints[name]), {}, place)
                continue
            raise _missing(place, field)
        value = values[name]
        if isinstance(value, str) and value == MISSING:
            raise _missing(place, field)
        arguments[name] = _convert(hints[name], value, place, field.metadata)
    return schema(**arguments)


def type_name(hint: Any) -> str:
    """A type as a user reads it: `int`, `text`, `a | b`, `[int, int, int]`, `float or null`."""
    inner, optional = unwrap_optional(hint)
    if get_origin(inner) is Literal:
        name = " | ".join(str(choice) for choice in get_args(inner))
    elif get_origin(inner) is tuple:
        items = ["..." if item is Ellipsis else type_name(item) for item in get_args(inner)]
        name = "[" + ", ".join(items) + "]"
    elif get_origin(inner) is dict:
        name = "{" + ": ".join(type_name(item) for item in get_args(inner)) + "}"
    else:
        name = {str: "text", bool: "true | false"}.get(inner, getattr(inner, "__name__", str(inner)))
    return f"{name} or null" if optional else name


def range_name(metadata: Mapping[str, Any]) -> str:
    """The legal range kept by `setting`, in words; empty when there is none."""
    words = []
    for key, sign in (("minimum", ">="), ("above", ">"), ("maximum", "<=")):
        if metadata.get(key) is not None:
            words.append(f"{sign} {metadata[key]:g}")
    return " and ".join(words)


def unwrap_optional(hint: Any) -> tuple[Any, bool]:
    """Split `X | None` into (X, True); any other hint into (hint, False)."""
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
        return members[0], len(members) < len(get_args(hint))
    return hint, False


def _refuse_unknown(fields: Mapping[str, Any], values: Mapping[str, Any], path: str) -> None:
    for key, value in values.items():
        if key in fields:
            continue
        prefix = f"{path}." if path else ""
        known = [prefix + name for name in fields]
        close = nearest(prefix + str(key), known)
        remedy = f"did you mean {close}?" if close else f"take one of {', '.join(known)}"
        raise ConfigError(prefix + str(key), value, "there is no such setting", remedy)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _missing(place: str, field: dataclasses.Field[Any]) -> ConfigError:
    remedy = field.metadata.get("remedy")
    return ConfigError(
        place, None, "is required and was not given", f"add {place}=VALUE" + (f"; {remedy}" if remedy else "")
    )


def _convert(hint: Any, value: Any, place: str, metadata: Mapping[str, Any]) -> Any:
    if hint is Any:
        return value
    inner, optional = unwrap_optional(hint)
    if value is None:
        if optional:
            return None
        raise _wrong_type(place, value, hint)
    if dataclasses.is_dataclass(inner):
        if not isinstance(value, Mapping):
            raise ConfigError(
                place, value, "is a group of settings, not one value", f"set its fields, as {place}.NAME=VALUE"
            )
        return build(cast(type[Any], inner), value, place)
    if get_origin(inner) is Literal:
        return _choice(inner, value, place)
    if get_origin(inner) is tuple:
        return _sequence(inner, value, place, metadata)
    if get_origin(inner) is dict:
        return _mapping(inner, value, place, metadata)
    return _in_range(_scalar(inner, value, place, hint), place, metadata)


def _scalar(kind: Any, value: Any, place: str, hint: Any) -> Any:
    """A bool is no int here, an int serves as a float, and nothing is parsed out of text."""
    if kind is float and type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:  # an int beyond any float
            number = math.inf
        if math.isnan(number) or math.isinf(number):
            raise ConfigError(place, value, "must be a finite number", "give a number, as 0.5 or 1e-4")
        return number
    if type(value) is kind:
        if kind is str and not value:
            raise ConfigError(place, value, "must not be empty", f"add {place}=TEXT")
        if kind is str and holds_secret(value):
            rule = "holds a password, key or token, which would come to stand in messages and files (it is not shown)"
            raise ConfigError(place, None, rule, _WITHOUT_SECRET)
        return value
    raise _wrong_type(place, value, hint)


def _choice(hint: Any, value: Any, place: str) -> Any:
    legal = get_args(hint)
    # The types are compared too, because True == 1.
    if any(type(value) is type(choice) and value == choice for choice in legal):
        return value
    names = [str(choice) for choice in legal]
    close = nearest(str(value), names)
    remedy = f"did you mean {close}?" if close else f"take one of {', '.join(names)}"
    raise ConfigError(place, value, f"must be one of {', '.join(names)}", remedy)


def _sequence(hint: Any, value: Any, place: str, metadata: Mapping[str, Any]) -> tuple[Any, ...]:
    items = get_args(hint)
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(place, value, hint)
    if items[-1] is Ellipsis:
        items = items[:1] * len(value)
    if len(value) != len(items):
        rule = f"must hold exactly {len(items)} values"
        raise ConfigError(place, list(value), rule, f"write {place}={_blank(hint)}")
    return tuple(
        _convert(item, element, f"{place}[{position}]", metadata)
        for position, (item, element) in enumerate(zip(items, value, strict=True))
    )


def _mapping(hint: Any, value: Any, place: str, metadata: Mapping[str, Any]) -> dict[Any, Any]:
    kind, item = get_args(hint)
    if not isinstance(value, Mapping):
        raise _wrong_type(place, value, hint)
    return {
        _scalar(kind, key, f"the name in {place}", kind): _convert(item, element, f"{place}.{key}", metadata)
        for key, element in value.items()
    }


def _in_range(value: Any, place: str, metadata: Mapping[str, Any]) -> Any:
    minimum, maximum, above = (metadata.get(key) for key in ("minimum", "maximum", "above"))
    low = minimum is not None and value < minimum
    high = maximum is not None and value > maximum
    if low or high or (above is not None and value <= above):
        legal = range_name(metadata)
        raise ConfigError(place, value, f"must be {legal}", metadata.get("remedy") or f"give a value {legal}")
    return value


def _blank(hint: Any) -> str:
    """What to fill in: `[VALUE,VALUE]` for a pair."""
    inner, _ = unwrap_optional(hint)
    if get_origin(inner) is dict:
        return "{{NAME:VALUE}}"  # for `format`
    return f"[{','.join(['VALUE'] * len(get_args(inner)))}]" if get_origin(inner) is tuple else "VALUE"


def _wrong_type(place: str, value: Any, hint: Any) -> ConfigError:
    inner, _ = unwrap_optional(hint)
    if inner is str and isinstance(value, (int, float)):
        remedy = f"quote it twice, once for the shell: '{place}=\"{value}\"'"
    elif inner is int and isinstance(value, float):
        remedy = f"write a whole number, as {place}={round(value) if math.isfinite(value) else 1}"
    else:
        remedy = _EXAMPLES.get(inner, "write {place}=" + _blank(inner)).format(place=place)
    given = {str: "text", type(None): "null"}.get(type(value), type(value).__name__)
    return ConfigError(place, value, f"must be {type_name(hint)}, not {given}", remedy)
