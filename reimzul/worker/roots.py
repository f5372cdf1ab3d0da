# SPDX-License-Identifier: Apache-2.0
"""mock's roots between builds: which root a build gets, when its bootstrap root is removed first, which mock is in it.

mock makes a bootstrap root once and never updates or repairs it. So a record for each root keeps the configuration
it was made with, when, and how the last build in it ended; a bootstrap root that cannot be trusted is removed before
the next build. Roots belong to root: mock itself removes them, one at a time, and nothing that other extensions share.

mock adds an extension (--uniqueext) to a root's name: one for each slot and leg arch. A worker that systemd runs has
its instance's name as its slot; a worker started by hand takes the first spare slot. A slot is held by an flock, which
ends with its holder, so roots are bounded by workers x targets, and every build of a worker finds the bootstrap root of
the build before. Roots that nobody builds in any more are removed by an idle worker.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Callable

import attr

from reimzul.core.errors import ConfigError, ReimzulError, ShutdownRequested, TimedOut
from reimzul.core.fs import file_lock, write_atomic
from reimzul.core.log_reader import read_end
from reimzul.core.mock_config import SITE_DEFAULTS, Renderer
from reimzul.core.process import output_of, run
from reimzul.core.retry import CancelToken
from reimzul.worker.mock_config import MockConfigRepo, digest_rendered
from reimzul.worker.mock_result import STATE_LOG_BYTES

log = logging.getLogger(__name__)

_DAY_SECONDS = 86400
#: Seconds that mock may take to remove a root.
CLEANING_TIMEOUT_SECONDS = 300
#: mock's exit code where another mock is in the root.
EXIT_ROOT_IN_USE = 60
#: mock's exit codes for a root that could not be made; the bootstrap root may be what is broken.
_ROOT_FAILED_CODES = (20, 30, 90)
#: Further extensions that are tried for one build where mocks that cannot be ended are in the roots.
SPARE_TRIES = 2
#: Seconds a starting worker waits for the slot of its instance: another may be cleaning up after its predecessor.
SLOT_TIMEOUT_SECONDS = 60.0
#: Seconds an orphaned mock has to end, those until it is killed among them: while it runs dnf it is root, and takes no
#: signal of ours.
ORPHAN_TIMEOUT_SECONDS, _ORPHAN_GRACE_SECONDS = 30.0, 3.0
_POLL_SECONDS = 0.2
#: Seconds between two scans for roots to remove; and seconds that the main root of a build lies unused before it counts
#: as orphaned: mock removes it after each build.
SCAN_INTERVAL_SECONDS, _ORPHANED_SECONDS = 600.0, 3600
#: Removing a root must not touch the caches that extensions share.
_PLUGINS_OFF = "".join(f"config_opts['plugin_conf']['{name}_enable'] = False\n" for name in ("yum_cache", "root_cache"))
_SLOT = r"[A-Za-z0-9_]{1,40}"
_EXTENSION = rf"reimzul-(?P<slot>{_SLOT})\.[A-Za-z0-9_]+"
#: A root's folder: the name in mock's configuration, `-bootstrap` where it is a bootstrap root, the extension. Versions
#: before the slots had an extension for each attempt, which was named `<seconds>-<8 hex digits>`.
_FOLDER = re.compile(
    rf"(?P<root>.+?)(?P<bootstrap>-bootstrap)?-(?P<extension>{_EXTENSION}|[0-9]{{9,11}}-[0-9a-f]{{8}})\Z"
)


class RootNotRemoved(ReimzulError):
    """mock did not remove a root that must not be used again."""


class RootInUse(ReimzulError):
    """Another mock is in the root and does not end."""


@attr.frozen
class RootFolder:
    root: str  #: the name in mock's configuration; builds of one target share it
    bootstrap: bool
    extension: str
    slot: str  #: empty where a version before the slots made it

    @property
    def configured_name(self) -> str:
        """The root's name in a configuration with which mock finds the folder, given the extension."""
        return f"{self.root}-bootstrap" if self.bootstrap else self.root


def parse_folder(name: str) -> RootFolder | None:
    """Read the name of a folder among mock's roots; None where no worker of this farm made it."""
    found = _FOLDER.match(name)
    if found is None or not (found["slot"] or found["root"].startswith("reimzul-")):
        return None
    return RootFolder(found["root"], bool(found["bootstrap"]), found["extension"], found["slot"] or "")


