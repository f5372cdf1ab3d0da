# SPDX-License-Identifier: Apache-2.0
"""mock's roots between builds: how many there are, when a bootstrap root is rebuilt, what is removed, who uses one.

The stand-in for mock runs here, called by the worker's own parts; it makes bootstrap roots as mock does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attr
import pytest

from devfarm.mockstub import PROGRAM
from devfarm.mockstub.root import Root as StandinRoot
from reimzul.core.errors import ShutdownRequested
from reimzul.core.message import BuildRequest, new_attempt, new_build_id
from reimzul.core.retry import CancelToken
from reimzul.core.rpm_header import read_header
from reimzul.worker import roots
from reimzul.worker.mock import Mock, write_root_note
from reimzul.worker.mock_config import MockConfigRepo
from reimzul.worker.mock_result import Fault, MockResult
from reimzul.worker.model import AttemptSpec, Leg, Workspace
from reimzul.worker.roots import MockRoot, MockRoots, RootCleanup, RootRecord, extension_of
from tests import srpms

MONTH = 31 * 86400
TOKEN = "1795925214-3372e01b"


class Builder:
    """A builder's folders, and the packages it may build."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.roots, self.checkout = folder / "roots", folder / "checkout" / "mock"
        self.caches = folder / "roots-cache"
        for needed in (self.roots, self.checkout):
            needed.mkdir(parents=True)
        (self.checkout / "logging.ini").touch()
        (self.checkout / "site-defaults.cfg").write_text(f"config_opts['basedir'] = {str(self.roots)!r}\n")
        self.workspace = Workspace(folder / "results")
        self.workspace.create()
        self.source = srpms.make_srpm(folder, "plain", srpms.noarch("plain"))
        self.open = contextlib.ExitStack()

    def target(self, name: str, more: str = "", root: str = "TARGETNAME") -> None:
        arch = os.uname().machine
        own = f"config_opts['root'] = {root!r}\nconfig_opts['target_arch'] = {arch!r}\n"
        (self.checkout / f"{name}.cfg").write_text(own + more)

    def worker(self, instance: str = "") -> Worker:
        return Worker(self, instance)

    def folders(self, pattern: str = "*") -> list[str]:
        return sorted(path.name for path in self.roots.glob(pattern) if path.is_dir() and path.name[0] != ".")


class Worker:
    """What a worker has of the roots."""

    def __init__(self, builder: Builder, instance: str) -> None:
        self.builder = builder
        configs = MockConfigRepo(
            checkout=builder.checkout.parent,
            rendered_folder=builder.workspace.configs,
            repohost="http://farm",
            pull_timeout=9,
        )
        self.roots = MockRoots(str(PROGRAM), configs, builder.roots / ".reimzul", builder.roots, 30)
        self.mock = Mock(mock=str(PROGRAM), configs=configs, roots=self.roots, build_timeout=0, stall_timeout=0)
        self.cleanup = RootCleanup(self.roots)
        self.open = builder.open.enter_context(contextlib.ExitStack())
        self.open.enter_context(self.roots.hold_own_slot(instance))

    def end(self) -> None:
        """As a worker that is killed: its locks are gone, and nothing else."""
        self.open.close()

    def leg(self, target: str = "c9.x86_64", arch: str = "x86_64") -> Leg:
        request = BuildRequest(
            srpm=self.builder.source.name, arch="x86_64", target=target, disttag=".el9", submitter="tester",
            build_id=new_build_id(), timestamp="20261122120000",
        )  # fmt: skip
        token = new_attempt()
        folder = self.builder.workspace.builds / f"{request.build_id}.{token}"
        header = read_header(self.builder.source)
        attempt = AttemptSpec(request=request, token=token, host="b1.example.org", folder=folder)
        return Leg(
            attempt=attempt,
            source=self.builder.source,
            header=header,
            arch=arch,
            config=self.builder.checkout / f"{target}.cfg",
        )

    def build(self, target: str = "c9.x86_64", arch: str = "x86_64") -> tuple[MockResult, str]:
        """Build; the verdict, and what state.log says."""
        leg = self.leg(target, arch)
        verdict, _ = self.mock.build(leg, CancelToken())
        return verdict, (leg.results / "state.log").read_text()

    def builds_well(self, target: str = "c9.x86_64", arch: str = "x86_64") -> bool:
        """Build, which has to go well; whether a bootstrap root was made for it."""
        verdict, said = self.build(target, arch)
        assert verdict.fault is Fault.NONE, (verdict, said)
        return made_bootstrap(said)

    def root(self, target: str = "c9.x86_64", arch: str = "x86_64") -> MockRoot:
        extension = extension_of(self.roots.slot, arch)
        configdir = str(self.builder.workspace.configs / target)
        return MockRoot(
            configdir=configdir, uniqueext=extension, base=str(self.builder.roots), name=f"reimzul-{target}"
        )

    def tidy(self) -> None:
        """Remove all that is due."""
        self.cleanup._next_scan = 0.0
        for _ in range(50):
            self.cleanup.clean_one(CancelToken())


