# SPDX-License-Identifier: Apache-2.0
"""JSON objects as attrs classes: reading them from bytes, checking each field, and writing them.

Unknown keys are kept in `extra` and passed on. `decode` raises only `InvalidMessage`.
"""

from __future__ import annotations

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
            object.__setattr__(instance, attribute.name, check(value))
        except ValueError as error:
            raise ValueError(f"{attribute.name}: {error}") from None

    return attr.field(default=default, validator=validate, metadata={"always": always})


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _parse_finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):  # 1e999 is JSON, but would be written as Infinity, which is not
        raise ValueError(f"{validators.quoted(word, 20)} is too large a number")
    return number


def _check_depth(raw: Any, depth: int = MAX_DEPTH) -> None:
    if isinstance(raw, (dict, list)):
        if not depth:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        for item in raw.values() if isinstance(raw, dict) else raw:
            _check_depth(item, depth - 1)


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a job's body, which must be a JSON object. Raises `InvalidMessage`."""
    try:
        raw = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_parse_finite)
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
        known = {a.name: a for a in attr.fields(cls) if a.name != "extra"}
        missing = [name for name, a in known.items() if a.default is attr.NOTHING and name not in raw]
        if missing:
            raise InvalidMessage(f"not a {cls.__name__}: missing {', '.join(missing)}")
        extra = _limit_extra(cls, {name: value for name, value in raw.items() if name not in known})
        try:
            return cls(**{name: raw[name] for name in known if name in raw}, extra=extra)
        except ValueError as error:
            raise InvalidMessage(f"not a {cls.__name__}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The message as a JSON object, without fields that have their default value."""
        return {**self.extra, **attr.asdict(self, filter=is_sent, value_serializer=_to_json)}

    def encode(self) -> bytes:
        """The message as a job's body. Raises `InvalidMessage` if it is too large for a tube."""
        body = encode(self.to_json())
        if len(body) > MAX_BYTES:
            raise InvalidMessage(f"a {type(self).__name__} of {len(body)} bytes: {MAX_BYTES} is the most")
        return body


def _limit_extra(kind: type[Message], extra: dict[str, Any]) -> dict[str, Any]:
    if extra and len(encode(extra)) > MAX_EXTRA:
        raise InvalidMessage(f"not a {kind.__name__}: over {MAX_EXTRA} bytes of unknown keys")
    return extra


def encode(wire: Mapping[str, Any]) -> bytes:
    return json.dumps(wire, separators=(",", ":"), sort_keys=True).encode("ascii")


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


def _to_json(_instance: Any, _attribute: Any, value: Any) -> Any:
    """Messages within a message keep their own unknown keys."""
    return value.to_json() if isinstance(value, Message) else value
