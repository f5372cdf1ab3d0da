# SPDX-License-Identifier: Apache-2.0
"""Parsers of single settings: each reads the text of a setting, or raises `ValueError`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Callable
from urllib.parse import urlsplit

import attr

from reimzul.core import validators

#: A mail address; without a domain it is a mailbox of the mail server.
_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+(@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)?\Z")
_DOMAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?\Z")

_NICK = re.compile(r"[A-Za-z\[\]\\`_^{|}][A-Za-z0-9\[\]\\`_^{|}-]{0,29}\Z")
_CHANNEL = re.compile(r"[#&+!][^\s,:\x00-\x1f\x7f]{1,49}\Z")

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse_flag(text: str) -> bool:
    """Read true or false in any spelling of ini files."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"{text!r} is not true or false")


def parse_text(text: str) -> str:
    """Read a text that is not empty."""
    if not text:
        raise ValueError("is empty")
    return text


def parse_path(text: str) -> Path:
    """Read an absolute path."""
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    return Path(text)


def parse_optional_path(text: str) -> Path | None:
    """Read an absolute path or nothing."""
    return parse_path(text) if text else None


def parse_program(text: str) -> str:
    """Read a program: a name to find on PATH, or an absolute path."""
    if not text or (" " in text and not text.startswith("/")) or ("/" in text and not text.startswith("/")):
        raise ValueError(f"{text!r} is not a program's name or absolute path")
    return text


def parse_arguments(text: str) -> tuple[str, ...]:
    """Read arguments, quoted as in a shell; no shell ever sees them."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def integer_parser(low: int, high: int) -> Callable[[str], int]:
    """The parser of a whole number in a range."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


port = integer_parser(1, 65535)
seconds = integer_parser(0, 10_000_000)
days = integer_parser(0, 36_500)


def url_parser(scheme: str, ending: str = "/") -> Callable[[str], str]:
    """The parser of a URL of a scheme, or of its https; a missing final slash is added."""

    def parse(text: str) -> str:
        parts = urlsplit(text)
        if parts.scheme not in (scheme, scheme + "s") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{text!r} is not of the form {scheme}://host:port/folder/")
        whole_url = text.rstrip("/") + "/"
        if not whole_url.endswith(ending):
            raise ValueError(f"{text!r} does not end with {ending}")
        return whole_url

    return parse


def parse_history_url(text: str) -> str:
    """Read `sqlite:///` with an absolute path, or a `mongodb://` URL."""
    if text.startswith(("mongodb://", "mongodb+srv://")):
        return text
    if text.startswith("sqlite:////"):
        return text
    raise ValueError(f"{text!r} is neither mongodb://… nor sqlite:////an/absolute/path")


def parse_topic(text: str) -> str:
    """Read the prefix of an MQTT topic: no wildcards, no slash at its ends."""
    if not text or text != text.strip("/") or any(sign in text for sign in "+#\0"):
        raise ValueError(f"{text!r} is not an MQTT topic")
    return text


def parse_address(text: str) -> str:
    """Read a bare mail address."""
    if not _ADDRESS.match(text):
        raise ValueError(f"{text!r} is not a mail address, as me@example.org")
    return text


def parse_addresses(text: str) -> tuple[str, ...]:
    """Read mail addresses separated by commas."""
    return tuple(parse_address(one.strip()) for one in text.split(",")) if text else ()


def parse_nick(text: str) -> str:
    if not _NICK.match(text):
        raise ValueError(f"{text!r} is not an IRC nickname")
    return text


def parse_channels(text: str) -> tuple[str, ...]:
    """Read IRC channels separated by commas."""
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    for name in names:
        if not _CHANNEL.match(name):
            raise ValueError(f"{name!r} is not an IRC channel, as #centos-build")
    return names


def choice_parser(*words: str) -> Callable[[str], str]:
    """The parser of one of a few words."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text.lower()

    return parse


def parse_optional_domain(text: str) -> str:
    if text and not _DOMAIN.match(text):
        raise ValueError(f"{text!r} is not a domain, as example.org")
    return text


def parse_optional_target(text: str) -> str:
    return validators.target(text) if text else ""


_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"(\d{1,6})([mhdw])\Z")


def parse_span(text: str) -> int:
    """Read a span of time, as `90d`, in seconds."""
    found = _SPAN.match(text)
    if not found:
        raise ValueError(f"{text!r} is not a span of time, as 12h, 90d or 2w")
    return int(found[1]) * _UNITS[found[2]]


@attr.frozen(kw_only=True)
class Pruning:
    """Which old builds of a target are removed."""

    keep: int = 1  #: how many of the newest builds of each package and arch stay
    older: int = 0  #: seconds; no younger build is removed
    unsigned: bool = False  #: also remove builds that were not staged for signing


def parse_pruning(text: str) -> Pruning:
    """Read `keep 3`, `older 90d` or `keep 3 older 90d`, with a final `unsigned` if nothing is signed."""
    words = text.split()
    unsigned = words[-1:] == ["unsigned"]
    given = dict(zip(words[::2], words[1::2])) if len(words) % 2 == unsigned else {}
    if not given or not given.keys() <= {"keep", "older"} or len(given) < (len(words) - unsigned) / 2:
        raise ValueError(f"{text!r} is not a rule, as `keep 3`, `older 90d` or `keep 3 older 90d`")
    return Pruning(
        keep=integer_parser(1, 100_000)(given.get("keep", "1")),
        older=parse_span(given.get("older", "0d")),
        unsigned=unsigned,
    )


DUPLICATE_KINDS = ("builds", "legs")


def parse_duplicates(text: str) -> frozenset[str]:
    """Read `builds`, `legs` or both."""
    kinds = frozenset(text.split())
    if not kinds or not kinds <= set(DUPLICATE_KINDS):
        raise ValueError(f"{text!r} is not one or more of {', '.join(DUPLICATE_KINDS)}")
    return kinds
