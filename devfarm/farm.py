# SPDX-License-Identifier: Apache-2.0
"""A whole farm on this machine, as a value to be used: for the demo, and for tests that need all of it.

    with Farm(folder, builders=2) as farm:      # up and ready when the block is entered
        capture(farm.submit_command(srpm, "demo.1"))
        farm.kill("beanstalkd")                 # supervisord starts it again
        farm.hold("rsyncd")                     # and this one not, until farm.release("rsyncd")

Nothing of it outlives the block, nor the process that entered it: whatever way that ends, kernel and reapers end the
rest. It has to be started from a thread that lives as long as the farm does (the kernel watches threads).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

from devfarm import configs, reaper
from devfarm.keys import Keys, make_keys
from devfarm.mockconfigs import MockConfigs
from devfarm.parts import Part, daemons, infrastructure, own, which
from devfarm.plan import CONTROLLER, LISTENER, NOTIFIER, Layout, Plan, check_state, hosts
from devfarm.ports import ADDRESS, claim_ports
from devfarm.readiness import Condition, PortTaken, conditions
from devfarm.standin_root import UNUSABLE
from devfarm.supervisor import PartFailed, Supervisor, last_lines
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.errors import InputError, ReimzulError
from reimzul.core.process import Process, wait_until_exit

#: Seconds all parts have to come up; they take two.
PATIENCE = 60.0
#: Between two looks at what we wait for, seconds.
_LOOK = 0.02
#: How often other ports are tried where a stranger was quicker.
_TRIES = 5
STANDIN = "reimzul-standin-mock"
#: In a state folder that is a farm's; its flock says that the farm is up.
_MARK = "farm.lock"

Say = Callable[[str], None]


def silent(_: str) -> None:
    """Who has nothing to be told."""


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
        ways: Mapping[str, str] | None = None,
    ) -> None:
        """`workers` is a builder's; `sync_ms` beanstalkd's -f; `settings` more for reimzul.ini, by host.

        `own_daemons=False` leaves out our own programs; `prefixes` stand before a host's command lines,
        and `ways` are the addresses at which hosts find the others, where that is not loopback.
        """
        self.layout = Layout(check_state(state))
        self.hosts = hosts(builders, prefixes or {}, ways or {})
        self.workers, self.repogens, self.own_daemons = workers, repogens, own_daemons
        self.sync_ms, self.mock = sync_ms, mock
        self.targets = targets
        self.settings = settings or {}
        self.configs = MockConfigs(self.layout.mock_configs, self.layout.store)
        self.machine = os.uname().machine
        self._open = contextlib.ExitStack()
        self._roots: Path | None = None  #: of the stand-in for mock
        self._plan: Plan | None = None
        self._keys: Keys | None = None
        self._supervisor: Supervisor | None = None
        self._process: Process | None = None

    def __enter__(self) -> Farm:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- starting and stopping ------------------------------------------------------------------------------------

    def up(self, say: Say = silent) -> None:
        """Start it and wait until it is ready; `say` is told what is, when it is.

        Raises `PartFailed` with what the part said that does not come up.
        """
        for _ in range(_TRIES):
            try:
                self.start()
                self.ready(say)
                return
            except PortTaken as error:
                say(f"{error}: trying others")
                self.stop()
            except BaseException:
                self.stop()
                raise
        raise ReimzulError("other programs took our ports again and again")

    def start(self) -> None:
        """Make keys and configurations, and start all parts; `ready` waits for them."""
        try:
            self._prepare()
            self._process = self._open.enter_context(self.supervisor.running())
            self.supervisor.wait_until_up(self._process)
        except BaseException:
            self.stop()
            raise

    def ready(self, say: Say = silent, within: float = PATIENCE) -> None:
        """Wait until every part does its work. Raises `PartFailed`, `PortTaken`."""
        began = time.monotonic()
        for condition in conditions(self.plan, self.supervisor.parts, self._processes, self._watchers()):
            self._wait(condition, began + within)
            say(f"{condition.words} ({time.monotonic() - began:.1f} s)")

    def wait(self) -> None:
        """Wait until it ends by itself, which it should not."""
        while self._process is not None and not wait_until_exit(self._process, 3600):
            continue

    def stop(self) -> None:
        """End all of it; what it built and logged stays."""
        self._open.close()
        self._process = None

    def _prepare(self) -> None:
        self._open.enter_context(_held(self.layout.state))
        stands_in = (self.mock or default_mock()) == own(STANDIN)
        self._roots = roots = self._open.enter_context(_roots(self.layout.state)) if stands_in else None
        ports = claim_ports()
        self._open.callback(ports.close)
        self._plan = Plan(self.layout, self.hosts, ports)
        for folder in self.layout.folders():
            folder.mkdir(parents=True, exist_ok=True)
        self.layout.incoming.chmod(0o755)  # as an installed one, whatever the umask is
        names = [host.name for host in self.hosts]
        self._keys = make_keys(self.layout.keys, names, "mosquitto", (NOTIFIER, LISTENER))
        self._write_configurations()
        self.configs.make(roots)
        self._prepare_builders()
        self._supervisor = Supervisor(layout=self.layout, parts=self._parts(), port=ports["supervisord"])

    def _write_configurations(self) -> None:
        plan, keys = self.plan, self.keys
        texts = {
            "nginx.conf": configs.nginx(plan),
            "rsyncd.conf": configs.rsyncd(plan),
            "mosquitto.conf": configs.mosquitto(plan, keys),
            "mosquitto.acl": configs.mosquitto_acl(),
        }
        mock = self.mock or default_mock()
        for host in self.hosts:
            texts[f"stunnel-{host.name}.conf"] = configs.stunnel(plan, host, keys)
            texts[f"{host.name}.ini"] = configs.reimzul(plan, host, keys, mock, self._more_settings(host.name))
        for name, text in texts.items():
            path = self.layout.conf / name
            path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8")

    def _more_settings(self, host: str) -> dict[str, dict[str, str]]:
        """What this farm wants to have set on a host."""
        more = {section: dict(settings) for section, settings in self.settings.get(host, {}).items()}
        if self._roots is not None:
            more.setdefault("worker", {}).setdefault("mock_roots", str(self._roots))
        if self.targets:
            more.setdefault("farm", {}).setdefault("canary_target", self.targets[0])
        return more

    def _prepare_builders(self) -> None:
        for target in self.targets:
            self.configs.add_target(target, self.arches)
        for host in self.hosts:
            if host.is_builder:
                self.configs.clone(self.layout.checkout(host.name))
                self.layout.results(host.name).mkdir(parents=True, exist_ok=True)

    def _parts(self) -> list[Part]:
        ours = daemons(self.plan, self.workers, self.repogens) if self.own_daemons else []
        return infrastructure(self.plan, self.sync_ms) + ours

    def _watchers(self) -> dict[str, int]:
        builders = sum(host.is_builder for host in self.hosts)
        return {"notify": 1, "createrepo": self.repogens, "tosign": 1, self.machine: builders * self.workers}

    def _processes(self, part: Part) -> list[int]:
        try:
            return self.pids(part.name)
        except PartFailed:
            return []

    def _wait(self, condition: Condition, deadline: float) -> None:
        while late := condition.late():
            if self._process is None or wait_until_exit(self._process, _LOOK):
                raise PartFailed(f"the farm ended: {last_lines(self.layout.log / 'supervisord.log')}")
            if time.monotonic() > deadline:
                said = (f"{part.name}: {last_lines(self.layout.part_log(part.name))}" for part in late)
                raise PartFailed("\n".join([f"not ready: {condition.words}", *said]))

    # --- what it is -----------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """Hosts and ports of this start."""
        assert self._plan is not None, "it was not started"
        return self._plan

    @property
    def keys(self) -> Keys:
        """Keys of this start."""
        assert self._keys is not None, "it was not started"
        return self._keys

    @property
    def supervisor(self) -> Supervisor:
        """Who keeps the parts of this start."""
        assert self._supervisor is not None, "it was not started"
        return self._supervisor

    @property
    def arch(self) -> str:
        """The arch that this machine builds."""
        known = read_arches().known
        return next((arch.name for arch in known.values() if arch.tube == self.machine), self.machine)

    @property
    def arches(self) -> list[str]:
        """It, and those that are built beside it."""
        return [self.arch, *read_arches().known[self.arch].follows]

    def ini(self, host: str = CONTROLLER) -> Path:
        """A host's reimzul.ini."""
        return self.layout.ini(host)

    def repository(self, target: str) -> str:
        """Where a target, named with its arch, is published, as the controller reaches it."""
        return f"{self.plan.store_url(CONTROLLER)}repo/{target}/"

    def broker(self, host: str = CONTROLLER) -> Broker:
        """beanstalkd, as a host reaches it."""
        return Broker(ADDRESS, self.plan.local(host, "beanstalkd"))

    def listen_command(self, topic: str, *more: str) -> list[str]:
        """The command line that prints what is published on an MQTT topic."""
        return [
            which("mosquitto_sub"), "-h", ADDRESS, "-p", str(self.plan.plain("mqtt")), "-q", "1", "-t", topic,
            "--cafile", str(self.keys.authority), "--cert", str(self.keys.certificate(LISTENER)),
            "--key", str(self.keys.key(LISTENER)), *more,
        ]  # fmt: skip

    def submit_command(self, srpm: Path, target: str, *more: str) -> list[str]:
        """The command line that submits a source rpm."""
        words = ["-s", str(srpm), "-a", self.arch, "-t", target, "-d", ".demo", *more]
        return [own("reimzul-submit"), "--config", str(self.ini()), *words]

    # --- faults ---------------------------------------------------------------------------------------------------

    def pids(self, part: str) -> list[int]:
        """The processes of a part, its own first. Raises `PartFailed` where it does not run."""
        first = self.supervisor.pid(part)
        return [first, *reaper.descendants(first)]

    def kill(self, part: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to a part's own process, and say which that was; it is started again when it ends.

        Raises `PartFailed` where it does not run.
        """
        pid = self.supervisor.pid(part)
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # it has just died, and supervisord has not looked yet
            raise PartFailed(f"{part} does not run") from None
        return pid

    def hold(self, part: str, *, kindly: bool = True) -> None:
        """End a part and keep it ended, until `release`; not kindly, it has no time for anything."""
        if kindly:
            self.supervisor.stop(part)
            return
        first = self.supervisor.pid(part)
        os.kill(first, signal.SIGSTOP)  # supervisord begins with a SIGTERM, of which it is to know nothing
        self.supervisor.stop(part, wait=False)
        os.kill(first, signal.SIGKILL)
        while not self.supervisor.is_stopped(part):
            time.sleep(_LOOK)

    def release(self, part: str) -> None:
        """Start a part that was held."""
        self.supervisor.start(part)


def default_mock() -> str:
    """The host's own mock; where there is none, the stand-in for it."""
    with contextlib.suppress(ReimzulError):
        return which("mock")
    return own(STANDIN)


@contextlib.contextmanager
def _held(state: Path) -> Iterator[None]:
    """A state folder that is ours, and that only its owner can enter. Raises `InputError`."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(state.iterdir()) and not (state / _MARK).exists():
        raise InputError(f"{state}: there is something in it, and it is no farm's")
    state.chmod(0o700)
    with (state / _MARK).open("w") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{state}: a farm is up in it") from None
        yield


@contextlib.contextmanager
def _roots(state: Path) -> Iterator[Path]:
    """Where the stand-in builds: in the state folder, unless rpmbuild could not work below such a name."""
    if UNUSABLE & set(str(state)):
        with TemporaryDirectory(prefix="reimzul-roots-") as folder:
            yield Path(folder) / "roots"
    else:
        (state / "roots").mkdir(exist_ok=True)
        yield state / "roots"
