# SPDX-License-Identifier: Apache-2.0
"""JSON objects as attrs classes: reading them from bytes, checking each field, and writing them.

Unknown keys are kept in `extra` and passed on. `decode` raises only `InvalidMessage`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import Any, Callable, TypeVar

import attr

from reimzul.core import validators
from reimzul.core.errors import InvalidMessage

M = TypeVar("M", bound="Message")
K = TypeVar("K", bound="attr.AttrsInstance")

#: Bytes of the largest message we send; beanstalkd accepts 65,535 or a little more (its -z).
MAX_BYTES = 60_000
#: Bytes of unknown keys that are passed on; they must leave room for our own.
MAX_EXTRA = 16_000
#: How deep a message may be nested: far below Python's limit, so that what was read can also be written.
MAX_DEPTH = 30


def field(check: Callable[[Any], Any], default: Any = attr.NOTHING, *, always: bool = False) -> Any:
    """A message field whose value is checked and normalised by `check`; errors name the field.

    A default value is not sent, unless `always`.
    """

    def validate(instance: Any, attribute: Any, value: Any) -> None:
        if value is attribute.default:
            return
        try:
            checked = check(value)
        except ValueError as error:
            raise ValueError(f"{attribute.name}: {error}") from None
        if checked is not value:
            object.__setattr__(instance, attribute.name, checked)

    return attr.field(default=default, validator=validate, metadata={"always": always})


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _parse_finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):  # 1e999 is JSON, but would be written as Infinity, which is not
        raise ValueError(f"{validators.quoted(word, 20)} is too large a number")
    return number


def _check_depth(raw: dict[str, Any] | list[Any], depth: int = MAX_DEPTH) -> None:
    if not depth:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    for item in raw.values() if isinstance(raw, dict) else raw:
        if isinstance(item, (dict, list)):
            _check_depth(item, depth - 1)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_parse_finite)
_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True)


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a job's body, which must be a JSON object. Raises `InvalidMessage`."""
    try:
        raw = _DECODER.decode(body.decode("utf-8"))
        if isinstance(raw, (dict, list)):
            _check_depth(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"not JSON: {validators.line(120)(str(error))}") from None
    if not isinstance(raw, dict):
        raise InvalidMessage(f"not a JSON object but {validators.quoted(raw, 40)}")
    return raw


@attr.frozen(kw_only=True)
class Message:
    """A message: its fields are its keys; unknown keys are passed on."""

    extra: Mapping[str, Any] = attr.field(factory=dict, repr=False)

    @classmethod
    def decode(cls: type[M], body: bytes) -> M:
        return cls.from_json(parse_json(body))

    @classmethod
    def from_json(cls: type[M], raw: Mapping[str, Any]) -> M:
        """Read a message from a JSON object. Raises `InvalidMessage`."""
        known, required = _list_field_names(cls)  # type: ignore[arg-type]  # classes are hashable
        missing = [name for name in required if name not in raw]
        if missing:
            raise InvalidMessage(f"not a {cls.__name__}: missing {', '.join(missing)}")
        extra = _limit_extra(cls, {name: value for name, value in raw.items() if name not in known})
        try:
            return cls(**{name: raw[name] for name in known if name in raw}, extra=extra)
        except ValueError as error:
            raise InvalidMessage(f"not a {cls.__name__}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The message as a JSON object, without fields that have their default value."""
        return {**self.extra, **_convert_fields(self)}

    def encode(self) -> bytes:
        """The message as a job's body. Raises `InvalidMessage` if it is too large for a tube."""
        body = encode(self.to_json())
        if len(body) > MAX_BYTES:
            raise InvalidMessage(f"a {type(self).__name__} of {len(body)} bytes: {MAX_BYTES} is the most")
        return body


@functools.cache
def _list_field_names(kind: Any) -> tuple[dict[str, None], list[str]]:
    """The names of a message's fields, and of those that it must have."""
    fields = [a for a in attr.fields(kind) if a.name != "extra"]
    return dict.fromkeys(a.name for a in fields), [a.name for a in fields if a.default is attr.NOTHING]


def _limit_extra(kind: type[Message], extra: dict[str, Any]) -> dict[str, Any]:
    if extra and len(encode(extra)) > MAX_EXTRA:
        raise InvalidMessage(f"not a {kind.__name__}: over {MAX_EXTRA} bytes of unknown keys")
    return extra


def encode(wire: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(wire).encode("ascii")


def nested(kind: type[K], what: str) -> Callable[[Any], K]:
    """The check of a field that holds an attrs object; in JSON it is an object with the class's attributes as keys."""
    needed = [a.name for a in attr.fields(kind) if a.default is attr.NOTHING]

    def check(value: Any) -> K:
        if isinstance(value, kind):
            return value
        if not isinstance(value, dict) or not set(needed) <= value.keys():
            raise ValueError(f"{validators.quoted(value)} is not {what} ({', '.join(needed)})")
        if issubclass(kind, Message):
            try:
                return kind.from_json(value)
            except InvalidMessage as error:
                raise ValueError(str(error)) from None
        return kind(**{name: value[name] for name in attr.fields_dict(kind) if name in value})

    return check


def is_sent(attribute: Any, value: Any) -> bool:
    """Whether a field is part of a message's JSON object."""
    if attribute.name == "extra":
        return False
    return bool(attribute.metadata.get("always") or value != attribute.default or isinstance(value, bool))


def _convert_fields(instance: attr.AttrsInstance) -> dict[str, Any]:
    """What is sent of an attrs object. `attr.asdict` takes twice as long."""
    values = ((each, getattr(instance, each.name)) for each in attr.fields(type(instance)))
    return {each.name: _convert_value(value) for each, value in values if is_sent(each, value)}


def _convert_value(value: Any) -> Any:
    """Messages within a message keep their own unknown keys."""
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if isinstance(value, Message):
        return value.to_json()
    if attr.has(type(value)):
        return _convert_fields(value)
    if isinstance(value, dict):
        return {key: _convert_value(each) for key, each in value.items()}
    return [_convert_value(each) for each in value] if isinstance(value, (list, tuple)) else value
