# SPDX-License-Identifier: Apache-2.0
"""CR"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable

import attr

from reimzul.core import fs
from reimzul.core.config import RepogenSettings as Settings
from reimzul.core.errors import ConfigError, InputError, ReimzulError, RetryLater, TimedOut, describe_exit
from reimzul.core.process import run
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import StorePaths
from reimzul.store import hook
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

#: Rest after the second run of a row. After the first there is none: legs of one build end shortly after each other.
REST_SECONDS = 1.0
#: Rest after the third run of a row and later ones. It makes up for the second run, which came without a rest.
LATER_REST_SECONDS = 1.5
LONGEST_REST_SECONDS = 30.0


@attr.frozen(kw_only=True)
class RunRecord:
    """The last run on a target; times in seconds since 1970."""

    start: float = 0.0
    end: float = 0.0
    row: int = 0  #: its number in a row of runs that follow each other closely

    @property
    def duration(self) -> float:
        """Seconds it took."""
        return self.end - self.start

    @property
    def rest(self) -> float:
        """Seconds from its end to the earliest start of the next run."""
        if self.row < 2:
            return 0.0
        shortest = REST_SECONDS if self.row == 2 else LATER_REST_SECONDS
        return min(max(shortest, self.duration), LONGEST_REST_SECONDS)

    def allows_next(self, now: float) -> bool:
        """Whether the next run may start; an end in the future means that the clock was put back, and is ignored."""
        return self.end > now or now - self.end >= self.rest

    def followed_by(self, start: float, end: float) -> RunRecord:
        """The run after this one. A pause longer than the rest begins a new row."""
        pause = start - self.end
        begins_row = pause < 0 or pause >= self.rest + max(REST_SECONDS, self.duration)
        return RunRecord(start=start, end=end, row=1 if begins_row else self.row + 1)


def read_run(path: Path) -> RunRecord:
    """The last run that a file tells of; one that never was where the file is absent or damaged."""
    try:
        raw = json.loads(path.read_bytes())
        run = RunRecord(start=float(raw["start"]), end=float(raw["end"]), row=int(raw["row"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return RunRecord()
    return run if 0 <= run.start <= run.end else RunRecord()


def write_run(path: Path, run: RunRecord) -> None:
    """Record a run. The disk is not synced: without the record, the next run starts at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(attr.asdict(run)) + "\n", encoding="utf-8")
    temporary.replace(path)


Heed = Callable[[], None]

#: Seconds without using any processor after which createrepo_c hangs: a SIGTERM at the wrong moment does that to it
#: (seen with 0.17), and it would keep the target's lock for ever.
HUNG_SECONDS = 60
#: createrepo_c's status when it left out a package that it could not read.
LEFT_OUT_EXIT_CODE = 2
#: What would have the repodata list other packages, or call them otherwise, than they are looked for.
_FORBIDDEN_OPTIONS = frozenset((
    "-x", "--excludes", "-i", "--pkglist", "-n", "--includepkg", "-o", "--outputdir", "-s", "--checksum", "--split",
    "--basedir", "--cut-dirs", "--location-prefix", "--recycle-pkglist", "--skip-symlinks", "-S",
    # of 1.1 and newer: of packages of one NEVRA all but one are left out
    "--duplicated-nevra",
    # they end it before it has done anything
    "-h", "--help", "--help-all", "--help-expert", "-V", "--version",
    # its hidden folder has another name then, which nobody tidies; and a listing is known by its repomd.xml's mtime
    "--ignore-lock", "--set-timestamp-to-revision",
    # what follows is taken for folders
    "--",
))  # fmt: skip
#: What would take files away that clients still fetch, or have repomd.xml name files that are not in repodata/.
_RETENTION_OPTIONS = frozenset(("--retain-old-md", "--retain-old-md-by-age", "--simple-md-filenames", "--deltas"))
#: Values of --general-compress-type whose files `_OPEN` opens.
_COMPRESSIONS = {"gz", "bz2", "xz"}


class CreaterepoCrashed(RetryLater):
    """createrepo_c was ended by a signal."""


def _options(word: str) -> list[str]:
    """The options in a word of the command line, as GLib reads it: short ones may be joined, none abbreviated."""
    if word.startswith("-") and not word.startswith("--"):
        return [f"-{letter}" for letter in word[1:].split("=")[0]]
    return [word.split("=")[0]]


