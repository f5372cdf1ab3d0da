# SPDX-License-Identifier: Apache-2.0
"""Calls mock for one leg: runs it, ends it, watches its logs grow, unpacks them, and cleans the root it leaves.

The phases of a run come from its state.log, which has `Start: …` and `Finish: …` of nested steps, in local time. The
outermost steps are the phases; the innermost step is named beside its phase while it lasts.
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import json
import logging
import lzma
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

import attr

from reimzul.core import validators
from reimzul.core.errors import ProgramNotFound, ReimzulError, TimedOut
from reimzul.core.log_reader import read_end
from reimzul.core.message import Phase
from reimzul.core.process import run
from reimzul.core.retry import CancelToken
from reimzul.worker.mock_config import MockConfigRepo, redact_credentials
from reimzul.worker.mock_result import (
    STATE_LOG_BYTES,
    TIMEOUT_REASON,
    Fault,
    MockResult,
    classify,
    rpmbuild_started,
)
from reimzul.worker.model import Leg
from reimzul.worker.roots import EXIT_ROOT_IN_USE, MockRoot, MockRoots, RootInUse, RootNotRemoved, slot_of

log = logging.getLogger(__name__)

#: Seconds mock gets to enforce --rpmbuild_timeout itself before we end it: it sets up its root before rpmbuild starts,
#: and cleans up after.
TIMEOUT_MARGIN_SECONDS = 1800
#: Seconds between SIGTERM and SIGKILL: mock ends its chroot's processes in about 0.3 s, and what it leaves is removed
#: after it anyway.
GRACE_SECONDS = 3.0
#: The file that records the root of a leg, and the file with mock's output when it cleaned that root.
ROOT_NOTE, CLEAN_LOG = "root.json", "clean.log"
#: The logs every leg has, whatever happened; where mock wrote none, its stderr stands in.
REQUIRED_LOGS = ("build.log", "root.log")
#: The command of mock's compress_logs plugin is a setting: gzip by default, and what else people use.
_UNPACKERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
#: A line of state.log.
_STEP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) - (Start|Finish)(\(bootstrap\))?: (.+)")
#: Two steps: the first encloses all that follows the chroot's setup, and the steps in it count as phases; the other
#: ends all other steps, whether state.log has their end or not.
_WRAPPER, _LAST = "build phase", "clean chroot"


class BuildStalled(ReimzulError):
    """Nothing was written to a build's logs or its result folder for longer than it may take."""


