# SPDX-License-Identifier: Apache-2.0
"""Events as the farm's programs announce them."""

from __future__ import annotations

import hashlib
from typing import Any

from reimzul.core.batch_event import BatchEvent
from reimzul.core.message import BuildEvent, Refusal

#: The time of the first build of all tests.
BEGINNING = 1_763_800_000.0
ATTEMPT, OTHER_ATTEMPT = "1763800001-0000000a", "1763800002-0000000b"


def build_id(number: int) -> str:
    """The build id of the test's n-th build."""
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()


def event(status: str, number: int = 1, **more: Any) -> BuildEvent:
    """An event of the test's n-th build."""
    given: dict[str, Any] = {
        "srpm": "time-1.7-45.el7.src.rpm",
        "arch": "x86_64",
        "target": "c7.1708.u.x86_64",
        "disttag": ".el7",
        "submitter": "johnny",
        "build_id": build_id(number),
        "timestamp": f"20251122{number // 3600 % 24:02}{number // 60 % 60:02}{number % 60:02}",
        "builder_fqdn": "" if status == "Queued" else "builder1.example.org",
        "pkgname": "time",
        "evr": "1.7-45.el7",
        "attempt": "" if status == "Queued" else ATTEMPT,
        "at": BEGINNING + number,
    }
    return BuildEvent(status=status, **{**given, **more})


def refusal(number: int = 1, **more: Any) -> Refusal:
    """A message that was refused."""
    given: dict[str, Any] = {"tube": "x86_64", "job": number, "reason": "not JSON", "begins": "{]", "at": BEGINNING}
    return Refusal(**{**given, **more})


def batch_event(**more: Any) -> BatchEvent:
    """What people are notified of about a batch."""
    given: dict[str, Any] = {
        "batch": "5f0c12ab", "status": "Resting", "key": build_id(99), "target": "c9s", "submitter": "johnny",
        "arches": ("x86_64", "aarch64"), "counts": {"published": 37, "failed": 1, "held": 2}, "at": BEGINNING,
        "text": "Batch 5f0c12ab for c9s rests: 2 members behind 1 failed",
        "lines": ("1 x %build failed: a.c:1: error: no (gcc.x86_64); 2 members behind it",),
    }  # fmt: skip
    return BatchEvent(**{**given, **more})
