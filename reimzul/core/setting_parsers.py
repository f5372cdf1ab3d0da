# SPDX-License-Identifier: Apache-2.0
"""Parsers of single settings: each reads the text of a setting, or raises `ValueError`."""

from __future__ import annotations

import re
import shlex
from configparser import ConfigParser
from pathlib import Path
from typing import Callable
from urllib.parse import urlsplit

import attr

from reimzul.core import validators

_DOMAIN = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?"


def pattern_parser(pattern: str, right: str) -> Callable[[str], str]:
    """The parser of a text that a regular expression matches as a whole."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is not {right}")
        return text

    return parse


def list_parser(parse: Callable[[str], str]) -> Callable[[str], tuple[str, ...]]:
    """The parser of values separated by commas; an empty text has none."""
    return lambda text: tuple(parse(one.strip()) for one in text.split(",")) if text else ()


def parse_flag(text: str) -> bool:
    """Read true or false in any spelling of ini files."""
    value = ConfigParser.BOOLEAN_STATES.get(text.lower())
    if value is None:
        raise ValueError(f"{text!r} is not true or false")
    return value


def parse_text(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


def parse_path(text: str) -> Path:
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    return Path(text)


def parse_optional_path(text: str) -> Path | None:
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
        is_printable = re.fullmatch(r"[!-~]+", text)  # urlsplit drops line breaks and tabs
        is_whole = is_printable and parts.hostname and not parts.query and not parts.fragment
        if parts.scheme not in (scheme, scheme + "s") or not is_whole:
            raise ValueError(f"{text!r} is not of the form {scheme}://host:port/folder/")
        whole_url = text.rstrip("/") + "/"
        if not whole_url.endswith(ending):
            raise ValueError(f"{text!r} does not end with {ending}")
        return whole_url

    return parse


def parse_optional_url(text: str) -> str:
    """Read the root that the folder repo/ is below, as http://bstore.example.org/; empty is none."""
    url = url_parser("http")(text) if text else ""
    if url.endswith("/repo/"):
        raise ValueError(f"{text!r} ends with /repo/: give the URL of the folder above it")
    return url


def parse_history_url(text: str) -> str:
    if text.startswith(("mongodb://", "mongodb+srv://", "sqlite:////")):
        return text
    raise ValueError(f"{text!r} is neither mongodb://… nor sqlite:////an/absolute/path")


def parse_topic(text: str) -> str:
    """Read the prefix of an MQTT topic: no wildcards, no slash at its ends."""
    if not text or text != text.strip("/") or any(sign in text for sign in "+#\0"):
        raise ValueError(f"{text!r} is not an MQTT topic")
    return text


#: A mail address; without a domain it is a mailbox of the mail server.
parse_address = pattern_parser(rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~.-]+(@{_DOMAIN})?", "a mail address, as me@example.org")
parse_addresses = list_parser(parse_address)
parse_optional_domain = validators.optional(pattern_parser(_DOMAIN, "a domain, as example.org"))
parse_optional_target = validators.optional(validators.target)
parse_nick = pattern_parser(r"[A-Za-z\[\]\\`_^{|}][A-Za-z0-9\[\]\\`_^{|}-]{0,29}", "an IRC nickname")
parse_channels = list_parser(pattern_parser(r"[#&+!][^\s,:\x00-\x1f\x7f]{1,49}", "an IRC channel, as #centos-build"))


def choice_parser(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text.lower()

    return parse


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


DUPLICATE_KINDS = ("builds", "arches")


def parse_duplicates(text: str) -> frozenset[str]:
    kinds = frozenset(text.split())
    if not kinds or not kinds <= set(DUPLICATE_KINDS):
        raise ValueError(f"{text!r} is not one or more of {', '.join(DUPLICATE_KINDS)}")
    return kinds
