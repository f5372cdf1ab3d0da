# SPDX-License-Identifier: Apache-2.0
"""The bad things that are done to a farm: a kind a function, which does one of them and undoes it.

It gets the trial it is done in, whose generator chooses what is left to chance, and says in words what it did.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import attr

from devfarm import subreaper
from devfarm.processes import PartFailed
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, PRIORITY, Broker
from reimzul.core.errors import BrokerUnavailable, ReimzulError
from reimzul.core.message import Refusal, RepogenRequest
from reimzul.core.pending import read_pending
from reimzul.core.sqlite import open_read_only
from tests.faults import checks, persons, sabotage
from tests.faults import hostile as hostility
from tests.faults.ground import BUILDERS, FAR
from tests.faults.ledger import ARCH, TARGETS, Build, Recipe
from tests.faults.trial import Trial
from tests.waiting import until

_NAMES = {signal.SIGKILL: "SIGKILL", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
_KIB = 1024


@attr.frozen(kw_only=True)
class Kind:
    """A kind of fault."""

    name: str
    do: Callable[[Trial], str]
    latest: float = 2.5  #: seconds after the first submission by which it is done
    builds: tuple[int, int] = (3, 6)
    fresh: bool = False  #: on a farm of its own, gone afterwards
    patience: float = 90.0  #: seconds the farm has to settle
    weight: int = 1  #: how often it is tried among the others
    mongo: bool = False  #: with the history in MongoDB
    court: bool = False  #: with a notifier that judges builders
    clocks: bool = False  #: with clocks that can be set


KINDS: dict[str, Kind] = {}


def kind(name: str, **more: object) -> Callable[[Callable[[Trial], str]], Callable[[Trial], str]]:
    """Register a kind by its name."""

    def registered(do: Callable[[Trial], str]) -> Callable[[Trial], str]:
        KINDS[name] = Kind(name=name, do=do, **more)  # type: ignore[arg-type]
        return do

    return registered


# --- our own daemons, and what they run ------------------------------------------------------------------------------


def signalled(trial: Trial, part: str, number: int) -> str:
    """A signal to a part's own process."""
    if part == "notifier" and number == signal.SIGKILL:
        trial.loose = attr.evolve(trial.loose, doubles=True)
    trial.ground.farm.kill(part, number)
    return f"{_NAMES[signal.Signals(number)]} to {part}"


@kind("kill", weight=4)
def kill(trial: Trial) -> str:
    """SIGKILL of one of our daemons."""
    return signalled(trial, trial.chance.choice(trial.ground.daemons()), signal.SIGKILL)


@kind("term", weight=2)
def term(trial: Trial) -> str:
    """SIGTERM, which loses nothing and is no try."""
    return signalled(trial, trial.chance.choice(trial.ground.daemons()), signal.SIGTERM)


@kind("freeze", weight=2)
def freeze(trial: Trial) -> str:
    """Something hangs for some seconds, longer than the ttr of some jobs, and goes on as if nothing had been."""
    farm = trial.ground.farm
    part = trial.chance.choice([part.name for part in farm.parts])
    seconds = trial.chance.choice((1, 4, 12)) + trial.chance.uniform(0, 3)
    trial.loose = attr.evolve(trial.loose, doubles=part in ("notifier", "mosquitto"))
    pid = farm.kill(part, signal.SIGSTOP)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):  # who hangs may be given up by the one it serves
        os.kill(pid, signal.SIGCONT)
    return f"{part} hangs for {seconds:.1f} s"


@kind("drain")
def drain(trial: Trial) -> str:
    """SIGUSR1: a worker finishes what it has and ends; it is started again."""
    workers = [name for name in trial.ground.daemons() if name.startswith("worker")]
    return signalled(trial, trial.chance.choice(workers), signal.SIGUSR1)


@kind("kill-mock", weight=2, latest=1.0)
def kill_mock(trial: Trial) -> str:
    """mock is killed under its worker."""
    return killed_under_its_daemon(trial, "mock", trial.chance.uniform(0, 0.5))


