# SPDX-License-Identifier: Apache-2.0
"""Files of pre-shared keys as stunnel reads them: a line `name:hex` each, nothing else.

A key is never part of a message, whatever is wrong with it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping

from reimzul.core.errors import InputError
from reimzul.core.validators import quoted

#: A key nobody is told. stunnel does not start with an empty file, and this one is there before any builder is.
NOBODY = "localhost"
#: Whose key the controller's own is, by which it reads the store. No other host is called that.
CONTROLLER = "controller"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
#: stunnel wants 16 bytes at least: PSKsecrets in stunnel(8).
_SECRET = re.compile(r"(?:[0-9a-fA-F]{2}){16,128}\Z")


def name(text: str) -> str:
    """The name of a key's owner. Raises `InputError`."""
    if not _NAME.match(text) or text in (NOBODY, CONTROLLER):
        right = "letters, digits and ._-, beginning with a letter or digit, 64 at most; not localhost, not controller"
        raise InputError(f"{quoted(text)} is no name for a builder: {right}")
    return text


def new() -> str:
    """A secret nobody can guess: 64 hex digits."""
    return secrets.token_hex(32)


def line(owner: str, secret: str) -> str:
    """A key as it stands in a file."""
    return f"{owner}:{secret}"


def parse(text: str, source: str) -> dict[str, str]:
    """The keys in a text, by their owners' names; empty lines are passed over. Raises `InputError`."""
    keys: dict[str, str] = {}
    for number, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        owner, _, secret = row.strip().partition(":")
        if not _NAME.match(owner) or not _SECRET.match(secret):
            raise InputError(f"{source}, line {number}: not of the form name:hex, with 32 hex digits or more")
        if owner in keys:
            raise InputError(f"{source}, line {number}: a second key of {owner}")
        keys[owner] = secret.lower()
    return keys


def text_of(keys: Mapping[str, str]) -> str:
    """A file of keys."""
    return "".join(f"{line(owner, secret)}\n" for owner, secret in keys.items())


def owners(keys: Iterable[str]) -> list[str]:
    """Who has a key, in order; the one that is nobody's is left out."""
    return sorted(owner for owner in keys if owner != NOBODY)