def slot_of(extension: str) -> str:
    """The slot of an extension; empty where a version before the slots made it."""
    found = re.fullmatch(_EXTENSION, extension)
    return found["slot"] if found else ""


def extension_of(slot: str, arch: str) -> str:
    """The extension of a slot for the legs of an arch: two legs may share a root's name, and run side by side."""
    return f"reimzul-{slot}.{arch}"


@contextlib.contextmanager
def hold_spare_slot(folder: Path) -> Iterator[str]:
    for number in itertools.count(1):
        with file_lock(folder / f"spare{number}.slot") as held:
            if held is not None:
                yield f"spare{number}"
                return


@attr.frozen(kw_only=True)
class RootRecord:
    """The state of the root of one extension; the mtime of its file is when the root was last used."""

    digest: str = ""  #: of the configuration that its bootstrap root was made with
    made: float = 0.0  #: when the bootstrap root was made, seconds since 1970
    broken: str = ""  #: why the bootstrap root must not be used again
    unclean: bool = False  #: whether something may be left in the root
    pid: int = 0  #: the mock that is in it
    birth: str = ""  #: the start time of that mock, as `start_time` returns it

    @classmethod
    def read(cls, path: Path) -> RootRecord:
        """Read it from a file; where that is missing or unreadable, the bootstrap root is not trusted."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{name: type(getattr(cls(), name))(raw[name]) for name in attr.fields_dict(cls)})
        return cls(broken="it has no readable record")

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(attr.asdict(self)))

    def removal_reason(self, digest: str, days: int) -> str:
        """Why the bootstrap root must not be used again; empty where it may be."""
        if self.digest != digest:
            return self.broken or "its configuration has changed"
        if days and time.time() - self.made > days * _DAY_SECONDS:
            return self.broken or f"it is older than {days} days (root_days)"
        return self.broken


def bootstrap_fault(results: Path, code: int | None) -> str:
    """Why the bootstrap root of a build must not be used again; empty where it may be. `code`: None if it was ended."""
    state_log = read_end(results / "state.log", STATE_LOG_BYTES)
    begun, finished = (state_log.count(f"{step}(bootstrap): chroot init") for step in ("Start", "Finish"))
    if begun > finished and code != 0:
        return "mock ended while it created it"
    if code in _ROOT_FAILED_CODES and "Start: build setup" not in state_log:
        return f"mock exited with {code} before the build started"
    return ""


# --- the mock that a killed worker left -------------------------------------------------------------------------------


def start_time(pid: int) -> str:
    """When a process was started, which identifies it with its number; empty where it has ended or is hidden."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return "" if fields[0] == b"Z" else f"{boot} {int(fields[19])}"
    return ""


def is_running(pid: int, birth: str) -> bool:
    """Whether the process still runs. One that has become root may be hidden from us, but it refuses our signal."""
    if not pid or not birth:
        return False
    if current := start_time(pid):
        return current == birth
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False  # a zombie


def end_orphan(pid: int, birth: str, cancel: CancelToken) -> None:
    """End the mock that is recorded to be in a root, and its process group. Raises `RootInUse` if it does not end."""
    began = time.monotonic()
    while is_running(pid, birth):
        waited = time.monotonic() - began
        if waited > ORPHAN_TIMEOUT_SECONDS:
            raise RootInUse(f"process {pid}, a mock of a worker that was killed, does not end")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGTERM if waited < _ORPHAN_GRACE_SECONDS else signal.SIGKILL)
        cancel.wait(_POLL_SECONDS)


@attr.frozen(kw_only=True)
class MockRoot:
    """The root of one leg's build: what mock needs to find it again."""

    configdir: str
    uniqueext: str
    base: str  #: the folder that has mock's roots
    name: str  #: the root's name in the configuration, without the extension

    @property
    def bootstrap(self) -> Path:
        return Path(self.base, f"{self.name}-bootstrap-{self.uniqueext}")


