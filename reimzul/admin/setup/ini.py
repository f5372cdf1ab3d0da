# SPDX-License-Identifier: Apache-2.0
"""Changes single settings of a person's reimzul.ini; the rest of the text, comments and order, stays as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping

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
    for (section, key), value in settings.items():
        _check(section, key, value)
        text = _set_value(text, section, key, value)
    return text


def get_value(text: str, section: str, key: str) -> str:
    """A setting's text; empty if it is not set."""
    within = ""
    for row in text.splitlines():
        header = _HEADER.match(row)
        within = header[1] if header else within
        if within == section and _has_key(row, key):
            return re.split("[=:]", row, maxsplit=1)[1].strip()
    return ""


def _check(section: str, key: str, value: str) -> None:
    kinds = all_sections()
    rows = settings_of(kinds[section]) if section in kinds else []
    row = next((row for row in rows if row.name == key), None)
    if row is None:
        raise InputError(f"[{section}] {key} is not a setting (reimzul config sample has all)")
    try:
        row.metadata["parse"](value)
    except ValueError as error:
        raise InputError(f"[{section}] {key}: {error}") from None


def _has_key(row: str, key: str) -> bool:
    return bool(re.match(rf"{re.escape(key)}\s*[=:]", row))


def _set_value(text: str, section: str, key: str, value: str) -> str:
    rows, ours = text.splitlines(), f"{key} = {value}".rstrip()
    start = next((n for n, row in enumerate(rows) if (m := _HEADER.match(row)) and m[1] == section), None)
    if start is None:
        return "\n".join([*rows, *([""] if rows else []), f"[{section}]", ours]) + "\n"
    end = next((n for n in range(start + 1, len(rows)) if _HEADER.match(rows[n])), len(rows))
    for number in range(start + 1, end):
        if _has_key(rows[number], key):
            after = number + 1
            while after < end and re.match(r"\s+\S", rows[after]):
                after += 1  # lines a long value was continued on
            return "\n".join([*rows[:number], ours, *rows[after:]]) + "\n"
    while end > start + 1 and (not rows[end - 1].strip() or rows[end - 1].startswith("#")):
        end -= 1  # after the section's last setting, before the next section's comment
    return "\n".join([*rows[:end], ours, *rows[end:]]) + "\n"