@kind("kill-rsync", latest=1.0)
def kill_rsync(trial: Trial) -> str:
    """rsync is killed under its worker, or under the daemon that takes uploads."""
    return killed_under_its_daemon(trial, "rsync", trial.chance.uniform(0, 0.02))


@kind("kill-createrepo", latest=1.0, patience=150)
def kill_createrepo(trial: Trial) -> str:
    """createrepo_c is killed under repogen."""
    return killed_under_its_daemon(trial, "createrepo_c", trial.chance.uniform(0, 0.05))


def killed_under_its_daemon(trial: Trial, tool: str, later: float) -> str:
    """A program is killed, so many seconds after it is met."""
    number = trial.chance.choice((signal.SIGKILL, signal.SIGTERM))
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = list(running(trial, tool))
        if found:
            time.sleep(later)
            pid = trial.chance.choice(found)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                return f"{_NAMES[number]} to {tool} {later:.3f} s after it was seen"
        time.sleep(0.002)
    return f"{tool} was not met"


def running(trial: Trial, tool: str) -> Iterator[int]:
    """The processes of a program below our daemons."""
    for pid in subreaper.descendants(os.getpid()):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/cmdline", "rb") as stream:
                words = stream.read().split(b"\0")
            if tool == "mock" and words[-2:-1] and words[-2].endswith(b".src.rpm") or _is_tool(words, tool):
                yield pid


def _is_tool(words: list[bytes], tool: str) -> bool:
    return words[0].rpartition(b"/")[2] == tool.encode() and b"--daemon" not in words


# --- what they stand on ----------------------------------------------------------------------------------------------


def kill_and_hold(trial: Trial, part: str) -> str:
    """A part is killed and comes back at once, or is held down for some seconds."""
    farm = trial.ground.farm
    if trial.chance.random() < 0.5:
        farm.kill(part)
        return f"SIGKILL to {part}"
    seconds = trial.chance.uniform(0.5, 5)
    farm.hold(part, kindly=False)
    time.sleep(seconds)
    farm.release(part)
    return f"SIGKILL to {part}, held down for {seconds:.1f} s"


@kind("beanstalkd", weight=3)
def beanstalkd(trial: Trial) -> str:
    """The broker, with its binlog on."""
    return kill_and_hold(trial, "beanstalkd")


@kind("stunnel", weight=2)
def stunnel(trial: Trial) -> str:
    """On either side of a link."""
    return kill_and_hold(trial, f"stunnel-{trial.chance.choice(('controller', 'bstore', *BUILDERS))}")


@kind("rsyncd")
def rsyncd(trial: Trial) -> str:
    """The process that receives uploads."""
    return kill_and_hold(trial, "rsyncd")


@kind("nginx")
def nginx(trial: Trial) -> str:
    """Where sources come from, and where workers look what is published."""
    return kill_and_hold(trial, "nginx")


@kind("mosquitto")
def mosquitto(trial: Trial) -> str:
    """A subscriber may miss a message, or get it twice with one id: QoS 1, and the broker loses its memory."""
    trial.loose = attr.evolve(trial.loose, doubles=True, deaf=True)
    done = kill_and_hold(trial, "mosquitto")
    until(lambda: listens(trial, "mosquitto"), 20, "mosquitto listens")
    trial.ground.listen()
    return done


def listens(trial: Trial, part: str) -> bool:
    """Whether a part that was killed is back at its ports."""
    farm = trial.ground.farm
    return farm.is_listening(next(each for each in farm.parts if each.name == part))


@kind("mongodb", mongo=True)
def mongodb(trial: Trial) -> str:
    """The history's home refuses connections, or hangs."""
    home = trial.ground.relayed
    assert home
    seconds = trial.chance.uniform(0.2, 6)
    if trial.chance.random() < 0.5:
        home.kill()
        time.sleep(seconds)
        home.release()
        return f"MongoDB away for {seconds:.1f} s"
    home.signal(signal.SIGSTOP)
    time.sleep(seconds)
    home.signal(signal.SIGCONT)
    return f"MongoDB hangs for {seconds:.1f} s"


