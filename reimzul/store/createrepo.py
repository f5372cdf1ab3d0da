# SPDX-License-Identifier: Apache-2.0
"""Runs createrepo_c on a target: when, with which packages, and how its result becomes visible.

createrepo_c's exit code decides nothing: the repodata is read back, and a build is published when each of its packages
is listed with the checksum of its manifest. createrepo_c writes into `cache/`, which only repogen reads; `repodata.py`
makes the result visible. Callers hold the target's lock.

`[repogen] after_createrepo` is the hook: the farm's own program, run on new repodata before it becomes visible. If it
fails or hangs, the old repodata stays, and `state/<target>.hook` records the reason and the time of the failure. All
repogen workers of a store obey that file.

A target rests after a run as long as the run took, so that runs never take more than half of the time.
`state/<target>.runs` has the last run's start and end, so all repogen workers of a store rest together.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attr

from reimzul.core import fs
from reimzul.core.errors import ConfigError, InputError, ReimzulError, RetryLater, TimedOut, describe_exit
from reimzul.core.process import Process, end_group, run, spawn, wait_until_exit
from reimzul.core.retry import Backoff, CancelToken
from reimzul.core.settings import RepogenSettings
from reimzul.core.store_paths import StorePaths
from reimzul.store.listing import PackageTree, StoredLeg, listed_paths
from reimzul.store.repodata import (
    DAMAGED,
    REPODATA,
    REPOMD,
    Addition,
    Draft,
    make_draft,
    read_records,
    recover_interrupted_run,
)

log = logging.getLogger(__name__)

#: Rest after the second run in a row. There is none after the first: the legs of a build end shortly after each other.
REST_SECONDS = 1.0
#: Rest after later runs in a row. It makes up for the second run, which came without a rest.
LATER_REST_SECONDS = 1.5
LONGEST_REST_SECONDS = 30.0
#: Seconds between two attempts to get a lock that another process holds.
_LOCK_POLL_SECONDS = 0.1
#: Seconds between two checks whether the hook has ended.
_HOOK_POLL_SECONDS = 0.05
_HOOK_BACKOFF = Backoff(first=5, cap=300)
#: Seconds between SIGTERM and SIGKILL for a hook that hangs; other targets wait that long at most.
_HOOK_GRACE_SECONDS = 1.0
#: The placeholder for the folder in the hook's arguments.
_FOLDER = "{repodata}"
#: Seconds without using the processor after which createrepo_c counts as hung: a SIGTERM at the wrong moment does that
#: to it (seen with 0.17), and it would hold the target's lock for ever.
HUNG_SECONDS = 60
#: createrepo_c's exit code when it left out a package that it could not read.
LEFT_OUT_EXIT_CODE = 2
#: Options that would make createrepo_c list other packages, or list them under other names.
_FORBIDDEN_OPTIONS = frozenset((
    "-x", "--excludes", "-i", "--pkglist", "-n", "--includepkg", "-o", "--outputdir", "-s", "--checksum", "--split",
    "--basedir", "--cut-dirs", "--location-prefix", "--recycle-pkglist", "--skip-symlinks", "-S",
    # Since 1.1: lists only one of several packages of one NEVRA.
    "--duplicated-nevra",
    # These make it end before it has done anything.
    "-h", "--help", "--help-all", "--help-expert", "-V", "--version",
    # Its hidden folder would have an unknown name; and a listing is identified by its primary.xml's mtime.
    "--ignore-lock", "--set-timestamp-to-revision",
    # What follows it counts as a folder.
    "--",
))  # fmt: skip
#: Options that would remove files that clients still fetch, or make repomd.xml name files outside repodata/.
_RETENTION_OPTIONS = frozenset(("--retain-old-md", "--retain-old-md-by-age", "--simple-md-filenames", "--deltas"))
#: Values of --general-compress-type that `listing.py` can read.
_COMPRESSIONS = ("bz2", "gz", "xz")
#: Signals that a program's own fault raises; others come from the host (out of memory, a stop).
CRASH_EXIT_CODES = frozenset(
    -number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
)
#: createrepo_c's message about a package with text that XML cannot hold: it will fail every time.
_UNWRITABLE = "Cannot dump XML"
#: Begins the complaint about a leg that makes createrepo_c crash when it is run on that leg alone.
CRASH_PREFIX = "createrepo_c crashes on a package of it: "
#: createrepo_c's threads write at once, so a line may begin with the beginnings of others.
_LINE_PREFIX = re.compile(r"^(?:\S*C_CREATEREPOLIB: |[\d:]+ |(?:Critical|Warning|error): )+")
#: How much is read of an output that may have a line for each of 50,000 packages.
_OUTPUT_BYTES = 8 << 20


@attr.frozen(kw_only=True)
class RunRecord:
    """The last run on a target; times in seconds since 1970."""

    start: float = 0.0
    end: float = 0.0
    row: int = 0  #: its number in a row of runs that follow each other closely

    @property
    def duration(self) -> float:
        return self.end - self.start

    @property
    def rest(self) -> float:
        """Seconds from its end to the earliest start of the next run."""
        if self.row < 2:
            return 0.0
        shortest = REST_SECONDS if self.row == 2 else LATER_REST_SECONDS
        return min(max(shortest, self.duration), LONGEST_REST_SECONDS)

    def allows_next(self, now: float) -> bool:
        """Whether the next run may start. An end in the future is ignored: the clock was set back."""
        return self.end > now or now - self.end >= self.rest

    def followed_by(self, start: float, end: float) -> RunRecord:
        """The run after this one. A pause longer than the rest begins a new row."""
        pause = start - self.end
        begins_row = pause < 0 or pause >= self.rest + max(REST_SECONDS, self.duration)
        return RunRecord(start=start, end=end, row=1 if begins_row else self.row + 1)


def read_run(path: Path) -> RunRecord:
    """The last run; without a file, or with a damaged one, a run that was never made."""
    try:
        raw = json.loads(path.read_bytes())
        last = RunRecord(start=float(raw["start"]), end=float(raw["end"]), row=int(raw["row"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return RunRecord()
    return last if 0 <= last.start <= last.end else RunRecord()


def write_run(path: Path, record: RunRecord) -> None:
    """Record a run. The disk is not synced: without the record, the next run starts at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(attr.asdict(record)) + "\n", encoding="utf-8")
    temporary.replace(path)


