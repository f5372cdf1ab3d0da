# SPDX-License-Identifier: Apache-2.0
"""What a person is asked, and whose answers are checked where they come in; where there is no terminal, nobody is."""

from __future__ import annotations

import sys
import termios
from pathlib import Path
from typing import Callable

import attr
import click

from reimzul.admin.setup import keys
from reimzul.core import validators
from reimzul.core.errors import EXIT_USAGE, InputError, ReimzulError


class NobodyToAsk(ReimzulError):
    """Something is not said, and there is no terminal to ask on."""

    exit_code = EXIT_USAGE


def on_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def host(text: str) -> str:
    """A host name, or an IPv4 address, that may stand in a configuration. Raises `InputError`."""
    try:
        return validators.host(text)
    except ValueError as error:
        raise InputError(str(error)) from None


@attr.define
class Questions:
    """What is still to be known; all that is missing is told at once."""

    missing: list[str] = attr.field(factory=list)

    def ask(self, given: str | None, remembered: str, option: str, question: str, check: Callable[[str], str]) -> str:
        """What was given, else what is known from the last time, else what a person says now."""
        if given or remembered:
            return check(given or remembered)
        if on_terminal():
            return check(str(click.prompt(question, err=True)))
        self.missing.append(option)
        return ""

    def done(self) -> None:
        """Raises `NobodyToAsk` with all that is missing."""
        if self.missing:
            raise NobodyToAsk(f"missing, and there is no terminal to ask on: {', '.join(self.missing)}")


def key_file(source: str | None) -> dict[str, str] | None:
    """The keys in a file; `-` is what is typed, unseen, or comes by the pipe. None where no file was given."""
    if source is None:
        return None
    if source != "-":
        try:
            return keys.parse(Path(source).read_text(encoding="utf-8"), source)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise InputError(f"{source}: {(why or 'cannot be read').lower()}") from None
    if not on_terminal():
        return keys.parse(sys.stdin.read(), "standard input")
    return keys.parse("\n".join(_typed()), "what was typed")


def _typed() -> list[str]:
    """Lines that are typed or pasted, unseen, up to an empty one; getpass would drop all but the first of them."""
    before = termios.tcgetattr(sys.stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        click.echo("Key, a line name:hex, or several; they are not shown, an empty line ends them:", err=True)
        return [row for row in iter(lambda: sys.stdin.readline().strip(), "")]
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def agreed(question: str) -> bool:
    """A yes."""
    return click.confirm(question, err=True)
