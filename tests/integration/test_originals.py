# SPDX-License-Identifier: Apache-2.0
"""Workers of the original on our farm: their exact messages and rsync, with [farm] original_workers on and off."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from reimzul.core.beanstalk import CREATEREPO, PRIORITY, TOSIGN, Broker, arch_tube
from reimzul.core.manifest import read_manifest
from reimzul.core.message import BuildRequest, new_build_id
from reimzul.core.store_paths import StorePaths
from reimzul.repogen import repodata
from tests import original, srpms, uploads, webserver
from tests.conftest import Beanstalkd, free_port
from tests.mosquitto import Mosquitto, Watcher
from tests.notifier import EVENTS, RESULTS, Running, is_done
from tests.rsyncd import rsyncd
from tests.uploads import tree
from tests.waiting import until

BIN = Path(sys.executable).parent
TARGET = "c7.1708.u"
WHOLE = f"{TARGET}.x86_64"


class Farm:
    """Controller and bstore of ours, each a process, with a builder of the original."""

    def __init__(self, folder: Path, beanstalkd: Beanstalkd, on: bool) -> None:
        self.folder, self.beanstalkd, self.on = folder, beanstalkd, on
        self.store = uploads.make_store(folder / "bstore")
        self.incoming = folder / "incoming"
        self.incoming.mkdir()
        self.notifier = Running(folder, beanstalkd)
        self.notifier.settings["farm"] = {"original_workers": str(on).lower()}
        self.notifier.settings["bstore"] = {"root": self.store.root}
        self.rsync_port = free_port()
        self.open = contextlib.ExitStack()
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all."""
        configuration = "rsyncd-originals.conf" if self.on else "rsyncd.conf"
        self.open.enter_context(rsyncd(self.store.root, self.rsync_port, self.folder, configuration))
        server = webserver.serve(self.incoming)
        self.open.callback(webserver.close, server)
        self.url = f"http://127.0.0.1:{server.server_port}/"
        self.notifier.start()
        self.run("repogen", "tosign")

    def run(self, *names: str) -> None:
        """Start daemons of bstore."""
        for name in names:
            argv = [BIN / f"reimzul-{name}", "--config", self.notifier.write()]
            with (self.folder / f"{name}.log").open("ab") as log:
                self.daemons.append(subprocess.Popen(argv, stderr=log, stdin=subprocess.DEVNULL))

    def kill(self) -> None:
        """End the daemons of bstore without a word."""
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()
        self.daemons.clear()

    def until(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Wait for something; where it does not come, what bstore's daemons wrote says why."""
        try:
            until(condition, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()}") from None

    def stop(self) -> None:
        """End all."""
        self.kill()
        if self.notifier.process and self.notifier.process.poll() is None:
            self.notifier.signal(signal.SIGKILL)
        self.open.close()

    def worker(self, build: original.Builder) -> original.Worker:
        """The builder of the original."""
        return original.Worker(
            self.beanstalkd.port, "old1.example.org", self.url, self.rsync_port, self.folder / "old", build
        )

    def client(self) -> original.Client:
        """A connection as the original's client makes it."""
        client = original.Client(self.beanstalkd.port)
        self.open.callback(client.close)
        return client

    def room(self, target: str = WHOLE) -> None:
        """A target is made known by having it indexed, as in the original."""
        self.client().put("createrepo", {"target": target})
        self.until(lambda: (self.store.target(target) / "repodata").is_dir(), "the target is indexed")

    def listed(self) -> set[str]:
        """What the repodata lists, without timestamps."""
        with contextlib.suppress(FileNotFoundError):
            paths = repodata.read(self.store.target(WHOLE) / "repodata")
            return {"/".join(path.split("/")[:1] + path.split("/")[2:]) for path in paths}
        return set()

    def staged(self) -> list[str]:
        """What waits for the signer, without build ids."""
        return sorted(path.name.rpartition(".")[0] for path in (self.store.tosign / WHOLE).glob("*"))

    def said(self) -> str:
        """All that bstore's daemons wrote for the journal."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def make(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker) -> Iterator[Callable[[bool], Farm]]:
    """Makes a farm, not started, with the setting on or off."""
    with contextlib.ExitStack() as stack:

        def farm(on: bool) -> Farm:
            made = Farm(tmp_path, beanstalkd, on)
            stack.callback(made.stop)
            return made

        yield farm


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Makes a source rpm, and the package built of it."""
    folder = tmp_path_factory.mktemp("packages")

    @functools.cache
    def made(name: str) -> tuple[Path, Path]:
        return srpms.make_srpm(folder, name, srpms.noarch(name)), srpms.make_rpm(folder, name, srpms.noarch(name))

    return made


Package = Callable[[str], "tuple[Path, Path]"]
Make = Callable[[bool], Farm]


def idle(broker: Broker) -> bool:
    """Whether nothing is left to do."""
    rows = [broker.tube_stats(name) for name in ("createrepo", "tosign", "notify", "x86_64")]
    return not any(row.ready + row.reserved + row.delayed for row in rows)


def test_what_the_originals_worker_builds_is_published_staged_and_told(
    make: Make, package: Package, broker: Broker, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    farm = make(True)
    farm.notifier.with_mqtt(mosquitto)
    watcher = Watcher(mosquitto, tmp_path)
    srpm, rpm = package("hello")
    shutil.copy(srpm, farm.incoming)
    farm.start()
    farm.room()
    with farm.worker(original.leaving(rpm)) as worker:
        original.submit(farm.client(), srpm.name, "x86_64", TARGET)
        farm.until(lambda: len(farm.staged()) == 2 and idle(broker), "both are staged")
    assert worker.uploads == [0, 0]
    legs = {f"hello/1.0-1.{arch}/{rpm.name}" for arch in ("x86_64", "i386")}
    assert farm.listed() == {*legs, f"hello/1.0-1.x86_64/{srpm.name}"}
    assert farm.staged() == ["hello-1.0-1.i386", "hello-1.0-1.x86_64"]
    builds = farm.notifier.builds()
    assert {(b["arch"], b["status"], bool(b["published"]), b["builder_fqdn"]) for b in builds} == {
        (arch, "Success", True, "old1.example.org") for arch in ("x86_64", "i386")
    }
    statuses = ("Building", "Success", "Published")
    until(lambda: len(watcher.heard(EVENTS)) >= 6, 20, "all is told by MQTT")
    assert sorted((e["arch"], e["status"]) for e in watcher.heard(EVENTS)) == sorted(
        (arch, status) for arch in ("x86_64", "i386") for status in statuses
    )
    assert sorted((e["arch"], e["status"]) for e in watcher.heard(RESULTS)) == [
        ("i386", "Success"), ("x86_64", "Success"),
    ]  # fmt: skip
    told = [line.split(" status ")[1].split()[0] for line in farm.notifier.lines()]
    assert sorted(told) == sorted(statuses * 2)
    watcher.close()


def test_there_is_room_for_a_new_target_soon_after_its_first_build_begins(make: Make, broker: Broker) -> None:
    farm = make(True)
    farm.start()
    farm.client().put("notify", event(status="Building"))
    farm.until((farm.store.originals / WHOLE).is_dir, "there is room")
    farm.until(lambda: idle(broker), "it is indexed")
    farm.client().put("notify", event(status="Building", timestamp="20240102030406"))
    farm.until(is_done(broker), "it is told")
    assert broker.tube_stats("createrepo").ready == 0


def test_one_of_our_requests_keeps_its_build_id_in_their_hands(make: Make, package: Package, broker: Broker) -> None:
    farm = make(True)
    srpm, rpm = package("hello")
    shutil.copy(srpm, farm.incoming)
    farm.start()
    farm.room()
    asked = BuildRequest(
        srpm=srpm.name, arch="x86_64", target=WHOLE, disttag=".demo", submitter="me", build_id=new_build_id(),
        timestamp="20240102030405", srpm_sha256="0" * 64,
    ).with_failed_attempt("builder1.example.org", "its disk is full")  # fmt: skip
    broker.put(arch_tube("x86_64"), asked, priority=PRIORITY)
    with farm.worker(original.leaving(rpm)):
        # both legs are the same package: it is staged once
        there = farm.store.index
        farm.until(
            lambda: len(list(there.iterdir())) == 2 and len(farm.staged()) == 1 and idle(broker), "both are placed"
        )
    folders = [path.name for path in (farm.store.tosign / WHOLE).iterdir()]
    assert all(name.endswith(asked.build_id) for name in folders)
    assert {path.name for path in farm.store.index.iterdir()} == {f"{asked.build_id}.{a}" for a in ("x86_64", "i386")}
    for leg in farm.store.index.iterdir():
        assert read_manifest(leg).request.build_id == asked.build_id
    assert {build["build_id"] for build in farm.notifier.builds()} == {asked.build_id}


def test_what_failed_has_its_logs_in_its_place_and_nothing_else(make: Make, package: Package, broker: Broker) -> None:
    farm = make(True)
    srpm, _ = package("hello")
    shutil.copy(srpm, farm.incoming)
    farm.start()
    target = farm.store.target(f"{TARGET}.i386")
    farm.room(target.name)
    with farm.worker(original.leaving()):
        original.submit(farm.client(), srpm.name, "i386", TARGET)
        farm.until(lambda: list(target.glob("hello/*/*/build.json")) and idle(broker), "it has its place")
    (place,) = target.glob("hello/*/*")
    assert tree(place) == {"build.json", "build.log", "root.log", "state.log", "stderr", "stdout"}
    assert repodata.read(target / "repodata") == {} and not (farm.store.tosign / target.name).exists()
    assert [build["status"] for build in farm.notifier.builds()] == ["Failed"]


def test_a_scratch_build_is_neither_listed_nor_staged(make: Make, package: Package, broker: Broker) -> None:
    farm = make(True)
    srpm, rpm = package("hello")
    shutil.copy(srpm, farm.incoming)
    farm.start()
    farm.room()
    with farm.worker(original.leaving(rpm)):
        original.submit(farm.client(), srpm.name, "x86_64", TARGET, scratch=True)
        places = functools.partial(farm.store.scratch.glob, "*/hello/*/*/build.json")
        farm.until(lambda: len(list(places())) == 2 and idle(broker), "both have their place")
    assert farm.listed() == set() and farm.staged() == []


def test_with_the_setting_off_the_upload_is_refused_and_nobody_asked_to_sign(
    make: Make, package: Package, broker: Broker
) -> None:
    farm = make(False)
    srpm, rpm = package("hello")
    shutil.copy(srpm, farm.incoming)
    farm.start()
    farm.room()
    with farm.worker(original.leaving(rpm)) as worker:
        original.submit(farm.client(), srpm.name, "x86_64", TARGET)
        until(lambda: len(worker.built) == 2, 60, "it has built")
    until(lambda: idle(broker), 20, "all is done")
    assert worker.uploads and 0 not in worker.uploads
    assert farm.listed() == set() and farm.staged() == []
    assert {build["status"] for build in farm.notifier.builds()} == {"Success"}  # so it says
    assert broker.tube_stats("tosign").buried == broker.tube_stats("createrepo").buried == 0


def test_killed_between_any_two_events_each_leg_is_staged_once(make: Make, package: Package, broker: Broker) -> None:
    farm = make(True)
    names = [f"pack{number}" for number in range(6)]
    made = {name: package(name) for name in names}
    for srpm, _ in made.values():
        shutil.copy(srpm, farm.incoming)

    def build(srpm: Path, arch: str, target: str, results: Path) -> bool:
        return original.leaving(made[srpm.name.partition("-")[0]][1])(srpm, arch, target, results)

    farm.start()
    farm.room()
    client = farm.client()
    with farm.worker(build) as worker:
        for number, (srpm, _) in enumerate(made.values(), 1):
            original.submit(client, srpm.name, "x86_64", TARGET)
            until(lambda number=number: len(worker.built) >= 2 * number - 1, 60, "it builds")  # type: ignore[misc]
            farm.notifier.signal(signal.SIGKILL)
            farm.notifier.start()
            farm.kill()
            farm.run("repogen", "tosign")
        farm.until(lambda: len(farm.staged()) == 12 and idle(broker), "all are staged", 120)
    assert farm.staged() == sorted(f"{name}-1.0-1.{arch}" for name in names for arch in ("x86_64", "i386"))
    assert len([path for path in farm.listed() if not path.endswith(".src.rpm")]) == 12
    assert all(build["published"] for build in farm.notifier.builds())
    assert tree(farm.store.originals) == set() and tree(farm.store.spool) == set()


# --- repogen alone


def event(**changed: Any) -> dict[str, Any]:
    """What the original's worker puts into `createrepo`."""
    said = {
        "srpm": "hello-1.0-1.src.rpm", "arch": "x86_64", "target": WHOLE, "disttag": ".demo", "scratch": False,
        "submitter": "arrfab", "status": "Success", "builder_fqdn": "old1.example.org", "evr": "1.0-1",
        "pkgname": "hello", "timestamp": "20240102030405",
    }  # fmt: skip
    return {**said, **changed}


@pytest.fixture
def bstore(make: Make) -> Iterator[Farm]:
    """A farm with the setting on, nothing of it started but repogen."""
    farm = make(True)
    farm.run("repogen")
    yield farm


def lay(store: StorePaths, package: tuple[Path, Path], *, wrote: str = "", area: str = "originals") -> Path:
    """An upload of the original's worker, whole, as rsync leaves it."""
    srpm, rpm = package
    folder = store.root / area / WHOLE / "hello" / "20240102030405" / "1.0-1.x86_64"
    folder.mkdir(parents=True)
    original.leaving(rpm)(srpm, "x86_64", WHOLE, folder)
    with (folder / "build.log").open("a") as log:
        log.write(wrote)
    return folder


def test_an_upload_that_lacks_a_package_waits_for_it(bstore: Farm, package: Package, broker: Broker) -> None:
    folder = lay(bstore.store, package("hello"), wrote="Wrote: /builddir/build/RPMS/hello-devel-1.0-1.x86_64.rpm\n")
    bstore.client().put("createrepo", event())
    until(lambda: broker.tube_stats("createrepo").delayed, 20, "it waits")
    assert "hello-devel-1.0-1.x86_64.rpm, of hello-1.0-1.src.rpm for x86_64 from old1.example.org" in bstore.said()
    assert folder.is_dir() and not (bstore.store.repo / WHOLE / "hello").exists()
    shutil.copy(package("hello")[1], folder / "hello-devel-1.0-1.x86_64.rpm")
    bstore.until(bstore.listed, "it is listed")


def test_what_is_no_plain_file_never_gets_a_place(bstore: Farm, package: Package) -> None:
    folder = lay(bstore.store, package("hello"))
    os.mkfifo(folder / "pipe.rpm.txt")
    (folder / "link").symlink_to("/rsyncd-munged//etc/passwd")
    (folder / "deep").mkdir()
    (folder / ".hidden").write_text("")
    (folder / "build.json").write_text("theirs")
    bstore.client().put("createrepo", event())
    bstore.until(bstore.listed, "it is listed")
    (place,) = (bstore.store.repo / WHOLE).glob("hello/*/*")
    assert tree(place) >= {"build.json", "build.log"}
    assert not tree(place) & {"link", "pipe.rpm.txt", ".hidden"} and not (place / "deep").exists()
    assert read_manifest(place).builder_fqdn == "old1.example.org"


def test_what_lay_in_repo_before_bstore_was_moved_is_listed(bstore: Farm, package: Package, broker: Broker) -> None:
    place = lay(bstore.store, package("hello"), area="repo")
    before = tree(place)
    bstore.client().put("createrepo", event())
    bstore.until(bstore.listed, "it is listed")
    until(lambda: not broker.tube_stats("createrepo").reserved, 20, "it is done")
    assert tree(place) == before and broker.tube_stats("notify").ready == 0


def test_the_place_of_another_build_is_left_alone(bstore: Farm, package: Package, broker: Broker) -> None:
    of = uploads.request(srpm="hello-1.0-1.src.rpm", target=WHOLE)
    srpm, rpm = package("hello")
    asked = uploads.upload(bstore.store, {rpm.name: (rpm.read_bytes(), rpm.stem)}, of=of, evr="1.0-1")
    broker.put(CREATEREPO, asked, priority=PRIORITY)
    until(lambda: bstore.listed(), 60, "ours is listed")
    lay(bstore.store, (srpm, rpm))
    bstore.client().put("createrepo", event())
    until(lambda: (bstore.store.repo / WHOLE / "hello" / "20240102030406").is_dir(), 60, "theirs is beside it")
    assert read_manifest(bstore.store.place(asked.place)).build_id == of.build_id


@pytest.mark.parametrize(
    "changed",
    [
        {"evr": ""}, {"timestamp": ""}, {"disttag": ""}, {"builder_fqdn": ""}, {"status": "Building"},
        {"pkgname": "../x"},
    ],
    ids=str,
)  # fmt: skip
def test_an_event_that_says_too_little_is_refused(bstore: Farm, broker: Broker, changed: dict[str, str]) -> None:
    bstore.client().put("createrepo", event(**changed))
    until(lambda: broker.tube_stats("createrepo").buried, 20, "it is refused")
    assert "a bug" not in bstore.said()


def test_two_of_one_leg_are_one(bstore: Farm, package: Package, broker: Broker) -> None:
    lay(bstore.store, package("hello"))
    client = bstore.client()
    for _ in range(3):
        client.put("createrepo", event())
    until(lambda: broker.tube_stats("tosign").ready >= 3, 60, "it is published")
    lay(bstore.store, package("hello"))  # the rsync of another worker of that builder took it along
    client.put("createrepo", event())
    until(lambda: broker.tube_stats("tosign").ready >= 4, 60, "it is published")
    assert len(bstore.listed()) == 2 and tree(bstore.store.originals) == set()
    broker.watch([TOSIGN.name])
    places = set()
    while claim := broker.reserve({TOSIGN.name: TOSIGN}, 0):
        places.add((claim.message.build_id, claim.message.place))
        claim.delete()
    assert len(places) == 1


def test_without_the_setting_its_request_is_one_for_the_target(make: Make, package: Package, broker: Broker) -> None:
    farm = make(False)
    farm.start()
    lay(farm.store, package("hello"), area="repo")
    farm.client().put("createrepo", event())
    until(lambda: farm.listed(), 60, "the target is indexed")
    until(is_done(broker), 20, "all is told")
    assert farm.notifier.lines() == [] and farm.staged() == []


# --- what rsyncd lets through


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """rsync to and from a store in which something is published."""
    store = uploads.make_store(tmp_path / "bstore")
    for folder in (store.repo, store.originals):
        (folder / WHOLE).mkdir()
    (store.repo / WHOLE / "repodata").mkdir()
    leg = tmp_path / "results" / "20240102030405" / "1.0-1.x86_64"
    leg.mkdir(parents=True)
    (leg / "hello.rpm").write_text("new")
    (leg / "link.rpm").symlink_to("/etc/passwd")
    published = store.repo / WHOLE / "hello" / "20240102030405" / "1.0-1.x86_64"
    published.mkdir(parents=True)
    (published / "hello.rpm").write_text("published")
    port = free_port()

    def rsync(*words: str) -> subprocess.CompletedProcess[str]:
        argv = ["rsync", f"--port={port}", *words]
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)

    with rsyncd(store.root, port, tmp_path, "rsyncd-originals.conf"):
        yield rsync


MODULE = "localhost::reimzul-bstore"
Rsync = Callable[..., "subprocess.CompletedProcess[str]"]


def test_an_upload_in_the_originals_way_is_beside_what_is_published(module: Rsync, tmp_path: Path) -> None:
    done = module("-a", "results/", f"{MODULE}/repo/{WHOLE}/hello/")
    assert done.returncode == 0, done.stderr
    where = f"{WHOLE}/hello/20240102030405/1.0-1.x86_64"
    assert (tmp_path / "bstore/repo" / where / "hello.rpm").read_text() == "published"
    landed = tmp_path / "bstore/originals" / where
    assert (landed / "hello.rpm").read_text() == "new"
    assert os.readlink(landed / "link.rpm").startswith("/rsyncd-munged/")


@pytest.mark.parametrize(
    "words",
    [
        ("-a", "results/", f"{MODULE}/tosign/{WHOLE}/"),
        ("-a", "results/", f"{MODULE}/state/"),
        ("-a", "results/", f"{MODULE}/repo/"),
        ("-a", "results/", f"{MODULE}/repo/{WHOLE}/"),
        ("-a", "results/", f"{MODULE}/repo/{WHOLE}/repodata/"),
        ("-a", "results/", f"{MODULE}/originals/{WHOLE}/hello/"),
        ("-a", "results/", f"{MODULE}/repo/../tosign/"),
        ("-a", "results/20240102030405/1.0-1.x86_64/hello.rpm", f"{MODULE}/repo/{WHOLE}/hello/"),
        ("-a", "--delete", "results/", f"{MODULE}/repo/{WHOLE}/hello/"),
        ("-a", f"{MODULE}/repo/{WHOLE}/", "out/"),
        ("-a", f"{MODULE}/spool/", "out/"),
        (f"{MODULE}/repo/",),
    ],
    ids=" ".join,
)
def test_all_else_is_refused(module: Rsync, tmp_path: Path, words: tuple[str, ...]) -> None:
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "bstore/repo").rglob("*")}
    done = module(*words)
    assert done.returncode != 0, done.stdout
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "bstore/repo").rglob("*")} == before
    assert not [path for path in (tmp_path / "bstore").rglob("hello.rpm") if "repo" not in path.parts]
    assert not (tmp_path / "out/hello").exists() and "hello" not in done.stdout