@attr.define
class MockRoots:
    """The roots that this worker builds in, and mock's calls that clean and remove roots."""

    mock: str
    configs: MockConfigRepo
    state: Path  #: records and locks, shared by all workers that share `mock_roots`
    mock_roots: Path
    days: int  #: root_days
    slot: str = attr.field(default="", init=False)  #: the one this worker holds

    @contextlib.contextmanager
    def hold_own_slot(self, instance: str) -> Iterator[None]:
        """Hold the slot of a systemd instance while this worker runs, or a spare one. Raises `ConfigError`.

        A spare one is taken where there is no instance, or another worker holds its slot.
        """
        with contextlib.suppress(OSError):
            self.state.mkdir(parents=True, exist_ok=True)
        if not (self.state.is_dir() and os.access(self.state, os.W_OK)):
            raise ConfigError(f"[worker] mock_roots: {self.state} is no folder that this user can write to")
        deadline = time.monotonic() + SLOT_TIMEOUT_SECONDS
        while re.fullmatch(_SLOT, instance) and time.monotonic() <= deadline:
            with file_lock(self.state / f"{instance}.slot") as held:
                if held is not None:
                    self.slot = instance
                    yield
                    return
            time.sleep(_POLL_SECONDS)
        with hold_spare_slot(self.state) as self.slot:
            yield

    def hold_slot(self, slot: str) -> contextlib.AbstractContextManager[int | None]:
        """Hold the slot of a root to be cleaned; the context is None where another worker holds it."""
        return contextlib.nullcontext(0) if slot in ("", self.slot) else file_lock(self.state / f"{slot}.slot")

    def extensions(self, arch: str) -> Generator[str, None, None]:
        """Yield this worker's extension for an arch, then spare ones, which are held until the generator is closed."""
        yield extension_of(self.slot, arch)
        with contextlib.ExitStack() as stack:
            for _ in range(SPARE_TRIES):
                yield extension_of(stack.enter_context(hold_spare_slot(self.state)), arch)

    def record_path(self, root: MockRoot) -> Path:
        return self.state / f"{root.name}-{root.uniqueext}.json"

    @contextlib.contextmanager
    def prepare_root(self, configdir: Path, extension: str, cancel: CancelToken) -> Iterator[MockRoot]:
        """Make a root ready for a build and keep its caches meanwhile. Raises `RootInUse`, `RootNotRemoved`."""
        digest = digest_rendered(configdir)
        base, name = self._locate(configdir, digest)
        root = MockRoot(configdir=str(configdir), uniqueext=extension, base=base, name=name)
        with self._keep_caches(root, cancel):
            record = RootRecord.read(self.record_path(root))
            end_orphan(record.pid, record.birth, cancel)
            if record.unclean:
                self._call(root, "--orphanskill", cancel)
            why = record.removal_reason(digest, self.days)
            if why and root.bootstrap.exists():
                log.info("removing the bootstrap root %s: %s", root.bootstrap.name, why)
                self.remove(base, f"{name}-bootstrap", extension, cancel)
            made = record.made if root.bootstrap.exists() else time.time()
            begun = RootRecord(digest=digest, made=made, broken="its last build was aborted", unclean=True)
            begun.write(self.record_path(root))
            yield root

    def record_start(self, root: MockRoot, pid: int) -> None:
        """Record which mock is in a root, for the worker that finds it there if we are killed."""
        self._change_record(root, pid=pid, birth=start_time(pid))

    def record_end(self, root: MockRoot, results: Path, code: int | None) -> None:
        """Record how mock left a root; `code` is None where mock had to be ended."""
        unclean = code is None or code < 0 or code > 128  # above 128: mock got a signal
        self._change_record(root, broken=bootstrap_fault(results, code), unclean=unclean, pid=0)

    def _change_record(self, root: MockRoot, **changes: Any) -> None:
        path = self.record_path(root)
        attr.evolve(RootRecord.read(path), **changes).write(path)

    def clean(self, root: MockRoot, output: Path) -> None:
        """Remove the root of a mock that was ended: SIGTERM makes mock skip its --cleanup-after."""
        done = [self._call(root, option, CancelToken(), output) for option in ("--orphanskill", "--clean")]
        if all(done) and self.record_path(root).exists():
            self._change_record(root, unclean=False, pid=0)

    def recover(self, root: MockRoot, output: Path) -> None:
        """Clean the root that a killed worker left, unless another worker holds its slot: that one cleans it itself."""
        with self.hold_slot(slot_of(root.uniqueext)) as held:
            if held is None:
                return
            record = RootRecord.read(self.record_path(root))
            try:
                end_orphan(record.pid, record.birth, CancelToken())
                self.clean(root, output)
            except RootInUse as error:
                log.warning("%s: %s", root.name, error)

    def remove(self, base: str, configured: str, extension: str, cancel: CancelToken) -> None:
        """Remove one root that no mock is in, and no cache. Raises `RootInUse`, `RootNotRemoved`."""
        self._call_minimal(base, configured, cancel, f"--uniqueext={extension}", "--no-bootstrap-chroot", "--clean")

    def remove_caches(self, name: str, cancel: CancelToken) -> None:
        """Remove the caches that all extensions of a root share. Raises `RootNotRemoved`."""
        for configured in (name, f"{name}-bootstrap"):
            self._call_minimal("", configured, cancel, "--scrub=cache")

    @contextlib.contextmanager
    def _keep_caches(self, root: MockRoot, cancel: CancelToken) -> Iterator[None]:
        """Share the lock of a root's name with other builders; its file has the roots' folder and time of last use."""
        path = self.state / f"{root.name}.lock"
        while True:
            with file_lock(path, shared=True) as held:
                if held is not None:
                    path.write_text(root.base, encoding="utf-8")
                    yield
                    return
            cancel.wait(_POLL_SECONDS)  # an idle worker is removing the caches

    def _locate(self, configdir: Path, digest: str) -> tuple[str, str]:
        """The folder of mock's roots and the root's name; mock is asked once for each configuration."""
        cache = configdir / ".root"
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            raw = json.loads(cache.read_text(encoding="utf-8"))
            if raw["digest"] == digest:
                return str(raw["base"]), str(raw["name"])
        try:
            printed = output_of([self.mock, "-r", "mock", f"--configdir={configdir}", "--print-root-path"])
            path = Path(printed.strip().splitlines()[-1])
            if path.name != "root":
                raise ValueError(f"{path} is not a root in a folder of its name")
        except (ReimzulError, IndexError, ValueError) as error:  # the build will show what is wrong with it
            log.debug("%s: mock does not print where its root is: %s", configdir.name, error)
            return str(self.mock_roots), f"reimzul-{configdir.name}"
        base, name = str(path.parent.parent), path.parent.name
        cache.write_text(json.dumps({"digest": digest, "base": base, "name": name}), encoding="utf-8")
        return base, name

    def _call(self, root: MockRoot, option: str, cancel: CancelToken, output: Path | None = None) -> bool:
        """Have mock do something to a root, its bootstrap root included; whether it did."""
        argv = [self.mock, "-r", "mock", f"--configdir={root.configdir}", f"--uniqueext={root.uniqueext}", option]
        try:
            return run(argv, output=output, timeout=CLEANING_TIMEOUT_SECONDS, cancel=cancel) == 0
        except ReimzulError as error:
            cancel.raise_if_cancelled()
            log.warning("%s of %s: %s", option, Path(root.configdir).name, error)
            return False

    def _call_minimal(self, base: str, configured: str, cancel: CancelToken, *options: str) -> None:
        """Call mock with a configuration that only names the root: the target's own may be gone."""
        text = f"config_opts['root'] = {configured!r}\nconfig_opts['target_arch'] = {os.uname().machine!r}\n"
        text += (f"config_opts['basedir'] = {base!r}\n" if base else "") + _PLUGINS_OFF
        with tempfile.TemporaryDirectory(prefix=".cleaning-", dir=self.configs.rendered_folder) as folder:
            defaults = Renderer(folder=self.configs.folder, repohost=self.configs.repohost).render_defaults()
            Path(folder, "mock.cfg").write_text(text, encoding="utf-8")
            Path(folder, SITE_DEFAULTS).write_text(defaults, encoding="utf-8")
            shutil.copy(self.configs.folder / "logging.ini", folder)
            os.chmod(folder, 0o755)
            errors = Path(folder, "stderr")
            argv = [self.mock, "-r", "mock", f"--configdir={folder}", *options]
            try:
                code = run(argv, output=errors, timeout=CLEANING_TIMEOUT_SECONDS, cancel=cancel)
            except TimedOut as error:
                raise RootNotRemoved(f"{error} while it removed {configured}") from error
            last = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        if code == EXIT_ROOT_IN_USE:
            raise RootInUse(f"another mock is in {configured}")
        if code:
            raise RootNotRemoved(f"mock exited with {code} while it removed {configured}: {''.join(last)}")


