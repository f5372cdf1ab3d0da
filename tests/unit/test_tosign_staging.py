# SPDX-License-Identifier: Apache-2.0
"""Laying builds out for the signer: whole, once, and nothing that must not be signed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attr
import pytest

from reimzul.core.errors import InvalidMessage, ShutdownRequested
from reimzul.core.heartbeat import HeartbeatSender, ProcessIdentity
from reimzul.core.message import SignRequest, Status
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import MANIFEST, StorePaths, leg_key
from reimzul.store.listing import LeftOutPackage, ListingCache, UnlistedLeg, write_records
from reimzul.tosign.daemon import SignableLeg, Tosign, find_signable, stage_leg
from tests import uploads
from tests.uploads import TARGET, tree

RPMS = {
    "hello-1-1.x86_64.rpm": (b"package", "hello-1-1.x86_64"),
    "hello-1-1.src.rpm": (b"source", "hello-1-1.src"),
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return uploads.make_store(tmp_path)


def publish_leg(store: StorePaths, **changed: Any) -> SignRequest:
    """A leg in its place, and the request to sign it."""
    of = changed.pop("of", uploads.request())
    asked = uploads.upload(store, changed.pop("rpms", RPMS), of=of, **changed)
    folder = store.place(asked.place)
    folder.parent.mkdir(parents=True, exist_ok=True)
    uploads.spool_of(store, asked).rename(folder)
    uploads.list_all(store, of.target)
    return SignRequest(
        pkgname="hello", status=Status.SUCCESS, target=TARGET, arch=asked.arch, timestamp=of.timestamp,
        build_id=of.build_id, place=asked.place,
    )  # fmt: skip


def stage_legs(store: StorePaths, request: SignRequest) -> list[bool]:
    return [stage_leg(ListingCache(store), build, CancelToken()) for build in find_signable(store, request)]


def test_a_build_is_laid_out_with_its_packages_alone(store: StorePaths) -> None:
    request = publish_leg(store)
    assert stage_legs(store, request) == [True]
    folder = store.tosign / TARGET / f"hello-1-1.x86_64.{request.build_id}"
    assert tree(folder) == set(RPMS)
    for name, (content, _) in RPMS.items():
        assert (folder / name).read_bytes() == content
        assert (folder / name).stat().st_nlink == 1  # the signer rewrites it; what is published must stay
    assert (store.staged_marks / leg_key(request.build_id, "x86_64")).read_text().strip().endswith(folder.name)
    assert tree(store.staging) == set()


def test_whoever_waits_is_asked_for_every_piece_of_a_large_package(store: StorePaths) -> None:
    """Its job is touched then, and a stop is noticed."""
    asks: list[int] = []
    (leg,) = find_signable(
        store, publish_leg(store, rpms={"hello-1-1.x86_64.rpm": (bytes(5 << 20), "hello-1-1.x86_64")})
    )
    assert stage_leg(ListingCache(store), leg, CancelToken(lambda: asks.append(1)))
    assert len(asks) >= 5


def test_it_is_never_laid_out_twice_also_when_it_was_collected(store: StorePaths) -> None:
    request = publish_leg(store)
    stage_legs(store, request)
    assert stage_legs(store, request) == [False]
    shutil.rmtree(store.tosign / TARGET)
    assert stage_legs(store, request) == [False]
    assert not (store.tosign / TARGET).exists()


def test_a_place_that_is_not_there_is_no_build_yet(store: StorePaths) -> None:
    request = publish_leg(store)
    shutil.rmtree(store.repo / TARGET)
    assert find_signable(store, request) == []


@pytest.mark.parametrize("manifest", [True, False])
def test_a_request_of_the_original_is_found_by_its_words(store: StorePaths, manifest: bool) -> None:
    ours = publish_leg(store)
    publish_leg(store, arch="i386", of=uploads.request(build_id=ours.build_id))
    if not manifest:
        (store.place(ours.place) / MANIFEST).unlink()
    request = SignRequest(pkgname="hello", status="Success", target=TARGET, arch="x86_64", timestamp=ours.timestamp)
    assert stage_legs(store, request) == [True]
    assert stage_legs(store, request) == [False]
    (folder,) = (store.tosign / TARGET).iterdir()
    assert tree(folder) == set(RPMS)
    assert folder.name.startswith("hello-1-1.x86_64.")
    assert folder.name.endswith(ours.build_id) == manifest


def test_what_was_not_built_well_never_gets_there(store: StorePaths) -> None:
    failed = publish_leg(store, rpms={}, status=Status.FAILED)
    other = publish_leg(store, of=uploads.request(timestamp="20250102030405"))
    wrong_build = SignRequest(**{**other.to_json(), "build_id": "0" * 32})
    wrong_place = SignRequest(**{**other.to_json(), "target": "c8.x86_64"})
    bare = publish_leg(store, of=uploads.request(timestamp="20260102030405"))
    (store.place(bare.place) / MANIFEST).unlink()
    for request, words in (
        (failed, "has failed"),
        (wrong_build, "not the request's"),
        (wrong_place, "is not a place in"),
        (bare, "has no build.json"),
    ):
        with pytest.raises(InvalidMessage, match=words):
            find_signable(store, request)


def test_a_place_of_another_arch_is_not_signed(store: StorePaths) -> None:
    request = publish_leg(store)
    lying = SignRequest(**{**request.to_json(), "arch": "i386"})
    with pytest.raises(InvalidMessage, match=f"the place is of build {request.build_id} for x86_64, not the request's"):
        find_signable(store, lying)
    assert stage_legs(store, request) == [True]


def test_a_link_is_no_place_where_the_originals_request_names_none(store: StorePaths, tmp_path: Path) -> None:
    """What lies elsewhere was never published, whatever its manifest says."""
    ours = publish_leg(store)
    place = store.place(ours.place)
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert find_signable(store, SignRequest(**{**ours.to_json(), "place": "", "build_id": ""})) == []


@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_package_that_is_a_link_is_not_signed(store: StorePaths, tmp_path: Path, has_manifest: bool) -> None:
    """Also where it leads to what the manifest says: it would be read again, and may lead elsewhere by then."""
    ours = publish_leg(store)
    package = store.place(ours.place) / "hello-1-1.x86_64.rpm"
    package.rename(tmp_path / "secret.rpm")
    package.symlink_to(tmp_path / "secret.rpm")
    if has_manifest:
        with pytest.raises(InvalidMessage, match=r"hello-1-1\.x86_64\.rpm is a link"):
            stage_legs(store, ours)
        assert not (store.tosign / TARGET).exists()
        return
    (store.place(ours.place) / MANIFEST).unlink()
    assert stage_legs(store, SignRequest(**{**ours.to_json(), "place": "", "build_id": ""})) == [True]
    (folder,) = (store.tosign / TARGET).iterdir()
    assert tree(folder) == {"hello-1-1.src.rpm"}


def test_a_scratch_build_is_not_signed(store: StorePaths) -> None:
    scratch = publish_leg(store, of=uploads.request(scratch=True))
    with pytest.raises(InvalidMessage, match="is not a place in"):
        find_signable(store, scratch)
    lying = SignRequest(**{**scratch.to_json(), "place": scratch.place.replace("scratch/", "repo/", 1)})
    store.place(lying.place).parent.mkdir(parents=True)
    store.place(scratch.place).rename(store.place(lying.place))
    with pytest.raises(InvalidMessage, match="scratch build"):
        find_signable(store, lying)


def test_a_package_that_changed_since_is_not_signed(store: StorePaths) -> None:
    request = publish_leg(store)
    (store.place(request.place) / "hello-1-1.x86_64.rpm").write_bytes(b"packagE")
    with pytest.raises(InvalidMessage, match="not as it was published"):
        stage_legs(store, request)
    assert not (store.tosign / TARGET).exists()


def test_a_build_without_packages_is_no_folder(store: StorePaths) -> None:
    assert stage_legs(store, publish_leg(store, rpms={})) == [False]
    assert not (store.tosign / TARGET).exists()


def test_dying_at_any_step_shows_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, rounds = uploads.Steps(monkeypatch), iter(range(1000))

    def ready() -> tuple[StorePaths, SignableLeg]:
        steps_at, steps.die_at = steps.die_at, -1
        store = uploads.make_store(tmp_path / str(next(rounds)))
        (build,) = find_signable(store, publish_leg(store))
        steps.count, steps.die_at = 0, steps_at
        return store, build

    def collect(store: StorePaths) -> int:
        """What a signer that comes now takes away: always whole builds."""
        folders = list(store.tosign.glob(f"{TARGET}/*"))
        for folder in folders:
            assert tree(folder) == set(RPMS)
            shutil.rmtree(folder)
        return len(folders)

    def stage_to_the_end() -> None:
        store, build = ready()
        stage_leg(ListingCache(store), build, CancelToken())

    for step in steps.deaths(stage_to_the_end):
        store, build = ready()
        with pytest.raises(uploads.Died):
            stage_leg(ListingCache(store), build, CancelToken())
        steps.live()
        collected = collect(store)
        stage_leg(ListingCache(store), build, CancelToken())
        assert collected + collect(store) == 1, step
        assert not stage_leg(ListingCache(store), build, CancelToken())
        assert collect(store) == 0
        assert tree(store.staging) == set()


def test_what_the_repodata_does_not_list_is_not_staged(store: StorePaths) -> None:
    request = publish_leg(store)
    index = store.target(TARGET) / "repodata" / "primary.xml"
    index.write_text(index.read_text().replace("hello-1-1.src.rpm", "other-1-1.src.rpm"))
    with pytest.raises(FileNotFoundError) as error:
        stage_legs(store, request)
    assert error.value.filename == f"the entry of {request.place}/hello-1-1.src.rpm in the repodata"
    shutil.rmtree(index.parent)
    with pytest.raises(FileNotFoundError):
        stage_legs(store, request)
    assert tree(store.tosign) == set()


def test_a_listed_name_with_other_content_is_not_staged(store: StorePaths) -> None:
    request = publish_leg(store)
    index = store.target(TARGET) / "repodata" / "primary.xml"
    index.write_text(re.sub(r"[0-9a-f]{64}", "0" * 64, index.read_text()))
    with pytest.raises(FileNotFoundError):
        stage_legs(store, request)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_place_behind_a_link_is_not_staged(store: StorePaths, depth: int) -> None:
    request = publish_leg(store)
    linked = store.place("/".join(request.place.split("/")[: depth + 1]))
    linked.rename(store.spool / "elsewhere")
    linked.symlink_to(store.spool / "elsewhere")
    with pytest.raises(InvalidMessage, match="behind a symbolic link"):
        stage_legs(store, request)
    assert tree(store.tosign) == set()


# --- replaced by a rebuild


def rebuild(store: StorePaths, first: SignRequest) -> SignRequest:
    """A rebuild that has the first one's place in the repodata, and the request to sign it."""
    second = publish_leg(store, of=uploads.request(timestamp="20250102030405"))
    record = UnlistedLeg(place=first.place, replaced_by=second.build_id, replacement=second.place, was_listed=True)
    write_records(store, TARGET, {leg_key(first.build_id, "x86_64"): record})
    return second


