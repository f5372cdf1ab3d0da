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
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

from devfarm import configs, mockstub
from devfarm.configs import Keys
from devfarm.mockconfigs import MockConfigs
from devfarm.mockstub.root import UNUSABLE
from devfarm.plan import ADDRESS, CONTROLLER, LISTENER, NOTIFIER, Layout, Plan, check_state, claim_ports, plan_hosts
from devfarm.processes import (
    Part,
    PartFailed,
    PortTaken,
    Supervisor,
    find_program,
    own_program,
    plan_daemons,
    plan_services,
)
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.errors import BrokerUnavailable, InputError, ReimzulError
from reimzul.core.fs import file_lock

log = logging.getLogger(__name__)

#: Seconds that all parts have to start; they take two.
START_SECONDS = 60.0
_POLL_SECONDS = 0.02
#: How often other ports are tried after another program took one of ours.
_PORT_TRIES = 5
#: Marks a state folder as a farm's; its flock shows that the farm is up.
_LOCK_FILE = "farm.lock"
#: What is sent to a service, and how its answer begins.
_PROBES = {
    "beanstalkd": (b"list-tubes\r\n", b"OK"),
    "incoming": (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/"),
    "store": (b"GET / HTTP/1.0\r\n\r\n", b"HTTP/"),
    "rsyncd": (b"", b"@RSYNCD:"),
}
#: Prints a line about what is ready.
Report = Callable[[str], object]


class Farm(Supervisor):
    plan: Plan  #: hosts and ports of this start

    def __init__(
        self,
        state: Path,
        *,
        builders: int = 2,
        workers: int = 1,
        repogens: int = 1,
        own_daemons: bool = True,
        pages: bool = False,
        sync_ms: int = 0,
        mock: str = "",
        targets: Sequence[str] = ("demo.1",),
        settings: Mapping[str, Mapping[str, Mapping[str, str]]] | None = None,
        prefixes: Mapping[str, tuple[str, ...]] | None = None,
        addresses: Mapping[str, str] | None = None,
    ) -> None:
        """`workers`: on each builder; `sync_ms`: beanstalkd's -f; `settings`: more for reimzul.ini, by host.

        `own_daemons=False` leaves out our own programs; with `pages` the farm is shown in a browser. `prefixes` stand
        before a host's command lines, and `addresses` are those at which hosts reach the others, where that is not
        loopback.
        """
        super().__init__(Layout(check_state(state)))
        self.hosts = plan_hosts(builders, prefixes or {}, addresses or {})
        self.workers, self.repogens, self.own_daemons = workers, repogens, own_daemons
        self.has_pages = pages and own_daemons
        self.sync_ms, self.targets = sync_ms, targets
        self.mock = mock or shutil.which("mock") or str(mockstub.PROGRAM)
        self.settings = settings or {}
        self.keys = Keys(self.layout.keys)
        self.configs = MockConfigs(self.layout.mock_configs, self.layout.store)
        machine = os.uname().machine
        known = read_arches().known
        #: The arch that this machine builds, and those that are built with it.
        self.arch = next((arch.name for arch in known.values() if arch.tube == machine), machine)
        self.arches = [self.arch, *known[self.arch].follows]
        self._stack = contextlib.ExitStack()
        self._mockstub_roots: Path | None = None

    def __enter__(self) -> Farm:
        self.bring_up()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def bring_up(self, report: Report = log.info) -> None:
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
        """Start all parts, without waiting until they are ready."""
        self._prepare()
        parts = plan_services(self.plan, self.sync_ms)
        if self.own_daemons:
            parts += plan_daemons(self.plan, self.workers, self.repogens)
        self.start_parts(parts)
        self._stack.callback(self.stop_parts)

    def wait_until_ready(self, report: Report = log.info, within: float = START_SECONDS) -> None:
        """Wait until every part works. Raises `PartFailed`, `PortTaken`."""
        started = time.monotonic()
        for label, find_pending in self._conditions():
            while pending := find_pending():
                if not self.is_running(_POLL_SECONDS):
                    raise PartFailed("the farm has ended")
                if time.monotonic() > started + within:
                    logs = (f"{part.name}: {self.last_lines(part.name)}" for part in pending)
                    raise PartFailed("\n".join([f"not ready: {label}", *logs]))
            report(f"{label} ({time.monotonic() - started:.1f} s)")

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
        self.plan = Plan(layout, self.hosts, ports, self.has_pages)
        layout.make_folders()
        self.keys.make([host.name for host in self.hosts], "mosquitto", (NOTIFIER, LISTENER))
        self._write_configurations()
        self._prepare_mock()

    def _write_configurations(self) -> None:
        plan, keys = self.plan, self.keys
        texts = configs.render_services(plan, keys)
        defaults = {"farm": {"canary_target": self.targets[0]}}
        if self._mockstub_roots is not None:
            defaults["worker"] = {"mock_roots": str(self._mockstub_roots)}
        for host in self.hosts:
            settings = self.settings.get(host.name, {})
            texts[f"stunnel-{host.name}.conf"] = configs.render_stunnel(plan, host, keys)
            texts[f"{host.name}.ini"] = configs.render_reimzul(plan, host, keys, self.mock, defaults, settings)
        for name, text in texts.items():
            path = self.layout.conf / name
            path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8")

    def _prepare_mock(self) -> None:
        self.configs.make(self._mockstub_roots)
        for target in self.targets:
            self.configs.add_target(target, self.arches)
        for host in self.hosts:
            if host.is_builder:
                self.configs.clone(self.layout.checkout(host.name))
                self.layout.results(host.name).mkdir(parents=True, exist_ok=True)

    def _conditions(self) -> Iterator[tuple[str, Callable[[], Sequence[Part]]]]:
        """The conditions in the order they come true: a label, and a function that returns the parts not ready yet."""
        # other hosts are in networks of their own, which cannot be checked from here
        near = [host for host in self.hosts if host.address == ADDRESS]
        services = [part for part in self.parts if part.listens and part.host in {host.name for host in near}]
        own = [part for part in self.parts if part.is_daemon]
        yield _join_names(services), lambda: [part for part in services if not self.is_listening(part)]
        ends = [(self.plan.local(host.name, service), service) for host in near for service in host.uses]
        label = "TLS from every host to every service it uses"
        yield label, lambda: [] if all(_answers(*end) for end in ends) else services
        if own:
            yield _join_names(own), lambda: [] if self._has_watchers() else own
        pages = [part for part in own if part.name == "pages"]
        if pages:
            yield "the first pages", lambda: [] if (self.layout.pages / "index.html").exists() else pages

    def _has_watchers(self) -> bool:
        """Whether all daemons wait for jobs."""
        workers = self.workers * sum(host.is_builder for host in self.hosts)
        watchers = {"notify": 1, "createrepo": self.repogens, "tosign": 1, os.uname().machine: workers}
        with contextlib.suppress(BrokerUnavailable), self.broker() as broker:
            return all(broker.tube_stats(tube).watchers >= number for tube, number in watchers.items())
        return False

    def ini(self, host: str = CONTROLLER) -> Path:
        return self.layout.ini(host)

    def repository(self, target: str) -> str:
        """The URL of a target, named with its arch, as the controller reaches it."""
        return f"{self.plan.store_url(CONTROLLER)}repo/{target}/"

    def broker(self, host: str = CONTROLLER) -> Broker:
        return Broker(ADDRESS, self.plan.local(host, "beanstalkd"))

    def listen_command(self, topic: str, *more: str) -> list[str]:
        """The command line that prints what is published on an MQTT topic."""
        return [
            find_program("mosquitto_sub"), "-h", ADDRESS, "-p", str(self.plan.plain("mqtt")), "-q", "1", "-t", topic,
            "--cafile", str(self.keys.authority), "--cert", str(self.keys.certificate(LISTENER)),
            "--key", str(self.keys.key(LISTENER)), *more,
        ]  # fmt: skip

    def submit_command(self, srpm: Path, target: str, *more: str) -> list[str]:
        arguments = ["-s", str(srpm), "-a", self.arch, "-t", target, "-d", ".demo", *more]
        return [own_program("reimzul-submit"), "--config", str(self.ini()), *arguments]


def _join_names(parts: Sequence[Part]) -> str:
    return ", ".join(part.name for part in parts)


def _answers(port: int, service: str) -> bool:
    """Whether a service answers at the near end of a tunnel."""
    request, beginning = _PROBES[service]
    with contextlib.suppress(OSError), socket.create_connection((ADDRESS, port), timeout=5) as connection:
        connection.sendall(request)
        return connection.recv(len(beginning)) == beginning
    return False


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
