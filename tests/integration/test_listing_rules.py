# SPDX-License-Identifier: Apache-2.0
"""One NEVRA, one content, on a real beanstalkd with real packages and createrepo_c."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest

from reimzul.core import fs, process
from reimzul.core.beanstalk import NOTIFY, TOSIGN, Broker
from reimzul.core.message import BuildEvent, BuildRequest, RepogenRequest, SignRequest, Status
from reimzul.core.retry import CancelToken
from reimzul.core.setting_parsers import Pruning
from reimzul.core.store_paths import StorePaths, leg_key
from reimzul.repogen.cli import make_daemon
from reimzul.repogen.daemon import Repogen
from reimzul.repogen.publish import store_upload
from reimzul.store import cleanup, createrepo
from reimzul.store.listing import ListingCache, read_records
from reimzul.tosign.daemon import find_signable, stage_leg
from tests import uploads
from tests.conftest import Beanstalkd
from tests.repogen import Rpms, ask, list_packages, make_settings, take_messages, work
from tests.srpms import make_rpm
from tests.uploads import TARGET

pytestmark = pytest.mark.usefixtures("no_rest")
SOURCE = "5a" * 32
_TAGS = "Summary: A package for tests\nLicense: Apache-2.0\n"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nevra")


@functools.cache
def package(folder: Path, name: str, content: str, host: str = "builder1") -> tuple[str, bytes]:
    """A noarch package of the source greet: two of one name differ in what they say, or in their build host alone."""
    begin, option = (
        ("", "") if name == "greet" else (f"{_TAGS}%description\nNothing.\n%package -n {name}\n", f"-n {name}")
    )
    text = f"""\
