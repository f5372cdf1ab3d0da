# SPDX-License-Identifier: Apache-2.0
"""A machine that boots systemd: made, booted, used, cut off, killed and booted again.

Its disk is a layer over the bare system that all share. `systemd-nspawn` boots it, in a network and a control group
of its own; what is run on it is run among its own processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attr

from tests.hosts import network, room
from tests.terminal import converse
from tests.waiting import until

#: The one the documents use: their command lines are run here as they are written.
DOMAIN = "example.org"
#: Seconds: a boot takes one or two, on a machine that has nothing else to do.
_BOOT = 120
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: A machine that wants to be rebooted ends with this status: it is started again in the same network, as long as that
#: is so. nspawn joins our control group, or systemd in one machine would take another's processes for its own.
_KEEPER = """\
echo $BASHPID >"$1/keeper"
echo $BASHPID >"$2/cgroup.procs"
shift 2
while :; do
    "$@"
    code=$?
    [[ $code == 133 ]] || exit $code
done
"""


class Failed(AssertionError):
    """A command on a machine ended with another status than 0."""


@attr.frozen
class Done:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All of its words."""
        return self.out + self.err


@attr.frozen
class Machine:
    """One of them. What there is to know of it lies in its folder, so that another process can use it too."""

    name: str
    number: int
    run_folder: Path
    system: Path  #: the bare system
    shown: Mapping[Path, str]  #: folders of this host it may read, and where it sees them

    @property
    def fqdn(self) -> str:
        """Its whole name."""
        return f"{self.name}.{DOMAIN}"

    @property
    def address(self) -> str:
        """Where it is reached."""
        return network.address(self.number)

    @property
    def folder(self) -> Path:
        """All of it."""
        return self.run_folder / self.name

    @property
    def root(self) -> Path:
        """Its disk, seen from here."""
        return self.folder / "root"

    @property
    def _group(self) -> Path:
        return room.cgroup(self.run_folder) / self.name

    # --- its life -------------------------------------------------------------------------------------------------

    def make(self, hosts: Mapping[str, str]) -> None:
        """A disk and a network, and nothing runs yet. `hosts`: the names it knows, and their addresses."""
        self.root.mkdir(parents=True)
        (self.folder / "console.log").touch()
        self._make_disk()
        (self.root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
        (self.root / "etc/hostname").write_text(self.fqdn + "\n")
        rows = [f"{where} {name}.{DOMAIN} {name}\n" for name, where in hosts.items()]
        (self.root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n" + "".join(rows))
        self._group.mkdir()
        network.plug_in(self.name, self.number)

    def _make_disk(self) -> None:
        layers = {name: self.folder / name for name in ("upper", "work")}
        for path in layers.values():
            path.mkdir()
        options = f"lowerdir={self.system},upperdir={layers['upper']},workdir={layers['work']}"
        done = subprocess.run(
            ["mount", "-t", "overlay", "farm-test", "-o", options, self.root], capture_output=True, check=False
        )
        if done.returncode:  # a file system that cannot be a layer: a copy takes longer, and is as good
            subprocess.run(["cp", "-a", "--reflink=auto", f"{self.system}/.", self.root], check=True)

    def boot(self) -> None:
        """Switch it on; it may take a while until it is up."""
        assert self.leader() is None, f"{self.name} runs already"
        (self.folder / "keeper").unlink(missing_ok=True)
        if not network.namespace(self.name).exists():
            network.plug_in(self.name, self.number)
        argv = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=read-only"]
        argv += [f"--directory={self.root}", f"--machine={self.name}", f"--hostname={self.fqdn}", "--resolv-conf=off"]
        argv += [f"--network-namespace-path={network.namespace(self.name)}", "--timezone=off"]
        argv += [f"--bind-ro={here}:{there}" for here, there in self.shown.items()]
        # the sysctls of its own network are its own; one hierarchy of control groups, whatever this host has
        wishes = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        # on its own from here on: it is not ours to wait for, and outlives a run on a farm that another holds
        keeper = ["setsid", "--fork", "bash", "-c", _KEEPER, "keeper", str(self.folder), str(self._group), *argv]
        with (self.folder / "console.log").open("ab") as console:
            env = {**os.environ, **wishes}
            subprocess.run(keeper, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=env, check=True)
        until(self._keeper, 30, f"{self.name} is switched on")

    def wait_up(self) -> Machine:
        """Wait until it has booted; `degraded` means that a unit has failed: a proof that needs the unit reports it."""
        until(self.is_up, _BOOT, f"{self.name} is up; its console: {self.folder / 'console.log'}")
        return self

    def is_up(self) -> bool:
        """Whether it has booted, and is not about to end."""
        return self.leader() is not None and self.state() in ("running", "degraded")

    def state(self) -> str:
        """The state of systemd."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.run("systemctl is-system-running", check=False, timeout=20).out.strip()
        return ""

    def leader(self) -> int | None:
        """The number its first process has here; none where it is off."""
        ours = os.stat("/proc/self/ns/pid").st_ino
        for nspawn in _children(self._keeper()):
            for process in _children(nspawn):
                with contextlib.suppress(OSError):
                    here = os.stat(f"/proc/{process}/ns/pid").st_ino != ours
                    if here and Path(f"/proc/{process}/comm").read_text() == "systemd\n":
                        return process
        return None

    def _keeper(self) -> int:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.folder / "keeper").read_text())
        return 0

    def reboot(self) -> None:
        """As a person does, and wait until it is up again."""
        boot = self.run("cat /proc/sys/kernel/random/boot_id; readlink /proc/1/ns/pid").out
        self.run("systemctl reboot")
        until(lambda: self.is_up() and self._booted() != boot, _BOOT, f"{self.name} has rebooted")

    def _booted(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id; readlink /proc/1/ns/pid", check=False).out

    def cut_link(self) -> None:
        """Cut its network link; no other machine gets a notice."""
        network.cut_cable(self.name)

    def mend_link(self) -> None:
        """It is back."""
        network.mend(self.name)

    def vanish(self) -> None:
        """Gone from one moment to the next: the cable first, since sockets of a killed machine still say goodbye."""
        self.cut_link()
        self._kill()
        network.unplug(self.name)

    def _kill(self) -> None:
        leader, keeper = self.leader(), self._keeper()
        for process in (keeper, *_children(keeper), leader or 0):
            if process:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        (self.folder / "keeper").unlink(missing_ok=True)
        until(lambda: "populated 0" in (self._group / "cgroup.events").read_text(), 30, f"{self.name} has ended")

    # --- using it -------------------------------------------------------------------------------------------------

    def run(
        self, command: str, *, stdin: str = "", check: bool = True, timeout: float = 120, user: str = "root"
    ) -> Done:
        """A command line, as somebody types it there. Raises `Failed` where it must not fail and does."""
        leader = self.leader()
        if leader is None:
            return self._judged(command, Done(255, "", f"{self.name} is off"), check)
        shell = ["bash", "-c", command] if user == "root" else ["runuser", "-u", user, "--", "bash", "-c", command]
        inside = ["env", "-i", "-C", "/root", f"PATH={_PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", *shell]
        argv = ["nsenter", "-t", str(leader), "-a", *inside]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
        ) as process:
            try:
                out, err = process.communicate(stdin, timeout)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        return self._judged(command, Done(process.returncode, out, err), check)

    def type(
        self, command: str, answers: Sequence[tuple[str, str]] = (), *, check: bool = True, timeout: float = 120
    ) -> Done:
        """A command line on a terminal of that machine, where questions are answered once they are shown."""
        leader = self.leader()
        assert leader, f"{self.name} is off"
        inside = ["env", "-i", "-C", "/root", f"PATH={_PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=xterm", "bash", "-c"]
        code, shown = converse(["nsenter", "-t", str(leader), "-a", *inside, command], answers, timeout=timeout)
        return self._judged(command, Done(code, shown, ""), check)

    def _judged(self, command: str, done: Done, check: bool) -> Done:
        if check and done.code:
            raise Failed(f"on {self.name}: {command}\nended with {done.code}:\n{done.said[-4000:]}")
        return done

    def json(self, command: str) -> object:
        """The JSON that a command prints."""
        return json.loads(self.run(command).out)

    def is_active(self, unit: str) -> bool:
        """Whether a unit runs."""
        return self.run(f"systemctl is-active --quiet '{unit}'", check=False).code == 0

    def wait_active(self, *units: str, seconds: float = 120) -> None:
        """Wait until all of these units run."""
        for unit in units:
            until(lambda unit=unit: self.is_active(unit), seconds, f"{unit} runs on {self.name}")  # type: ignore[misc]

    def property(self, unit: str, name: str) -> str:
        """The state of a unit."""
        return self.run(f"systemctl show --value -p {name} '{unit}'").out.strip()

    def journal(self) -> str:
        """Its journal of all boots, also when it is off."""
        argv = ["journalctl", "-D", str(self.root / "var/log/journal"), "-o", "short-precise", "--no-pager"]
        return subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False).stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file on its disk."""
        goal = self.root / path.lstrip("/")
        goal.parent.mkdir(parents=True, exist_ok=True)
        goal.write_text(text)
        goal.chmod(mode)

    def read(self, path: str) -> str:
        """A file of its disk."""
        return (self.root / path.lstrip("/")).read_text(errors="replace")

    def keep(self, goal: Path) -> None:
        """Its journal and its console, where they outlive the room."""
        (goal / f"{self.name}.journal").write_text(self.journal())
        shutil.copy(self.folder / "console.log", goal / f"{self.name}.console")


def _children(process: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


@contextlib.contextmanager
def timed(tell: Callable[[float], None]) -> Iterator[None]:
    """How long a block took."""
    started = time.monotonic()
    yield
    tell(time.monotonic() - started)
