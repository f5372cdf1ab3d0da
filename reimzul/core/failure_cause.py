# SPDX-License-Identifier: Apache-2.0
"""The cause of a failed build, the same for all builds that failed alike.

For a missing package it is the package's name; otherwise the step that failed and the line that names the cause,
without what differs from package to package.

The worker computes it from `reason` and `error_line`; events, manifests and the history store it, with the version of
the rule. A cause that another version of the rule has computed is computed again wherever it is shown, until
`reimzul causes --relabel` has stored it.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any, Protocol

import attr

from reimzul.core import validators
from reimzul.core.json_message import Message, field

#: The version of the rule. A change of `find_cause` that gives any failure another id or text needs another one.
CAUSE_VERSION = 1

#: What the reasons of `worker/mock_result.py` and of a batch say before the names of what is missing.
_UNPROVIDED = re.compile(r"nobody provides:? ([^;]+)")
_QUOTES = str.maketrans("‘’“”`´", "''\"\"''")
#: Where a compiler found the error: file, line and column.
_SOURCE_PLACE = re.compile(r"^(?:\[\w+\] )?[^\s:]+:\d+(?::\d+)?:\s*")
#: A path; its last part stays.
_FOLDERS = re.compile(r"(?:(?<=[\s'\"(=:,])|^)(?:[\w.+~@%-]*/)+(?=[^/\s])")
_HEX_NUMBER = re.compile(r"\b0x[0-9a-fA-F]+\b|\b[0-9a-f]{12,}\b")
_NUMBER = re.compile(r"\d+(?:\.\d+)*")
_ID_LENGTH = 8


@attr.frozen
class FailureCause:
    id: str  #: 8 hex digits, by which people name it
    text: str  #: one line for a person, of this build

    @property
    def missing(self) -> tuple[str, ...]:
        """The capabilities that nobody provides; empty for every other cause."""
        return missing_capabilities(self.text)


@attr.frozen(kw_only=True)
class CausedResult(Message):
    """A message about a result, with the cause if it is a failure."""

    cause: str = field(validators.optional(validators.cause_id), "")
    cause_text: str = field(validators.line(1_000), "")
    cause_version: int = field(validators.integer(0, 1_000_000), 0)


class Failure(Protocol):
    """What a cause is computed from, and the stored one."""

    @property
    def reason(self) -> str: ...
    @property
    def error_line(self) -> str: ...
    @property
    def package(self) -> str: ...
    @property
    def cause(self) -> str: ...
    @property
    def cause_text(self) -> str: ...
    @property
    def cause_version(self) -> int: ...


def cause_of(failure: Failure) -> FailureCause:
    """Return the stored cause; computed if none is stored, or only one of another version of the rule."""
    if is_current(failure):
        return FailureCause(failure.cause, failure.cause_text)
    return find_cause(failure.reason, failure.error_line, failure.package)


def is_current(failure: Failure) -> bool:
    """Whether the stored cause is that of this version of the rule."""
    return bool(failure.cause) and failure.cause_version == CAUSE_VERSION


def cause_fields(cause: FailureCause) -> dict[str, Any]:
    """Return a cause as messages and the history store it."""
    return {"cause": cause.id, "cause_text": cause.text, "cause_version": CAUSE_VERSION}


def find_cause(reason: str, error_line: str, package: str = "") -> FailureCause:
    """Return the cause of a failure. `package`: the name of the package, which does not count in the line."""
    missing = missing_capabilities(reason)
    if missing:
        return FailureCause(_make_id("missing", *missing), f"nobody provides {', '.join(missing)}")
    step, _, rest = reason.partition(": ")
    line = error_line or rest
    text = f"{step}: {line}" if line else step or "no reason was given"
    return FailureCause(_make_id(step, normalize_line(line, package)), text)


def is_in_logs(reason: str, exit_code: int | None) -> bool:
    """Whether a line of the logs is the cause: mock was run, and the build was not ended for its time."""
    return exit_code is not None and not is_timeout(reason)


def is_timeout(reason: str) -> bool:
    return reason.endswith(("(build_timeout)", "(stall_timeout)"))


def missing_capabilities(reason: str) -> tuple[str, ...]:
    found = _UNPROVIDED.search(reason)
    return tuple(each.strip() for each in found[1].split(", ")) if found else ()


def normalize_line(line: str, package: str = "") -> str:
    """Replace what differs between builds that failed alike: places, folders, numbers and the package's own name."""
    line = _SOURCE_PLACE.sub("", line.translate(_QUOTES).strip())
    line = _HEX_NUMBER.sub("0", _FOLDERS.sub("", line))
    if len(package) > 2:
        line = re.sub(rf"(?<![\w-]){re.escape(package)}(?![a-zA-Z_])", "PACKAGE", line)
    return " ".join(_NUMBER.sub("0", line).split())


def _make_id(*parts: str) -> str:
    return sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:_ID_LENGTH]