@kind("smtp")
def smtp(trial: Trial) -> str:
    """The mail server is away, or hangs; what it had not answered when it went comes again by the same Message-ID."""
    server, seconds = trial.ground.mail, trial.chance.uniform(0.2, 6)
    if trial.chance.random() < 0.5:
        trial.loose = attr.evolve(trial.loose, doubles=True)
        server.stop()
        time.sleep(seconds)
        server.start()
        return f"the mail server away for {seconds:.1f} s"
    server.mailbox.open.clear()
    time.sleep(seconds)
    server.mailbox.open.set()
    return f"the mail server hangs for {seconds:.1f} s"


@kind("storm", weight=2, latest=1.0, builds=(5, 9), patience=150)
def storm(trial: Trial) -> str:
    """Several at once: daemons and what they stand on are killed right and left."""
    parts = [part.name for part in trial.ground.farm.parts if part.name != "mosquitto"]
    victims = [trial.chance.choice(parts) for _ in range(trial.chance.randint(3, 7))]
    for victim in victims:
        with contextlib.suppress(PartFailed):
            signalled(trial, victim, signal.SIGKILL)
        time.sleep(trial.chance.uniform(0, 0.8))
    return f"SIGKILL to {', '.join(victims)}"


# --- persons, while things die around them ---------------------------------------------------------------------------


@kind("cancel", weight=3, latest=0.5, builds=(3, 5), patience=150)
def cancel(trial: Trial) -> str:
    """Builds are cancelled at any moment of theirs: each leg is Cancelled once, or what it would have been."""
    with persons.kill_meanwhile(trial.ground, trial.chance) as words:
        done = persons.cancel_some(trial.ground, trial.chance, trial.builds)
    return allow_repeats(trial, f"{done}, {words}")


@kind("retry", latest=0.5, builds=(2, 4), patience=150)
def retry(trial: Trial) -> str:
    """A build that is over is submitted again, and ends as it did before."""
    with persons.kill_meanwhile(trial.ground, trial.chance) as words:
        done = persons.retry_one(trial.ground, trial.chance, trial.builds, f"{trial.name}r")
    return allow_repeats(trial, f"{done}, {words}")


@kind("drain-host", latest=0.5, builds=(1, 3), patience=150)
def drain_host(trial: Trial) -> str:
    """A builder that a person has drained begins nothing, whatever dies and comes back."""
    done, builds, wrong = persons.drain_one(trial.ground, trial.chance, trial.name)
    trial.builds += builds
    trial.outcome.faults += [f"begun by a drained builder: {each}" for each in wrong]
    return allow_repeats(trial, done)


@kind("quarantine", latest=0.5, builds=(0, 1), patience=240, fresh=True, court=True)
def quarantine(trial: Trial) -> str:
    """The notifier quarantines a builder that breaks, and resumes it after its repair, while processes are killed."""
    done, builds = persons.break_one(trial.ground, trial.chance, trial.name)
    trial.builds += builds
    return allow_repeats(trial, done)


def allow_repeats(trial: Trial, words: str) -> str:
    """Describe the trial; a notifier that was killed in it may announce events twice."""
    if "SIGKILL to notifier" in words:
        trial.loose = attr.evolve(trial.loose, doubles=True)
    return words


# --- a host that dies ------------------------------------------------------------------------------------------------


def long_builds(trial: Trial, count: int, first: float) -> list[Build]:
    """Builds that take long at their first try and no time at the next."""
    recipe, seconds = Recipe(source="plain", legs={ARCH: "Success"}), (first, 0.2)
    builds = [
        Build(name=f"{trial.name}l{number}", recipe=recipe, target=TARGETS[number % 2], seconds=seconds)
        for number in range(count)
    ]
    trial.submit_all(builds)
    return builds


def other_start(trial: Trial, build: Build, since: float, within: float) -> float:
    """Seconds until a build was begun again, after its builder died."""

    def starts() -> list[float]:
        return [call.at for call in trial.ground.calls(build) if call.what == "start" and call.at > since]

    return until(starts, within, f"{build.name} is begun again")[0] - since


