# SPDX-License-Identifier: Apache-2.0
"""reimzul-wire(7), out of docs/wire.md: go-md2man converts it, once its tables are lists and its links words.

Tables: that of Debian 12 (2.0.2) tears rows apart where a cell has more than thirty characters, and no table of ours
fits a terminal of 80 columns. Links: a man page has no folder that they could begin at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from reimzul import __version__
from reimzul.core.process import output_of
from tools.manpages.roff import MANUAL, date

PROGRAM = "go-md2man"
FILE = "man7/reimzul-wire.7"
_SOURCE = Path(__file__).parents[2] / "docs/wire.md"
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_RULE = re.compile(r"^\|[\s|:-]+\|$")
#: What each cell of a row is divided by; a sign that is quoted belongs to its cell.
_CELLS = re.compile(r"(?<!\\)\|")
_SEE = "**reimzul**(1), **reimzul.ini**(5), **reimzul-worker**(8), **reimzul-notifier**(8)"


def source() -> str:
    """The page's roff source. Raises `ProgramNotFound` where go-md2man is not there."""
    with TemporaryDirectory() as folder:
        page, made = Path(folder, "wire.md"), Path(folder, "wire.7")
        page.write_text(markdown(_SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
        output_of([PROGRAM, "-in", page, "-out", made])
        return tidied(made.read_text(encoding="utf-8"))


def markdown(text: str) -> str:
    """The document as a man page's Markdown."""
    title, _, rest = text.partition("\n")
    about = title.lstrip("# ")
    rest = re.sub(r"^##", "#", rest, flags=re.MULTILINE)
    head = [
        f'% "REIMZUL-WIRE" "7" "{date()}" "{MANUAL} {__version__}" "{MANUAL}"',
        f"# NAME\n\nreimzul-wire - {about[:1].lower()}{about[1:]}",
        "# DESCRIPTION",
    ]
    return "\n\n".join([*head, unlinked(without_tables(rest)), f"# SEE ALSO\n\n{_SEE}\n"])


def unlinked(text: str) -> str:
    """Links to files of the tree as their words alone; others with their address."""
    return _LINK.sub(lambda link: f"{link[1]} ({link[2]})" if "://" in link[2] else link[1], text)


def without_tables(text: str) -> str:
    """Each table as a list of terms: the first cell, and what the others say of it."""
    return "\n".join(rewritten(text.splitlines()))


def rewritten(lines: list[str]) -> Iterator[str]:
    """The lines, with those of tables rewritten. A table begins with its heads and a rule."""
    heads: list[str] = []
    for line in lines:
        if not line.startswith("|"):
            heads = []
            yield line
        elif not heads:
            heads = cells(line)
        elif not _RULE.match(line):
            yield from (cells(line)[0], f": {explained(heads, cells(line))}", "")


def cells(row: str) -> list[str]:
    """A row's cells."""
    return [cell.strip().replace(r"\|", "|") for cell in _CELLS.split(row.strip().strip("|"))]


def explained(heads: list[str], row: list[str]) -> str:
    """What a row says of its first cell. Two columns need no head; a column without one is a remark."""
    said = [(head, cell) for head, cell in zip(heads[1:], row[1:]) if cell]
    plain = len([head for head in heads[1:] if head]) == 1
    words = [cell if plain else f"{head}: {cell}" for head, cell in said if head]
    remarks = [f"({cell})" for head, cell in said if not head]
    return " ".join(["; ".join(words), *remarks]).strip() or "-"


def tidied(roff: str) -> str:
    """What go-md2man makes, without what mandoc warns of, and with what is not ASCII by its number."""
    roff = re.sub(r"^(\.S[HS] .*)\n\.PP$", r"\1", roff.replace(r"\fC", ""), flags=re.MULTILINE)
    return "".join(sign if sign.isascii() else f"\\[u{ord(sign):04X}]" for sign in roff)
