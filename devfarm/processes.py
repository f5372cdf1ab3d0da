# SPDX-License-Identifier: Apache-2.0
"""The parts of a farm on one machine: their command lines, and a supervisor that runs them as systemd would.

The supervisor keeps a log of each part and restarts what ends. Every part runs under a subreaper of its own, so that
what a part leaves behind ends with it, and all parts end with the process that started them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attr

from devfarm import subreaper
from devfarm.configs import beanstalkd_command
from devfarm.plan import Host, Layout, Plan
from reimzul.core.errors import ProgramNotFound, ReimzulError
from reimzul.core.process import Process, output_of, spawn

#: Seconds a part has to end after SIGTERM, before its subreaper kills it; a worker ends a build in that time.
GRACE = 15
#: Seconds that the subreaper has in addition.
_MARGIN = 5
#: Seconds for all parts: our daemons end first, then what they need.
GRACE_OF_ALL = 2 * (GRACE + _MARGIN)
_POLL_SECONDS = 0.05


@attr.frozen(kw_only=True)
class Part:
    name: str
    host: str
    argv: tuple[str, ...]
    listens: tuple[int, ...] = ()  #: ports; none for our own daemons
    env: Mapping[str, str] = attr.field(factory=dict)

    @property
    def is_daemon(self) -> bool:
        """Whether it is one of our own programs."""
        return not self.listens


def find_program(name: str) -> str:
    """The path of a program, also of a service, which an ordinary user's PATH lacks. Raises `ProgramNotFound`."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")
    if not found:
        raise ProgramNotFound(f"{name} is not installed: tools/setup installs what a farm needs")
    return found


def own_program(name: str) -> str:
    """The path of one of our own commands, in the environment that this process runs in."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ProgramNotFound(f"{path} does not exist: tools/setup installs it")
    return str(path)


def plan_services(plan: Plan, sync_ms: int) -> list[Part]:
    """The programs that our daemons need, in the best order to start them."""

    def part(name: str, host: Host, ports: Iterable[int], *argv: str) -> Part:
        command = (*host.prefix, find_program(argv[0]), *argv[1:])
        return Part(name=name, host=host.name, argv=command, listens=tuple(ports))

    controller, bstore, *_ = plan.hosts
    # paths are relative to the state folder; -e: nginx would open its log in /var before it reads where ours is
    nginx = ("nginx", "-e", "stderr", "-p", f"{plan.layout.state}", "-c", "conf/nginx.conf")
    queue = plan.plain("beanstalkd")
    command = beanstalkd_command(plan.layout.binlog, queue, sync_ms, find_program("beanstalkd"))
    parts = [
        part("beanstalkd", controller, [queue], *command),
        part("nginx", bstore, [plan.plain("incoming"), plan.plain("store")], *nginx),
        part("rsyncd", bstore, [plan.plain("rsyncd")], "rsync", "--daemon", "--no-detach", "--config=conf/rsyncd.conf"),
        part("mosquitto", controller, [plan.plain("mqtt")], "mosquitto", "-c", "conf/mosquitto.conf"),
    ]
    if plan.has_pages:
        parts.append(part("nginx-pages", controller, [plan.plain("pages")], *nginx[:-1], "conf/nginx-pages.conf"))
    for host in plan.hosts:
        ports = [*map(plan.tls, host.offers), *(plan.local(host.name, name) for name in host.uses)]
        parts.append(part(f"stunnel-{host.name}", host, ports, "stunnel", f"conf/stunnel-{host.name}.conf"))
    return parts


def plan_daemons(plan: Plan, workers: int, repogens: int) -> list[Part]:
    def part(name: str, host: Host, program: str) -> Part:
        argv = (*host.prefix, own_program(f"reimzul-{program}"), "--config", str(plan.layout.ini(host.name)))
        return Part(name=name, host=host.name, argv=argv, env={"REIMZUL_FQDN": host.fqdn})

    controller, bstore, *builders = plan.hosts
    return [
        part("notifier", controller, "notifier"),
        part("batch", controller, "batch"),
        *(part(f"repogen-{number}", bstore, "repogen") for number in range(1, repogens + 1)),
        part("tosign", bstore, "tosign"),
        *([part("pages", controller, "pages")] if plan.has_pages else []),
        *(part(f"worker-{host.name}-{n}", host, "worker") for host in builders for n in range(1, workers + 1)),
    ]


def listeners() -> dict[int, set[int]]:
    """The TCP ports on which somebody listens, each with the processes; other users' processes are not seen."""
    found: dict[int, set[int]] = {}
    for line in output_of(["ss", "--no-header", "--listening", "--tcp", "--numeric", "--processes"]).splitlines():
        port = int(line.split()[3].rpartition(":")[2])
        found.setdefault(port, set()).update(map(int, re.findall(r"pid=(\d+)", line)))
    return found


