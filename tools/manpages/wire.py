# SPDX-License-Identifier: Apache-2.0
"""reimzul-wire(7), made from docs/wire.md by go-md2man, after tables have become lists and links plain text.

go-md2man of Debian 12 (2.0.2) breaks rows with a cell of more than thirty characters, and no table of the document fits
a terminal of 80 columns. Links of a man page have no folder to start from.
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
#: The separator of cells; an escaped one belongs to its cell.
_CELLS = re.compile(r"(?<!\\)\|")
_SEE = "**reimzul**(1), **reimzul.ini**(5), **reimzul-worker**(8), **reimzul-notifier**(8)"


def source() -> str:
    """The page's roff source. Raises `ProgramNotFound` where go-md2man is not installed."""
    with TemporaryDirectory() as folder:
        page, made = Path(folder, "wire.md"), Path(folder, "wire.7")
        page.write_text(markdown(_SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
        output_of([PROGRAM, "-in", page, "-out", made])
        return clean_roff(made.read_text(encoding="utf-8"))


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
    return "\n\n".join([*head, drop_links(tables_to_lists(rest)), f"# SEE ALSO\n\n{_SEE}\n"])


def drop_links(text: str) -> str:
    """Replace links to files of the tree by their text, and other links by text and address."""
    return _LINK.sub(lambda link: f"{link[1]} ({link[2]})" if "://" in link[2] else link[1], text)


def tables_to_lists(text: str) -> str:
    """Turn each table into a list: the first cell of a row is the term, the others describe it."""
    return "\n".join(_rewrite(text.splitlines()))


def _rewrite(lines: list[str]) -> Iterator[str]:
    """The lines, with rows of tables rewritten. A table begins with its heads and a rule."""
    heads: list[str] = []
    for line in lines:
        if not line.startswith("|"):
            heads = []
            yield line
        elif not heads:
            heads = split_cells(line)
        elif not _RULE.match(line):
            yield from (split_cells(line)[0], f": {describe_row(heads, split_cells(line))}", "")


def split_cells(row: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in _CELLS.split(row.strip().strip("|"))]


def describe_row(heads: list[str], row: list[str]) -> str:
    """Describe a row's first cell by the others: two columns need no head, a column without one is a remark."""
    said = [(head, cell) for head, cell in zip(heads[1:], row[1:]) if cell]
    plain = len([head for head in heads[1:] if head]) == 1
    words = [cell if plain else f"{head}: {cell}" for head, cell in said if head]
    remarks = [f"({cell})" for head, cell in said if not head]
    return " ".join(["; ".join(words), *remarks]).strip() or "-"


def clean_roff(roff: str) -> str:
    """Remove what mandoc warns of, and write characters beyond ASCII as numbers."""
    roff = re.sub(r"^(\.S[HS] .*)\n\.PP$", r"\1", roff.replace(r"\fC", ""), flags=re.MULTILINE)
    return "".join(sign if sign.isascii() else f"\\[u{ord(sign):04X}]" for sign in roff)
