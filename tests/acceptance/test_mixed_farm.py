# SPDX-License-Identifier: Apache-2.0
"""Programs of the original beside ours, through the same stunnels: on one tube, and upgraded one host at a time."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from devfarm.event_listener import listen
from devfarm.farm import Farm
from devfarm.mockstub import PROGRAM
from devfarm.plan import BSTORE, CONTROLLER
from reimzul.core.message import Status
from reimzul.repogen import repodata
from tests import original, srpms
from tests.acceptance.conftest import Witness, submit
from tests.acceptance.test_farm import read
from tests.rsyncd import rsyncd
from tests.waiting import until

pytestmark = pytest.mark.slow

TARGET = "old.1"
ON = {"farm": {"original_workers": "true"}}
Package = Callable[[str, str], Path]


class Mixed:
    """A farm of two builders, of which any part can be the original's."""

    def __init__(self, farm: Farm, folder: Path) -> None:
        self.farm, self.folder = farm, folder
        self.target = f"{TARGET}.{farm.arch}"
        self.store = farm.layout.store
        self._rsyncd = contextlib.ExitStack()
        self.client = original.Client(farm.plan.local(CONTROLLER, "beanstalkd"))

    def worker(self, builder: str) -> original.Worker:
        """A worker of the original, in the place of ours on a builder."""
        plan = self.farm.plan
        return original.Worker(
            plan.local(builder, "beanstalkd"),
            plan.host(builder).fqdn,
            plan.incoming_url(builder),
            plan.local(builder, "rsyncd"),
            self.folder / f"old-{builder}",
            original.mocked(str(PROGRAM), self.farm.layout.checkout(builder), plan.store_url(builder), self.farm.arch),
        )

    def rsyncd(self, configuration: str) -> None:
        """Have rsyncd run with `rsyncd.conf`, `rsyncd-originals.conf`, or as the original's bstore had it."""
        self._rsyncd.close()
        port = self.farm.plan.plain("rsyncd")
        self._rsyncd.enter_context(rsyncd(self.store.root, port, self.folder, configuration))

    def known_target(self) -> None:
        """A new target is indexed once, as before its first build in the original."""
        self.client.put("createrepo", {"target": self.target})
        until(lambda: (self.store.target(self.target) / "repodata/repomd.xml").exists(), 30, "it is indexed")

    def listed(self) -> list[str]:
        """The packages that the repodata lists, sorted, without source rpms."""
        paths = repodata.read(self.store.target(self.target) / "repodata")
        return sorted(Path(path).name for path in paths if not path.endswith(".src.rpm"))

    def staged(self) -> list[str]:
        """Every package that the signer was ever given, sorted, without source rpms."""
        rpms = (self.store.tosign / self.target).rglob("*.rpm")
        return sorted(path.name for path in rpms if not path.name.endswith(".src.rpm"))

    def buried(self) -> dict[str, int]:
        """What was put aside."""
        with self.farm.broker() as broker:
            return {
                tube: broker.tube_stats(tube).buried for tube in broker.list_tubes() if broker.tube_stats(tube).buried
            }

    def stop(self) -> None:
        """End what is not the farm's own."""
        self._rsyncd.close()
        self.client.close()


def names(package: str) -> list[str]:
    """The packages of a compiled package for x86_64 and i386."""
    return [f"{package}-1.0-1.demo.{arch}.rpm" for arch in ("i686", "x86_64")]


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Mixed]:
    """The farm, all of it ours, the setting on."""
    settings = {CONTROLLER: ON, BSTORE: ON}
    with Farm(tmp_path / "state", builders=2, targets=(TARGET,), settings=settings) as farm:
        farm.hold("rsyncd")
        mixed = Mixed(farm, tmp_path)
        mixed.rsyncd("rsyncd-originals.conf")
        yield mixed
        mixed.stop()


@pytest.fixture
def witness(mixed: Mixed) -> Iterator[Witness]:
    """Who hears all."""
    with listen(mixed.farm) as ears:
        yield Witness(ears)


def test_a_worker_of_ours_and_one_of_the_originals_on_one_tube(
    mixed: Mixed, witness: Witness, package: Package
) -> None:
    mixed.farm.hold("worker-builder2-1")
    mixed.known_target()
    built: list[str] = []
    numbers = itertools.count(1)
    with mixed.worker("builder2") as old:
        for _ in range(20):  # until both took some; each round has one of each client
            made = [package(name, srpms.compiled(name)) for name in (f"both{next(numbers)}", f"both{next(numbers)}")]
            assert submit(mixed.farm, made[0], target=TARGET).returncode == 0
            shutil.copy(made[1], mixed.farm.layout.incoming)
            original.submit(mixed.client, made[1].name, mixed.farm.arch, TARGET)
            built += [path.name.split("-")[0] for path in made]
            for path in made:
                witness.published(path.name, "x86_64", "i386", seconds=120)
            hosts = [event.builder_fqdn for path in made for event in witness.of(path.name, Status.SUCCESS)]
            if len(old.built) >= 4 and sum("builder1" in host for host in hosts):
                break
        else:
            raise AssertionError("one of them took nothing")
    packages = sorted(rpm for name in built for rpm in names(name))
    until(lambda: len(mixed.staged()) >= len(packages), 60, "all is staged")
    assert mixed.listed() == mixed.staged() == packages
    told = [(e.srpm, e.arch, e.status) for e in witness.events if hasattr(e, "srpm")]
    assert len(told) == len(set(told)), "something was told twice"
    assert mixed.buried() == {}


