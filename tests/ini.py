# SPDX-License-Identifier: Apache-2.0
"""A reimzul.ini of a test's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_ini(path: Path, settings: Mapping[str, Mapping[str, object]]) -> Path:
    """Write settings, by section and key, and say where."""
    path.write_text(
        "\n".join(
            f"[{section}]\n" + "\n".join(f"{name} = {value}" for name, value in rows.items())
            for section, rows in settings.items()
        )
    )
    return path