# --- the hook


class HookFailed(ReimzulError):
    """The hook failed or hung, or left unusable repodata: the old repodata stays."""


@attr.frozen(kw_only=True)
class HookFailure:
    """The failures of a target's hook since it last succeeded."""

    count: int
    at: float  #: of the last one, seconds since 1970
    reason: str

    @property
    def pause(self) -> int:
        """Seconds from the last failure to the next try."""
        return int(_HOOK_BACKOFF.pause_after(self.count))

    def seconds_to_retry(self, now: float) -> float:
        """Seconds to the next try; 0 if the clock was set back."""
        return self.at + self.pause - now if now >= self.at else 0.0


def read_failure(path: Path) -> HookFailure | None:
    """Read a `state/<target>.hook`; None if it is missing or damaged."""
    try:
        raw = json.loads(path.read_bytes())
        return HookFailure(count=max(1, int(raw["count"])), at=float(raw["at"]), reason=str(raw["reason"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None


def record_failure(path: Path, reason: str) -> HookFailure:
    before = read_failure(path)
    failure = HookFailure(count=before.count + 1 if before else 1, at=time.time(), reason=reason)
    fs.write_atomic(path, json.dumps(attr.asdict(failure), indent=1) + "\n")
    return failure


@attr.frozen(kw_only=True)
class RunningHook:
    process: Process
    program: str
    timeout: float  #: seconds
    output: Path
    deadline: float  #: by time.monotonic

    def has_succeeded(self, wait: float = 0.0) -> bool:
        """Wait so many seconds for the hook; return whether it has ended well. Raises `HookFailed`."""
        if wait_until_exit(self.process, wait):
            # What it left in its process group ends too, so that nothing writes into repodata that is visible.
            end_group(self.process, 0.0)
            if not self.process.returncode:
                return True
            fault = describe_exit(self.process.returncode)
        elif time.monotonic() <= self.deadline:
            return False
        else:
            fault = f"was ended after {self.timeout:g} s"
        lines = last_lines(self.output)
        raise HookFailed(f"{self.program} {fault}" + (f": {lines}" if lines else ""))


def last_lines(output: Path, lines: int = 3) -> str:
    """The last lines of a program's output, joined to one."""
    try:
        with output.open("rb") as stream:
            stream.seek(-min(4096, output.stat().st_size), os.SEEK_END)
            tail = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return " / ".join(tail.strip().splitlines()[-lines:])


def hook_argv(settings: RepogenSettings, folder: Path, target: str) -> list[str]:
    """The hook's command line; the folder is its last argument unless another one names it."""
    argv = [word.replace(_FOLDER, str(folder)).replace("{target}", target) for word in settings.after_createrepo]
    return argv if any(_FOLDER in word for word in settings.after_createrepo) else [*argv, str(folder)]


@contextlib.contextmanager
def run_hook(settings: RepogenSettings, store: StorePaths, target: str, folder: Path) -> Iterator[RunningHook | None]:
    """Run the hook, if there is one, on a folder; leaving the block ends it. Raises `HookFailed` if it cannot start."""
    if not settings.after_createrepo:
        yield None
        return
    argv, output = hook_argv(settings, folder, target), store.hook_log(target)
    env = {"REIMZUL_TARGET": target, "REIMZUL_REPODATA": str(folder)}
    with contextlib.ExitStack() as stack:
        try:
            log = stack.enter_context(output.open("wb"))
            # The hook does not inherit the lock: what it leaves behind, as gpg's agent, would hold it for ever.
            process = stack.enter_context(spawn(argv, output=log, cwd=folder, env=env, grace=_HOOK_GRACE_SECONDS))
        except (OSError, ReimzulError) as error:
            raise HookFailed(str(error)) from error
        yield RunningHook(
            process=process,
            program=os.path.basename(argv[0]),
            timeout=settings.after_createrepo_timeout,
            output=output,
            deadline=time.monotonic() + settings.after_createrepo_timeout,
        )


# --- createrepo_c


class CreaterepoCrashed(RetryLater):
    """createrepo_c was ended by a signal."""


def _options(word: str) -> list[str]:
    """The options in an argument, as GLib reads it: short ones may be joined, none is abbreviated."""
    if word.startswith("-") and not word.startswith("--"):
        return [f"-{letter}" for letter in word[1:].split("=")[0]]
    return [word.split("=")[0]]


@contextlib.contextmanager
def hold_lock(store: StorePaths, target: str, cancel: CancelToken) -> Iterator[int]:
    """Hold the target's lock; wait as long as another process holds it."""
    is_logged = False
    while True:
        with fs.file_lock(store.lock(target)) as lock:
            if lock is not None:
                yield lock
                return
        if not is_logged:
            log.info("%s is being indexed: waiting until that is done", target)
            is_logged = True
        cancel.wait(_LOCK_POLL_SECONDS)


@attr.frozen(kw_only=True)
class CreaterepoRunner:
    store: StorePaths
    settings: RepogenSettings = attr.field()
    tree: PackageTree = attr.field(factory=PackageTree)

    @settings.validator
    def _check_arguments(self, _: Any, settings: RepogenSettings) -> None:
        arguments = settings.arguments
        for word, following in zip(arguments, [*arguments[1:], ""]):
            options = _options(word)
            if not _FORBIDDEN_OPTIONS.isdisjoint(options):
                raise ConfigError(f"[repogen] arguments: {word} would keep builds from being found in the repodata")
            if not _RETENTION_OPTIONS.isdisjoint(options):
                raise ConfigError(f"[repogen] arguments: {word} does not go with how repogen keeps old metadata")
            if options == ["--general-compress-type"] and (word.partition("=")[2] or following) not in _COMPRESSIONS:
                raise ConfigError(
                    f"[repogen] arguments: {word}: such metadata cannot be read; known: {', '.join(_COMPRESSIONS)}"
                )

    def _list_path(self, target: str) -> Path:
        return self.store.cache / f"{target}.packages"

    def argv(self, target: str, *, full_rebuild: bool = False) -> list[str | os.PathLike[str]]:
        cores = self.settings.cores or len(os.sched_getaffinity(0))
        output, folder = self.store.output(target), self.store.target(target)
        is_first = not (output / REPODATA).is_dir()  # as after an upgrade: the visible repodata is then updated
        visible = ["--update-md-path", str(folder)] if is_first and (folder / REPODATA).is_dir() else []
        return [
            self.settings.createrepo_c,
            *([] if full_rebuild else ["--update", "--skip-stat", *visible]),
            "--pkglist", self._list_path(target),
            # Each run removes what it replaces; `repodata.py` keeps what clients still fetch.
            "--outputdir", output, "--compatibility",
            # One per target: createrepo_c's writes there are not atomic, and only the target's lock protects them.
            "--cachedir", self.store.cache / target,
            "--workers", str(cores),
            # The default since 1.0 is zstd, which neither Python nor EL7's yum can read.
            "--general-compress-type=gz",
            "--database" if self.settings.database else "--no-database",
            "--error-exit-val",
            *self.settings.arguments,
            folder,
        ]  # fmt: skip

    def list_packages(self, target: str) -> list[str]:
        """All packages that lie in a target, in createrepo_c's own order; paths are relative to the target."""
        self.store.target(target).mkdir(parents=True, exist_ok=True)
        return self.tree.list_packages(self.store.target(target))

    def run(
        self,
        target: str,
        lock: int,
        cancel: CancelToken,
        *,
        full_rebuild: bool = False,
        packages: Sequence[str] | None = None,
    ) -> bool:
        """Index a target; return whether every package could be read. Raises `RetryLater` if the run failed.

        The result is not visible before `show`. `packages` are listed, by default all that lie there; a full rebuild
        trusts no checksum of an earlier run. createrepo_c inherits the lock: if this process is killed, nobody else
        starts on the target until createrepo_c has ended too.
        """
        folder, output = self.store.target(target), self.store.output(target)
        if full_rebuild:
            fs.remove(self.store.cache / target)
        for needed in (folder, output):
            needed.mkdir(parents=True, exist_ok=True)
        recover_interrupted_run(folder, thorough=not (output / REPODATA).is_dir())
        recover_interrupted_run(output)
        if packages is None:
            packages = self.list_packages(target)
        self._list_path(target).write_bytes(os.fsencode("".join(f"{path}\n" for path in packages)))
        before, start = read_run(self.store.runs(target)), time.time()
        try:
            code = self._run_createrepo(target, lock, cancel, full_rebuild=full_rebuild)
        finally:
            if packages:  # a run that makes a target's first, empty repodata does not delay its first build
                with contextlib.suppress(OSError):  # if the disk is full, the run itself fails and is reported
                    write_run(self.store.runs(target), before.followed_by(start, max(start, time.time())))
        if code == LEFT_OUT_EXIT_CODE:
            log.warning("createrepo_c could not read all of %s: %s", target, last_lines(self.store.log(target)))
        return code == 0

    def _run_createrepo(self, target: str, lock: int, cancel: CancelToken, *, full_rebuild: bool) -> int:
        log_file, output = self.store.log(target), self.store.output(target)
        log_file.unlink(missing_ok=True)
        argv = self.argv(target, full_rebuild=full_rebuild)
        try:
            code = run(argv, output=log_file, cancel=cancel, every=0.1, inherit=[lock], idle=HUNG_SECONDS)
        except TimedOut as error:
            raise RetryLater(str(error)) from error
        if code not in (0, LEFT_OUT_EXIT_CODE) or not (output / REPODATA).is_dir():
            fs.remove(output)  # it may be what the run failed at; the next run updates the visible repodata
            fault = f"createrepo_c {describe_exit(code)} for {target}: {last_lines(log_file)}"
            raise CreaterepoCrashed(fault) if code < 0 else RetryLater(fault)
        return code

    def crashes_on(self, leg: StoredLeg, cancel: CancelToken) -> bool:
        with TemporaryDirectory(dir=self.store.cache, prefix="alone-") as alone:
            place = str(self.store.place(leg.place))
            argv = [self.settings.createrepo_c, *self.settings.arguments, "--outputdir", alone, place]
            try:
                code = run(argv, output=Path(alone) / "output", cancel=cancel, every=0.1, idle=HUNG_SECONDS)
            except TimedOut:
                return False
        return code in CRASH_EXIT_CODES

    def find_complaint(self, leg: StoredLeg) -> str:
        """Find what the last run's output says about a package of a leg; "" if nothing."""
        target = leg.manifest.request.target
        try:
            with self.store.log(target).open("rb") as stream:
                lines = stream.read(_OUTPUT_BYTES).decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        packages = listed_paths(leg)
        for line in lines:
            for path, sha256 in packages.items():
                if sha256 in line or f"{path}:" in line or line.endswith(path):
                    text = _LINE_PREFIX.sub("", line).replace(f"{self.store.target(target)}/", "")
                    return f"createrepo_c refuses {path.rpartition('/')[2]}: {text.replace(f' ({sha256})', '')}"
        return ""

    def make_draft(self, target: str) -> Draft:
        """Put the result of the last run into a hidden folder beside the visible one. Raises `RetryLater`."""
        try:
            return self._draft_from(self.store.output(target) / REPODATA, target)
        except DAMAGED as error:
            raise RetryLater(f"the new repodata of {target} cannot be read: {error!r}") from error

    def _draft_from(self, source: Path, target: str, **changes: Any) -> Draft:
        copy = bool(self.settings.after_createrepo)
        return make_draft(self.store, target, source, time.time(), copy=copy, **changes)

    def show(self, draft: Draft, cancel: CancelToken) -> None:
        """Run the hook on new repodata, and make it visible. Raises `HookFailed`."""
        try:
            with run_hook(self.settings, self.store, draft.target, draft.folder) as hook:
                while hook is not None and not hook.has_succeeded(_HOOK_POLL_SECONDS):
                    cancel.raise_if_cancelled()
            self.reveal(draft)
        except HookFailed as error:
            self.discard_draft(draft, error)
            raise

    def discard_draft(self, draft: Draft, error: HookFailed) -> HookFailure:
        fs.remove(draft.folder.parent)
        return record_failure(self.store.hook(draft.target), str(error))

    def reveal(self, draft: Draft) -> None:
        """Make new repodata visible. Raises `HookFailed` if the hook has damaged it."""
        damage = draft.find_damage()
        if damage:
            raise HookFailed(damage)
        draft.publish()
        self.store.hook(draft.target).unlink(missing_ok=True)
        last = read_run(self.store.runs(draft.target))
        if last.row:
            write_run(self.store.runs(draft.target), attr.evolve(last, end=max(last.end, time.time())))

    def change_metadata(
        self, target: str, cancel: CancelToken, *, addition: Addition | None = None, without: Collection[str] = ()
    ) -> None:
        """Add or remove metadata that createrepo_c does not make. Raises `InputError`, `HookFailed`.

        This alone takes the target's lock itself.
        """
        live = self.store.target(target) / REPODATA
        with hold_lock(self.store, target, cancel):
            if not (live / REPOMD).exists():
                raise InputError(
                    f"{target} has no repodata in {self.store.repo}: reimzul repogen --force {target} makes it"
                )
            try:
                present = {record.kind for record in read_records(live) if record.is_extra}
                missing = [kind for kind in without if kind not in present]
                if missing:
                    added = ", ".join(sorted(present)) or "nothing"
                    raise InputError(f"{target} has no metadata {missing[0]}; added to it: {added}")
                self.show(self._draft_from(live, target, addition=addition, without=without), cancel)
            except DAMAGED as error:
                raise ReimzulError(
                    f"the repodata of {target} cannot be read: {error!r}; nothing was changed"
                ) from error


def is_lasting(complaint: str) -> bool:
    return _UNWRITABLE in complaint or complaint.startswith(CRASH_PREFIX)
