# SPDX-License-Identifier: Apache-2.0
"""mock's roots between builds: which one a build gets, when its bootstrap root is not to be used again, who is in it.

mock makes a bootstrap root once and never updates or repairs it. So a record for each root says which configuration
it was made with, when, and how the last build in it ended; what cannot be trusted is removed before the next build.
Roots belong to root: mock itself removes them, one at a time, and nothing that other extensions share.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Callable

import attr

from reimzul.core.errors import ConfigError, ReimzulError, TimedOut
from reimzul.core.mock_config import SITE_DEFAULTS, Renderer
from reimzul.core.process import output_of, run
from reimzul.core.retry import CancelToken
from reimzul.worker.mock_config import MockConfigRepo
from reimzul.worker.orphans import RootInUse, end_orphan, start_time
from reimzul.worker.rootrecord import RootRecord, bootstrap_fault, digest_rendered
from reimzul.worker.slots import SlotLocks, extension_of, hold_lock, slot_of

log = logging.getLogger(__name__)

#: Seconds that mock may take to remove a root.
CLEANING_TIMEOUT_SECONDS = 300
#: mock's exit code where another mock is in the root.
EXIT_ROOT_IN_USE = 60
#: Further extensions that are tried for one build where mocks that cannot be ended are in the roots.
SPARE_TRIES = 2
_POLL_SECONDS = 0.2
#: The shared caches are none of a call's business that removes a root.
_PLUGINS_OFF = "".join(f"config_opts['plugin_conf']['{name}_enable'] = False\n" for name in ("yum_cache", "root_cache"))


class RootNotRemoved(ReimzulError):
    """mock did not remove a root that must not be used again."""


@attr.frozen(kw_only=True)
class MockRoot:
    """The root of one leg's build, as mock has to be told to find it again."""

    configdir: str
    uniqueext: str
    base: str  #: the folder that has mock's roots
    name: str  #: what the configuration calls the root, without the extension

    @property
    def bootstrap(self) -> Path:
        """The bootstrap root's folder."""
        return Path(self.base, f"{self.name}-bootstrap-{self.uniqueext}")


