# SPDX-License-Identifier: Apache-2.0
"""What packages require and provide, and whether one satisfies the other, versions too, as rpm compares them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

import attr

from reimzul.core.rpm_header import compare_versions

#: rpm's comparisons in requirements, by the names that repodata gives them.
_FLAGS = {"=": "EQ", "==": "EQ", "<": "LT", "<=": "LE", ">": "GT", ">=": "GE"}
_REQUIREMENT = re.compile(r"(\S+)(?:\s+(<=|>=|==|=|<|>)\s+(\S+))?\s*\Z")
#: A token of a rich dependency: a parenthesis of its own, or a word, which may have parentheses in it.
_TOKEN = re.compile(r"[()]|[^\s()]+(?:\([^\s()]*(?:\([^\s()]*\)[^\s()]*)*\)[^\s()]*)*")
_OPERATORS = ("and", "or", "if", "unless", "else", "with", "without")


@attr.frozen
class Provide:
    name: str
    flags: str = ""  #: EQ, LT, LE, GT or GE; empty without a version
    version: str = ""  #: [epoch:]version[-release]


def list_names(requirement: str) -> list[str]:
    """The names in a requirement, as `pkgconfig(zlib)` in `pkgconfig(zlib) >= 1.2`; of a rich one, all."""
    return [part.split()[0] for part in _split_parts(requirement)]


def is_satisfied(requirement: str, provides: Mapping[str, Collection[Provide]]) -> bool:
    """Whether provides, by name, satisfy a requirement.

    Of a rich dependency this is an estimate, since it does not ask what is installed: each part has to be provided, or
    with `or` one of them; conditions count as met.
    """
    if not requirement.startswith("("):
        return _is_part_satisfied(requirement, provides)
    parts = [_is_part_satisfied(part, provides) for part in _split_parts(requirement)]
    return any(parts) if " or " in requirement else all(parts)


def _split_parts(requirement: str) -> Iterator[str]:
    """The simple requirements in a requirement. Of a condition and what `unless` or `without` excludes, none."""
    if not requirement.startswith("("):
        yield requirement
        return
    part: list[str] = []
    is_condition = False
    for token in [*_TOKEN.findall(requirement), "and"]:
        if token in _OPERATORS:
            if part and not is_condition:
                yield " ".join(part)
            part, is_condition = [], token in ("if", "unless", "without")
        elif token not in "()":
            part.append(token)


def _is_part_satisfied(requirement: str, provides: Mapping[str, Collection[Provide]]) -> bool:
    found = _REQUIREMENT.match(requirement)
    if found is None:
        return False
    name, sign, version = found.groups()
    return any(not sign or _overlaps(each, _FLAGS[sign], version) for each in provides.get(name, ()))


def _overlaps(provide: Provide, flags: str, version: str) -> bool:
    """Whether two ranges of versions have one in common, as rpm's rpmdsCompare: without a version they do."""
    if not provide.version:
        return True
    order = compare_versions(provide.version, version)
    if order < 0:
        return "G" in provide.flags or "L" in flags
    if order > 0:
        return "L" in provide.flags or "G" in flags
    return bool({*provide.flags} & {*flags} & {*"ELG"})
