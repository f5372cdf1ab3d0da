# SPDX-License-Identifier: Apache-2.0
"""The build a person means by an id, or by as much of one as no other build has; and the same for a shell's Tab."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import attr
import click

from reimzul.admin import reading
from reimzul.core import validators
from reimzul.core.errors import InputError, ReimzulError
from reimzul.history import BuildFilter, Document, History

_ID = re.compile(r"[0-9a-f]{1,32}\Z")
#: Legs of one build, and builds that share a beginning, that are read.
_READ = 200
#: Builds offered for one Tab, and ids named where more than one is meant.
_OFFERED, _NAMED = 50, 4


@attr.frozen
class BuildLegs:
    """All that the history has of one build: a document a leg, the arch's that was asked for first."""

    legs: Sequence[Document]

    @property
    def build_id(self) -> str:
        """Its id in full."""
        return str(self.legs[0]["build_id"])

    @property
    def main(self) -> Document:
        """The leg that was asked for: it alone was queued."""
        return self.legs[0]

    @property
    def label(self) -> str:
        """How it is called where one build is told from another."""
        return f"{self.build_id[:8]} ({self.main['srpm']} for {self.main['target']})"


def find_build(history: History, given: str) -> BuildLegs:
    """The one build whose id begins so. Raises `InputError` where there is none, or more than one."""
    word = given.lower()
    if not _ID.match(word):
        raise InputError(f"{validators.quoted(given)} is no build id, nor the beginning of one: up to 32 hex digits")
    found = group_by_build(history.find_builds(BuildFilter(build_id=word), _READ))
    if not found:
        raise InputError(f"no build's id begins with {word}; `reimzul builds` shows which there are")
    if len(found) > 1:
        raise InputError(f"more than one build's id begins with {word}: {_some([build.label for build in found])}")
    return found[0]


def find_builds(history: History, given: Iterable[str]) -> list[BuildLegs]:
    """Each build once. Raises `InputError` with a line for each id that names none, or more than one."""
    found: dict[str, BuildLegs] = {}
    faults = []
    for word in given:
        try:
            build = find_build(history, word)
            found[build.build_id] = build
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(dict.fromkeys(faults)))
    return list(found.values())


def group_by_build(documents: Iterable[Document]) -> list[BuildLegs]:
    """Documents as builds, in the order of the first of each; what has no id (the original's) is left out."""
    legs: dict[str, list[Document]] = {}
    for document in documents:
        if document.get("build_id"):
            legs.setdefault(document["build_id"], []).append(document)
    return [BuildLegs(sorted(each, key=_main_first)) for each in legs.values()]


def _main_first(document: Mapping[str, Any]) -> tuple[bool, str]:
    asked = document.get("queued_at") or document["target"].endswith(f".{document['arch']}")
    return not asked, document["arch"]


def _some(words: Sequence[str]) -> str:
    more = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def build_ids_argument(required: bool = True, many: bool = True) -> Callable[[Any], Any]:
    """The argument of a command that takes build ids, with completion; it reaches the command as `given`."""
    name = "ID..." if many else "ID"
    return click.argument(
        "given",
        metavar=name if required else f"[{name}]",
        nargs=-1 if many else 1,
        required=required,
        shell_complete=complete_build_id,
    )


def complete_build_id(context: click.Context, _: click.Parameter, incomplete: str) -> list[Any]:
    """The newest builds whose id begins so; nothing where the history cannot be read, and never a word of error."""
    from click.shell_completion import CompletionItem

    from reimzul.core.config import load_file

    with contextlib.suppress(ReimzulError, OSError):
        config: Path | None = context.params.get("config")
        with reading.reading_history(load_file(config).history.url) as history:
            found = group_by_build(history.find_builds(BuildFilter(build_id=incomplete.lower()), _OFFERED))
        return [CompletionItem(build.build_id, help=build.label[9:]) for build in found]
    return []
