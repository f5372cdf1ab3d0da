# SPDX-License-Identifier: Apache-2.0
"""Questions to a person at a terminal. Without a terminal, all missing options are named in one error."""

from __future__ import annotations

import sys
import termios
from pathlib import Path
from typing import Callable

import attr
import click

from reimzul.admin.setup import psk
from reimzul.admin.setup.event_keys import split_event_key
from reimzul.core import validators
from reimzul.core.errors import EXIT_USAGE, InputError, ReimzulError
from reimzul.core.event_signature import EventKey


class MissingAnswer(ReimzulError):
    """An answer is needed, and there is no terminal to ask on."""

    exit_code = EXIT_USAGE


def has_terminal() -> bool:
    return sys.stdin.isatty()


def parse_host(text: str) -> str:
    """A host name, or an IPv4 address. Raises `InputError`."""
    try:
        return validators.host(text)
    except ValueError as error:
        raise InputError(str(error)) from None


@attr.define
class Prompter:
    """Asks, and collects the options that were missing without a terminal."""

    missing: list[str] = attr.field(factory=list)

    def ask(self, given: str | None, remembered: str, option: str, question: str, check: Callable[[str], str]) -> str:
        """The value that was given, else the one of the last run, else a person's answer."""
        if given or remembered:
            return check(given or remembered)
        if has_terminal():
            return check(str(click.prompt(question, err=True)))
        self.missing.append(option)
        return ""

    def raise_if_missing(self) -> None:
        """Raise `MissingAnswer` with all that is missing."""
        if self.missing:
            raise MissingAnswer(f"missing, and there is no terminal to ask on: {', '.join(self.missing)}")


def read_key_file(source: str | None) -> tuple[dict[str, str] | None, EventKey | None]:
    """The keys of hosts in a file, and that of events; `-` is a pipe, or what a person types, unseen.

    The keys are None where no file was given.
    """
    if source is None:
        return None, None
    text, name = _read_key_text(source)
    text, event_key = split_event_key(text, name)
    return psk.parse_keys(text, name), event_key


def _read_key_text(source: str) -> tuple[str, str]:
    """The text of a file of keys, and how errors name it."""
    if source != "-":
        try:
            return Path(source).read_text(encoding="utf-8"), source
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise InputError(f"{source}: {(why or 'cannot be read').lower()}") from None
    if not has_terminal():
        return sys.stdin.read(), "standard input"
    return "\n".join(_read_unseen_lines()), "what was typed"


def _read_unseen_lines() -> list[str]:
    """Lines typed or pasted without an echo, up to an empty one; getpass would drop all but the first of them."""
    before = termios.tcgetattr(sys.stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        click.echo("Key, a line name:hex, or several; they are not shown, an empty line ends them:", err=True)
        return [row for row in iter(lambda: sys.stdin.readline().strip(), "")]
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