@attr.frozen(kw_only=True)
class CreaterepoRunner:
    """createrepo_c on this host."""

    store: StorePaths
    settings: Settings = attr.field()
    tree: PackageTree = attr.field(factory=PackageTree)

    @settings.validator
    def _check_arguments(self, _: Any, settings: Settings) -> None:
        for word in settings.arguments:
            if not _FORBIDDEN_OPTIONS.isdisjoint(_options(word)):
                raise ConfigError(f"[repogen] arguments: {word} would keep builds from being found in the repodata")
            if not _RETENTION_OPTIONS.isdisjoint(_options(word)):
                raise ConfigError(f"[repogen] arguments: {word} does not go with how repogen keeps old metadata")
        self._check_compression(settings.arguments)

    @staticmethod
    def _check_compression(arguments: Sequence[str]) -> None:
        """Raise `ConfigError` if the metadata would be compressed as this program cannot read it."""
        for word, following in zip(arguments, [*arguments[1:], ""]):
            option, _, value = word.partition("=")
            value = value or following
            if option == "--general-compress-type" and value not in _COMPRESSIONS:
                known = ", ".join(sorted(_COMPRESSIONS))
                raise ConfigError(f"[repogen] arguments: {word}: such metadata cannot be read; known: {known}")

    def _list(self, target: str) -> Path:
        return self.store.cache / f"{target}.packages"

    def argv(self, target: str, *, afresh: bool = False) -> list[str | os.PathLike[str]]:
        """createrepo_c's command line."""
        cores = self.settings.cores or len(os.sched_getaffinity(0))
        output, folder = self.store.output(target), self.store.target(target)
        is_first = not (output / REPODATA).is_dir()  # as after an upgrade: then it knows what is visible
        visible = ["--update-md-path", str(folder)] if is_first and (folder / REPODATA).is_dir() else []
        return [
            self.settings.createrepo_c,
            *([] if afresh else ["--update", "--skip-stat", *visible]),
            "--pkglist", self._list(target),
            # each run takes away what it replaces: what clients still fetch, `swap.py` keeps
            "--outputdir", output, "--compatibility",
            # one for each target: createrepo_c's own writes there are not atomic, the target's lock makes them so
            "--cachedir", self.store.cache / target,
            "--workers", str(cores),
            # 1.0 and newer would take zstd, which Python (and yum of EL7) cannot read
            "--general-compress-type=gz",
            "--database" if self.settings.database else "--no-database",
            "--error-exit-val",
            *self.settings.arguments,
            folder,
        ]  # fmt: skip

    def may_run_now(self, target: str) -> bool:
        """Whether the last run on a target, whoever made it, allows the next one now."""
        return read_run(self.store.runs(target)).allows_next(time.time())

    def _write_list(self, target: str, packages: Iterable[str]) -> int:
        """What createrepo_c is to look at; how many packages that are."""
        lines = [f"{path}\n" for path in packages]
        self._list(target).write_bytes(os.fsencode("".join(lines)))
        return len(lines)

    def list_packages(self, target: str) -> list[str]:
        """All packages that lie in a target, seen from it, as createrepo_c takes them best."""
        self.store.target(target).mkdir(parents=True, exist_ok=True)
        return self.tree.list_packages(self.store.target(target))

    def run(
        self,
        target: str,
        lock: int,
        heed: Callable[[], None],
        *,
        afresh: bool = False,
        packages: Sequence[str] | None = None,
    ) -> bool:
        """Index all of a target; return whether every package could be read. Raises `RetryLater` if the run failed.

        Nobody sees what it made before `show`. `afresh` trusts nothing of what was listed or reckoned before;
        `packages` are to be listed, all that lie there where they are not given. createrepo_c inherits the lock: where
        we are killed, nobody else starts on the target until it has ended too.
        """
        folder, made = self.store.target(target), self.store.output(target)
        if afresh:
            fs.remove(self.store.cache / target)
        for needed in (folder, made):
            needed.mkdir(parents=True, exist_ok=True)
        recover_interrupted_run(folder, thorough=not (made / REPODATA).is_dir())
        recover_interrupted_run(made)
        count = self._write_list(target, self.list_packages(target) if packages is None else packages)
        with self._recording_run(target) if count else contextlib.nullcontext():
            code = self._run_createrepo(target, lock, heed, afresh=afresh)
        if code == LEFT_OUT_EXIT_CODE:
            log.warning("createrepo_c could not read all of %s: %s", target, last_lines(self.store.log(target)))
        return code == 0

    @contextlib.contextmanager
    def _recording_run(self, target: str) -> Iterator[None]:
        """Record that a run was made, however it ends. One that makes a target's first, empty repodata is none."""
        before, start = read_run(self.store.runs(target)), time.time()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a full disk, which the run says itself
                write_run(self.store.runs(target), before.followed_by(start, max(start, time.time())))

    def _run_createrepo(self, target: str, lock: int, heed: Callable[[], None], *, afresh: bool) -> int:
        output, made = self.store.log(target), self.store.output(target)
        output.unlink(missing_ok=True)
        argv = self.argv(target, afresh=afresh)
        try:
            code = run(argv, output=output, cancel=CancelToken(heed), every=0.1, inherit=[lock], idle=HUNG_SECONDS)
        except TimedOut as error:
            raise RetryLater(str(error)) from error
        if code not in (0, LEFT_OUT_EXIT_CODE) or not (made / REPODATA).is_dir():
            fs.remove(made)  # it may be what the run failed at, and is made from what is visible
            kind = CreaterepoCrashed if code < 0 else RetryLater
            raise kind(f"createrepo_c {describe_exit(code)} for {target}: {last_lines(output)}")
        return code

    def make_draft(self, target: str) -> Draft:
        """What the last `make` made, in a hidden folder beside what is visible. Raises `RetryLater`."""
        made = self.store.output(target) / REPODATA
        try:
            return make_draft(self.store, target, made, time.time(), copy=bool(self.settings.after_createrepo))
        except DAMAGED as error:
            raise RetryLater(f"the new repodata of {target} cannot be read: {error!r}") from error

    def show(self, target: str, heed: Callable[[], None]) -> None:
        """Make visible what the last `make` made, once the hook has run on it. Raises `RetryLater`, `HookFailed`."""
        self.run_hook_and_reveal(self.make_draft(target), heed)

    def run_hook_and_reveal(self, new: Draft, heed: Callable[[], None]) -> None:
        """Run the hook on new repodata, and make that visible. Raises `HookFailed`."""
        try:
            with self.run_hook(new) as running:
                if running is not None:
                    hook.await_hook(running, heed)
            self.reveal(new)
        except hook.HookFailed as error:
            self.discard_draft(new, error)
            raise

    @contextlib.contextmanager
    def run_hook(self, new: Draft) -> Iterator[hook.RunningHook | None]:
        """The hook at work on new repodata; None where there is no hook. Raises `HookFailed`."""
        if not self.settings.after_createrepo:
            yield None
            return
        with hook.run_hook(self.settings, self.store, new.target, new.folder) as running:
            yield running

    def discard_draft(self, new: Draft, error: hook.HookFailed) -> hook.HookFailure:
        """Record why new repodata does not become visible, and remove it."""
        fs.remove(new.folder.parent)
        return hook.record_failure(self.store.hook(new.target), str(error))

    def reveal(self, new: Draft) -> None:
        """Make new repodata visible, on which the hook has run. Raises `HookFailed` where the hook spoilt it."""
        try:
            new.check()
        except RetryLater as error:
            raise hook.HookFailed(str(error)) from error
        new.publish()
        self.store.hook(new.target).unlink(missing_ok=True)
        last = read_run(self.store.runs(new.target))
        if last.row:
            write_run(self.store.runs(new.target), attr.evolve(last, end=max(last.end, time.time())))

    def change_metadata(
        self, target: str, heed: Callable[[], None], *, addition: Addition | None = None, without: Collection[str] = ()
    ) -> None:
        """Add or remove what createrepo_c does not make; all else stays as it is. Raises `HookFailed`."""
        live = self.store.target(target) / REPODATA
        copy = bool(self.settings.after_createrepo)
        self.run_hook_and_reveal(
            make_draft(self.store, target, live, time.time(), addition=addition, without=without, copy=copy), heed
        )


