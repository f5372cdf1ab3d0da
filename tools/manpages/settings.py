# SPDX-License-Identifier: Apache-2.0
"""reimzul.ini(5), made from the table of settings with which the programs read the file."""

from __future__ import annotations

from typing import Any

from reimzul.core.config import DEFAULT_FILE, FILE_VARIABLE
from reimzul.core.settings import all_sections, open_row, settings_of
from tools.manpages.roff import Page, bold, escape, italic

_PROSE = [
    "Every host of a farm has this file: sections in brackets, and in them a setting a line, as `key = value`. A line "
    "that begins with # or ; is a comment, and a line that begins with white space continues the one before it. There "
    "is no interpolation: % and $ mean themselves.",
    "All settings have defaults that fit the ports and folders of a farm that `reimzul setup` made, so the file may "
    "be empty or missing. A program reads it once, when it starts.",
    "Unknown sections, unknown keys and impossible values are errors: a program prints all of them, a line each, and "
    "ends with exit code 3. `reimzul config check` does only that.",
]


def page() -> Page:
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
            made.entry(format_term(row), [row.metadata["meaning"]])
    add_endings(made)
    return made


def format_term(row: Any) -> str:
    default = row.metadata["default"]
    return f"{bold(row.name)} {escape('=')} {italic(default)}" if default else f"{bold(row.name)} {escape('=')}"


def add_endings(made: Page) -> None:
    made.heading("EXAMPLES")
    made.literal("\n".join(("[worker]", "mock_configs = /srv/reimzul/mock_configs", "min_free_mib = 20480", "",
                            "[history]", "url = mongodb://localhost:27017/")))  # fmt: skip
    made.heading("ENVIRONMENT")
    made.entry(bold(FILE_VARIABLE), ["Another file to read instead. The option `--config` overrides it."])
    made.heading("FILES")
    made.entry(italic(str(DEFAULT_FILE)), ["The file: mode 640, group reimzul."])
    made.see_also(["reimzul(1)", "reimzul-config(1)", "reimzul-worker(8)", "reimzul-notifier(8)"])
