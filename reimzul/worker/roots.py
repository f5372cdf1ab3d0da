# SPDX-License-Identifier: Apache-2.0
"""mock's roots between builds: which root a build gets, when its bootstrap root is removed first, which mock is in it.

mock makes a bootstrap root once and never updates or repairs it. So a record for each root keeps the configuration
it was made with, when, and how the last build in it ended; a bootstrap root that cannot be trusted is removed before
the next build. Roots belong to root: mock itself removes them, one at a time, and nothing that other extensions share.

mock adds an extension (--uniqueext) to a root's name: one for each slot and leg arch. A worker that systemd runs has
its instance's name as its slot; a worker started by hand takes the first spare slot. A slot is held by an flock, which
ends with its holder, so roots are bounded by workers x targets, and every build of a worker finds the bootstrap root of
the build before.
"""

from __future__ import annotations

import contextlib
import hashlib
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

import attr

from reimzul.core.errors import ConfigError, ReimzulError, TimedOut
from reimzul.core.fs import file_lock, write_atomic
from reimzul.core.mock_config import SITE_DEFAULTS, Renderer
from reimzul.core.process import output_of, run
from reimzul.core.retry import CancelToken
from reimzul.worker.mock_config import MockConfigRepo

log = logging.getLogger(__name__)

DAY_SECONDS = 86400
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
#: Seconds an orphaned mock has to end: while it runs dnf it is root, and takes no signal of ours.
ORPHAN_TIMEOUT_SECONDS = 30.0
_ORPHAN_GRACE_SECONDS = 3.0
_POLL_SECONDS = 0.2
_STATE_LOG_BYTES = 64 * 1024
#: Removing a root must not touch the caches that extensions share.
_PLUGINS_OFF = "".join(f"config_opts['plugin_conf']['{name}_enable'] = False\n" for name in ("yum_cache", "root_cache"))

_SLOT = re.compile(r"[A-Za-z0-9_]{1,40}\Z")
_EXTENSION = r"reimzul-(?P<slot>[A-Za-z0-9_]{1,40})\.[A-Za-z0-9_]+"
#: A root's folder: the name in mock's configuration, `-bootstrap` where it is a bootstrap root, the extension.
_FOLDER = re.compile(rf"(?P<root>.+?)(?P<bootstrap>-bootstrap)?-(?P<extension>{_EXTENSION})\Z")
#: A folder of the versions that had an extension for each attempt: attempts are named `<seconds>-<8 hex digits>`.
_OLD_FOLDER = re.compile(r"(?P<root>reimzul-.+?)(?P<bootstrap>-bootstrap)?-(?P<extension>[0-9]{9,11}-[0-9a-f]{8})\Z")


class RootNotRemoved(ReimzulError):
    """mock did not remove a root that must not be used again."""


class RootInUse(ReimzulError):
    """Another mock is in the root and does not end."""


# --- names ------------------------------------------------------------------------------------------------------------


@attr.frozen
class RootFolder:
    """A root's folder that a worker of this farm made, read from its name."""

    root: str  #: the name in mock's configuration; builds of one target share it
    bootstrap: bool
    extension: str
    slot: str  #: empty where a version before the slots made it

    @property
    def configured_name(self) -> str:
        """The root's name in a configuration with which mock finds the folder, given the extension."""
        return f"{self.root}-bootstrap" if self.bootstrap else self.root


def parse_folder(name: str) -> RootFolder | None:
    """Read the name of a folder among mock's roots; None where no worker made it."""
    for pattern in (_FOLDER, _OLD_FOLDER):
        if found := pattern.match(name):
            slot = found.groupdict().get("slot") or ""
            return RootFolder(found["root"], bool(found["bootstrap"]), found["extension"], slot)
    return None


def slot_of(extension: str) -> str:
    """The slot of an extension; empty where a version before the slots made it."""
    found = re.fullmatch(_EXTENSION, extension)
    return found["slot"] if found else ""


def extension_of(slot: str, arch: str) -> str:
    """The extension of a slot for the legs of an arch: two legs may share a root's name, and run side by side."""
    return f"reimzul-{slot}.{arch}"


@contextlib.contextmanager
def hold_instance_slot(folder: Path, instance: str) -> Iterator[str]:
    """Hold the slot of a systemd instance, or a spare one where there is no instance or its slot is taken."""
    deadline = time.monotonic() + SLOT_TIMEOUT_SECONDS
    while _SLOT.match(instance):
        with file_lock(folder / f"{instance}.slot") as held:
            if held is not None:
                yield instance
                return
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    with hold_spare_slot(folder) as slot:
        yield slot


@contextlib.contextmanager
def hold_spare_slot(folder: Path) -> Iterator[str]:
    for number in itertools.count(1):
        with file_lock(folder / f"spare{number}.slot") as held:
            if held is not None:
                yield f"spare{number}"
                return


# --- records ----------------------------------------------------------------------------------------------------------


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
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{name: type(getattr(cls(), name))(raw[name]) for name in attr.fields_dict(cls)})
        except (OSError, ValueError, TypeError, KeyError):
            return cls(broken="it has no readable record")

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(attr.asdict(self)))

    def removal_reason(self, digest: str, days: int) -> str:
        """Why the bootstrap root must not be used again; empty where it may be."""
        if self.digest != digest:
            return self.broken or "its configuration has changed"
        if days and time.time() - self.made > days * DAY_SECONDS:
            return self.broken or f"it is older than {days} days (root_days)"
        return self.broken


