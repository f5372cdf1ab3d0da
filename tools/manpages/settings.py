# SPDX-License-Identifier: Apache-2.0
"""reimzul.ini(5), out of the table of settings that the programs read the file by."""

from __future__ import annotations

from typing import Any

from reimzul.core.config import DEFAULT_FILE, FILE_VARIABLE, all_sections, open_row, settings_of
from tools.manpages.roff import Page, bold, escape, italic

_PROSE = [
    "One file for every host of a farm: sections in brackets, in them a setting a line, as `key = value`. A line "
    "that begins with # or ; is a comment, and a line that begins with white space goes on the one before it. There "
    "is no interpolation: % and $ are signs as others are.",
    "All settings have defaults that fit the ports and folders of a farm that `reimzul setup` made, so the file may "
    "be empty or not there. It is read once, when a program starts.",
    "A section or a key that is not known is refused, and so is a value that cannot be: a program says all that is "
    "wrong with the file, a line each, and ends with exit code 3. `reimzul config check` does only that.",
]


def page() -> Page:
    """The page."""
    made = Page("reimzul.ini", 5, "settings of a Reimzul build farm")
    made.heading("SYNOPSIS")
    made.roff(italic(str(DEFAULT_FILE)))
    made.heading("DESCRIPTION")
    made.paragraphs(_PROSE)
    made.heading("SETTINGS")
    for name, kind in all_sections().items():
        made.subheading(f"[{name}]")
        made.paragraphs([(kind.__doc__ or "").strip()])
        if free := open_row(kind):
            made.entry(bold(free.metadata["example"]), ["An example; the keys are yours."])
        for row in settings_of(kind):
            made.entry(term(row), [row.metadata["meaning"]])
    endings(made)
    return made


def term(row: Any) -> str:
    """A setting and its default."""
    default = row.metadata["default"]
    return f"{bold(row.name)} {escape('=')} {italic(default)}" if default else f"{bold(row.name)} {escape('=')}"


def endings(made: Page) -> None:
    """What pages end with."""
    made.heading("EXAMPLES")
    made.literal("\n".join(("[worker]", "mock_configs = /srv/reimzul/mock_configs", "min_free_mib = 20480", "",
                            "[history]", "url = mongodb://localhost:27017/")))  # fmt: skip
    made.heading("ENVIRONMENT")
    made.entry(bold(FILE_VARIABLE), ["Another file to be read instead. An option `--config` is heeded before it."])
    made.heading("FILES")
    made.entry(italic(str(DEFAULT_FILE)), ["The file: mode 640, group reimzul."])
    made.see_also(["reimzul(1)", "reimzul-config(1)", "reimzul-worker(8)", "reimzul-notifier(8)"])
