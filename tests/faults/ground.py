# SPDX-License-Identifier: Apache-2.0
"""The farm of the trials: real parts, a scripted mock and rsync, small disks, a network link that can be cut."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attr

from devfarm.farm import Farm
from devfarm.plan import BSTORE, CONTROLLER
from devfarm.processes import find_program
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import PRIORITY, Broker, arch_tube, is_control_tube
from reimzul.core.canary import PACKAGE as CANARY
from reimzul.core.errors import ReimzulError
from reimzul.core.fs import write_atomic
from reimzul.core.message import BuildRequest, Status, event_for
from reimzul.core.pending import read_pending
from reimzul.core.process import output_of, spawn
from reimzul.core.rpm_header import read_source_header
from reimzul.submit import submission as submitting
from reimzul.submit.sources import SourceFile, import_source
from tests import srpms
from tests.faults.ledger import ARCH, FOLLOWER, TARGETS, Build
from tests.faults.relay import Relayed
from tests.faults.room import NEAR_ADDRESS, Cable, SmallDisk
from tests.python import PYTHON
from tests.smtp import Mailbox, MailServer
from tests.waiting import until

_SAMPLES = Path(__file__).parent.parent / "samples" / "mock-logs"
BUILDERS = ("builder1", "builder2")
#: The builder behind the cable.
FAR = "builder2"
HOSTS = (CONTROLLER, BSTORE, *BUILDERS)
_AHEAD = 7200
#: MiB of the small disks, and what a builder has to have free before it takes a job.
_RESULTS, _STORE, _BINLOG, _FLOOD, _NOTIFIER, _FREE = 32, 192, 32, 512, 32, 4
_PROGRAM = """#!{python} -IS
import sys
sys.path.insert(0, {here!r})
import {module}
sys.exit({module}.main({words}))
"""
_MARK = "farm.lock"


@attr.frozen
class Call:
    """A leg that mock has begun, or ended."""

    at: float
    build: str
    arch: str
    what: str
    host: str


class Ground:
    """A farm that is up, and what a trial needs of it."""

    def __init__(
        self, state: Path, *, mongo: bool = False, roomy: bool = False, court: bool = False, clocks: bool = False
    ) -> None:
        """`mongo`: the history is there; `roomy`: beanstalkd has room for a flood; `court`: builders are judged;
        `clocks`: each host has a clock that can be set.
        """
        self.state, self.court, self.clocks = state, court, clocks
        self.home = state / "scripted"
        self._open, self._ears = contextlib.ExitStack(), contextlib.ExitStack()
        self._make_scripts()
        self.disks = self._small_disks(_FLOOD if roomy else _BINLOG)
        self.cable = Cable(self.home)
        self._open.callback(self.cable.close)
        self.relayed = self._open.enter_context(Relayed(self.home)) if mongo else None
        self.mail = MailServer(Mailbox())
        self.mail.start()
        self._open.callback(self.mail.stop)
        self.farm = Farm(
            state / "farm",
            builders=len(BUILDERS),
            workers=2,
            repogens=2,
            mock=str(self.home / "mock"),
            targets=TARGETS,
            settings=self._settings(),
            prefixes={name: (*self._prefix(name), *self._clock(name)) for name in HOSTS},
            addresses={FAR: NEAR_ADDRESS},
        )
        self._submitter = self._clock(CONTROLLER)
        self.known = read_arches()
        self.requests: dict[str, BuildRequest] = {}  #: by the build's name

    def __enter__(self) -> Ground:
        try:
            self.farm.bring_up()
            self._open.callback(self.farm.stop)
            self._make_packages()
            self._open.callback(self._ears.close)
            self.listen()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it all."""
        self._open.close()

    def keep(self, goal: Path) -> None:
        """Copy what there is to see to a place that outlives the room."""
        shutil.copytree(self.state, goal, symlinks=True, ignore=shutil.ignore_patterns("network", ".ballast"))

    # --- clocks ---------------------------------------------------------------------------------------------------

    def _prefix(self, host: str) -> tuple[str, ...]:
        return self.cable.prefix if host == FAR else ()

    def _clock(self, host: str) -> tuple[str, ...]:
        """The environment that gives a host's programs a wall clock of their own, for the times of files too."""
        if not self.clocks:
            return ()
        self.set_clock(host, 0)
        library = next(Path("/usr").glob("lib*/**/faketime/libfaketimeMT.so.1"), None)
        assert library, "libfaketime is not installed: tools/setup does that"
        file = self._clock_file(host)
        more = ("FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", f"FAKETIME_TIMESTAMP_FILE={file}")
        return "env", f"LD_PRELOAD={library}", *more

    def set_clock(self, host: str, seconds: int) -> None:
        """Set a host's clock, by how many seconds it is ahead of the others at their start.

        All start two hours ahead of this machine's: certificates, which are new, are valid also after a step back.
        """
        write_atomic(self._clock_file(host), f"{_AHEAD + seconds:+d}\n")

    def _clock_file(self, host: str) -> Path:
        return self.home / f"clock-{host}"

    # --- setting up -----------------------------------------------------------------------------------------------

    def _make_scripts(self) -> None:
        for name in ("plans", "calls", "roots"):
            (self.home / name).mkdir(parents=True)
        for name in ("hello", "failbuild"):
            shutil.copytree(_SAMPLES / name, self.home / "logs" / name, ignore=shutil.ignore_patterns("exit-code"))
        (self.home / "logs" / "unfit").mkdir()
        (self.home / "logs" / "unfit" / "stderr").write_text("ERROR: this builder is not well\n")
        home = str(self.home)
        self._script("mock", "mock_program", f"{home!r}, sys.argv[1:]")
        self._script("rsync", "rsync_program", f"{home!r}, {find_program('rsync')!r}, sys.argv[1:]")

    def _script(self, name: str, module: str, words: str) -> None:
        here = str(Path(__file__).parent)
        path = self.home / name
        path.write_text(_PROGRAM.format(python=PYTHON, here=here, module=module, words=words))
        path.chmod(0o755)

    def _small_disks(self, binlog: int) -> dict[str, SmallDisk]:
        farm = self.state / "farm"
        farm.mkdir(mode=0o700)
        (farm / _MARK).touch()  # or it would not take a folder with something in it
        sizes = {
            **{f"{name}/results": _RESULTS for name in BUILDERS},
            "bstore": _STORE,
            "binlog": binlog,
            "notifier": _NOTIFIER,
        }
        disks = {name: SmallDisk(farm / name, mib) for name, mib in sizes.items()}
        for disk in disks.values():
            self._open.callback(disk.close)
        return disks

    def _settings(self) -> dict[str, dict[str, dict[str, str]]]:
        worker = {
            "rsync": str(self.home / "rsync"),
            "min_free_mib": str(_FREE),
            "min_free_inodes": "0",
            "pull_timeout": "10",
        }
        settings: dict[str, dict[str, dict[str, str]]] = {
            name: {"worker": {**worker, "mock_roots": str(self.home / "roots")}} for name in BUILDERS
        }
        # both legs of a build get the same packages, and builds have one NEVRA
        duplicates = {f"{target}.{ARCH}": "builds arches" for target in TARGETS}
        settings[BSTORE] = {"duplicates": duplicates}
        recipients = dict.fromkeys((ARCH, FOLLOWER), "all@example.org")
        mail = {"notifications": "true", "smtp_host": "127.0.0.1", "smtp_port": str(self.mail.port)}
        settings[CONTROLLER] = {"duplicates": duplicates, "mail": mail, "mail_rcpts": recipients}
        if self.relayed is not None:
            settings[CONTROLLER]["history"] = {"url": self.relayed.url}
        if self.court:
            settings[CONTROLLER]["farm"] = {"canary_target": TARGETS[0]}
            rules = {"quarantine": "true", "quarantine_faults": "2", "quarantine_pause": "1"}
            settings[CONTROLLER]["notifier"] = rules
        return settings

    def _make_packages(self) -> None:
        folder = self.home / "packages"
        incoming = self.farm.layout.incoming
        self.sources = {
            "compiled": srpms.make_srpm(incoming, "hello", srpms.compiled("hello")),
            "plain": srpms.make_srpm(incoming, "plain", srpms.noarch("plain")),
        }
        specs = {
            name: srpms.with_subpackage(srpms.noarch(name), f"{name}-other") for name in ("hello", "plain", CANARY)
        }
        #: what mock makes of each package
        self.binary_rpms = {name: srpms.make_rpms(folder, name, spec) for name, spec in specs.items()}

    def plan(self, build: Build) -> dict[str, object]:
        """Plan what mock does for a build; its first leg also gets the source rpm."""
        source = self.sources[build.recipe.source]
        binaries = self.binary_rpms[source.name.partition("-")[0]]
        rpms = {ARCH: [*binaries, source], FOLLOWER: binaries[:1]}
        return build.plan(rpms)

    def listen(self) -> None:
        """Subscribe to MQTT, for the first time or again: mosquitto_sub ends when its broker is killed."""
        self._ears.close()
        self._heard = self.home / "heard"
        output = self._ears.enter_context(self._heard.open("ab"))
        before = self._heard.stat().st_size
        command = self.farm.listen_command("reimzul/#", "-c", "-i", "faults", "-F", "%t %p", "-d")
        self._ears.enter_context(spawn([find_program("stdbuf"), "-oL", *command], output=output))
        until(lambda: b"Subscribed" in self._heard.read_bytes()[before:], 20, "mosquitto_sub has subscribed")

    # --- submitting -----------------------------------------------------------------------------------------------

    def submit(self, build: Build) -> None:
        """Queue a build by submit's own functions. Raises `ReimzulError` if submit does not confirm it."""
        (self.home / "plans" / f"{build.disttag}.json").write_text(json.dumps(self.plan(build)))
        {"submit": self._submit, "put": self._put, "original": self._put_as_the_original}[build.door](build)
        build.accepted = True

    def _submit(self, build: Build) -> None:
        more = ["--json", *(["--scratch"] if build.recipe.scratch else [])]
        words = self.farm.submit_command(self.sources[build.recipe.source], build.target, *more)
        words[words.index("-d") + 1] = build.disttag
        said = json.loads(output_of([*self._submitter, *words], env={"LOGNAME": build.name}))
        build.build_id = said["builds"][0]["build_id"]

    def request(self, build: Build) -> BuildRequest:
        """The request that reimzul-submit would put."""
        path = self.sources[build.recipe.source]
        file = SourceFile(given=str(path), path=path, header=read_source_header(path))
        source = import_source(file, self.farm.layout.incoming)
        wanted = submitting.SubmissionOptions(
            arches=(ARCH,), target=build.target, disttag=build.disttag, scratch=build.recipe.scratch
        )
        (request,) = submitting.make_requests(source, wanted, build.name)
        build.build_id = request.build_id
        self.requests[build.name] = request
        return request

    def _put(self, build: Build) -> None:
        self.put(self.request(build), build.ttr)

    def put(self, request: BuildRequest, ttr: int = 120) -> None:
        """Put a request into its tube, and say so if that goes."""
        tube = arch_tube(self.known.tube_of(request.arch))
        with self.farm.broker() as broker:
            job = broker.put(tube, request, priority=PRIORITY, ttr=ttr)
            with contextlib.suppress(ReimzulError):
                broker.announce(event_for(request, Status.QUEUED, tube=tube.name, job=job, priority=PRIORITY))

    def _put_as_the_original(self, build: Build) -> None:
        """Six keys, and beanstalkc's priority and ttr."""
        said = {
            "srpm": self.sources[build.recipe.source].name, "arch": ARCH, "target": f"{build.target}.{ARCH}",
            "disttag": build.disttag, "scratch": build.recipe.scratch, "submitter": build.name,
        }  # fmt: skip
        with self.farm.broker() as broker:
            broker.put_raw(ARCH, json.dumps(said).encode(), priority=PRIORITY, ttr=build.ttr)

    # --- what goes on ---------------------------------------------------------------------------------------------

    def broker(self) -> Broker:
        """beanstalkd itself, whatever becomes of the tunnels."""
        return Broker("127.0.0.1", self.farm.plan.plain("beanstalkd"))

    def calls(self, build: Build) -> list[Call]:
        """The notes of mock about a build."""
        path = self.home / "calls" / build.disttag
        if not path.exists():
            return []
        return [Call(**json.loads(line)) for line in path.read_text().splitlines()]

    def heard(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Topic and payload of everything that arrived by MQTT."""
        for line in self._heard.read_bytes().split(b"\n")[:-1]:
            if line.startswith(b"reimzul/"):
                topic, payload = line.decode().split(" ", 1)
                yield topic, json.loads(payload)

    def harm(self, what: str, times: int, pick: float) -> None:
        """Have the next uploads damaged; `pick` says which file of them."""
        harm = {"what": what, "times": times, "pick": pick, "spool": str(self.farm.layout.store.spool)}
        (self.home / "harm.json").write_text(json.dumps(harm))

    def harm_done(self) -> bool:
        """Whether all of it is done."""
        return bool(json.loads((self.home / "harm.json").read_text())["times"] == 0)

    def runs(self, target: str) -> int:
        """How often createrepo_c was run for a target, as the repogens say."""
        logs = [self.farm.layout.part_log(f"repogen-{number}") for number in (1, 2)]
        return sum(path.read_text().count(f"{target} indexed for") for path in logs)

    def daemons(self) -> list[str]:
        """Our own daemons, by the names of their parts."""
        return [part.name for part in self.farm.parts if part.is_daemon]

    @property
    def outbox(self) -> Path:
        """The notifier's."""
        return self.farm.layout.notifier / "ledger.sqlite"

    def idle(self) -> str:
        """Nothing where the farm has nothing to do; else what it has, in words."""
        try:
            with self.broker() as broker:
                tubes = sorted(broker.list_tubes(), key=lambda tube: tube == "notify")
                stats = [broker.tube_stats(tube) for tube in tubes if tube != "ballast" and not is_control_tube(tube)]
            pending = read_pending(self.outbox)
        except ReimzulError as error:
            return str(error)
        busy = [f"{each.count} events are pending for {each.sink}" for each in pending]
        busy += [
            f"{s.name}: {s.ready} ready, {s.reserved} reserved, {s.delayed} delayed"
            for s in stats
            if s.ready or s.reserved or s.delayed
        ]
        for name in BUILDERS:
            folder = self.farm.layout.results(name) / "builds"
            busy += [f"{name} has {path.name}" for path in (folder.iterdir() if folder.is_dir() else ())]
        return "; ".join(busy)

    def settle(self, seconds: float) -> float:
        """Wait until the farm has nothing to do and every part is up; how long that took. Raises `AssertionError`."""
        began = time.monotonic()
        quiet = 0
        while quiet < 2:
            busy = self.idle()
            quiet = 0 if busy else quiet + 1
            assert time.monotonic() - began < seconds, f"not settled within {seconds:g} s: {busy}"
            time.sleep(0.05)
        try:
            self.farm.wait_until_ready(within=20)
        except ReimzulError as error:
            raise AssertionError(f"a part is not up: {error}") from error
        return time.monotonic() - began


def processes() -> dict[int, tuple[int, str]]:
    """Every process: its parent and its command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            found[int(folder.name)] = parent, words
    return found


def mounts() -> set[str]:
    """Where something is mounted."""
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