@kind("death", latest=0.0, builds=(0, 0))
def death(trial: Trial) -> str:
    """All workers of a builder are killed while one builds: another begins in under 2 s."""
    (build,) = long_builds(trial, 1, 30)
    until(lambda: trial.ground.calls(build), 20, "the build has begun")
    time.sleep(trial.chance.uniform(0, 1))
    builder = trial.ground.calls(build)[0].host.partition(".")[0]
    began = time.time()
    for number in (1, 2):
        trial.ground.farm.kill(f"worker-{builder}-{number}")
    trial.measure("start elsewhere after a death", other_start(trial, build, began, 30), 2.0)
    return f"SIGKILL to both workers of {builder}"


@contextlib.contextmanager
def unplugged(trial: Trial) -> Iterator[str]:
    """The cable of a builder pulled, for as long as the block lasts."""
    far = trial.chance.random() < 0.5
    trial.ground.cable.pull(far=far)
    try:
        yield "at its end" if far else "at ours"
    finally:
        trial.ground.cable.plug()


@kind("vanish", latest=0.0, builds=(1, 3), patience=150)
def vanish(trial: Trial) -> str:
    """A builder's network is gone without a word while it builds, and comes back: begun elsewhere in under 30 s."""
    builds = long_builds(trial, 4, 4)
    until(lambda: all(trial.ground.calls(build) for build in builds), 20, "all have begun")
    there = [build for build in builds if trial.ground.calls(build)[0].host.startswith(FAR)]
    began = time.time()
    with unplugged(trial) as end:
        for build in there:
            trial.measure("start elsewhere after a host vanished", other_start(trial, build, began, 60), 30.0)
        seconds = trial.chance.uniform(0, 15)
        time.sleep(seconds)
    return f"{FAR} cut off {end} with {len(there)} builds, for {time.time() - began:.0f} s"


@kind("vanish-idle", latest=0.0, builds=(0, 0), patience=150)
def vanish_idle(trial: Trial) -> str:
    """The same while it is idle: a job handed to a host that is gone already is begun elsewhere in under 30 s."""
    began = time.time()
    with unplugged(trial) as end:
        builds = long_builds(trial, 4, 0.3)
        for build in builds:
            trial.measure("start of a build put after a host vanished", other_start(trial, build, began, 60), 30.0)
        time.sleep(trial.chance.uniform(0, 10))
    return f"{FAR} cut off {end} while idle, for {time.time() - began:.0f} s"


@kind("network", builds=(4, 7), patience=150)
def network(trial: Trial) -> str:
    """The cable pulled for any time, shorter or longer than what a job's ttr is (10 s for some of the builds)."""
    seconds = trial.chance.choice((0.5, 2, 6, 12, 16)) + trial.chance.uniform(0, 2)
    with unplugged(trial) as end:
        time.sleep(seconds)
    return f"{FAR} cut off {end} for {seconds:.1f} s"


@kind("network-long", builds=(4, 7), patience=240, weight=0)
def network_long(trial: Trial) -> str:
    """Longer than the ttr our own programs give a job."""
    with unplugged(trial) as end:
        time.sleep(trial.chance.uniform(125, 140))
    return f"{FAR} cut off {end} for longer than 120 s"


# --- full disks ------------------------------------------------------------------------------------------------------


def fill_disk(trial: Trial, name: str, left: int) -> str:
    """A disk full for some seconds."""
    seconds = trial.chance.uniform(0.5, 5)
    disk = trial.ground.disks[name]
    disk.fill(left)
    try:
        time.sleep(seconds)
    finally:
        disk.free()
    return f"{name} full but for {left // _KIB} KiB, for {seconds:.1f} s"


@kind("disk-builder", weight=2)
def disk_builder(trial: Trial) -> str:
    """Where builds are made."""
    return fill_disk(trial, f"{trial.chance.choice(BUILDERS)}/results", trial.chance.choice((0, 8, 40, 120)) * _KIB)


