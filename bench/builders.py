# SPDX-License-Identifier: Apache-2.0
"""Many builders on one controller: `python -m bench.builders`.

Their connections (through stunnel), messages and presence are real, as are beanstalkd, repogen, tosign and notifier;
mock and uploads are scripted, here alone: a build waits, and its upload is laid straight into the spool.
"""

from __future__ import annotations

import threading
import time

import attr
import click

from bench.report import TICKS, Figure, progress, resident, tell, ticks
from bench.stand import Stand
from devfarm.plan import BSTORE, CONTROLLER
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, NOTIFY_PRESENCE, PRIORITY, Broker, arch_tube
from reimzul.core.errors import ReimzulError
from reimzul.core.message import BuildRequest, CurrentBuild, Status, WorkerHeartbeat, event_for, new_attempt
from tests import srpms, uploads

#: Seconds between two presences of a builder, as workers send them while they build.
_PRESENCE = 10.0
#: What every build is of.
_PACKAGE = "leaf"
_PARTS = ("beanstalkd", f"stunnel-{CONTROLLER}", "notifier", "repogen-1", f"stunnel-{BSTORE}")


class Builders:
    """So many builders, each a thread with a connection of its own."""

    def __init__(self, stand: Stand, count: int, seconds: float) -> None:
        self.stand, self.seconds = stand, seconds
        self.over = threading.Event()
        self.built = 0
        self._lock = threading.Lock()
        package = srpms.make_rpm(stand.folder, _PACKAGE, srpms.noarch(_PACKAGE))
        self._rpms = {package.name: (package.read_bytes(), package.name[: -len(".rpm")])}
        self._threads = [threading.Thread(target=self._build_on, args=(n,), daemon=True) for n in range(count)]

    def __enter__(self) -> Builders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(30)

    def _build_on(self, number: int) -> None:
        host = f"builder{number}.example.org"
        tube = arch_tube(self.stand.farm.arch)
        with self.stand.farm.broker("builder1") as broker:
            broker.watch([tube.name])
            said = 0.0
            while not self.over.is_set():
                if time.monotonic() - said > _PRESENCE:
                    self._present(broker, host)
                    said = time.monotonic()
                claim = broker.reserve({tube.name: tube}, 1)
                if claim is not None:
                    self._build(broker, host, claim.message)
                    claim.delete()

    def _present(self, broker: Broker, host: str, request: BuildRequest | None = None, token: str = "") -> None:
        hand = None
        if request is not None:
            what = {name: getattr(request, name) for name in ("build_id", "srpm", "target", "arch")}
            hand = CurrentBuild(**what, attempt=token, phase="rpmbuild")
        told = WorkerHeartbeat(
            host=host, instance="1", state="building" if hand else "idle", build=hand, at=time.time()
        )
        broker.put(NOTIFY, told, priority=NOTIFY_PRESENCE)

    def _build(self, broker: Broker, host: str, request: BuildRequest) -> None:
        token = new_attempt()
        leg = {"pkgname": _PACKAGE, "evr": "1.0-1"}
        more = {"builder_fqdn": host, "attempt": token, **leg}
        broker.announce(event_for(request, Status.BUILDING, **more))
        self._present(broker, host, request, token)
        self.over.wait(self.seconds)
        asked = uploads.upload(self.stand.store, self._rpms, of=request, arch=request.arch, **leg)
        broker.put(CREATEREPO, asked, priority=PRIORITY)
        broker.announce(event_for(request, Status.SUCCESS, **more))
        with self._lock:
            self.built += 1


@attr.define
class Watch:
    """What the parts use meanwhile, and the longest queues there were."""

    stand: Stand
    longest: dict[str, int] = attr.field(factory=dict)
    resident: dict[str, float] = attr.field(factory=dict)
    began: dict[str, int] = attr.field(factory=dict)

    def look(self, broker: Broker) -> None:
        """Once."""
        for tube in (arch_tube(self.stand.farm.arch).name, NOTIFY.name, CREATEREPO.name):
            try:
                ready = broker.tube_stats(tube).ready
            except ReimzulError:
                continue
            self.longest[tube] = max(self.longest.get(tube, 0), ready)
        for part in _PARTS:
            pid = self.stand.farm.pids(part)[0]
            self.began.setdefault(part, ticks(pid))
            self.resident[part] = max(self.resident.get(part, 0.0), resident(pid))

    def figures(self, seconds: float) -> list[Figure]:
        """Of all that was seen."""
        rows = [Figure(what=f"longest queue in {tube}", unit="jobs", values=[n]) for tube, n in self.longest.items()]
        for part in _PARTS:
            used = (ticks(self.stand.farm.pids(part)[0]) - self.began[part]) / TICKS / seconds * 100
            rows.append(Figure(what=f"{part}: resident", unit="MiB", values=[self.resident[part]]))
            rows.append(Figure(what=f"{part}: processor", unit="% of a core", values=[used]))
        return rows


@click.command()
@click.option("--builders", default=200, show_default=True, help="How many.")
@click.option("--rate", default=20.0, show_default=True, help="Builds put a second.")
@click.option("--seconds", default=60.0, show_default=True, help="For how long.")
def command(builders: int, rate: float, seconds: float) -> None:
    """Put builds at a rate, and see whether a queue grows."""
    with Stand(builders=1, workers=1) as stand:
        stand.farm.hold("worker-builder1-1")
        length = builders / rate * 0.8  # of a build: they are busy, and not too few
        progress(f"{builders} builders, {rate:g} builds of {length:g} s put a second, for {seconds:g} s")
        with Builders(stand, builders, length) as all_of_them, stand.farm.broker() as broker:
            tube = arch_tube(stand.farm.arch).name
            stand.wait(lambda: broker.tube_stats(tube).watchers >= builders, "all builders watch", 60)
            watch = Watch(stand)
            began, put = time.monotonic(), 0
            while (now := time.monotonic() - began) < seconds:
                while put < now * rate:
                    _put(stand, broker, put)
                    put += 1
                watch.look(broker)
                time.sleep(0.25)
            stand.wait(lambda: all_of_them.built >= put, "all are built", 120)
            took = time.monotonic() - began
            listed = stand.wait(
                lambda: len(stand.listings.visible(stand.target).packages) >= put, "all are listed", 120
            )
            built = put / (took - length)
            rows = [
                Figure(what=f"{builders} builders: built", unit="builds/s", values=[built], goal=f"{rate:g}"),
                Figure(what="  from the last put to the last listed", unit="s", values=[listed - began - seconds]),
            ]
            tell("builders", rows + watch.figures(took))


def _put(stand: Stand, broker: Broker, number: int) -> None:
    tube = arch_tube(stand.farm.arch)
    request = uploads.request(srpm=f"many{number:05}-1.0-1.src.rpm", arch=stand.farm.arch, target=stand.target)
    broker.announce(event_for(request, Status.QUEUED))
    broker.put(tube, request, priority=PRIORITY)


if __name__ == "__main__":
    command()
