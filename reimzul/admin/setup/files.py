# SPDX-License-Identifier: Apache-2.0
"""The files a role wants, held against those that are there. Nothing is written here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

import attr

from reimzul.admin.setup.system import System
from reimzul.admin.setup.written import checksum, known

#: The first lines of each configuration of ours have it.
OURS = "SPDX-License-Identifier: Apache-2.0"


@attr.frozen(kw_only=True)
class Wanted:
    """A file as a role wants it."""

    path: str
    text: str
    mode: int = 0o644
    owner: str = "root"  #: a user; the group is that user's
    group: str = ""  #: where it is another
    secret: bool = False  #: its text is nobody's to see
    edited: bool = False  #: only single lines of another's file change: nothing is asked, and kept where `kept` says so
    units: tuple[str, ...] = ()  #: those that have to be started anew when it changed
    reloaded: tuple[str, ...] = ()  #: those that have to read it anew
    kept: str = ""  #: where a foreign file in its place is kept


@attr.frozen(kw_only=True)
class Change:
    """A file that is not as it is wanted."""

    wanted: Wanted
    present: str | None  #: None: there is none
    mode: int | None  #: None: there is none
    ours: bool = False  #: what is there is what set-up wrote

    @property
    def kind(self) -> str:
        """`new`, `changed`, or `mode` where only that differs."""
        if self.present is None:
            return "new"
        return "changed" if self.present != self.wanted.text else "mode"

    @property
    def asks(self) -> bool:
        """Whether somebody else's words would be lost."""
        if self.wanted.secret or self.wanted.edited or self.ours:
            return False
        return self.kind == "changed" and _says_something(self.present or "")

    @property
    def keeps(self) -> str:
        """Where the file that is replaced goes; empty where it is ours or a secret."""
        foreign = self.kind == "changed" and not self.ours and OURS not in (self.present or "")[:200]
        if not foreign or self.wanted.secret or (self.wanted.edited and not self.wanted.kept):
            return ""
        return self.wanted.kept or f"{self.wanted.path}.before-reimzul"

    def lines(self) -> Iterator[str]:
        """What changes, as a unified diff; of a secret only how much."""
        if self.kind == "mode":
            yield f"{self.wanted.path}: mode {self.mode or 0:o} becomes {self.wanted.mode:o}"
        elif self.wanted.secret:
            yield from self._counted()
        else:
            yield from difflib.unified_diff(
                (self.present or "").splitlines(), self.wanted.text.splitlines(),
                self.wanted.path if self.present is not None else "/dev/null", self.wanted.path, lineterm="",
            )  # fmt: skip

    def _counted(self) -> Iterator[str]:
        before, after = (set((text or "").splitlines()) for text in (self.present, self.wanted.text))
        for number, done in ((len(after - before), "added"), (len(before - after), "taken out")):
            if number:
                yield f"{self.wanted.path}: {number} line{'s' if number > 1 else ''} {done}, which nobody is shown"


def _says_something(text: str) -> bool:
    """Whether a file is more than comments, as which some packages bring theirs."""
    return any(row.strip() and row.strip()[0] not in "#;" for row in text.splitlines())


def changes(system: System, files: Iterable[Wanted]) -> list[Change]:
    """What differs. Raises `RootNeeded`, and `ConfigError` for what is no text."""
    found, written = [], known(system)
    for wanted in files:
        present = system.text(wanted.path)
        mode = None if present is None else system.mode(wanted.path)
        if present != wanted.text or mode != wanted.mode:
            ours = present is not None and written.get(wanted.path) == checksum(present)
            found.append(Change(wanted=wanted, present=present, mode=mode, ours=ours))
    return found