class MockRoots:
    """The roots of this host that are this worker's to build in, and how mock is told to look after them."""

    def __init__(self, mock: str, configs: MockConfigRepo, state: Path, mock_roots: Path, days: int) -> None:
        """`state`: records and locks, shared by all workers that share `mock_roots`; `days`: root_days."""
        self.mock = mock
        self.configs = configs
        self.state = state
        self.mock_roots = mock_roots
        self.days = days
        self.slots = SlotLocks(state)
        self.slot = ""  #: the one this worker holds

    @contextlib.contextmanager
    def hold_own_slot(self, instance: str) -> Iterator[None]:
        """Hold a slot for as long as this worker runs. Raises `ConfigError`."""
        with contextlib.suppress(OSError):
            self.state.mkdir(parents=True, exist_ok=True)
        if not (self.state.is_dir() and os.access(self.state, os.W_OK)):
            raise ConfigError(f"[worker] mock_roots: {self.state} is no folder that this user can write to")
        with self.slots.hold_own(instance) as self.slot:
            yield

    @contextlib.contextmanager
    def hold_slot(self, slot: str) -> Iterator[None]:
        """Hold the slot of a root to be cleaned; `BlockingIOError` where another worker holds it."""
        with contextlib.nullcontext() if slot in ("", self.slot) else self.slots.hold(slot):
            yield

    def extensions(self, arch: str) -> Generator[str, None, None]:
        """Yield this worker's extension for an arch, then spare ones, which are held until the generator is closed."""
        yield extension_of(self.slot, arch)
        with contextlib.ExitStack() as stack:
            for _ in range(SPARE_TRIES):
                yield extension_of(stack.enter_context(self.slots.hold_spare()), arch)

    # --- around a build -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def prepare_root(self, configdir: Path, extension: str, heed: Callable[[], None]) -> Iterator[MockRoot]:
        """Make a root fit for a build and keep its caches from being removed. Raises `InUse`, `CannotRemove`."""
        digest = digest_rendered(configdir)
        base, name = self._locate(configdir, digest)
        root = MockRoot(configdir=str(configdir), uniqueext=extension, base=base, name=name)
        with self._in_use(root, heed):
            record = RootRecord.read(self.record_path(root))
            end_orphan(record.pid, record.birth, heed)
            if record.unclean:
                self._call(root, "--orphanskill", heed=heed)
            why = record.removal_reason(digest, self.days)
            if why and root.bootstrap.exists():
                log.info("removing the bootstrap root %s: %s", root.bootstrap.name, why)
                self.remove(base, f"{name}-bootstrap", extension, heed)
            made = record.made if root.bootstrap.exists() else time.time()
            broken = "its last build was broken off"
            RootRecord(digest=digest, made=made, broken=broken, unclean=True).write(self.record_path(root))
            yield root

    def record_start(self, root: MockRoot, pid: int) -> None:
        """Record which mock is in a root, for whoever finds it there after we were killed."""
        record = RootRecord.read(self.record_path(root))
        attr.evolve(record, pid=pid, birth=start_time(pid)).write(self.record_path(root))

    def record_end(self, root: MockRoot, results: Path, code: int | None) -> None:
        """Record how mock left a root; `code` is None where mock had to be ended."""
        record = RootRecord.read(self.record_path(root))
        unclean = code is None or code < 0 or code > 128  # what is above: mock got a signal
        attr.evolve(record, broken=bootstrap_fault(results, code), unclean=unclean, pid=0).write(self.record_path(root))

    def clean(self, root: MockRoot, output: Path) -> None:
        """Remove the root of a mock that was ended: TERM skips its --cleanup-after (mock.md)."""
        done = [self._call(root, what, output=output) for what in ("--orphanskill", "--clean")]
        path = self.record_path(root)
        if all(done) and path.exists():
            attr.evolve(RootRecord.read(path), unclean=False, pid=0).write(path)

    def recover(self, root: MockRoot, output: Path) -> None:
        """Clean the root that a killed worker left, unless another worker holds its slot and will see to it itself."""
        try:
            with self.hold_slot(slot_of(root.uniqueext)):
                record = RootRecord.read(self.record_path(root))
                end_orphan(record.pid, record.birth, lambda: None)
                self.clean(root, output)
        except BlockingIOError:
            return
        except RootInUse as error:
            log.warning("%s: %s", root.name, error)

    def record_path(self, root: MockRoot) -> Path:
        """Where the record of a root is."""
        return self.state / f"{root.name}-{root.uniqueext}.json"

    @contextlib.contextmanager
    def _in_use(self, root: MockRoot, heed: Callable[[], None]) -> Iterator[None]:
        """Share the lock of a root's name with other builders; its file says when it was last built, and where."""
        path = self.state / f"{root.name}.lock"
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(hold_lock(path, shared=True))
                except BlockingIOError:  # its caches are just being removed
                    heed()
                    time.sleep(_POLL_SECONDS)
                    continue
                path.write_text(root.base, encoding="utf-8")
                yield
                return

    def _locate(self, configdir: Path, digest: str) -> tuple[str, str]:
        """Ask mock, once a configuration, which root that means: the folder that has it, and its name."""
        known = configdir / ".root"
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            raw = json.loads(known.read_text(encoding="utf-8"))
            if raw["digest"] == digest:
                return str(raw["base"]), str(raw["name"])
        try:
            said = output_of([self.mock, "-r", "mock", f"--configdir={configdir}", "--print-root-path"])
            path = Path(said.strip().splitlines()[-1])
            if path.name != "root":
                raise ValueError(f"{path} is not a root in a folder of its name")
        except (ReimzulError, IndexError, ValueError) as error:  # the build will tell what is wrong with it
            log.debug("%s: mock does not say where its root is: %s", configdir.name, error)
            return str(self.mock_roots), f"reimzul-{configdir.name}"
        base, name = str(path.parent.parent), path.parent.name
        known.write_text(json.dumps({"digest": digest, "base": base, "name": name}), encoding="utf-8")
        return base, name

    # --- what mock is told ----------------------------------------------------------------------------------------

    def _call(
        self, root: MockRoot, what: str, *, output: Path | None = None, heed: Callable[[], None] | None = None
    ) -> bool:
        """Have mock do something to a root, its bootstrap root included; whether it did."""
        call = [self.mock, "-r", "mock", f"--configdir={root.configdir}", f"--uniqueext={root.uniqueext}", what]
        try:
            return (
                run(call, output=output, timeout=CLEANING_TIMEOUT_SECONDS, cancel=CancelToken(heed) if heed else None)
                == 0
            )
        except ReimzulError as error:
            if heed is not None:
                heed()
            log.warning("%s of %s: %s", what, Path(root.configdir).name, error)
            return False

    def remove(self, base: str, configured: str, extension: str, heed: Callable[[], None]) -> None:
        """Remove one root, which nobody may be in, and no cache. Raises `InUse`, `CannotRemove`."""
        self._call_minimal(base, configured, heed, f"--uniqueext={extension}", "--no-bootstrap-chroot", "--clean")

    def remove_caches(self, name: str, heed: Callable[[], None]) -> None:
        """Remove the caches that all extensions of a root share. Raises `CannotRemove`."""
        for configured in (name, f"{name}-bootstrap"):
            self._call_minimal("", configured, heed, "--scrub=cache")

    def _call_minimal(self, base: str, configured: str, heed: Callable[[], None], *words: str) -> None:
        """Call mock with a configuration that says which root and no more: the target's own may be gone."""
        text = f"config_opts['root'] = {configured!r}\nconfig_opts['target_arch'] = {os.uname().machine!r}\n"
        text += (f"config_opts['basedir'] = {base!r}\n" if base else "") + _PLUGINS_OFF
        with tempfile.TemporaryDirectory(prefix=".cleaning-", dir=self.configs.rendered_folder) as folder:
            defaults = Renderer(folder=self.configs.folder, repohost=self.configs.repohost).render_defaults()
            for name, content in {"mock.cfg": text, SITE_DEFAULTS: defaults}.items():
                Path(folder, name).write_text(content, encoding="utf-8")
            shutil.copy(self.configs.folder / "logging.ini", folder)
            os.chmod(folder, 0o755)
            errors = Path(folder, "stderr")
            call = [self.mock, "-r", "mock", f"--configdir={folder}", *words]
            try:
                code = run(call, output=errors, timeout=CLEANING_TIMEOUT_SECONDS, cancel=CancelToken(heed))
            except TimedOut as error:
                raise RootNotRemoved(f"{error} when it was to remove {configured}") from error
            last = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        if code == EXIT_ROOT_IN_USE:
            raise RootInUse(f"another mock is in {configured}")
        if code:
            raise RootNotRemoved(f"mock exited with {code} when it was to remove {configured}: {''.join(last)}")