def test_a_build_that_fails_on_a_builder_of_the_original_has_its_logs_in_reach(
    mixed: Mixed, witness: Witness, package: Package
) -> None:
    for number in (1, 2):
        mixed.farm.hold(f"worker-builder{number}-1")
    mixed.known_target()
    srpm = package("unlucky", srpms.failing_build("unlucky"))
    with mixed.worker("builder2"):
        assert submit(mixed.farm, srpm, target=TARGET).returncode == 0
        event = witness.failed(srpm.name, "x86_64", seconds=120)
        url = (
            f"{mixed.farm.plan.store_url(CONTROLLER)}repo/{event.target}/{event.pkgname}/{event.timestamp}/"
            f"{event.evr}.{event.arch}/build.log"
        )
        until(lambda: "unlucky cannot do this" in read(url), 60, "its log is where it always was")
    assert mixed.listed() == mixed.staged() == []


def test_upgraded_one_host_at_a_time(mixed: Mixed, package: Package) -> None:
    farm = mixed.farm
    ours = ["notifier", "repogen-1", "tosign", "worker-builder1-1", "worker-builder2-1"]
    for part in ours:
        farm.hold(part)
    mixed.rsyncd("original")
    port = farm.plan.local(BSTORE, "beanstalkd")
    notifier = original.Notifier(farm.plan.local(CONTROLLER, "beanstalkd"))
    bstore = [original.Repogen(port, mixed.store.root), original.Signer(port, mixed.store.root)]
    builders = {name: mixed.worker(name) for name in ("builder1", "builder2")}
    for program in (notifier, *bstore, *builders.values()):
        program.start()
    mixed.known_target()
    done: list[str] = []

    def build(step: str) -> None:
        """Submit by both clients; all of it is listed and staged once in the end."""
        for client in ("ours", "theirs"):
            name = f"{step}{len(done)}"
            srpm = package(name, srpms.compiled(name))
            if client == "ours":
                assert submit(farm, srpm, target=TARGET).returncode == 0
            else:
                shutil.copy(srpm, farm.layout.incoming)
                original.submit(mixed.client, srpm.name, farm.arch, TARGET)
            done.append(name)
        packages = sorted(rpm for name in done for rpm in names(name))
        until(lambda: mixed.listed() == packages and len(mixed.staged()) >= len(packages), 180, f"all of {step}")
        assert mixed.staged() == packages

    build("original")
    notifier.stop()
    farm.release("notifier")
    build("controller")
    for program in bstore:
        program.stop()
    mixed.rsyncd("rsyncd-originals.conf")
    farm.release("repogen-1")
    farm.release("tosign")
    until(lambda: (mixed.store.originals / mixed.target).is_dir(), 30, "there is room for the target")
    build("bstore")
    for name, worker in builders.items():
        worker.stop()
        farm.release(f"worker-{name}-1")
        build(name)
    switch_off(mixed)
    build("end")
    assert mixed.buried() == {}
    late = package("late", srpms.compiled("late"))
    for name in builders:
        farm.hold(f"worker-{name}-1")
    with mixed.worker("builder2") as forgotten:
        assert submit(farm, late, target=TARGET).returncode == 0
        until(lambda: len(forgotten.built) == 2, 120, "it is built")
    assert forgotten.uploads and 0 not in forgotten.uploads
    assert not [name for name in (*mixed.listed(), *mixed.staged()) if name.startswith("late")]


def switch_off(mixed: Mixed) -> None:
    """[farm] original_workers = false on controller and bstore."""
    mixed.rsyncd("rsyncd.conf")
    for host, part in ((CONTROLLER, "notifier"), (BSTORE, "repogen-1")):
        ini = mixed.farm.ini(host)
        ini.write_text(ini.read_text().replace("original_workers = true", "original_workers = false"))
        pid = mixed.farm.kill(part, signal.SIGTERM)
        until(lambda pid=pid, part=part: pid not in pids(mixed.farm, part), 30, f"{part} is another")  # type: ignore[misc]


def pids(farm: Farm, part: str) -> list[int]:
    """The processes of a part; while it is down, those it had."""
    with contextlib.suppress(Exception):
        return farm.pids(part)
    return []