%global _buildhost {host}
Name: greet
Version: 1.4
Release: 3
BuildArch: noarch
{begin}{_TAGS}%description {option}
{content}
%files {option}
"""
    path = make_rpm(folder / content / host, name, text)
    return path.name, path.read_bytes()


class Farm:
    """Uploads legs and has them published."""

    def __init__(self, folder: Path, store: StorePaths, broker: Broker, daemon: Repogen) -> None:
        self.folder, self.store, self.broker, self.daemon, self.second = folder, store, broker, daemon, 0

    def rpms(self, content: str, *names: str, host: str = "builder1") -> Rpms:
        made = [package(self.folder, name, content, host) for name in names]
        return {name: (body, name[: -len(".rpm")]) for name, body in made}

    def request(self, **more: object) -> BuildRequest:
        self.second += 1
        return uploads.request(timestamp=f"202401020304{self.second:02}", srpm_sha256=SOURCE, **more)

    def leg(self, of: BuildRequest, rpms: Rpms, arch: str = "x86_64") -> RepogenRequest:
        asked = uploads.upload(self.store, rpms, of=of, arch=arch, pkgname="greet", evr="1.4-3")
        ask(self.broker, asked)
        return asked

    def build(self, content: str, *names: str, **more: object) -> RepogenRequest:
        """One leg of a new build, uploaded and asked for."""
        return self.leg(self.request(**more), self.rpms(content, *(names or ("greet",))))

    def publish(self) -> list[BuildEvent]:
        """Work until nothing waits; what was announced."""
        work(self.daemon)
        return take_messages(self.broker, NOTIFY)

    def regenerate(self) -> None:
        ask(self.broker, RepogenRequest(target=TARGET))
        self.publish()

    def sign(self) -> list[str]:
        """Stage what there is to be signed; what waits to be collected."""
        for request in take_messages(self.broker, TOSIGN):
            assert isinstance(request, SignRequest)
            for build in find_signable(self.store, request):
                stage_leg(ListingCache(self.store), build, CancelToken())
        there = self.store.tosign / TARGET
        return sorted(path.name.rpartition(".")[2] for path in there.iterdir()) if there.is_dir() else []

    def owners(self, name: str = "greet") -> list[str]:
        """The folders that list a package."""
        return sorted(
            path.rpartition("/")[0] for path in list_packages(self.store) if path.endswith(f"/{name}-1.4-3.noarch.rpm")
        )


@pytest.fixture
def farm(folder: Path, store: StorePaths, broker: Broker, daemon: Repogen) -> Farm:
    return Farm(folder, store, broker, daemon)


def folder_of(asked: RepogenRequest) -> str:
    return asked.place.split("/", 2)[2]


def test_of_seven_builds_of_one_nevra_the_first_is_listed_and_six_are_rejected(farm: Farm) -> None:
    asked = [farm.build(f"content-{number}", rebuild=False) for number in range(7)]
    events = farm.publish()
    assert farm.owners() == [folder_of(asked[0])]
    assert sorted((event.build_id, event.status) for event in events) == sorted(
        (each.build_id, Status.REJECTED if number else Status.PUBLISHED) for number, each in enumerate(asked)
    )
    reasons = {event.reason for event in events if event.status == Status.REJECTED}
    assert reasons == {f"the target holds greet-1.4-3.noarch of build {asked[0].build_id}; submit with --rebuild"}
    assert len(take_messages(farm.broker, TOSIGN)) == 1
    assert not any(farm.broker.tube_stats(tube).ready for tube in farm.broker.list_tubes())  # none is built again
    assert not farm.store.place(asked[1].place).exists()
    late = farm.build("content-8", rebuild=False)  # in a run of its own
    (event,) = farm.publish()
    assert (event.build_id, event.status) == (late.build_id, Status.REJECTED)
    farm.regenerate()
    assert farm.owners() == [folder_of(asked[0])]


def test_a_rebuild_replaces_the_earlier_leg_in_one_run_and_its_folder_stays(farm: Farm) -> None:
    first = farm.build("one", "greet", "greet-more")
    farm.publish()
    second = farm.build("two", "greet", rebuild=True)
    (event,) = farm.publish()
    assert list_packages(farm.store) == {f"{folder_of(second)}/greet-1.4-3.noarch.rpm"}  # the whole earlier leg is out
    assert (event.status, event.reason) == (Status.PUBLISHED, f"it replaces build {first.build_id}")
    assert event.rpms == ("greet-1.4-3.noarch.rpm",)
    assert farm.store.place(first.place).is_dir()
    farm.regenerate()
    assert farm.owners() == [folder_of(second)]
    (farm.store.target(TARGET) / "repodata" / "repomd.xml").unlink()  # nor where nothing says what was listed
    farm.regenerate()
    assert farm.owners() == [folder_of(second)]
    farm.build("three")  # an old client's request says nothing, and is one that is meant
    (event,) = farm.publish()
    assert event.status == Status.PUBLISHED
    assert event.reason.startswith(f"it replaces build {second.build_id}")


def test_the_same_content_and_scratch_builds_are_no_duplicates(farm: Farm) -> None:
    asked = [farm.build("same", rebuild=False) for _ in range(2)]
    scratch = farm.build("other", rebuild=False, scratch=True)
    assert {event.status for event in farm.publish()} == {Status.PUBLISHED}
    assert farm.owners() == sorted(map(folder_of, asked))
    assert farm.store.place(scratch.place).is_dir()


def test_legs_of_a_family_are_no_duplicates_of_each_other(farm: Farm) -> None:
    request = farm.request(rebuild=False)
    main = farm.leg(request, farm.rpms("one", "greet", "greet-doc"))
    farm.publish()
    retry = farm.request(rebuild=False, parent=request.build_id, legs=("i386",))
    other = farm.leg(retry, farm.rpms("two", "greet32", "greet-doc"), arch="i386")
    (event,) = farm.publish()
    assert event.status == Status.PUBLISHED
    assert event.rpms == ("greet32-1.4-3.noarch.rpm",)
    assert farm.owners("greet-doc") == [folder_of(main)]
    assert farm.owners("greet32") == [folder_of(other)]
    stranger = farm.request(rebuild=False, legs=("i386",))  # the same source, and nothing links them
    farm.leg(stranger, farm.rpms("three", "greet-doc"), arch="i386")
    (event,) = farm.publish()
    assert event.status == Status.REJECTED


@pytest.mark.parametrize("host", ["builder1", "builder2"])
@pytest.mark.parametrize("together", [True, False])
def test_a_noarch_package_of_two_legs_is_published_once(farm: Farm, together: bool, host: str) -> None:
    request = farm.request(rebuild=False)
    legs = [
        ("i386", farm.rpms("one", "greet32", "greet-doc", host=host)),
        ("x86_64", farm.rpms("one", "greet", "greet-doc")),
    ]  # fmt: skip
    asked, events = {}, []
    for arch, rpms in legs:
        asked[arch] = farm.leg(request, rpms, arch=arch)
        if not together:
            events += farm.publish()
    events += farm.publish()
    keeper, other = ("x86_64", "i386") if together else ("i386", "x86_64")  # the main leg's, or that listed first
    assert farm.owners("greet-doc") == [folder_of(asked[keeper])]
    reasons = {event.arch: event.reason for event in events}
    assert reasons == {keeper: "", other: f"greet-doc-1.4-3.noarch.rpm is listed from its {keeper} build"}
    assert farm.sign() == [request.build_id] * 2
    staged = {path.name for path in (farm.store.tosign / TARGET).glob(f"greet-1.4-3.{other}.*/*")}
    assert "greet-doc-1.4-3.noarch.rpm" not in staged
    assert len(staged) == 1
    ask(farm.broker, *asked.values())  # a double is nothing new
    assert {event.arch: event.reason for event in farm.publish()} == reasons
    assert "left_out" not in (farm.store.place(asked[other].place) / "build.json").read_text()


def test_contents_that_differ_are_said(farm: Farm) -> None:
    request = farm.request(rebuild=False)
    farm.leg(request, farm.rpms("one", "greet", "greet-doc"))
    farm.leg(request, farm.rpms("two", "greet32", "greet-doc"), arch="i386")
    reasons = {event.arch: event.reason for event in farm.publish()}
    assert reasons["i386"].endswith("from its x86_64 build, although the contents differ beyond build time and host")


def test_where_the_keeper_is_pruned_the_other_legs_copy_is_listed(farm: Farm) -> None:
    request = farm.request(rebuild=False)
    farm.leg(request, farm.rpms("one", "greet", "greet-doc"))
    other = farm.leg(request, farm.rpms("two", "greet32", "greet-doc"), arch="i386")
    farm.publish()
    newer = farm.request(rebuild=False)
    asked = uploads.upload(farm.store, farm.rpms("new", "greet-new"), of=newer, pkgname="greet", evr="1.5-1")
    ask(farm.broker, asked)
    farm.publish()
    rule = Pruning(keep=1, unsigned=True)
    done = cleanup.prune(farm.store, farm.daemon.context.createrepo, TARGET, rule, CancelToken(), dry_run=False)
    assert [each.leg.arch for each in done.dropped] == ["x86_64"]
    assert farm.owners("greet-doc") == [folder_of(other)]
    assert read_records(farm.store, TARGET) == {}


def test_where_the_rebuild_is_pruned_the_earlier_is_not_listed_again(farm: Farm) -> None:
    first = farm.build("one")
    farm.publish()
    second = farm.build("two", rebuild=True)
    farm.publish()
    farm.regenerate()
    shutil.rmtree(farm.store.place(second.place))
    farm.regenerate()
    assert list_packages(farm.store) == set()
    assert farm.store.place(first.place).is_dir()


def test_a_replaced_leg_counts_for_no_build_that_prune_keeps(farm: Farm) -> None:
    first = farm.build("one")
    farm.publish()
    second = farm.build("two", rebuild=True)
    farm.publish()
    done = cleanup.prune(
        farm.store, farm.daemon.context.createrepo, TARGET, Pruning(keep=1), CancelToken(), dry_run=False
    )
    assert [(each.summary.build_id, each.summary.replaced_by) for each in done.dropped] == [
        (first.build_id, second.build_id)
    ]
    assert farm.owners() == [folder_of(second)]


def test_the_legs_of_a_rebuild_are_swapped_one_by_one_and_what_still_stands_is_said(farm: Farm) -> None:
    request = farm.request()
    main = farm.leg(request, farm.rpms("one", "greet", "greet-doc"))
    old = farm.leg(request, farm.rpms("one", "greet32", "greet-doc"), arch="i386")
    farm.publish()
    again = farm.request(rebuild=True)
    follower = farm.leg(again, farm.rpms("two", "greet32", "greet-doc"), arch="i386")
    (event,) = farm.publish()
    assert f"x86_64 of build {request.build_id} is still listed" in event.reason
    assert f"it replaces build {request.build_id}" in event.reason
    assert farm.owners("greet") == farm.owners("greet-doc") == [folder_of(main)]
    assert farm.owners("greet32") == [folder_of(follower)]
    second = farm.leg(again, farm.rpms("two", "greet", "greet-doc"))
    (event,) = farm.publish()
    assert event.reason == f"it replaces build {request.build_id}"
    assert farm.owners("greet") == farm.owners("greet-doc") == [folder_of(second)]
    assert farm.store.place(old.place).is_dir()


def test_both_legs_of_a_rebuild_that_come_together_are_one_run(farm: Farm) -> None:
    request, again = farm.request(), farm.request(rebuild=True)
    for of, content in ((request, "one"), (again, "two")):
        farm.leg(of, farm.rpms(content, "greet32", "greet-doc"), arch="i386")
        main = farm.leg(of, farm.rpms(content, "greet", "greet-doc"))
        events = farm.publish()
    assert not [event for event in events if "still" in event.reason]
    assert {path.split("/")[1] for path in list_packages(farm.store)} == {main.place.split("/")[3]}
    assert len(list_packages(farm.store)) == 3


@pytest.mark.parametrize("kinds", ["builds", "arches", "builds arches"])
def test_a_setting_turns_each_rule_off(
    folder: Path, tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, kinds: str
) -> None:
    settings = make_settings(tmp_path, beanstalkd, f"[duplicates]\nc7.1708.u = {kinds}\n")
    farm = Farm(folder, uploads.make_store(settings.bstore.root), broker, make_daemon(settings))
    request = farm.request(rebuild=False)
    farm.leg(request, farm.rpms("one", "greet", "greet-doc"))
    farm.leg(request, farm.rpms("two", "greet32", "greet-doc"), arch="i386")
    farm.publish()
    farm.build("three", rebuild=False)
    (event,) = farm.publish()
    assert len(farm.owners("greet-doc")) == (2 if "arches" in kinds else 1)
    assert len(farm.owners("greet")) == (2 if "builds" in kinds else 1)
    assert event.status == (Status.PUBLISHED if "builds" in kinds else Status.REJECTED)


def test_where_all_duplicates_are_allowed_a_leg_waits_for_no_run_of_its_own(
    folder: Path, tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker
) -> None:
    settings = make_settings(tmp_path, beanstalkd, "[duplicates]\nc7.1708.u = builds arches\n")
    farm = Farm(folder, uploads.make_store(settings.bstore.root), broker, make_daemon(settings))
    farm.build("one")
    farm.publish()
    second = uploads.upload(farm.store, farm.rpms("two", "greet"), of=farm.request(rebuild=False), pkgname="greet")
    assert store_upload(uploads.copier_of(farm.store), second, CancelToken())
    farm.build("new", "greet-new")
    farm.publish()
    assert len(farm.owners()) == 2


def test_the_signer_gets_a_rebuild_with_the_word_which_build_it_replaces(farm: Farm) -> None:
    first = farm.build("one")
    farm.publish()
    assert farm.sign() == [first.build_id]
    second = farm.build("two", rebuild=True)
    farm.publish()
    assert farm.sign() == [second.build_id]  # what was not collected is taken back
    (shown,) = (farm.store.tosign / TARGET).iterdir()
    assert (shown / "replaces").read_text() == f"replaces {first.build_id}\n"
    shutil.rmtree(shown)  # collected
    third = farm.build("three", rebuild=True)
    (event,) = farm.publish()
    assert "which the signer has collected already" in event.reason
    assert farm.sign() == [third.build_id]
    (shown,) = (farm.store.tosign / TARGET).iterdir()
    assert set((shown / "replaces").read_text().split()) == {"replaces", first.build_id, second.build_id}


def test_a_leg_that_was_replaced_before_it_was_staged_is_not_staged(farm: Farm) -> None:
    asked = [farm.build(f"content-{number}", rebuild=True) for number in range(3)]
    farm.publish()
    assert farm.owners() == [folder_of(asked[-1])]
    assert farm.sign() == [asked[-1].build_id]


def test_where_createrepo_c_cannot_read_the_rebuild_the_earlier_one_stays_listed(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = farm.build("one")
    farm.publish()
    second = farm.build("two", rebuild=True)
    really = process.run

    def damaged(*words: object, **more: object) -> int:
        (farm.store.place(second.place) / "greet-1.4-3.noarch.rpm").write_bytes(b"no package")
        return really(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(createrepo, "run", damaged)
    assert farm.publish() == []  # it is asked for again
    assert farm.owners() == [folder_of(first)]


def test_a_leg_of_another_worker_that_was_not_decided_is_not_listed_by_a_run_for_others(farm: Farm) -> None:
    first = farm.build("one")
    farm.publish()
    second = uploads.upload(farm.store, farm.rpms("two", "greet"), of=farm.request(rebuild=False), pkgname="greet")
    assert store_upload(uploads.copier_of(farm.store), second, CancelToken())
    farm.build("new", "greet-new")
    farm.publish()
    assert farm.owners() == [folder_of(first)]
    assert len(list_packages(farm.store)) == 2
    ask(farm.broker, second)
    (event,) = farm.publish()
    assert event.status == Status.REJECTED


def test_a_kill_at_any_step_of_a_rebuild(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    first = farm.build("one")
    farm.publish()
    farm.sign()
    saved = farm.store.root.with_name("saved")
    shutil.copytree(farm.store.root, saved, symlinks=True)
    request = farm.request(rebuild=True)
    rpms = farm.rpms("two", "greet")
    steps = uploads.Steps(monkeypatch)

    def run_to_the_end() -> None:
        step, steps.die_at = steps.die_at, -1
        for tube in (NOTIFY, TOSIGN):
            take_messages(farm.broker, tube)
        fs._SYNCED.clear()  # else the second has fewer steps, where a folder gets the same inode
        shutil.rmtree(farm.store.root)
        shutil.copytree(saved, farm.store.root, symlinks=True)
        farm.leg(request, rpms)
        steps.die_at, steps.count = step, 0
        work(farm.daemon)

    for _ in steps.deaths(run_to_the_end):
        with pytest.raises(uploads.Died):
            run_to_the_end()
        steps.live()
        work(farm.daemon)
        (owner,) = farm.owners()
        assert owner != folder_of(first)
        assert {event.status for event in take_messages(farm.broker, NOTIFY)} == {Status.PUBLISHED}
        assert farm.sign() == [request.build_id]
        (record,) = read_records(farm.store, TARGET).items()
        assert record[0] == leg_key(first.build_id, "x86_64")
        assert record[1].replaced_by == request.build_id


def test_a_kill_at_any_step_of_staging_a_rebuild(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    first = farm.build("one")
    farm.publish()
    farm.sign()
    second = farm.build("two", rebuild=True)
    farm.publish()
    (request,) = take_messages(farm.broker, TOSIGN)
    saved = farm.store.root.with_name("saved")
    shutil.copytree(farm.store.root, saved, symlinks=True)
    steps = uploads.Steps(monkeypatch)

    def run_to_the_end() -> None:
        step, steps.die_at = steps.die_at, -1
        fs._SYNCED.clear()
        shutil.rmtree(farm.store.root)
        shutil.copytree(saved, farm.store.root, symlinks=True)
        steps.die_at, steps.count = step, 0
        stage_all()

    def stage_all() -> None:
        for build in find_signable(farm.store, request):
            stage_leg(ListingCache(farm.store), build, CancelToken())

    for _ in steps.deaths(run_to_the_end):
        with pytest.raises(uploads.Died):
            run_to_the_end()
        steps.live()
        stage_all()
        assert [path.name.rpartition(".")[2] for path in (farm.store.tosign / TARGET).iterdir()] == [second.build_id]
        assert list(farm.store.staging.iterdir()) == []
        assert not (farm.store.staged_marks / leg_key(first.build_id, "x86_64")).exists()


def test_a_damaged_record_lists_nothing_until_it_is_mended(farm: Farm) -> None:
    farm.build("one")
    fs.write_atomic(farm.store.unlisted(TARGET), "[]")
    assert farm.publish() == []
    assert not (farm.store.target(TARGET) / "repodata").exists()
