# SPDX-License-Identifier: Apache-2.0
"""The phases of a build: mock's, from its state.log, and ours before and after mock.

state.log has `Start: …` and `Finish: …` of nested steps, in local time. The outermost steps are the phases; the
innermost step is named beside its phase while it lasts.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable
from pathlib import Path

import attr

from reimzul.core.message import Phase
from reimzul.core.validators import is_source_rpm

SOURCE, UPLOAD = "source", "upload"
#: Encloses all that follows the chroot's setup; the steps in it count as phases.
_WRAPPER = "build phase"
#: Ends all other steps, whether state.log has their end or not.
_LAST = "clean chroot"
_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) - (Start|Finish)(\(bootstrap\))?: (.+)")
#: Bytes of a state.log that are read: they have some 2 kB.
_STATE_LOG_BYTES = 64 * 1024
#: The most phases of a leg that are published.
_MAX_PHASES = 20


@attr.frozen(kw_only=True)
class CurrentPhase:
    name: str  #: of the phase and its current step
    since: float  #: when the phase began


class StateLog:
    def __init__(self) -> None:
        self.outer: list[Phase] = []  #: the phases, in the order they began
        self._within: list[str] = []  #: the steps that have begun and not ended, the outermost first
        self._last = 0.0  #: the time of the last step

    def add_lines(self, lines: Iterable[str]) -> StateLog:
        """Add lines; those that are no steps of mock are ignored."""
        for line in lines:
            found = _LINE.match(line)
            at = _parse_time(found.group(1), int(found.group(2)) / 1000, self._last) if found else None
            if found and at is not None:
                what, bootstrap, name = found.groups()[2:]
                self._last = at
                (self._start if what == "Start" else self._finish)(_short_name(name, bool(bootstrap)), at)
        return self

    @property
    def current_phase(self) -> CurrentPhase | None:
        """The current phase, or the last one; None before the first step."""
        if not self.outer:
            return None
        return CurrentPhase(name=": ".join([self.outer[-1].name, *self._within[1:][-1:]]), since=self.outer[-1].start)

    def phases(self) -> list[Phase]:
        return self.outer[:_MAX_PHASES]

    def _start(self, name: str, at: float) -> None:
        if name == _WRAPPER:
            return
        if name == _LAST:
            self._within.clear()
        if not self._within:
            self.outer.append(Phase(name=name, start=at))
        self._within.append(name)

    def _finish(self, name: str, at: float) -> None:
        if name not in self._within:
            return
        if self._within.index(name) == 0:
            self.outer[-1] = attr.evolve(self.outer[-1], end=at)
        del self._within[self._within.index(name) :]


def read_state_log(path: Path) -> StateLog:
    """Read a state.log; it has no phases where it is missing."""
    try:
        with path.open("rb") as stream:
            text = stream.read(_STATE_LOG_BYTES).decode("utf-8", "replace")
    except OSError:
        text = ""
    return StateLog().add_lines(text.splitlines())


def _parse_time(when: str, fraction: float, after: float) -> float | None:
    """A local time in seconds since 1970, never before that of the last step; None for a date that does not exist.

    When summer time ends an hour comes twice, and a clock may be set back: no phase gets a negative duration.
    """
    try:
        parts = time.strptime(when, "%Y-%m-%d %H:%M:%S")
    except ValueError:
        return None
    found = []
    for summer in (1, 0, -1):
        with contextlib.suppress(OverflowError, ValueError, OSError):
            at = time.mktime((*parts[:8], summer))
            if at >= 0 and (summer < 0 or time.localtime(at)[:6] == parts[:6]):
                found.append(at + fraction)
    return min((at for at in found if at >= after), default=after) if found else None


def _short_name(name: str, bootstrap: bool) -> str:
    """A step's name without that of the package."""
    words = name.split()
    if words and is_source_rpm(words[-1]):
        words = words[: -2 if words[-2:-1] == ["for"] else -1]
    return " ".join(["bootstrap", *words] if bootstrap else words)[:80]


class BuildProgress:
    """The progress of one attempt's legs. Written by the build's threads, read by another."""

    def __init__(self, started: float) -> None:
        self._source = Phase(name=SOURCE, start=round(started, 3))
        self._logs: dict[str, Path] = {}  #: of the legs that are built now, in the order they began
        self._uploads: dict[str, Phase] = {}

    def start_leg(self, arch: str, results: Path) -> None:
        """Start a leg, which has its state.log in `results`."""
        if not self._source.end:
            self._source = _with_end(self._source)
        self._logs[arch] = results / "state.log"

    def start_upload(self, arch: str) -> None:
        self._uploads[arch] = Phase(name=UPLOAD, start=round(time.time(), 3))

    def end_leg(self, arch: str) -> None:
        self._logs.pop(arch, None)

    def current_phase(self, main: str) -> tuple[str, CurrentPhase]:
        """The arch and phase of the main leg, or of the first other leg that is built now."""
        logs = dict(self._logs)
        arch = main if main in logs or not logs else next(iter(logs))
        if arch in self._uploads:
            return arch, CurrentPhase(name=UPLOAD, since=self._uploads[arch].start)
        now = read_state_log(logs[arch]).current_phase if arch in logs else None
        return arch, now or CurrentPhase(name=SOURCE, since=self._source.start)

    def phases_of_leg(self, arch: str, results: Path) -> tuple[Phase, ...]:
        upload = self._uploads.get(arch)
        last = [_with_end(upload)] if upload else []
        return (self._source, *read_state_log(results / "state.log").phases(), *last)


def _with_end(phase: Phase) -> Phase:
    """A phase that ends now; a clock that was set back makes its duration 0, not negative."""
    return attr.evolve(phase, end=max(phase.start, round(time.time(), 3)))