def last_lines(output: Path, lines: int = 3) -> str:
    """The last that a program said, on one line."""
    try:
        with output.open("rb") as stream:
            stream.seek(-min(4096, output.stat().st_size), os.SEEK_END)
            said = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return " / ".join(said.strip().splitlines()[-lines:])


#: Signals that a program's own mistake brings; others come from the host (a lack of memory, a stop).
CRASH_EXIT_CODES = frozenset(
    -number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
)
#: createrepo_c's words for a package whose text cannot be written: they stay true however often it is run.
_UNWRITABLE = "Cannot dump XML"
#: Begins the complaint about a leg on which createrepo_c, run on it alone, crashed again.
CRASH_PREFIX = "createrepo_c crashes on a package of it: "
#: Its threads write at once, so that a line may begin with the beginnings of others.
_PREFIX = re.compile(r"^(?:\S*C_CREATEREPOLIB: |[\d:]+ |(?:Critical|Warning|error): )+")
#: Bytes read of an output that may have a line for each of 50,000 packages.
_READ = 8 << 20


def find_complaint(output: Path, folder: Path, leg: StoredLeg) -> str:
    """The package of a leg that createrepo_c refused and its line about it; "" if it wrote none.

    `folder` is the target's, which createrepo_c was run on.
    """
    try:
        with output.open("rb") as stream:
            lines = stream.read(_READ).decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    packages = listed_paths(leg)
    for line in lines:
        for path, sha256 in packages.items():
            if sha256 in line or f"{path}:" in line or line.endswith(path):
                said = _PREFIX.sub("", line).replace(f"{folder}/", "").replace(f" ({sha256})", "")
                return f"createrepo_c refuses {path.rpartition('/')[2]}: {said}"
    return ""


