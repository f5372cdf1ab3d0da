# SPDX-License-Identifier: Apache-2.0
"""Where a log is printed: as it is in a pipe; on a terminal without what would steer that."""

from __future__ import annotations

import abc
import codecs
import re
import sys

import click

#: All that a terminal may take for an order, but tabs and line ends.
_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class Paper(abc.ABC):
    """What is printed on."""

    @abc.abstractmethod
    def write(self, piece: bytes) -> None:
        """Print more of a log."""

    @staticmethod
    def note(words: str) -> None:
        """Say something beside the log."""
        sys.stdout.flush()
        click.echo(f"--- {words}", err=True)


class Pipe(Paper):
    """Another program, or a file."""

    def write(self, piece: bytes) -> None:
        """As it is."""
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


class Terminal(Paper):
    """A person's: what a build prints must not reach into it."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, piece: bytes) -> None:
        """With what steers made visible; a character that comes in two pieces is one."""
        text = self._decoder.decode(piece).replace("\r\n", "\n")
        sys.stdout.write(_STEERS.sub("?", text))
        sys.stdout.flush()


def paper() -> Paper:
    """What fits where our output goes."""
    return Terminal() if sys.stdout.isatty() else Pipe()
