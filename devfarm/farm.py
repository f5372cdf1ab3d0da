# SPDX-License-Identifier: Apache-2.0
"""A whole farm on this machine, for the demo and for tests:

    with Farm(folder, builders=2) as farm:      # ready when the block is entered
        output_of(farm.submit_command(srpm, "demo.1"))
        farm.kill("beanstalkd")                 # it is restarted
        farm.hold("rsyncd")                     # stays stopped until farm.release("rsyncd")

Nothing of it outlives the block or the process that entered it: however that ends, the kernel and the subreapers end
the rest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

from devfarm import configs, mockstub, subreaper
from devfarm.keys import Keys, make_keys
from devfarm.mockconfigs import MockConfigs
from devfarm.mockstub.root import UNUSABLE
from devfarm.plan import CONTROLLER, LISTENER, NOTIFIER, Layout, Plan, check_state, plan_hosts
from devfarm.ports import ADDRESS, claim_ports
from devfarm.processes import Part, daemons, find_program, infrastructure, own_program
from devfarm.readiness import Condition, PortTaken, conditions
from devfarm.supervisor import PartFailed, Supervisor, last_lines
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.errors import InputError, ReimzulError
from reimzul.core.fs import file_lock

#: Seconds that all parts have to start; they take two.
START_SECONDS = 60.0
_POLL_SECONDS = 0.02
#: How often other ports are tried after another program took one of ours.
_PORT_TRIES = 5
#: Marks a state folder as a farm's; its flock shows that the farm is up.
_LOCK_FILE = "farm.lock"
#: Prints a line about what is ready.
Report = Callable[[str], None]


def _ignore(_: str) -> None:
    pass


class Farm:
    """A farm on this machine."""

    def __init__(
        self,
        state: Path,
        *,
        builders: int = 2,
        workers: int = 1,
        repogens: int = 1,
        own_daemons: bool = True,
        sync_ms: int = 0,
        mock: str = "",
        targets: Sequence[str] = ("demo.1",),
        settings: Mapping[str, Mapping[str, Mapping[str, str]]] | None = None,
        prefixes: Mapping[str, tuple[str, ...]] | None = None,
        addresses: Mapping[str, str] | None = None,
    ) -> None:
        """`workers`: on each builder; `sync_ms`: beanstalkd's -f; `settings`: more for reimzul.ini, by host.

        `own_daemons=False` leaves out our own programs. `prefixes` stand before a host's command lines, and
        `addresses` are those at which hosts reach the others, where that is not loopback.
        """
        self.layout = Layout(check_state(state))
        self.hosts = plan_hosts(builders, prefixes or {}, addresses or {})
        self.workers, self.repogens, self.own_daemons = workers, repogens, own_daemons
        self.sync_ms, self.mock = sync_ms, mock or _default_mock()
        self.targets = targets
        self.settings = settings or {}
        self.configs = MockConfigs(self.layout.mock_configs, self.layout.store)
        self.machine = os.uname().machine
        self._stack = contextlib.ExitStack()
        self._mockstub_roots: Path | None = None
        self._plan: Plan | None = None
        self._keys: Keys | None = None
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> Farm:
        self.bring_up()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- starting and stopping ------------------------------------------------------------------------------------

    def bring_up(self, report: Report = _ignore) -> None:
        """Start the farm and wait until it is ready. Raises `PartFailed` with the log of the part that fails."""
        for _ in range(_PORT_TRIES):
            try:
                self.launch()
                self.wait_until_ready(report)
                return
            except PortTaken as error:
                report(f"{error}: trying others")
                self.stop()
            except BaseException:
                self.stop()
                raise
        raise ReimzulError(f"other programs took ports of the farm {_PORT_TRIES} times in a row")

    def launch(self) -> None:
        """Make keys and configurations and start all parts, without waiting until they are ready."""
        try:
            self._prepare()
            self.supervisor.start()
            self._stack.callback(self.supervisor.stop)
        except BaseException:
            self.stop()
            raise

    def wait_until_ready(self, report: Report = _ignore, within: float = START_SECONDS) -> None:
        """Wait until every part works. Raises `PartFailed`, `PortTaken`."""
        started = time.monotonic()
        watchers = {
            "notify": 1,
            "createrepo": self.repogens,
            "tosign": 1,
            self.machine: self.workers * sum(host.is_builder for host in self.hosts),
        }
        for condition in conditions(self.plan, self.supervisor.parts, self._find_pids, watchers):
            self._wait_for(condition, started + within)
            report(f"{condition.label} ({time.monotonic() - started:.1f} s)")

    def wait_until_exit(self) -> None:
        """Wait until the farm ends by itself, which it should not."""
        while self.supervisor.is_running(3600):
            continue

    def stop(self) -> None:
        """Stop all parts; builds and logs stay."""
        self._stack.close()

    def _prepare(self) -> None:
        layout = self.layout
        self._stack.enter_context(_lock_state(layout.state))
        if self.mock == str(mockstub.PROGRAM):
            self._mockstub_roots = self._stack.enter_context(_make_roots(layout.state))
        ports = claim_ports()
        self._stack.callback(ports.close)
        self._plan = Plan(layout, self.hosts, ports)
        for folder in layout.folders():
            folder.mkdir(parents=True, exist_ok=True)
        layout.incoming.chmod(0o755)  # as an installed one, whatever the umask is
        names = [host.name for host in self.hosts]
        self._keys = make_keys(layout.keys, names, "mosquitto", (NOTIFIER, LISTENER))
        self._write_configurations()
        self._prepare_mock()
        parts = infrastructure(self.plan, self.sync_ms)
        if self.own_daemons:
            parts += daemons(self.plan, self.workers, self.repogens)
        self._supervisor = Supervisor(layout, parts)

    def _write_configurations(self) -> None:
        plan, keys = self.plan, self.keys
        texts = {
            "nginx.conf": configs.render_nginx(plan),
            "rsyncd.conf": configs.render_rsyncd(plan),
            "mosquitto.conf": configs.render_mosquitto(plan, keys),
            "mosquitto.acl": configs.MOSQUITTO_ACL,
        }
        for host in self.hosts:
            extra = self._extra_settings(host.name)
            texts[f"stunnel-{host.name}.conf"] = configs.render_stunnel(plan, host, keys)
            texts[f"{host.name}.ini"] = configs.render_reimzul(plan, host, keys, self.mock, extra)
        for name, text in texts.items():
            path = self.layout.conf / name
            path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8")

    def _extra_settings(self, host: str) -> dict[str, dict[str, str]]:
        extra = {section: dict(settings) for section, settings in self.settings.get(host, {}).items()}
        if self._mockstub_roots is not None:
            extra.setdefault("worker", {}).setdefault("mock_roots", str(self._mockstub_roots))
        if self.targets:
            extra.setdefault("farm", {}).setdefault("canary_target", self.targets[0])
        return extra

    def _prepare_mock(self) -> None:
        self.configs.make(self._mockstub_roots)
        for target in self.targets:
            self.configs.add_target(target, self.arches)
        for host in self.hosts:
            if host.is_builder:
                self.configs.clone(self.layout.checkout(host.name))
                self.layout.results(host.name).mkdir(parents=True, exist_ok=True)

    def _find_pids(self, part: Part) -> list[int]:
        try:
            return self.pids(part.name)
        except PartFailed:
            return []

    def _wait_for(self, condition: Condition, deadline: float) -> None:
        while pending := condition.find_pending():
            if not self.supervisor.is_running(_POLL_SECONDS):
                raise PartFailed("the farm has ended")
            if time.monotonic() > deadline:
                logs = (f"{part.name}: {last_lines(self.layout.part_log(part.name))}" for part in pending)
                raise PartFailed("\n".join([f"not ready: {condition.label}", *logs]))

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """Hosts and ports of this start."""
        assert self._plan is not None, "the farm was not started"
        return self._plan

    @property
    def keys(self) -> Keys:
        """Keys of this start."""
        assert self._keys is not None, "the farm was not started"
        return self._keys

    @property
    def supervisor(self) -> Supervisor:
        assert self._supervisor is not None, "the farm was not started"
        return self._supervisor

    @property
    def arch(self) -> str:
        """The arch that this machine builds."""
        known = read_arches().known
        return next((arch.name for arch in known.values() if arch.tube == self.machine), self.machine)

    @property
    def arches(self) -> list[str]:
        """That arch and those that are built with it."""
        return [self.arch, *read_arches().known[self.arch].follows]

    def ini(self, host: str = CONTROLLER) -> Path:
        return self.layout.ini(host)

    def repository(self, target: str) -> str:
        """The URL of a target, named with its arch, as the controller reaches it."""
        return f"{self.plan.store_url(CONTROLLER)}repo/{target}/"

    def broker(self, host: str = CONTROLLER) -> Broker:
        """beanstalkd, as a host reaches it."""
        return Broker(ADDRESS, self.plan.local(host, "beanstalkd"))

    def listen_command(self, topic: str, *more: str) -> list[str]:
        """The command line that prints what is published on an MQTT topic."""
        return [
            find_program("mosquitto_sub"), "-h", ADDRESS, "-p", str(self.plan.plain("mqtt")), "-q", "1", "-t", topic,
            "--cafile", str(self.keys.authority), "--cert", str(self.keys.certificate(LISTENER)),
            "--key", str(self.keys.key(LISTENER)), *more,
        ]  # fmt: skip

    def submit_command(self, srpm: Path, target: str, *more: str) -> list[str]:
        """The command line that submits a source rpm."""
        arguments = ["-s", str(srpm), "-a", self.arch, "-t", target, "-d", ".demo", *more]
        return [own_program("reimzul-submit"), "--config", str(self.ini()), *arguments]

    # --- faults ---------------------------------------------------------------------------------------------------

    def pids(self, part: str) -> list[int]:
        """The processes of a part, its own first. Raises `PartFailed` where it does not run."""
        first = self.supervisor.pid(part)
        return [first, *subreaper.descendants(first)]

    def kill(self, part: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to a part's own process and return its pid; it is restarted when it ends.

        Raises `PartFailed` where the part does not run.
        """
        pid = self.supervisor.pid(part)
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # it has just died
            raise PartFailed(f"{part} does not run") from None
        return pid

    def hold(self, part: str, *, kindly: bool = True) -> None:
        """Stop a part until `release`; if not kindly, kill it without a SIGTERM."""
        self.supervisor.hold(part, None if kindly else signal.SIGKILL)

    def release(self, part: str) -> None:
        """Start a part that was held."""
        self.supervisor.release(part)


def _default_mock() -> str:
    """The host's own mock; where there is none, the stand-in for it."""
    with contextlib.suppress(ReimzulError):
        return find_program("mock")
    return str(mockstub.PROGRAM)


@contextlib.contextmanager
def _lock_state(state: Path) -> Iterator[None]:
    """Make the state folder, accessible to its owner alone, and lock it. Raises `InputError`."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(state.iterdir()) and not (state / _LOCK_FILE).exists():
        raise InputError(f"{state}: the folder is not empty, and not a farm's")
    state.chmod(0o700)
    with file_lock(state / _LOCK_FILE) as descriptor:
        if descriptor is None:
            raise InputError(f"{state}: a farm is up in this folder")
        yield


@contextlib.contextmanager
def _make_roots(state: Path) -> Iterator[Path]:
    """The stand-in's roots: in the state folder, unless rpmbuild could not work below a path like that."""
    if UNUSABLE & set(str(state)):
        with TemporaryDirectory(prefix="reimzul-roots-") as folder:
            yield Path(folder) / "roots"
    else:
        (state / "roots").mkdir(exist_ok=True)
        yield state / "roots"