@kind("disk-bstore", patience=150)
def disk_bstore(trial: Trial) -> str:
    """Where results go: the disk is asked again after half a minute."""
    return fill_disk(trial, "bstore", trial.chance.choice((0, 8, 40, 120)) * _KIB)


@kind("disk-notifier")
def disk_notifier(trial: Trial) -> str:
    """Under the history and the outbox: while that cannot be written, no sink is asked for anything."""
    return fill_disk(trial, "notifier", trial.chance.choice((0, 8, 40)) * _KIB)


# --- the notifier's outbox -------------------------------------------------------------------------------------------


def announce_refusals(trial: Trial, count: int) -> None:
    """Give the notifier that many events, each of which has to be one line of the log in the end."""
    reason = f"made by {trial.name}"
    with trial.ground.broker() as broker:
        for number in range(count):
            broker.announce(Refusal(tube="trial", job=number, reason=reason, at=round(time.time(), 3)))

    def look() -> None:
        lines = (trial.ground.farm.layout.log / "reimzul.log").read_text().splitlines()
        times = Counter(line for line in lines if reason in line)
        if len(times) != count or set(times.values()) != {1}:
            trial.outcome.faults.append(f"of {count} events the log has {len(times)}, in {sum(times.values())} lines")

    trial.later(look)


@kind("outbox-kill", latest=1.0)
def outbox_kill(trial: Trial) -> str:
    """SIGKILL between the commit of events and the deletion of their jobs: both find each other afterwards."""
    trial.loose = attr.evolve(trial.loose, doubles=True)
    farm = trial.ground.farm
    pid = farm.kill("notifier", signal.SIGSTOP)
    announce_refusals(trial, 150)
    with trial.ground.broker() as broker, contextlib.closing(open_read_only(trial.ground.outbox)) as outbox:
        (before,) = outbox.execute("SELECT max(seq) FROM event").fetchone()
        os.kill(pid, signal.SIGCONT)
        found, deadline = before, time.monotonic() + 10
        while found == before and time.monotonic() < deadline:
            (found,) = outbox.execute("SELECT max(seq) FROM event").fetchone()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        left = broker.tube_stats(NOTIFY.name).ready
    return f"SIGKILL to notifier when {(found or 0) - (before or 0)} events were committed and {left} jobs not deleted"


@kind("outbox-full", latest=1.0, patience=120)
def outbox_full(trial: Trial) -> str:
    """The outbox's disk is full while events come in: their jobs wait, and nobody is notified twice."""
    disk = trial.ground.disks["notifier"]
    disk.fill(0)
    try:
        announce_refusals(trial, 150)
        time.sleep(trial.chance.uniform(3, 8))
    finally:
        disk.free()
    return "the outbox's disk full while 150 events came in"


def hold_notifier(trial: Trial) -> None:
    """End the notifier with nothing pending, so that nothing is lost with its outbox."""
    for _ in range(20):
        trial.ground.farm.hold("notifier")
        if not read_pending(trial.ground.outbox):
            return
        trial.ground.farm.release("notifier")
        time.sleep(0.5)
    raise AssertionError("the notifier always leaves something pending")


@kind("outbox-lost", latest=1.5)
def outbox_lost(trial: Trial) -> str:
    """The outbox is gone: it is made again, and what is announced from then on is delivered."""
    trial.loose = attr.evolve(trial.loose, doubles=True)
    hold_notifier(trial)
    for path in trial.ground.outbox.parent.glob(f"{trial.ground.outbox.name}*"):
        path.unlink()
    announce_refusals(trial, 20)
    trial.ground.farm.release("notifier")
    return "the outbox is deleted"


@kind("outbox-corrupt", latest=1.5)
def outbox_corrupt(trial: Trial) -> str:
    """The outbox is damaged: it is put aside, that is announced, and what is announced from then on is delivered."""
    trial.loose = attr.evolve(trial.loose, doubles=True)
    ground = trial.ground
    hold_notifier(trial)
    page = trial.chance.choice((0, 1, 2))
    with ground.outbox.open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\xa5" * 4096)
    announce_refusals(trial, 20)
    ground.farm.release("notifier")

    def look() -> None:
        aside = list(ground.outbox.parent.glob("outbox.corrupt-*"))
        announced = [said for _, said in ground.heard() if "was damaged" in str(said.get("reason"))]
        if not aside or not announced:
            trial.outcome.faults.append(f"a damaged outbox: put aside as {aside}, announced {len(announced)} times")
        for path in aside:
            path.unlink()

    trial.later(look)
    return f"page {page} of the outbox is overwritten"