def digest_rendered(configdir: Path) -> str:
    """The digest of a rendered configuration with all that it includes; how mock logs is no part of it."""
    digest = hashlib.sha256()
    for path in sorted(configdir.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.name != "logging.ini":
            with contextlib.suppress(OSError):  # mock will report the file as missing
                content = path.read_bytes()
                digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def bootstrap_fault(results: Path, code: int | None) -> str:
    """Why the bootstrap root of a build must not be used again; empty where it may be. `code`: None if it was ended."""
    state_log = ""
    with contextlib.suppress(OSError), (results / "state.log").open("rb") as stream:
        state_log = stream.read(_STATE_LOG_BYTES).decode("utf-8", "replace")
    begun, finished = (state_log.count(f"{step}(bootstrap): chroot init") for step in ("Start", "Finish"))
    if begun > finished and code != 0:
        return "mock ended while it created it"
    if code in _ROOT_FAILED_CODES and "Start: build setup" not in state_log:
        return f"mock exited with {code} before the build started"
    return ""


# --- the mock that a killed worker left -------------------------------------------------------------------------------


def start_time(pid: int) -> str:
    """When a process was started, which identifies it with its number; empty where it has ended or is hidden."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return "" if fields[0] == b"Z" else f"{boot} {int(fields[19])}"


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


# --- roots ------------------------------------------------------------------------------------------------------------


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


class MockRoots:
    """The roots that this worker builds in, and mock's calls that clean and remove roots."""

    def __init__(self, mock: str, configs: MockConfigRepo, state: Path, mock_roots: Path, days: int) -> None:
        """`state`: records and locks, shared by all workers that share `mock_roots`; `days`: root_days."""
        self.mock = mock
        self.configs = configs
        self.state = state
        self.mock_roots = mock_roots
        self.days = days
        self.slot = ""  #: the one this worker holds

    @contextlib.contextmanager
    def hold_own_slot(self, instance: str) -> Iterator[None]:
        """Hold a slot for as long as this worker runs. Raises `ConfigError`."""
        with contextlib.suppress(OSError):
            self.state.mkdir(parents=True, exist_ok=True)
        if not (self.state.is_dir() and os.access(self.state, os.W_OK)):
            raise ConfigError(f"[worker] mock_roots: {self.state} is no folder that this user can write to")
        with hold_instance_slot(self.state, instance) as self.slot:
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
                self._call(root, "--orphanskill", cancel=cancel)
            why = record.removal_reason(digest, self.days)
            if why and root.bootstrap.exists():
                log.info("removing the bootstrap root %s: %s", root.bootstrap.name, why)
                self.remove(base, f"{name}-bootstrap", extension, cancel)
            made = record.made if root.bootstrap.exists() else time.time()
            broken = "its last build was aborted"
            RootRecord(digest=digest, made=made, broken=broken, unclean=True).write(self.record_path(root))
            yield root

    def record_start(self, root: MockRoot, pid: int) -> None:
        """Record which mock is in a root, for the worker that finds it there if we are killed."""
        record = RootRecord.read(self.record_path(root))
        attr.evolve(record, pid=pid, birth=start_time(pid)).write(self.record_path(root))

    def record_end(self, root: MockRoot, results: Path, code: int | None) -> None:
        """Record how mock left a root; `code` is None where mock had to be ended."""
        record = RootRecord.read(self.record_path(root))
        unclean = code is None or code < 0 or code > 128  # above 128: mock got a signal
        broken = bootstrap_fault(results, code)
        attr.evolve(record, broken=broken, unclean=unclean, pid=0).write(self.record_path(root))

    def clean(self, root: MockRoot, output: Path) -> None:
        """Remove the root of a mock that was ended: SIGTERM makes mock skip its --cleanup-after."""
        done = [self._call(root, option, output=output) for option in ("--orphanskill", "--clean")]
        path = self.record_path(root)
        if all(done) and path.exists():
            attr.evolve(RootRecord.read(path), unclean=False, pid=0).write(path)

    def recover(self, root: MockRoot, output: Path) -> None:
        """Clean the root that a killed worker left, unless another worker holds its slot: that one cleans it itself."""
        with self.hold_slot(slot_of(root.uniqueext)) as held:
            if held is None:
                return
            record = RootRecord.read(self.record_path(root))
            try:
                end_orphan(record.pid, record.birth, CancelToken())
            except RootInUse as error:
                log.warning("%s: %s", root.name, error)
            else:
                self.clean(root, output)

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

    def _call(
        self, root: MockRoot, option: str, *, output: Path | None = None, cancel: CancelToken | None = None
    ) -> bool:
        """Have mock do something to a root, its bootstrap root included; whether it did."""
        argv = [self.mock, "-r", "mock", f"--configdir={root.configdir}", f"--uniqueext={root.uniqueext}", option]
        try:
            return run(argv, output=output, timeout=CLEANING_TIMEOUT_SECONDS, cancel=cancel) == 0
        except ReimzulError as error:
            if cancel is not None:
                cancel.raise_if_cancelled()
            log.warning("%s of %s: %s", option, Path(root.configdir).name, error)
            return False

    def _call_minimal(self, base: str, configured: str, cancel: CancelToken, *options: str) -> None:
        """Call mock with a configuration that only names the root: the target's own may be gone."""
        text = f"config_opts['root'] = {configured!r}\nconfig_opts['target_arch'] = {os.uname().machine!r}\n"
        text += (f"config_opts['basedir'] = {base!r}\n" if base else "") + _PLUGINS_OFF
        with tempfile.TemporaryDirectory(prefix=".cleaning-", dir=self.configs.rendered_folder) as folder:
            defaults = Renderer(folder=self.configs.folder, repohost=self.configs.repohost).render_defaults()
            for name, content in {"mock.cfg": text, SITE_DEFAULTS: defaults}.items():
                Path(folder, name).write_text(content, encoding="utf-8")
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
