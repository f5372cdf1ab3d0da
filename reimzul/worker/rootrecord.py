# SPDX-License-Identifier: Apache-2.0
"""What is recorded of a root: whether its bootstrap root may be used again, and which mock is in it.

mock never updates or repairs a bootstrap root that it made once, so we have to know when one cannot be trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import attr

_DAY_SECONDS = 86400
#: mock's exit codes for a root that could not be made; the bootstrap root may be what is broken.
_ROOT_FAILED = (20, 30, 90)
#: How much of a state.log is read.
_LIMIT_BYTES = 64 * 1024


@attr.frozen(kw_only=True)
class RootRecord:
    """What is known of the root of one extension."""

    digest: str = ""  #: of the configuration that its bootstrap root was made with
    made: float = 0.0  #: when that was, seconds since 1970
    broken: str = ""  #: why the bootstrap root must not be used again
    unclean: bool = False  #: whether something may be left in the root
    pid: int = 0  #: the mock that is in it
    birth: str = ""  #: when that mock was started

    @classmethod
    def read(cls, path: Path) -> RootRecord:
        """Read it from a file; where there is none, or none that can be read, the bootstrap root is not trusted."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            record = cls(**{name: type(getattr(cls(), name))(raw[name]) for name in attr.fields_dict(cls)})
        except (OSError, ValueError, TypeError, KeyError):
            return cls(broken="nothing is known of it")
        return record

    def write(self, path: Path) -> None:
        """Write it, whole or not at all; the file's mtime says when the root was last used."""
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(attr.asdict(self)), encoding="utf-8")
        os.replace(beside, path)

    def removal_reason(self, digest: str, days: int) -> str:
        """Why the bootstrap root must not be used again; empty where it may be."""
        if self.digest != digest:
            return self.broken or "its configuration has changed"
        if days and time.time() - self.made > days * _DAY_SECONDS:
            return self.broken or f"it is older than {days} days (root_days)"
        return self.broken


def digest_rendered(configdir: Path) -> str:
    """The digest of a rendered configuration, which has all that it includes; how mock logs is no part of it."""
    digest = hashlib.sha256()
    for path in sorted(_files(configdir)):
        with contextlib.suppress(OSError):  # mock will say what it misses
            content = path.read_bytes()
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _files(configdir: Path) -> Iterator[Path]:
    for path in configdir.rglob("*"):
        if path.is_file() and not path.name.startswith(".") and path.name != "logging.ini":
            yield path


def bootstrap_fault(results: Path, code: int | None) -> str:
    """Why the bootstrap root of a build must not be used again; empty where it may be. `code`: None if it was ended."""
    log_text = _state_log(results)
    begun, finished = (log_text.count(f"{word}(bootstrap): chroot init") for word in ("Start", "Finish"))
    if begun > finished and code != 0:
        return "mock ended while it made it"
    if code in _ROOT_FAILED and "Start: build setup" not in log_text:
        return f"mock exited with {code} before it came to build"
    return ""


def _state_log(results: Path) -> str:
    with contextlib.suppress(OSError), (results / "state.log").open("rb") as stream:
        return stream.read(_LIMIT_BYTES).decode("utf-8", "replace")
    return ""
