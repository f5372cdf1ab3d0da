# SPDX-License-Identifier: Apache-2.0
"""Single settings of a reimzul.ini that is a person's: all else in it, comments and order, stays as it is. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from reimzul.core import config
from reimzul.core.errors import InputError

#: (section, key) -> value
Settings = Mapping["tuple[str, str]", str]

_HEADER = re.compile(r"\s*\[([^\]]+)\]")


def parse(text: str) -> tuple[tuple[str, str], str]:
    """`section.key=value` as it is given on a command line. Raises `InputError`."""
    found = re.match(r"([a-z_]+)\.([a-z_]+)=([^\n]*)\Z", text)
    if not found:
        raise InputError(f"{text!r} is not of the form section.key=value, as worker.max_load=8")
    return (found[1], found[2]), found[3].strip()


def changed(text: str, settings: Settings) -> str:
    """The text with these settings. Raises `InputError` for one that does not exist, or may not be that."""
    for (section, key), value in settings.items():
        _check(section, key, value)
        text = _with(text, section, key, value)
    return text


def value_in(text: str, section: str, key: str) -> str:
    """What a setting says; empty where it is left out."""
    within = ""
    for row in text.splitlines():
        header = _HEADER.match(row)
        within = header[1] if header else within
        if within == section and _is(row, key):
            return re.split("[=:]", row, maxsplit=1)[1].strip()
    return ""


def _check(section: str, key: str, value: str) -> None:
    kinds = config.all_sections()
    rows = config.settings_of(kinds[section]) if section in kinds else []
    row = next((row for row in rows if row.name == key), None)
    if row is None:
        raise InputError(f"[{section}] {key} is not a setting (reimzul config sample has all)")
    try:
        row.metadata["parse"](value)
    except ValueError as error:
        raise InputError(f"[{section}] {key}: {error}") from None


def _is(row: str, key: str) -> bool:
    return bool(re.match(rf"{re.escape(key)}\s*[=:]", row))


def _with(text: str, section: str, key: str, value: str) -> str:
    rows, ours = text.splitlines(), f"{key} = {value}".rstrip()
    start = next((n for n, row in enumerate(rows) if (m := _HEADER.match(row)) and m[1] == section), None)
    if start is None:
        return "\n".join([*rows, *([""] if rows else []), f"[{section}]", ours]) + "\n"
    end = next((n for n in range(start + 1, len(rows)) if _HEADER.match(rows[n])), len(rows))
    for number in range(start + 1, end):
        if _is(rows[number], key):
            after = number + 1
            while after < end and re.match(r"\s+\S", rows[after]):
                after += 1  # lines a long value was continued on
            return "\n".join([*rows[:number], ours, *rows[after:]]) + "\n"
    while end > start + 1 and (not rows[end - 1].strip() or rows[end - 1].startswith("#")):
        end -= 1  # behind the section's last setting, before what is said about the next section
    return "\n".join([*rows[:end], ours, *rows[end:]]) + "\n"
