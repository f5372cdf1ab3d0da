# SPDX-License-Identifier: Apache-2.0
"""The cause of a failed build, the same for all builds that failed alike.

For a missing package it is the package's name; otherwise the step that failed and the line that names the cause,
without what differs from package to package.

It is computed from what an event and the history have (`reason`, `error_line`) wherever it is shown, and stored
nowhere: a better rule holds for all earlier builds too.
"""

from __future__ import annotations

import re
from hashlib import sha256

import attr

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


def find_cause(reason: str, error_line: str, package: str = "") -> FailureCause:
    """Return the cause of a failure. `package`: the name of the package, which does not count in the line."""
    missing = missing_capabilities(reason)
    if missing:
        return FailureCause(_make_id("missing", *missing), f"nobody provides {', '.join(missing)}")
    step, _, rest = reason.partition(": ")
    line = error_line or rest
    text = f"{step}: {line}" if line else step or "no reason was given"
    return FailureCause(_make_id(step, normalize_line(line, package)), text)


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
