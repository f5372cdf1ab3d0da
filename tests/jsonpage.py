# SPDX-License-Identifier: Apache-2.0
"""What docs/json.md says of the JSON that commands print."""

from __future__ import annotations

import re
from pathlib import Path

_PAGE = Path(__file__).parents[1] / "docs" / "json.md"


def keys(section: str, prefix: str = "") -> set[str]:
    """The keys that a section of the page has in its table; those of an object within it by their prefix."""
    page = _PAGE.read_text(encoding="utf-8")
    rows = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0].splitlines()
    named = {name for row in rows if row.startswith("| `") for name in re.findall("`([^`]+)`", row.split("|")[1])}
    return {name[len(prefix) :] for name in named if name.startswith(prefix) and ("[]" in name) == bool(prefix)}
