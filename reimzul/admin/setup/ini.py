# SPDX-License-Identifier: Apache-2.0
"""Reads and changes single settings of a person's reimzul.ini; the rest of the text, comments and order, stays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from reimzul.core.errors import InputError
from reimzul.core.settings import all_sections, settings_of

#: (section, key) -> value
Settings = Mapping["tuple[str, str]", str]

_HEADER = re.compile(r"\s*\[([^\]]+)\]")


def parse_setting(text: str) -> tuple[tuple[str, str], str]:
    """A command line's `section.key=value`. Raises `InputError`."""
    found = re.match(r"([a-z_]+)\.([a-z_]+)=([^\n]*)\Z", text)
    if not found:
        raise InputError(f"{text!r} is not of the form section.key=value, as worker.max_load=8")
    return (found[1], found[2]), found[3].strip()


def set_values(text: str, settings: Settings) -> str:
    """The text with these settings. Raises `InputError` for an unknown setting, or a wrong value."""
    rows = text.splitlines()
    for (section, key), value in settings.items():
        try:
            _find_row(section, key).metadata["parse"](value)
        except ValueError as error:
            raise InputError(f"[{section}] {key}: {error}") from None
        if section not in (header[1] for header in map(_HEADER.match, rows) if header):
            rows += ["", f"[{section}]"] if rows else [f"[{section}]"]
        rows[_find_lines(rows, section, key)] = [f"{key} = {value}".rstrip()]
    return "\n".join(rows) + "\n"


def get_value(text: str, section: str, key: str) -> str:
    """A setting's text; its default if it is not set, or is empty."""
    rows = text.splitlines()
    lines = rows[_find_lines(rows, section, key)]
    value = re.split("[=:]", lines[0], maxsplit=1)[1].strip() if lines else ""
    return value or str(_find_row(section, key).metadata["default"])


def _find_row(section: str, key: str) -> Any:
    """A setting's row of core/settings.py. Raises `InputError`."""
    if section in all_sections():
        for row in settings_of(all_sections()[section]):
            if row.name == key:
                return row
    raise InputError(f"[{section}] {key} is not a setting (reimzul config sample has all)")


def _find_lines(rows: list[str], section: str, key: str) -> slice:
    """The lines of a setting; if it is not set, no lines, behind the last setting of its section."""
    within, end = "", len(rows)
    for number, row in enumerate(rows):
        header = _HEADER.match(row)
        within = header[1] if header else within
        if within == section and re.match(rf"{re.escape(key)}\s*[=:]", row):
            after = number + 1
            while after < len(rows) and re.match(r"\s+\S", rows[after]) and not _HEADER.match(rows[after]):
                after += 1  # lines a long value is continued on
            return slice(number, after)
        if within == section and row.strip() and not row.startswith("#"):
            end = number + 1
    return slice(end, end)