@kind("disk-binlog", latest=2.0, builds=(5, 8))
def disk_binlog(trial: Trial) -> str:
    """Under beanstalkd: it takes nothing any more, and what it has it keeps, also when it is killed then."""
    disk = trial.ground.disks["binlog"]
    disk.fill(0)
    try:
        with trial.ground.broker() as broker:
            numbers = list(ballast(broker))
        time.sleep(trial.chance.uniform(0.5, 4))
        killed = trial.chance.random() < 0.5
    finally:
        disk.free()
    if killed:
        trial.ground.farm.kill("beanstalkd")
        time.sleep(0.5)
    with until(lambda: try_connect(trial), 20, "beanstalkd is back") as broker:
        for number in numbers:
            with contextlib.suppress(ReimzulError):
                broker.delete(number)
    return f"the binlog's disk full, {len(numbers)} jobs of ballast{', then beanstalkd killed' if killed else ''}"


def try_connect(trial: Trial) -> Broker | None:
    """A connection to beanstalkd, where it is there."""
    with contextlib.suppress(BrokerUnavailable):
        return trial.ground.broker()
    return None


def ballast(broker: Broker) -> Iterator[int]:
    """Jobs until beanstalkd takes none, however small: it has room in its files when the disk has none."""
    for size in (60_000, 2_000, 0):
        with contextlib.suppress(ReimzulError):
            while True:
                yield broker.put_raw("ballast", b"x" * size, priority=1)


# --- uploads, doubles, crowds ----------------------------------------------------------------------------------------


@kind("collected", latest=0.0, builds=(5, 8))
def collected(trial: Trial) -> str:
    """The signer takes away what is staged at once, while tosign is killed again and again: nothing comes twice."""
    goal = trial.ground.home / f"collected-{trial.name}"
    goal.mkdir()
    trial.loose = attr.evolve(trial.loose, collected=goal)
    deadline, kills = time.monotonic() + trial.chance.uniform(2, 4), 0
    while time.monotonic() < deadline:
        pause = time.monotonic() + trial.chance.uniform(0.1, 0.7)
        while time.monotonic() < pause:
            collect(trial, goal)
        with contextlib.suppress(PartFailed, ProcessLookupError):
            trial.ground.farm.kill("tosign")
            kills += 1
    return f"{kills} times SIGKILL to tosign, while all it stages is collected"


def collect(trial: Trial, goal: Path) -> None:
    """Move what is staged by now to the signer's."""
    for staged in trial.ground.farm.layout.store.tosign.glob("*/*.*"):
        if staged.name.rpartition(".")[2] in {build.build_id for build in trial.builds}:
            shutil.copytree(staged, goal / staged.name)
            shutil.rmtree(staged)


@kind("upload", latest=0.0, weight=2)
def upload(trial: Trial) -> str:
    """An upload is not what was sent: changed, cut short, or with a file too few or too many."""
    what = trial.chance.choice(("flip", "cut", "drop", "add", "manifest", "late"))
    trial.ground.harm(what, trial.chance.choice((1, 1, 2)), trial.chance.random())
    until(trial.ground.harm_done, 30, "the upload was damaged")
    return f"uploads damaged: {what}"


@kind("twice", latest=1.0)
def twice(trial: Trial) -> str:
    """A request is in its tube twice: two workers finish the same legs."""
    mine = [build for build in trial.builds if build.door == "put"] or long_builds(trial, 1, 0.5)
    build = trial.chance.choice(mine)
    until(lambda: build.accepted, 30, "it is submitted")
    trial.ground.put(trial.ground.requests[build.name], build.ttr)
    return f"{build.name} is queued twice"


