# SPDX-License-Identifier: Apache-2.0
"""Which requirements of a build the package manager could not meet, from its messages.

Two cases: nobody provides a requirement; or packages exist and cannot be installed until one of them is built again,
as after a new soname. libsolv words the second case alike in dnf 4, dnf5 and zypper.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import attr

from reimzul.core.batch_message import CONFLICT_PREFIX, is_conflict
from reimzul.core.error_patterns import UNPROVIDED
from reimzul.core.message import MAX_MISSING, BuildRequest

_UNPROVIDED = re.compile(UNPROVIDED, re.MULTILINE)
#: Messages by which libsolv gives up although packages exist.
_UNSATISFIABLE = ("none of the providers can be installed", "conflicting requests", "cannot install both")
#: How libsolv introduces the packages in a line about a problem.
_PACKAGE = re.compile(r"\b(?:package|both|and|needed by|provided by|to be installed) (\S+)")
_SOURCE_SUFFIXES = (".src", ".nosrc")


@attr.frozen
class UnmetRequirements:
    """What a build lacks; each list is sorted."""

    unprovided: tuple[str, ...] = ()  #: requirements that nobody provides, of the build or of a package it needs
    indirect: tuple[str, ...] = ()  #: of these, the ones of packages
    packages: tuple[str, ...] = ()  #: names of packages that cannot be installed

    def missing_for(self, request: BuildRequest) -> tuple[str, ...]:
        """Return what a request waits for, as the event's `missing` has it; empty if it does not wait.

        Only a member of a batch waits for a new build of a package that cannot be installed. Such packages, and what
        they lack, are alternatives: when one of them has a new build, this one may succeed.
        """
        if not request.batch:
            return self.unprovided[:MAX_MISSING] if request.dep_wait else ()
        own = [each for each in self.unprovided if each not in self.indirect]
        return (*own, *(f"{CONFLICT_PREFIX}{each}" for each in (*self.packages, *self.indirect)))[:MAX_MISSING]


def find_unmet(output: str) -> UnmetRequirements:
    """Read the output of the package manager's last call, without mock's prefixes."""
    unprovided = (_strip_quotes("".join(names)) for names in _UNPROVIDED.findall(output))
    problems = [line for line in output.splitlines() if "Problem" in line or line.lstrip().startswith("- ")]
    needed = list(_find_needed(problems))
    own = {what for what, by in needed if by.endswith(_SOURCE_SUFFIXES)}
    indirect = {what for what, _ in needed} - own
    packages: Iterable[str] = ()
    if indirect or any(words in output for words in _UNSATISFIABLE):
        packages = filter(None, (_package_name(word) for line in problems for word in _PACKAGE.findall(line)))
    return UnmetRequirements(*(tuple(sorted(set(each))) for each in (unprovided, indirect, packages)))


def describe_missing(missing: Sequence[str]) -> str:
    """Describe what a build waits for, as part of a sentence."""
    conflicts = [each[len(CONFLICT_PREFIX) :] for each in missing if is_conflict(each)]
    own = [each for each in missing if not is_conflict(each)]
    parts = [f"{', '.join(own)}, which nobody provides"] if own else []
    parts += [f"a new build of {' or '.join(conflicts)}, which cannot be installed"] if conflicts else []
    return "; ".join(parts)


def _find_needed(problems: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each requirement that nobody provides, and the package that has it."""
    for line in problems:
        what, needed_by, package = line.partition("nothing provides ")[2].rpartition(" needed by ")
        if needed_by:
            what = what.removeprefix("requirement ").removeprefix("requested ")
            yield _strip_quotes(what), _strip_quotes(package.removeprefix("the to be installed ").split(" ")[0])


def _strip_quotes(text: str) -> str:
    return text.strip(" '\"")


def _package_name(word: str) -> str:
    """Return the name in `<name>-<version>-<release>.<arch>`; empty for anything else, and for a source rpm."""
    word = word.strip("'\",:;()")
    parts = word.rsplit("-", 2)
    is_package = len(parts) == 3 and all(parts) and "." in parts[2] and not word.endswith(_SOURCE_SUFFIXES)
    return parts[0] if is_package else ""