# --- roots that nobody builds in any more ----------------------------------------------------------------------------


@attr.define
class RootCleanup:
    """Removes roots of targets not built for long, of workers that are gone, and of versions before the slots.

    An idle worker does it, one root at a time. A busy worker that runs out of disk takes no jobs, and so becomes idle.
    """

    roots: MockRoots
    _removals: Iterator[Callable[[CancelToken], None]] = attr.field(factory=lambda: iter(()), init=False)
    _next_scan: float = attr.field(default=0.0, init=False)

    def clean_one(self, cancel: CancelToken) -> None:
        try:
            removal = next(self._removals, None)
            if removal is None and time.monotonic() >= self._next_scan:
                self._next_scan = time.monotonic() + SCAN_INTERVAL_SECONDS
                self._removals = self._scan()
                removal = next(self._removals, None)
            if removal is not None:
                removal(cancel)
        except ShutdownRequested:
            raise
        except RootInUse as error:
            log.info("%s: it is tried again later", error)
        except (ReimzulError, OSError) as error:
            log.warning("a root that nobody builds in is not removed: %s", error)

    def _scan(self) -> Iterator[Callable[[CancelToken], None]]:
        for config in self.roots.configs.rendered_folder.glob("*/mock.cfg"):  # earlier versions made no locks
            lock = self.roots.state / f"reimzul-{config.parent.name}.lock"
            if not lock.exists():
                lock.touch()  # nothing records when the target was last built: its age counts from now on
        named = {lock.read_text(encoding="utf-8") for lock in self.roots.state.glob("*.lock")}  # by mock itself
        for base in sorted({self.roots.mock_roots, *(Path(folder) for folder in named if folder)}):
            for path in sorted(each for each in base.glob("*") if each.is_dir()):
                folder = parse_folder(path.name)
                if folder is not None and self._is_due(path, folder):
                    yield functools.partial(self._remove_root, path, folder)
        for lock in sorted(self.roots.state.glob("reimzul-*.lock")):
            if self._is_old(lock):
                yield functools.partial(self._remove_caches, lock)

    def _is_due(self, path: Path, folder: RootFolder) -> bool:
        if not folder.slot:
            return time.time() - int(folder.extension.partition("-")[0]) > _ORPHANED_SECONDS
        record = self._record_path(folder)
        if folder.slot == self.roots.slot and not folder.bootstrap and RootRecord.read(record).unclean:
            return True  # a worker that was killed left it, and nobody else may clean it: the slot is ours
        used = record if record.exists() else path
        return self._is_old(used) if folder.bootstrap else _age(used) > _ORPHANED_SECONDS

    def _is_old(self, path: Path) -> bool:
        return bool(self.roots.days) and _age(path) > self.roots.days * _DAY_SECONDS

    def _record_path(self, folder: RootFolder) -> Path:
        return self.roots.state / f"{folder.root}-{folder.extension}.json"

    def _remove_root(self, path: Path, folder: RootFolder, cancel: CancelToken) -> None:
        with self.roots.hold_slot(folder.slot) as held:
            if held is None or not path.exists() or not self._is_due(path, folder):
                return
            record = self._record_path(folder)
            known = RootRecord.read(record)
            end_orphan(known.pid, known.birth, cancel)
            if folder.bootstrap and folder.slot and record.exists():
                used = record.stat().st_mtime
                RootRecord(broken="its removal was aborted").write(record)
                os.utime(record, (used, used))
            log.info("removing the root %s, which nobody builds in any more", path.name)
            self.roots.remove(str(path.parent), folder.configured_name, folder.extension, cancel)
            if folder.bootstrap:
                record.unlink(missing_ok=True)

    def _remove_caches(self, lock: Path, cancel: CancelToken) -> None:
        with file_lock(lock) as held:
            if held is not None and self._is_old(lock):
                log.info("removing the caches of %s, not built for %d days (root_days)", lock.stem, self.roots.days)
                self.roots.remove_caches(lock.stem, cancel)
                lock.unlink()


def _age(path: Path) -> float:
    """Seconds since a file was last written; 0 where it is gone."""
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0