class PartFailed(ReimzulError):
    """A part of the farm does not work: its log shows why."""


class PortTaken(ReimzulError):
    """Another program listens on a port of ours."""


class Supervisor:
    """Keeps parts running between `start_parts` and `stop_parts`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.parts: Sequence[Part] = ()
        self._lock = threading.Lock()
        self._running: dict[str, tuple[Process, contextlib.ExitStack]] = {}  #: each part's subreaper, and what ends it
        self._held: set[str] = set()
        self._stopping = threading.Event()
        # The kernel ends a part with the thread that started it, so one thread starts them all, and outlives them.
        self._thread: threading.Thread

    def start_parts(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._held.clear()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def stop_parts(self) -> None:
        self._stopping.set()
        self._thread.join()

    def is_running(self, wait: float = 0) -> bool:
        """Whether it still runs, after so many seconds; return at once when it does not."""
        self._thread.join(wait)
        return self._thread.is_alive()

    def pids(self, part: str) -> list[int]:
        """The processes of a part, its own first, below its subreaper. Raises `PartFailed` where it does not run."""
        keeper, _ = self._running.get(part, (None, None))
        own = subreaper.children(keeper.pid) if keeper and keeper.poll() is None else []
        if not own:
            raise PartFailed(f"{part} does not run: {self.last_lines(part)}")
        return [own[0], *subreaper.descendants(own[0])]

    def is_listening(self, part: Part) -> bool:
        """Whether a part listens on all its ports. Raises `PortTaken` where another program does."""
        found = listeners()
        try:
            own = set(self.pids(part.name))
        except PartFailed:
            return False
        for port in part.listens:
            if not found.get(port, set()) & own:
                if port in found and listeners().get(port) == found[port]:
                    raise PortTaken(f"port {port} of {part.name} is another program's")
                return False
        return True

    def kill(self, part: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to a part's own process and return its pid; it is restarted when it ends.

        Raises `PartFailed` where the part does not run.
        """
        pid = self.pids(part)[0]
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # it has just died
            raise PartFailed(f"{part} does not run") from None
        return pid

    def hold(self, part: str, *, kindly: bool = True) -> None:
        """Stop a part until `release`; if not kindly, kill it without a SIGTERM."""
        with self._lock:
            self._held.add(part)
            if not kindly:
                self.kill(part)
                self._running[part][0].wait()
            _, stack = self._running.pop(part, (None, None))
        if stack:
            stack.close()

    def release(self, part: str) -> None:
        with self._lock:
            self._held.discard(part)

    def last_lines(self, part: str, lines: int = 5) -> str:
        """The end of a part's log, on one line."""
        path, text = self.layout.part_log(part), ""
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace").strip()
        return f"{' / '.join(text.splitlines()[-lines:]) or 'it printed nothing'} ({path})"

    def _run(self) -> None:
        try:
            while not self._stopping.wait(_POLL_SECONDS):
                for part in self.parts:
                    with self._lock:
                        if part.name not in self._held:
                            self._start_if_ended(part)
        finally:
            for daemons in (True, False):
                names = [part.name for part in self.parts if part.is_daemon is daemons and part.name in self._running]
                with ThreadPoolExecutor(max_workers=len(self.parts)) as pool:
                    list(pool.map(lambda name: self._running.pop(name)[1].close(), names))

    def _start_if_ended(self, part: Part) -> None:
        keeper, stack = self._running.get(part.name, (None, None))
        if keeper and keeper.poll() is None:
            return
        if stack:
            stack.close()
        command = subreaper.wrap_command(part.argv, grace=GRACE, parent=os.getpid())
        env = {"TMPDIR": str(self.layout.tmp), **part.env}
        with contextlib.ExitStack() as opened:
            log = opened.enter_context(self.layout.part_log(part.name).open("ab"))
            process = spawn(command, output=log, cwd=self.layout.state, env=env, grace=GRACE + _MARGIN)
            keeper = opened.enter_context(process)
            self._running[part.name] = keeper, opened.pop_all()