@attr.frozen(kw_only=True)
class Mock:
    mock: str
    configs: MockConfigRepo
    roots: MockRoots
    build_timeout: int  #: seconds, 0 for any time
    stall_timeout: int  #: seconds without a change in the result folder, 0 for any time

    def build(self, leg: Leg, cancel: CancelToken) -> tuple[MockResult, int | None]:
        """Run mock for a leg: the result and mock's exit code."""
        leg.results.mkdir(parents=True, exist_ok=True)
        folder = self.configs.render(leg.config)
        _copy_config(folder / "mock.cfg", leg.results / "mock.cfg")
        try:
            result, code = self._build_in_free_root(leg, folder, cancel)
        except (ProgramNotFound, RootNotRemoved) as error:
            result, code = MockResult(Fault.BUILDER, str(error)), None
        complete_logs(leg.results)
        return result, code

    def _build_in_free_root(self, leg: Leg, folder: Path, cancel: CancelToken) -> tuple[MockResult, int | None]:
        """Build in this worker's root, or in a spare one where a mock that cannot be ended is in it."""
        with contextlib.closing(self.roots.extensions(leg.arch)) as extensions:
            for extension in extensions:
                try:
                    with self.roots.prepare_root(folder, extension, cancel) as root:
                        result, code = self._build_in(root, leg, folder, cancel)
                except RootInUse as error:
                    log.warning("%s: %s", extension, error)
                    continue
                if code != EXIT_ROOT_IN_USE:
                    return result, code
                log.warning("%s: another mock is in the root", extension)
                remove_logs(leg.results)
        return classify(EXIT_ROOT_IN_USE, leg.results), EXIT_ROOT_IN_USE

    def _build_in(self, root: MockRoot, leg: Leg, folder: Path, cancel: CancelToken) -> tuple[MockResult, int | None]:
        """Run mock once, then record the state of its root and clean it where that is needed."""
        write_root_note(root, leg.folder)
        try:
            result, code = self._run(leg, folder, root, cancel)
        except ReimzulError as error:
            self.roots.record_end(root, leg.results, None)
            self.roots.clean(root, leg.folder / CLEAN_LOG)
            if not isinstance(error, (TimedOut, BuildStalled)):
                raise
            reason = str(error) if isinstance(error, BuildStalled) else TIMEOUT_REASON
            return MockResult(Fault.PACKAGE if rpmbuild_started(leg.results) else Fault.BUILDER, reason), None
        self.roots.record_end(root, leg.results, code)
        if result.fault is Fault.BUILDER and code != EXIT_ROOT_IN_USE:  # mock may have skipped its --cleanup-after
            self.roots.clean(root, leg.folder / CLEAN_LOG)
        return result, code

    def _run(self, leg: Leg, folder: Path, root: MockRoot, cancel: CancelToken) -> tuple[MockResult, int]:
        """Run mock to its end. Raises `TimedOut`, `BuildStalled`, and what `cancel` raises."""
        detector = StallDetector(leg.results, self.stall_timeout)

        def check() -> None:
            cancel.raise_if_cancelled()
            detector.raise_if_stalled()

        try:
            code = run(
                self.argv(leg, folder, root),
                output=leg.results / "stdout",
                errors=leg.results / "stderr",
                timeout=self.build_timeout + TIMEOUT_MARGIN_SECONDS if self.build_timeout else None,
                cancel=CancelToken(check),
                grace=GRACE_SECONDS,
                begun=functools.partial(self.roots.record_start, root),
            )
        except BaseException:
            unpack_logs(leg.results)  # mock packs its logs at its end: there are hardly any
            raise
        unpack_logs(leg.results, cancel)
        return classify(code, leg.results), code

    def argv(self, leg: Leg, folder: Path, root: MockRoot) -> list[str]:
        """mock's command line, as the original's but for the build conditions; the source rpm stands last."""
        timeout = [f"--rpmbuild_timeout={self.build_timeout}"] if self.build_timeout else []
        bconds = [word for name in leg.attempt.request.bconds for word in ("--with", name)]
        return [
            self.mock,
            "-r",
            "mock",
            f"--configdir={folder}",
            f"--resultdir={leg.results}",
            "--define",
            f"dist {leg.attempt.request.disttag}",
            *bconds,
            f"--uniqueext={root.uniqueext}",
            *timeout,
            "--cleanup-after",
            str(leg.source),
        ]

    def recover_root(self, folder: Path) -> None:
        """Remove the root that a killed worker's leg may have left, as the note in the leg's folder records.

        There is no note where mock was never started. Earlier versions recorded fewer fields.
        """
        try:
            raw = json.loads((folder / ROOT_NOTE).read_text(encoding="utf-8"))
            extension = raw["uniqueext"] if slot_of(raw["uniqueext"]) else validators.attempt(raw["uniqueext"])
            root = MockRoot(
                configdir=str(raw["configdir"]),
                uniqueext=extension,
                base=str(raw.get("base", "")),
                name=str(raw.get("name", "")),
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return
        self.roots.recover(root, folder / CLEAN_LOG)


def write_root_note(root: MockRoot, folder: Path) -> None:
    """Record a root before mock starts, for the worker that finds the folder after a crash."""
    (folder / ROOT_NOTE).write_text(json.dumps(attr.asdict(root)), encoding="utf-8")


def _copy_config(config: Path, copy: Path) -> None:
    """Copy a rendered configuration without its credentials: the copy is published with the logs."""
    content, encoding = config.read_bytes(), "utf-8"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        encoding = "latin-1"  # which has a character for each byte
        text = content.decode(encoding)
    copy.write_bytes(redact_credentials(text).encode(encoding))


# --- the logs in a result folder --------------------------------------------------------------------------------------


@attr.define
class StallDetector:
    results: Path
    limit: int  #: seconds, 0 for any time
    _files: dict[str, tuple[int, int]] | None = attr.field(default=None, init=False)
    _since: float = attr.field(default=0.0, init=False)

    def raise_if_stalled(self) -> None:
        if not self.limit:
            return
        files, now = _list_files(self.results), time.monotonic()
        if files != self._files:
            self._files, self._since = files, now
        elif now - self._since > self.limit:
            raise BuildStalled(f"nothing was written to its logs for {self.limit} s (stall_timeout)")


def _list_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Each file of a folder, with its size and mtime."""
    found: dict[str, tuple[int, int]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # gone meanwhile
                stat = entry.stat(follow_symlinks=False)
                found[entry.name] = (stat.st_size, stat.st_mtime_ns)
    return found


def remove_logs(results: Path) -> None:
    """Remove the logs of a mock that found its root in use: the next mock would append to them."""
    for path in results.iterdir():
        if path.is_file() and path.name != "mock.cfg":
            path.unlink()


def complete_logs(results: Path) -> None:
    """Give a leg the logs it always has: mock's stderr stands in for those that mock did not write."""
    stderr = results / "stderr"
    for name in REQUIRED_LOGS:
        if not (results / name).exists():
            if stderr.exists():
                shutil.copyfile(stderr, results / name)
            else:
                (results / name).touch()
    for name in ("stdout", "stderr"):
        if (results / name).exists() and not (results / name).stat().st_size:
            (results / name).unlink()


def unpack_logs(results: Path, cancel: CancelToken | None = None) -> None:
    """Unpack the logs that mock's compress_logs plugin packed, so that everything after reads plain text.

    A damaged log is unpacked as far as possible. Raises `OSError` where the disk is full, and what `cancel` raises.
    """
    for packed in sorted(results.iterdir()) if results.is_dir() else ():
        unpacker = _UNPACKERS.get(packed.suffix)
        if unpacker is not None and packed.stem.endswith(".log") and packed.is_file():
            unpacked = packed.with_suffix(".unpacked")
            _unpack(unpacker, packed, unpacked, cancel or CancelToken())
            _merge(unpacked, packed.with_suffix(""))


def _merge(unpacked: Path, plain: Path) -> None:
    """Give a log its name. A log of that name is either the one that was packed, or what mock wrote after packing."""
    if plain.exists():
        with plain.open("rb") as written, unpacked.open("rb+") as stream:
            head = written.read(64)  # enough to recognise a log
            if stream.read(len(head)) == head:
                unpacked.unlink()
                return
            stream.seek(0, os.SEEK_END)
            stream.write(head)
            shutil.copyfileobj(written, stream, 1 << 20)
    unpacked.replace(plain)


def _unpack(unpacker: Callable[[Path], Any], packed: Path, unpacked: Path, cancel: CancelToken) -> None:
    """Unpack as much as possible; the packer may have been ended in the middle."""
    with unpacker(packed) as source, unpacked.open("wb") as stream:
        try:
            while body := source.read1(1 << 16):
                stream.write(body)
                cancel.raise_if_cancelled()
        except ReimzulError:  # the build ends: the packed log is kept
            unpacked.unlink()
            raise
        except (zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's; those of damaged data have none
                raise
            log.warning("%s is damaged: %s", packed.name, error)
    packed.unlink()


# --- phases -----------------------------------------------------------------------------------------------------------


@attr.define
class StateLog:
    outer: list[Phase] = attr.field(factory=list, init=False)  #: the phases, in the order they began
    _within: list[str] = attr.field(factory=list, init=False)  #: the steps that last, the outermost first
    _last: float = attr.field(default=0.0, init=False)  #: the time of the last step

    def add_lines(self, lines: Iterable[str]) -> StateLog:
        """Add lines; those that are no steps of mock are ignored."""
        for found in filter(None, map(_STEP.match, lines)):
            when, milliseconds, what, bootstrap, name = found.groups()
            at = _parse_time(when, int(milliseconds) / 1000, self._last)
            if at is not None:
                self._last = at
                self._add_step(_short_name(name, bool(bootstrap)), at, is_start=what == "Start")
        return self

    def _add_step(self, name: str, at: float, *, is_start: bool) -> None:
        if is_start and name != _WRAPPER:
            if name == _LAST:
                self._within.clear()
            if not self._within:
                self.outer.append(Phase(name=name, start=at))
            self._within.append(name)
        elif not is_start and name in self._within:
            if name == self._within[0]:
                self.outer[-1] = attr.evolve(self.outer[-1], end=at)
            del self._within[self._within.index(name) :]

    @property
    def current_phase(self) -> Phase | None:
        """The current phase with its current step, or the last one; None before the first step."""
        if not self.outer:
            return None
        return Phase(name=": ".join([self.outer[-1].name, *self._within[1:][-1:]]), start=self.outer[-1].start)

    def phases(self) -> list[Phase]:
        return self.outer[:20]  # the most that are published of a leg


def read_state_log(path: Path) -> StateLog:
    """Read a state.log; it has no phases where it is missing."""
    return StateLog().add_lines(read_end(path, STATE_LOG_BYTES).splitlines())


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
    if words and validators.is_source_rpm(words[-1]):
        words = words[: -2 if words[-2:-1] == ["for"] else -1]
    return " ".join(["bootstrap", *words] if bootstrap else words)[:80]