@kind("repogens", builds=(6, 9), latest=0.5)
def repogens(trial: Trial) -> str:
    """Both repogens come to a crowd at once, and one of them is killed in it."""
    farm = trial.ground.farm
    for number in (1, 2):
        farm.hold(f"repogen-{number}")
    trial.submitted.wait(30)
    with contextlib.suppress(AssertionError):
        until(lambda: waiting(trial) >= len(trial.builds), 6, "all wait for repogen")
    for number in (1, 2):
        farm.release(f"repogen-{number}")
    time.sleep(trial.chance.uniform(0, 1.2))
    victim = f"repogen-{trial.chance.choice((1, 2))}"
    with contextlib.suppress(PartFailed):
        farm.kill(victim)
    return f"both repogens at once, then SIGKILL to {victim}"


def waiting(trial: Trial) -> int:
    """How many requests wait for repogen."""
    with trial.ground.broker() as broker:
        return broker.tube_stats(CREATEREPO.name).ready


@kind("burst")
def burst(trial: Trial) -> str:
    """A hundred requests for one target at once: a few runs of createrepo_c serve them all."""
    target = f"{trial.chance.choice(TARGETS)}.{ARCH}"
    before = trial.ground.runs(target)
    with trial.ground.broker() as broker:
        for _ in range(100):
            broker.put(CREATEREPO, RepogenRequest(target=target), priority=PRIORITY)
    until(lambda: waiting(trial) == 0, 60, "all are taken")
    trial.later(lambda: trial.measure("runs of createrepo_c for a burst", trial.ground.runs(target) - before, 20))
    return f"100 requests for {target}"


# --- messages nobody should be sent ----------------------------------------------------------------------------------

#: Where nothing of a farm has any business; and MiB a daemon may grow by in the second half of a flood.
_ELSEWHERE = tuple(Path(name) for name in ("/etc", "/usr/bin", "/usr/lib/systemd", "/srv", "/opt"))
_GROWTH = 8.0


@kind("hostile", latest=0.0, builds=(8, 8), patience=300, fresh=True)
def hostile(trial: Trial) -> str:
    """Each is refused; none has a program run or a file written, and the daemons do not grow."""
    ground, count = trial.ground, trial.messages
    outside = ground.state / "outside"
    outside.mkdir()
    canary = outside / "canary"
    before = dict(hostility.files(outside, *_ELSEWHERE))
    sent = hostility.flood(ground, trial.chance, count // 2, canary)
    hostility.wait_until_refused(ground, sent, 300)
    middle = hostility.memory(ground)
    sent += hostility.flood(ground, trial.chance, count - count // 2, canary)
    hostility.wait_until_refused(ground, sent, 300)
    trial.loose = attr.evolve(trial.loose, buried=sum(sent.values()), more=len(ground.daemons()))
    for name, mib in hostility.memory(ground).items():
        trial.measure(f"MiB that {name} grew by in the second half", mib - middle.get(name, mib), _GROWTH)
    changed = set(hostility.files(outside, *_ELSEWHERE)) - set(before.items())
    trial.outcome.faults += [f"a file was written: {path}" for path, _ in changed]
    return f"{count} hostile messages: {dict(sent)}"


# --- whether we would notice -----------------------------------------------------------------------------------------


@kind("planted", latest=0.0, builds=(4, 4))
def planted(trial: Trial) -> str:
    """Each broken promise is produced on purpose, one at a time: the checks must find it."""
    good = Recipe(source="plain", legs={ARCH: "Success"})
    trial.submit_all([Build(name=f"{trial.name}good", recipe=good, target=TARGETS[0], seconds=(0.2,))])

    def look() -> None:
        for name, plant in sabotage.ALL.items():
            with plant(trial.ground, trial.builds[-1]) as words:
                found = checks.faults(trial.ground, trial.builds, trial.before, trial.loose)
                if not any(words in fault for fault in found):
                    trial.outcome.faults.append(f"{name} is not noticed: {words!r} is not in {found}")

    trial.later(look)
    return f"planted: {', '.join(sabotage.ALL)}"