def made_bootstrap(said: str) -> bool:
    return "Start(bootstrap): installing" in said


def age(path: Path, seconds: float = MONTH) -> None:
    """Have a file last written that long ago."""
    when = time.time() - seconds
    os.utime(path, (when, when))


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[Builder]:
    made = Builder(tmp_path)
    made.target("c9.x86_64")
    with made.open:
        yield made


# --- how many there are


def test_roots_are_bounded_by_workers_and_targets(builder: Builder) -> None:
    builder.target("c10.x86_64")
    first, second = builder.worker("1"), builder.worker("2")
    rounds = [(target, worker) for target in ("c9", "c10") for worker in (first, second)] * 3
    made = [worker.builds_well(f"{target}.x86_64") for target, worker in rounds]
    assert sum(made) == 4, "a bootstrap root is made once for each worker and target"
    assert builder.folders() == [
        f"reimzul-{target}.x86_64-bootstrap-reimzul-{instance}.x86_64" for target in ("c10", "c9") for instance in "12"
    ]


def test_legs_of_one_worker_have_roots_of_their_own(builder: Builder) -> None:
    """Two configurations may name one root; their legs run side by side."""
    for arch in ("x86_64", "i386"):
        builder.target(f"c9.{arch}", root="shared")
    worker = builder.worker("1")
    legs = [threading.Thread(target=worker.builds_well, args=(f"c9.{arch}", arch)) for arch in ("x86_64", "i386")]
    for leg in legs:
        leg.start()
    for leg in legs:
        leg.join()
    assert builder.folders() == [f"shared-bootstrap-reimzul-1.{arch}" for arch in ("i386", "x86_64")]


def test_workers_started_by_hand_take_free_slots(builder: Builder) -> None:
    workers = [builder.worker() for _ in range(3)]
    assert [worker.roots.slot for worker in workers] == ["spare1", "spare2", "spare3"]
    workers[1].end()
    assert builder.worker().roots.slot == "spare2"


@pytest.mark.parametrize("instance", ["a/b", "x" * 41, "1-2", ".."])
def test_an_instance_that_makes_no_extension_takes_a_free_slot(builder: Builder, instance: str) -> None:
    assert builder.worker(instance).roots.slot == "spare1"