def exposed(store: StorePaths) -> list[str]:
    return sorted(path.name.rpartition(".")[2] for path in store.tosign.glob(f"{TARGET}/*"))


def has_mark(store: StorePaths, request: SignRequest) -> bool:
    return (store.staged_marks / leg_key(request.build_id, "x86_64")).exists()


def test_a_leg_that_is_not_collected_yet_gives_way_to_its_rebuild(store: StorePaths) -> None:
    first = publish_leg(store)
    assert stage_legs(store, first) == [True]
    second = rebuild(store, first)
    assert stage_legs(store, second) == [True]
    assert exposed(store) == [second.build_id]
    folder = store.exposed(second.place, second.build_id)
    assert (folder / "replaces").read_text() == f"replaces {first.build_id}\n"
    assert not has_mark(store, first), "it was not collected"
    assert tree(store.staging) == set()
    assert stage_legs(store, first) == [False]
    assert exposed(store) == [second.build_id]


def test_a_replaced_leg_whose_mark_the_disk_has_lost_gives_way_too(store: StorePaths) -> None:
    first = publish_leg(store)
    stage_legs(store, first)
    (store.staged_marks / leg_key(first.build_id, "x86_64")).unlink()
    second = rebuild(store, first)
    assert stage_legs(store, second) == [True]
    assert exposed(store) == [second.build_id]


