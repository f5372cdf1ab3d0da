# SPDX-License-Identifier: Apache-2.0
"""What set-up wrote on this host, as checksums: a file that still is as it was written is nobody's but ours."""

from __future__ import annotations

import hashlib
import json

from reimzul.admin.setup.system import System

FILE = "/etc/reimzul/setup.json"


def checksum(text: str) -> str:
    """What a text is known by."""
    return hashlib.sha256(text.encode()).hexdigest()


def known(system: System) -> dict[str, str]:
    """The checksum of each file as it was last written here, by its path; empty where that is not known."""
    try:
        sums = json.loads(system.text(FILE) or "{}")["sha256"]
        return {str(path): str(value) for path, value in sums.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def text_of(sums: dict[str, str]) -> str:
    """The file of checksums."""
    return json.dumps({"sha256": sums}, indent=2, sort_keys=True) + "\n"
