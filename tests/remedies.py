# SPDX-License-Identifier: Apache-2.0
"""The command lines in a hint of doctor, as a person would pick them out to run them."""

from __future__ import annotations

import re

#: What a command line in a hint begins with.
_PROGRAMS = re.compile(
    r"(?:apt-get|chgrp|chmod|chown|groupadd|install -d|mount|mv|reimzul|rm|runuser|sysctl|systemctl|usermod) "
)
#: What comes behind a command line: an explanation, or another way.
_REMARK = re.compile(r", (?:which|or|that|with) | \(|: (?=[a-z])")
_PLACE = re.compile(r"on (?:the )?([\w.-]+): ")


def commands_of(hint: str) -> list[tuple[str, str]]:
    """Each command line of a hint, with the host it is for: empty for the host that doctor ran on."""
    found, place = [], ""
    for part in hint.split("; "):
        named = _PLACE.match(part)
        place = named[1] if named else place
        line = (part[named.end() :] if named else part).removeprefix("then: ")
        if _PROGRAMS.match(line):
            found.append((place, _REMARK.split(line)[0].strip()))
    return found