def test_a_replaced_leg_is_not_staged(store: StorePaths) -> None:
    first = publish_leg(store)
    rebuild(store, first)
    assert stage_legs(store, first) == [False]
    assert exposed(store) == []


def test_a_replaced_leg_that_was_collected_stays_marked(store: StorePaths) -> None:
    first = publish_leg(store)
    stage_legs(store, first)
    shutil.rmtree(store.tosign / TARGET)
    second = rebuild(store, first)
    assert stage_legs(store, second) == [True]
    assert has_mark(store, first), "the signer has it"
    assert exposed(store) == [second.build_id]


def test_a_leg_that_is_collected_while_it_is_taken_back_stays_marked(
    store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish_leg(store)
    stage_legs(store, first)
    second = rebuild(store, first)
    collected, rename = store.exposed(first.place, first.build_id), os.rename

    def collect_first(source: Path, goal: Path) -> None:
        if source == collected:
            shutil.rmtree(collected)
        rename(source, goal)

    monkeypatch.setattr(os, "rename", collect_first)
    assert stage_legs(store, second) == [True]
    assert has_mark(store, first)
    assert exposed(store) == [second.build_id]


def test_a_package_that_another_leg_is_listed_with_is_left_out(store: StorePaths) -> None:
    request = publish_leg(store)
    key = leg_key(request.build_id, "x86_64")
    kept = LeftOutPackage(leg=key, place=request.place, differs=False)
    record = UnlistedLeg(place=request.place, left_out={"hello-1-1.src.rpm": kept})
    write_records(store, TARGET, {key: record})
    assert stage_legs(store, request) == [True]
    assert tree(store.exposed(request.place, request.build_id)) == {"hello-1-1.x86_64.rpm"}


# --- disks


def watch_disk(store: StorePaths, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List, in order, what is synced (of a file with its size then) and renamed below the store."""
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        size = f" {path.stat().st_size}" if path.is_file() else ""
        steps.append(f"sync {os.path.relpath(path, store.root)}{size}")

    def record_rename(source: Path, goal: Path) -> None:
        rename(source, goal)
        steps.append(f"rename to {os.path.relpath(goal, store.root)}")

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", record_rename)
    return steps


def test_what_the_signer_sees_is_on_the_disk_before_it_and_its_mark_are(
    store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    (leg,) = find_signable(store, publish_leg(store))
    steps = watch_disk(store, monkeypatch)
    assert stage_leg(ListingCache(store), leg, CancelToken())
    paths = {name: os.path.relpath(path, store.root) for name, path in vars(StagingPaths(store, leg)).items()}
    shown = steps.index(f"rename to {paths['exposed']}")
    mark = steps.index(f"sync {paths['marks']}")
    before = [f"sync {paths['staging']}/{name} {len(content)}" for name, (content, _) in RPMS.items()]
    for step in [*before, f"sync {paths['staging']}", f"sync {paths['all_staging']}"]:
        assert steps.index(step) < mark < shown, step
    assert f"sync {paths['tosign']}" in steps[:shown]
    assert f"sync {paths['target']}" in steps[shown:]


class StagingPaths:
    def __init__(self, store: StorePaths, leg: SignableLeg) -> None:
        self.staging, self.all_staging, self.marks = store.staging / leg.key, store.staging, store.staged_marks
        self.exposed, self.target, self.tosign = leg.exposed, leg.exposed.parent, store.tosign


def test_a_mark_is_gone_from_the_disk_before_its_leg_is_taken_back(
    store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish_leg(store)
    stage_legs(store, first)
    second, key = rebuild(store, first), leg_key(first.build_id, "x86_64")
    steps = watch_disk(store, monkeypatch)
    assert stage_legs(store, second) == [True]
    taken = steps.index(f"rename to {os.path.relpath(store.staging / key, store.root)}")
    assert f"sync {os.path.relpath(store.staged_marks, store.root)}" in steps[:taken]


def test_a_disk_that_fails_at_the_rename_is_an_error_and_the_next_attempt_finishes(store: StorePaths) -> None:
    (leg,) = find_signable(store, publish_leg(store))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", fail)
        with pytest.raises(OSError, match="Input/output error"):
            stage_leg(ListingCache(store), leg, CancelToken())
    assert not leg.exposed.exists()
    assert stage_leg(ListingCache(store), leg, CancelToken())
    assert tree(leg.exposed) == set(RPMS)


def test_a_leg_whose_mark_the_disk_has_lost_is_not_staged_over_itself(store: StorePaths) -> None:
    request = publish_leg(store)
    stage_legs(store, request)
    (store.staged_marks / leg_key(request.build_id, "x86_64")).unlink()
    assert stage_legs(store, request) == [False]
    assert exposed(store) == [request.build_id]
    assert list(store.staging.iterdir()) == []


@pytest.mark.parametrize(("mode", "copied"), [(0o600, 0o644), (0o755, 0o755), (0o644, 0o644)])
def test_the_signer_can_read_every_package(store: StorePaths, mode: int, copied: int) -> None:
    request = publish_leg(store)
    (store.place(request.place) / "hello-1-1.x86_64.rpm").chmod(mode)
    stage_legs(store, request)
    package = store.exposed(request.place, request.build_id) / "hello-1-1.x86_64.rpm"
    assert package.stat().st_mode & 0o777 == copied


# --- which legs


@pytest.mark.parametrize(("length", "fits"), [(255, True), (256, False)])
def test_a_name_that_no_folder_can_have_is_refused(store: StorePaths, length: int, fits: bool) -> None:
    evr = "1-" + "1" * 100
    pkgname = "h" * (length - len(f"-{evr}.x86_64.{'0' * 32}"))
    request = attr.evolve(publish_leg(store, pkgname=pkgname, evr=evr), pkgname=pkgname)
    if fits:
        assert stage_legs(store, request) == [True]
        return
    with pytest.raises(InvalidMessage, match="too long for a folder's name"):
        find_signable(store, request)


def test_the_originals_request_waits_for_a_folder_and_for_packages_in_it(store: StorePaths) -> None:
    request = SignRequest(pkgname="hello", status="Success", target=TARGET, arch="x86_64", timestamp="20240102030405")
    assert find_signable(store, request) == []
    folder = store.place(f"repo/{TARGET}/hello/20240102030405/1-1.x86_64")
    folder.mkdir(parents=True)
    (folder.parent / "notes.x86_64").touch()
    (folder.parent / "1-1.i386").mkdir()
    assert find_signable(store, request) == []
    (folder / "hello-1-1.x86_64.rpm").touch()
    (leg,) = find_signable(store, request)
    assert list(leg.sha256s) == ["hello-1-1.x86_64.rpm"]
    assert leg.name == f"{TARGET}/hello-1-1.x86_64.{leg.build_id}"


def test_a_package_that_is_gone_is_missing_and_no_forgery(store: StorePaths) -> None:
    request = publish_leg(store)
    (store.place(request.place) / "hello-1-1.x86_64.rpm").unlink()
    with pytest.raises(FileNotFoundError):
        stage_legs(store, request)


# --- the daemon


def test_a_daemon_that_stages_shows_it_and_stays_alive(store: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    claim: Any = SimpleNamespace(message=publish_leg(store), touch_if_due=lambda: done.append("touch"), broker=None)
    done: list[str] = []
    silent = HeartbeatSender(ProcessIdentity(host="bstore", instance="tosign-1", folders=()), 0)
    daemon = Tosign(lambda: pytest.fail("not asked"), "bstore", store, silent)
    monkeypatch.setattr(daemon, "ping_watchdog", lambda: done.append("ping"))
    monkeypatch.setattr(daemon.service, "set_status", done.append)
    assert list(daemon.handle(claim, [claim])) == [(claim, None)]
    assert done[0] == f"staging {TARGET}/hello-1-1.x86_64.{claim.message.build_id}"
    assert {"ping", "touch"} <= set(done)
    daemon.stop.now.set()
    claim.message = publish_leg(store, of=uploads.request(timestamp="20250102030405"))
    with pytest.raises(ShutdownRequested):
        list(daemon.handle(claim, [claim]))
