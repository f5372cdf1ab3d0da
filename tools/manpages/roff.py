# SPDX-License-Identifier: Apache-2.0
"""Writes a man page as roff source, with a few macros of man(7) that groff and mandoc both know.

Only this module escapes text for roff. Options, paths and examples keep their ASCII signs, so that they can be copied
from the page.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence

from reimzul import __version__

MANUAL = "Reimzul"

_SIGNS = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
_CODE = re.compile(r"`([^`]+)`")


def escape(text: str) -> str:
    """Escape text for roff; characters beyond ASCII become their numbers, for readers with any locale."""
    signs = (_SIGNS.get(sign, sign if sign.isascii() else f"\\[u{ord(sign):04X}]") for sign in text)
    return "".join(signs)


def line(text: str) -> str:
    """A line of prose: escaped, `code` in bold, and never a request of roff's, whatever it begins with."""
    pieces = _CODE.split(" ".join(text.split()))
    # every other piece is what stood between backticks
    roff = "".join(bold(piece) if odd % 2 else escape(piece) for odd, piece in enumerate(pieces))
    return rf"\&{roff}" if roff.startswith(".") else roff


def bold(text: str) -> str:
    return rf"\fB{escape(text)}\fR"


def italic(text: str) -> str:
    return rf"\fI{escape(text)}\fR"


class Page:
    """One page; its methods append to it."""

    def __init__(self, name: str, section: int, about: str) -> None:
        self.name, self.section = name, section
        self._lines = [
            r".\" SPDX-License-Identifier: Apache-2.0",
            r".\" Made by tools/manpages: change what it is made from.",
            f'.TH {escape(name.upper())} {section} "{date()}" "{MANUAL} {__version__}" "{MANUAL}"',
            ".nh",  # a hyphenated word can be neither copied nor searched for
            ".ad l",
        ]
        self.heading("NAME")
        self._lines.append(rf"{escape(name)} \- {line(about)}")

    @property
    def file(self) -> str:
        """The page's path in a folder of man pages."""
        return f"man{self.section}/{self.name}.{self.section}"

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def heading(self, title: str) -> None:
        self._lines.append(f".SH {escape(title.upper())}")

    def subheading(self, title: str) -> None:
        self._lines.append(f".SS {escape(title)}")

    def paragraphs(self, texts: Iterable[str]) -> None:
        for number, text in enumerate(texts):
            self._lines += [".PP"] * bool(number or not self._after_heading()) + [line(text)]

    def roff(self, source: str) -> None:
        """Add a paragraph that is roff already."""
        self._lines += [".PP"] * (not self._after_heading()) + [source]

    def entry(self, term: str, texts: Sequence[str]) -> None:
        """Add a term, which is roff already, and its meaning, which is prose."""
        self._lines += [".TP", term, line(texts[0]) if texts else r"\&"]
        for text in texts[1:]:
            self._lines += [".IP", line(text)]

    def literal(self, text: str) -> None:
        """Add preformatted lines."""
        shown = [escape(row) for row in text.splitlines()]
        rows = [rf"\&{row}" if row.startswith(".") or not row else row for row in shown]
        self._lines += [".PP"] * (not self._after_heading()) + [".RS 4", ".nf", *rows, ".fi", ".RE"]

    def see_also(self, pages: Iterable[str]) -> None:
        """Add references, each as name(section)."""
        self.heading("SEE ALSO")
        named = [f"{bold(page.partition('(')[0])}({page.partition('(')[2]}" for page in pages]
        self._lines.append(", ".join(named))

    def _after_heading(self) -> bool:
        return self._lines[-1].startswith((".SH", ".SS"))


def date() -> str:
    """Today, or the day of $SOURCE_DATE_EPOCH, with which a build can be repeated."""
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