def test_an_instance_that_runs_twice_does_not_share_its_roots(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reimzul.worker.roots.SLOT_TIMEOUT_SECONDS", 0.2)
    assert [builder.worker("1").roots.slot, builder.worker("1").roots.slot] == ["1", "spare1"]


# --- when a bootstrap root is made anew


def test_a_bootstrap_root_is_used_again(builder: Builder) -> None:
    worker = builder.worker("1")
    assert [worker.builds_well() for _ in range(3)] == [True, False, False]
    worker.end()
    assert not builder.worker("1").builds_well(), "a worker that was restarted finds it, too"


def test_another_package_manager_has_a_bootstrap_root_of_its_own(builder: Builder) -> None:
    worker = builder.worker("1")
    worker.builds_well()
    builder.target("c9.x86_64", "config_opts['package_manager'] = 'dnf5'\n")
    assert worker.builds_well()
    assert not worker.builds_well()


@pytest.mark.parametrize("where", ["beside it", "by a path"])
def test_what_a_configuration_includes_counts(builder: Builder, where: str) -> None:
    (builder.workspace.configs / "c9.x86_64").mkdir()
    beside = [folder / "template.tpl" for folder in (builder.checkout, builder.workspace.configs / "c9.x86_64")]
    templates = beside if where == "beside it" else [builder.folder / "template.tpl"]
    builder.target("c9.x86_64", f"include({templates[0].name if where == 'beside it' else str(templates[0])!r})\n")
    worker = builder.worker("1")
    for manager in ("dnf", "dnf5"):
        for template in templates:
            template.write_text(f"config_opts['package_manager'] = '{manager}'\n")
        assert [worker.builds_well(), worker.builds_well()] == [True, False]


def test_how_mock_logs_does_not_count(builder: Builder) -> None:
    worker = builder.worker("1")
    worker.builds_well()
    (builder.checkout / "logging.ini").write_text("# another\n")
    assert not worker.builds_well()


def test_a_broken_bootstrap_root_fails_one_build(builder: Builder) -> None:
    """mock never repairs it: with the rpm database of it damaged, every build would fail."""
    worker = builder.worker("1")
    worker.builds_well()
    (worker.root().bootstrap / "root" / "var" / "lib" / "rpm" / "rpmdb.sqlite").write_text("noise")
    assert worker.build()[0].fault is Fault.BUILDER
    assert worker.builds_well()


def test_a_bootstrap_root_grows_old_although_it_is_used(builder: Builder) -> None:
    worker = builder.worker("1")
    worker.builds_well()
    path = worker.roots.record_path(worker.root())
    text = path.read_text()
    path.write_text(text.replace(str(RootRecord.read(path).made), str(time.time() - MONTH)))
    worker.roots.days = 0
    assert not worker.builds_well(), "root_days = 0: never"
    worker.roots.days = 30
    assert worker.builds_well()
    assert not worker.builds_well()


@pytest.mark.parametrize("how", ["told to stop", "mock killed"])
def test_a_bootstrap_root_that_was_not_finished_is_made_anew(builder: Builder, how: str) -> None:
    flag = builder.folder / "fast"
    slow = f"config_opts['standin_bootstrap_seconds'] = 0 if os.path.exists({str(flag)!r}) else 60\n"
    builder.target("c9.x86_64", slow)
    worker = builder.worker("1")
    leg = worker.leg()

    def check() -> None:
        with contextlib.suppress(FileNotFoundError):
            if made_bootstrap((leg.results / "state.log").read_text()):
                if how == "told to stop":
                    raise ShutdownRequested("told to stop")
                os.kill(RootRecord.read(worker.roots.record_path(worker.root())).pid, signal.SIGKILL)

    if how == "told to stop":
        with pytest.raises(ShutdownRequested):
            worker.mock.build(leg, CancelToken(check))
    else:
        assert worker.mock.build(leg, CancelToken(check))[0].fault is Fault.BUILDER
    flag.touch()
    assert worker.builds_well()
    assert not worker.builds_well()


def test_a_record_that_cannot_be_read_is_no_reason_to_trust(builder: Builder) -> None:
    worker = builder.worker("1")
    worker.builds_well()
    for noise in ("", "[]", '{"digest": 1}', "\udcff"):
        worker.roots.record_path(worker.root()).write_text(noise, errors="surrogateescape")
        assert worker.builds_well()


# --- what is removed


def plant(builder: Builder, *names: str) -> None:
    """Make folders as mock's roots are."""
    for name in names:
        (builder.roots / name / "root").mkdir(parents=True)


def test_a_target_that_is_not_built_any_more_is_removed(builder: Builder) -> None:
    """Its roots and the caches of both; also where its configuration is gone."""
    builder.target("c10.x86_64")
    worker, other = builder.worker("1"), builder.worker("2")
    for each in (worker, other):
        each.builds_well()
        each.builds_well("c10.x86_64")
    for name in ("c9.x86_64", "c9.x86_64-bootstrap", "c10.x86_64"):
        (builder.caches / f"reimzul-{name}").mkdir(parents=True)
    (builder.checkout / "c9.x86_64.cfg").unlink()
    worker.tidy()
    assert len(builder.folders("*-bootstrap-*")) == 4, "they are not old"
    for path in worker.roots.state.glob("reimzul-c9.x86_64*"):
        age(path)
    other.end()
    worker.tidy()
    assert builder.folders("*-bootstrap-*") == [f"reimzul-c10.x86_64-bootstrap-reimzul-{n}.x86_64" for n in "12"]
    assert [path.name for path in (builder.caches).iterdir()] == ["reimzul-c10.x86_64"]
    assert not [path.name for path in worker.roots.state.glob("reimzul-c9*") if not path.name.endswith(".lock")]


def test_nothing_is_old_where_root_days_is_0(builder: Builder) -> None:
    worker = builder.worker("1")
    worker.builds_well()
    for path in worker.roots.state.glob("reimzul-*"):
        age(path, 400 * 86400)
    worker.roots.days = 0
    worker.tidy()
    assert builder.folders() == ["reimzul-c9.x86_64-bootstrap-reimzul-1.x86_64"]


def test_the_roots_of_a_worker_that_is_gone_are_removed(builder: Builder) -> None:
    """Its target is built by others; a worker that lives looks after its roots itself."""
    workers = [builder.worker(instance) for instance in ("1", "2", "3")]
    for worker in workers:
        worker.builds_well()
    for path in workers[0].roots.state.glob("*reimzul-[23]*.json"):
        age(path)
    workers[2].end()
    workers[0].tidy()
    assert builder.folders() == [f"reimzul-c9.x86_64-bootstrap-reimzul-{n}.x86_64" for n in "12"]


def test_caches_stay_while_a_builder_uses_them(builder: Builder) -> None:
    worker, other = builder.worker("1"), builder.worker("2")
    worker.builds_well()
    cache = builder.caches / "reimzul-c9.x86_64"
    cache.mkdir(parents=True)
    configdir = builder.workspace.configs / "c9.x86_64"
    with other.roots.prepare_root(configdir, extension_of("2", "x86_64"), CancelToken()):
        age(worker.roots.state / "reimzul-c9.x86_64.lock")
        worker.tidy()
        assert cache.exists()
    worker.tidy()
    assert not cache.exists()


def test_what_earlier_versions_left_is_removed(builder: Builder) -> None:
    """They had an extension for each attempt, and its bootstrap root stayed. What is not ours stays."""
    others = ["fedora-41-x86_64", "fedora-41-x86_64-bootstrap", "reimzul-mine", f"centos-9-{TOKEN}", "notes"]
    now = f"reimzul-c9.x86_64-bootstrap-{int(time.time())}-3372e01b"  # a build of it may just begin
    plant(builder, f"reimzul-c9.x86_64-{TOKEN}", f"reimzul-c9.x86_64-bootstrap-{TOKEN}", now, *others)
    plant(builder, f"reimzul-gone.i386-bootstrap-{TOKEN}")
    builder.worker("1").tidy()
    assert builder.folders() == sorted([now, *others])


def test_the_caches_earlier_versions_left_grow_old_from_now_on(builder: Builder) -> None:
    worker = builder.worker("1")
    worker.roots.configs.render(builder.checkout / "c9.x86_64.cfg")
    cache = builder.caches / "reimzul-c9.x86_64"
    cache.mkdir(parents=True)
    worker.tidy()
    assert cache.exists()
    age(worker.roots.state / "reimzul-c9.x86_64.lock")
    worker.tidy()
    assert not cache.exists()


def test_a_root_that_another_mock_is_in_is_left_alone(builder: Builder) -> None:
    name = f"reimzul-c9.x86_64-bootstrap-{TOKEN}"
    plant(builder, name)
    worker = builder.worker("1")
    with in_root(builder, name):
        worker.tidy()
        assert builder.folders() == [name]
    worker.tidy()
    assert not builder.folders()


def test_a_removal_ends_when_the_worker_is_to_end(builder: Builder) -> None:
    worker = builder.worker("1")
    plant(builder, f"reimzul-c9.x86_64-bootstrap-{TOKEN}")
    slow = builder.folder / "mock"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    worker.roots.mock = str(slow)

    def check() -> None:
        raise ShutdownRequested("told to stop")

    with pytest.raises(ShutdownRequested):
        worker.cleanup.clean_one(CancelToken(check))
    worker.roots.mock = "/no/such/mock"
    worker.tidy()
    worker.roots.mock = str(PROGRAM)
    worker.tidy()
    assert not builder.folders()


# --- who is in one


def in_root(builder: Builder, name: str) -> contextlib.AbstractContextManager[None]:
    """Another mock is in the root, as the stand-in sees it."""
    return StandinRoot(builder.roots / name).lock()


def test_a_mock_that_a_killed_worker_left_is_ended(builder: Builder) -> None:
    worker = builder.worker("1")
    worker.builds_well()
    root = worker.root()
    with orphan(f"{PROGRAM} -r mock") as mock:
        worker.roots.record_start(root, mock.pid)
        worker.end()
        again = builder.worker("1")
        again.builds_well()
        assert mock.wait(1) == -signal.SIGTERM
    assert builder.folders() == ["reimzul-c9.x86_64-bootstrap-reimzul-1.x86_64"]


def test_another_process_of_its_number_is_left_alone(builder: Builder) -> None:
    worker = builder.worker("1")
    worker.builds_well()
    with orphan("another program") as other:
        path = worker.roots.record_path(worker.root())
        worker.roots.record_start(worker.root(), other.pid)
        path.write_text(path.read_text().replace(RootRecord.read(path).birth, "another time"))
        worker.builds_well()
        assert other.poll() is None


def test_an_orphan_that_does_not_end_is_waited_for_and_left(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs dnf it is root. The build is made with a spare extension; a second orphan has a second one."""
    monkeypatch.setattr(roots, "ORPHAN_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(os, "killpg", refuse_signal)
    worker = builder.worker("1")
    worker.builds_well()
    with orphan("mock") as mock:
        worker.roots.record_start(worker.root(), mock.pid)
        assert worker.builds_well(), "in a root of its own"
        assert mock.poll() is None
    assert builder.folders("*spare*") == ["reimzul-c9.x86_64-bootstrap-reimzul-spare1.x86_64"]
    assert worker.build()[0].fault is Fault.NONE
    assert len(builder.folders()) == 2, "it is back in its own"


def refuse_signal(group: int, number: int) -> None:
    raise PermissionError


@pytest.mark.parametrize("bootstrap", ["", "-bootstrap"])
def test_a_root_in_use_is_no_end_of_a_build(builder: Builder, bootstrap: str) -> None:
    """mock's exit code 60: nothing is known of who is in it, and the next free extension is used."""
    worker = builder.worker("1")
    worker.builds_well()
    leg = worker.leg()
    theirs = {"REIMZUL_STANDIN_ROOT": str(builder.roots / f"reimzul-c9.x86_64{bootstrap}-reimzul-1.x86_64")}
    with in_root(builder, f"reimzul-c9.x86_64{bootstrap}-reimzul-1.x86_64"), orphan("theirs", theirs) as process:
        verdict, code = worker.mock.build(leg, CancelToken())
        assert process.poll() is None, "what is in there is not ours to end"
    assert (verdict.fault, code) == (Fault.NONE, 0)
    assert (leg.results / "state.log").read_text().count("Mock Version") == 1
    assert "locked" not in (leg.results / "stderr").read_text(), "mock appends to its logs"
    assert builder.folders("*spare*") == ["reimzul-c9.x86_64-bootstrap-reimzul-spare1.x86_64"]
    with contextlib.ExitStack() as stack:
        for slot in ("1", "spare1", "spare2"):
            stack.enter_context(in_root(builder, f"reimzul-c9.x86_64{bootstrap}-reimzul-{slot}.x86_64"))
        verdict, code = worker.mock.build(worker.leg(), CancelToken())
    assert code == 60
    assert verdict.fault not in (Fault.NONE, Fault.PACKAGE)


def test_a_process_in_the_bootstrap_root_is_ended_before_the_next_build(builder: Builder) -> None:
    """An orphaned dnf holds no lock, and no mock is recorded that it could be found by."""
    worker = builder.worker("1")
    worker.builds_well()
    path = worker.roots.record_path(worker.root())
    path.write_text(path.read_text().replace('"unclean": false', '"unclean": true'))
    with orphan("dnf", {"REIMZUL_STANDIN_ROOT": str(worker.root().bootstrap)}) as dnf:
        worker.builds_well()
        assert dnf.wait(1) == -signal.SIGKILL


def test_what_a_killed_worker_left_is_cleaned_by_who_may(builder: Builder) -> None:
    """The successor in its slot may have begun: then nobody else touches the root."""
    killed, other = builder.worker("1"), builder.worker("2")
    leg = killed.leg()
    plant(builder, "reimzul-c9.x86_64-reimzul-1.x86_64")
    killed.roots.configs.render(leg.config)
    leg.folder.mkdir(parents=True)
    write_root_note(killed.root(), leg.folder)
    other.mock.recover_root(leg.folder)
    assert builder.folders() == ["reimzul-c9.x86_64-reimzul-1.x86_64"]
    killed.end()
    other.mock.recover_root(leg.folder)
    assert not builder.folders()


def test_a_worker_that_gets_the_slot_of_a_killed_one_cleans_its_root_while_idle(builder: Builder) -> None:
    """Another worker has found the folder of the build, and may not touch the root: the slot is held again."""
    killed, other = builder.worker("1"), builder.worker("2")
    killed.builds_well()
    plant(builder, "reimzul-c9.x86_64-reimzul-1.x86_64", "reimzul-c9.x86_64-reimzul-2.x86_64")
    with orphan(f"{PROGRAM} -r mock") as mock:
        begun = RootRecord.read(killed.roots.record_path(killed.root()))
        attr.evolve(begun, unclean=True).write(killed.roots.record_path(killed.root()))
        killed.roots.record_start(killed.root(), mock.pid)
        killed.end()
        successor = builder.worker("1")
        other.tidy()
        assert mock.poll() is None, "only who has the slot may end it"
        successor.tidy()
        assert mock.wait(1) == -signal.SIGTERM
    bootstrap = "reimzul-c9.x86_64-bootstrap-reimzul-1.x86_64"
    assert builder.folders() == [bootstrap, "reimzul-c9.x86_64-reimzul-2.x86_64"]
    assert not successor.builds_well(), "its bootstrap root is used again"


def test_the_note_of_an_earlier_version_is_understood(builder: Builder) -> None:
    worker = builder.worker("1")
    folder = worker.roots.configs.render(builder.checkout / "c9.x86_64.cfg")
    plant(builder, f"reimzul-c9.x86_64-{TOKEN}")
    (builder.folder / "root.json").write_text(f'{{"configdir": "{folder}", "uniqueext": "{TOKEN}"}}')
    worker.mock.recover_root(builder.folder)
    assert not builder.folders()


@contextlib.contextmanager
def orphan(words: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that nobody waits for, with these words as its name."""
    nap = ["sh", "-c", "sleep 300 & wait", words]
    with subprocess.Popen(nap, start_new_session=True, env={**os.environ, **(env or {})}) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