def is_lasting(complaint: str) -> bool:
    """Whether createrepo_c would say the same of the package again."""
    return _UNWRITABLE in complaint or complaint.startswith(CRASH_PREFIX)


def crashes_on(indexer: CreaterepoRunner, leg: StoredLeg, heed: Heed) -> bool:
    """Whether createrepo_c, run on this leg alone, is ended by a signal of its own making."""
    with TemporaryDirectory(dir=indexer.store.cache, prefix="alone-") as alone:
        output = Path(alone) / "output"
        argv: list[str | os.PathLike[str]] = [
            indexer.settings.createrepo_c, *indexer.settings.arguments, "--outputdir", alone,
            indexer.store.place(leg.place),
        ]  # fmt: skip
        try:
            return run(argv, output=output, cancel=CancelToken(heed), every=0.1, idle=HUNG_SECONDS) in CRASH_EXIT_CODES
        except TimedOut:
            return False


#: Seconds between two looks at a lock that another has.
_LOOK = 0.1


@contextlib.contextmanager
def hold_lock(store: StorePaths, target: str, heed: Callable[[], None]) -> Iterator[int]:
    """Hold the target's lock, however long another has it."""
    said = False
    while True:
        with fs.file_lock(store.lock(target)) as lock:
            if lock is not None:
                yield lock
                return
        if not said:
            log.info("%s is being indexed: waiting until that is done", target)
            said = True
        heed()
        time.sleep(_LOOK)


def change_metadata(
    store: StorePaths,
    indexer: CreaterepoRunner,
    target: str,
    heed: Callable[[], None],
    *,
    addition: Addition | None = None,
    without: Collection[str] = (),
) -> None:
    """Add or remove additional metadata under the target's lock. Raises `InputError`, `HookFailed`."""
    live = store.target(target) / REPODATA
    with hold_lock(store, target, heed):
        if not (live / REPOMD).exists():
            raise InputError(f"{target} has no repodata in {store.repo}: reimzul repogen --force {target} makes it")
        try:
            present = {record.kind for record in read_records(live) if record.is_extra}
            missing = [kind for kind in without if kind not in present]
            if missing:
                there = ", ".join(sorted(present)) or "nothing"
                raise InputError(f"{target} has no metadata {missing[0]}; added to it: {there}")
            indexer.change_metadata(target, heed, addition=addition, without=without)
        except DAMAGED as error:
            raise ReimzulError(f"the repodata of {target} cannot be read: {error!r}; nothing was changed") from error
