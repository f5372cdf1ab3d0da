# SPDX-License-Identifier: Apache-2.0
"""Bringing uploads to their places: by one rename, never over another, and the same again after a crash."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from reimzul.core.errors import RetryLater
from reimzul.core.message import RepogenRequest, Status
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import StorePaths, StoreUrls, leg_key, spool_name
from reimzul.repogen import verify
from reimzul.repogen.publish import (
    CancelledBeforePublish,
    archive_logs,
    find_stored,
    make_cancelled_event,
    make_published_event,
    make_sign_request,
    store_upload,
)
from reimzul.repogen.verify import InvalidUpload
from reimzul.store.listing import StoredLeg
from tests import uploads
from tests.uploads import TARGET, request, tree

RPM = {"hello-1-1.x86_64.rpm": (b"package", "hello-1-1.x86_64")}
NOARCH_RPM = {"hello-1-1.noarch.rpm": (b"package", "hello-1-1.noarch")}
PLACE = f"repo/{TARGET}/hello/20240102030405/1-1.x86_64"
LATER = f"repo/{TARGET}/hello/20240102030406/1-1.x86_64"


@pytest.fixture(autouse=True)
def _headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "read_header", uploads.header_of)
    monkeypatch.setattr(verify, "read_published_texts", lambda path: [])


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return uploads.make_store(tmp_path)


def brought(store: StorePaths, asked: object) -> StoredLeg:
    leg = store_upload(uploads.copier_of(store), asked, CancelToken())  # type: ignore[arg-type]
    assert leg
    return leg


def test_a_leg_gets_its_place_and_an_entry_in_the_index(store: StorePaths) -> None:
    asked = uploads.upload(store, RPM)
    leg = brought(store, asked)
    assert leg.place == PLACE
    assert leg.is_publishable
    entry = store.index / leg_key(asked.build_id, "x86_64")
    assert os.readlink(entry) == f"../{PLACE}"
    assert (entry / "hello-1-1.x86_64.rpm").read_bytes() == b"package"
    assert tree(store.spool) == set()


def test_the_second_time_finds_it_done(store: StorePaths) -> None:
    asked = uploads.upload(store, RPM)
    assert brought(store, asked) == brought(store, asked)


@pytest.mark.parametrize(
    ("changed", "place"), [({"scratch": True}, PLACE.replace("repo/", "scratch/", 1)), ({}, PLACE)]
)
def test_what_is_not_published_has_its_place_too(store: StorePaths, changed: dict[str, bool], place: str) -> None:
    status = Status.SUCCESS if changed else Status.FAILED
    leg = brought(store, uploads.upload(store, {}, of=request(**changed), status=status))
    assert leg.place == place
    assert not leg.is_publishable


def test_another_build_of_the_same_second_goes_one_second_later(store: StorePaths) -> None:
    brought(store, uploads.upload(store, RPM))
    second = uploads.upload(store, RPM)
    assert brought(store, second).place == LATER
    assert brought(store, second).place == LATER
    assert brought(store, uploads.upload(store, RPM)).timestamp == "20240102030407"


def test_what_a_person_put_there_is_another_build(store: StorePaths) -> None:
    store.place(PLACE).mkdir(parents=True)
    (store.place(PLACE) / "build.json").write_text("of the original farm, perhaps")
    assert brought(store, uploads.upload(store, RPM)).place == LATER


def test_years_that_end_or_are_short_lead_nowhere_else(store: StorePaths) -> None:
    for timestamp, later in (("00010101000000", "00010101000001"), ("99991231235958", "99991231235959")):
        brought(store, uploads.upload(store, RPM, of=request(timestamp=timestamp)))
        assert brought(store, uploads.upload(store, RPM, of=request(timestamp=timestamp))).timestamp == later
    with pytest.raises(InvalidUpload, match="all other builds'"):
        brought(store, uploads.upload(store, RPM, of=request(timestamp="99991231235958")))


def test_a_second_attempt_does_not_replace_the_first(store: StorePaths) -> None:
    of = request()
    first, second = uploads.upload(store, RPM, of=of), uploads.upload(store, RPM, of=of)
    leg = brought(store, first)
    assert brought(store, second) == leg
    kept = store.attempts / spool_name(of.build_id, "x86_64", second.attempt)
    assert tree(kept) == {"build.json", "build.log", "root.log", "state.log"}
    assert tree(store.spool) == set()


def test_a_second_attempt_is_not_even_looked_at(store: StorePaths) -> None:
    of = request()
    leg = brought(store, uploads.upload(store, RPM, of=of))
    second = uploads.upload(store, RPM, of=of)
    (uploads.spool_of(store, second) / "build.json").write_text("junk")
    (uploads.spool_of(store, second) / "hello-1-1.x86_64.rpm").unlink()  # as a crash in the middle of a drop leaves it
    assert brought(store, second) == leg


def test_a_failure_gives_way_to_the_success_that_was_told(store: StorePaths) -> None:
    of = request()
    failed = uploads.upload(store, {}, of=of, status=Status.FAILED)
    brought(store, failed)
    succeeded = uploads.upload(store, RPM, of=of)
    assert brought(store, succeeded).is_publishable
    assert brought(store, failed).manifest.attempt == succeeded.attempt
    assert (store.attempts / spool_name(of.build_id, "x86_64", failed.attempt) / "build.log").exists()


def test_a_second_failure_does_not_replace_the_first(store: StorePaths) -> None:
    of = request()
    leg = brought(store, uploads.upload(store, {}, of=of, status=Status.FAILED))
    assert brought(store, uploads.upload(store, {}, of=of, status=Status.FAILED)) == leg


def test_legs_of_one_build_do_not_meet(store: StorePaths) -> None:
    of = request()
    places = {brought(store, uploads.upload(store, {}, of=of, arch=arch)).place for arch in ("x86_64", "i386")}
    assert places == {PLACE, PLACE.replace("1-1.x86_64", "1-1.i386")}


def test_an_upload_that_is_nowhere_is_none(store: StorePaths) -> None:
    asked = uploads.upload(store, RPM)
    uploads.spool_of(store, asked).rename(store.root / "away")
    assert store_upload(uploads.copier_of(store), asked, CancelToken()) is None


def test_a_bad_upload_stays_where_it_is(store: StorePaths) -> None:
    asked = uploads.upload(store, RPM)
    (uploads.spool_of(store, asked) / "root.log").unlink()
    with pytest.raises(InvalidUpload):
        store_upload(uploads.copier_of(store), asked, CancelToken())
    assert uploads.spool_of(store, asked).is_dir()
    assert tree(store.repo) == set()


def test_an_upload_that_another_takes_while_we_look_is_found_in_its_place(store: StorePaths) -> None:
    asked = uploads.upload(store, RPM)
    once = iter([True])

    def check() -> None:
        if next(once, False):
            brought(store, asked)

    assert store_upload(uploads.copier_of(store), asked, CancelToken(check)) == find_stored(
        store, asked.build_id, "x86_64"
    )
    assert tree(store.attempts) == set()
    assert tree(store.rejected) == set()


def test_an_upload_that_is_dropped_while_we_look_is_not_a_bad_one(store: StorePaths) -> None:
    of = request()
    first, second = uploads.upload(store, RPM, of=of), uploads.upload(store, RPM, of=of)
    once = iter([True])

    def check() -> None:
        if next(once, False):
            brought(store, first)
            (uploads.spool_of(store, second) / "hello-1-1.x86_64.rpm").unlink()

    assert store_upload(uploads.copier_of(store), second, CancelToken(check)) == find_stored(
        store, of.build_id, "x86_64"
    )
    assert tree(store.rejected) == set()


def test_an_index_that_leads_astray_is_not_followed(store: StorePaths) -> None:
    asked = uploads.upload(store, RPM)
    entry = store.index / leg_key(asked.build_id, "x86_64")
    entry.symlink_to("../../../etc")
    assert find_stored(store, asked.build_id, "x86_64") is None
    assert brought(store, asked).place == PLACE


@pytest.mark.parametrize("of_same_build", [True, False])
def test_an_index_that_leads_to_another_leg_is_not_believed(store: StorePaths, of_same_build: bool) -> None:
    """So it is after a crash between the entry and the rename, if another build takes the place meanwhile."""
    of = request()
    changed: dict[str, Any] = {"of": of, "arch": "i386"} if of_same_build else {}
    other = brought(store, uploads.upload(store, NOARCH_RPM, **changed))
    asked = uploads.upload(store, RPM, of=of)
    entry = store.index / leg_key(asked.build_id, "x86_64")
    entry.symlink_to(f"../{other.place}")
    assert find_stored(store, asked.build_id, "x86_64") is None
    leg = brought(store, asked)
    assert leg.place != other.place
    assert (leg.manifest.build_id, leg.manifest.arch) == (asked.build_id, "x86_64")
    assert os.readlink(entry) == f"../{leg.place}"
    assert find_stored(store, other.manifest.build_id, other.manifest.arch) == other


@pytest.mark.parametrize("scratch", [False, True])
def test_a_cancel_that_comes_while_it_is_looked_at_is_in_time(store: StorePaths, scratch: bool) -> None:
    asked = uploads.upload(store, RPM, of=request(scratch=scratch))
    flags: list[str] = []
    with pytest.raises(CancelledBeforePublish) as cancelled:
        store_upload(uploads.copier_of(store), asked, CancelToken(lambda: flags.append("set")), lambda: bool(flags))
    assert cancelled.value.manifest.build_id == str(cancelled.value) == asked.build_id
    assert uploads.spool_of(store, asked).is_dir()
    assert not store.place(asked.place).exists()
    assert find_stored(store, asked.build_id, "x86_64") is None


def test_a_cancel_comes_before_all_else_that_is_wrong(store: StorePaths) -> None:
    """Half of its packages may be gone, as a crash in the middle of archiving leaves it."""
    asked = uploads.upload(store, RPM)
    (uploads.spool_of(store, asked) / "hello-1-1.x86_64.rpm").unlink()
    with pytest.raises(CancelledBeforePublish):
        store_upload(uploads.copier_of(store), asked, CancelToken(), lambda: True)


def test_an_index_that_was_forgotten_is_written_again(store: StorePaths) -> None:
    of = request()
    leg = brought(store, uploads.upload(store, RPM, of=of))
    (store.index / leg_key(of.build_id, "x86_64")).unlink()
    assert brought(store, uploads.upload(store, RPM, of=of)) == leg


def test_dying_at_any_step_is_made_good_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = uploads.Steps(monkeypatch)
    rounds = iter(range(1000))

    def make_both() -> tuple[StorePaths, list[object]]:
        steps_at, steps.die_at = steps.die_at, -1
        store = uploads.make_store(tmp_path / str(next(rounds)))
        of = request()
        asked: list[object] = [uploads.upload(store, {}, of=of, status=Status.FAILED)]
        asked += [uploads.upload(store, RPM, of=of), uploads.upload(store, RPM, of=of)]
        steps.count, steps.die_at = 0, steps_at
        return store, asked

    def all_in(store: StorePaths, asked: list[object]) -> None:
        for one in asked:
            brought(store, one)

    for step in steps.deaths(lambda: all_in(*make_both())):
        store, asked = make_both()
        with pytest.raises(uploads.Died):
            all_in(store, asked)
        steps.live()
        for one in asked:  # one whose failure just gave way finds nothing for a moment, and is asked again
            store_upload(uploads.copier_of(store), one, CancelToken())  # type: ignore[arg-type]
        all_in(store, asked)
        assert tree(store.repo / TARGET) == {
            f"hello/20240102030405/1-1.x86_64/{name}" for name in ("build.json", *uploads.LOGS, *RPM)
        }, step
        assert tree(store.spool) == set()
        assert tree(store.rejected) == set()
        assert not [path for path in tree(store.attempts) if path.endswith(".rpm")]


# --- others at the same leg, and disks


def synced_folders(store: StorePaths, monkeypatch: pytest.MonkeyPatch, after: str) -> set[str]:
    """Collect the folders below the store that are fsynced after the first call of os.<after>."""
    found: set[str] = set()
    step, fsync, begun = getattr(os, after), os.fsync, []

    def do_step(*arguments: Any) -> None:
        step(*arguments)
        begun.append(1)

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        if begun:
            found.add(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), store.root))

    monkeypatch.setattr(os, after, do_step)
    monkeypatch.setattr(os, "fsync", sync)
    return found


def test_a_place_is_on_the_disk_with_all_folders_above_it(store: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = uploads.upload(store, RPM)
    synced = synced_folders(store, monkeypatch, "rename")
    brought(store, asked)
    version, package, target, repo = list(Path(PLACE).parents)[:4]
    assert {str(version), str(package), str(target), str(repo)} <= synced


def test_logs_that_are_kept_are_on_the_disk(store: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = uploads.upload(store, {}, status=Status.FAILED)
    synced = synced_folders(store, monkeypatch, "rename")
    archive_logs(uploads.copier_of(store), uploads.spool_of(store, asked))
    assert "attempts" in synced


def test_an_upload_that_others_store_again_and_again_is_tried_later(store: StorePaths) -> None:
    asked = uploads.upload(store, RPM)
    rename = os.rename

    def take_first(source: Path, goal: Path) -> None:
        if store.repo in Path(goal).parents:
            Path(goal).mkdir()
            (Path(goal) / "of-another").touch()
        rename(source, goal)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", take_first)
        with pytest.raises(RetryLater, match="is being stored by another"):
            brought(store, asked)
    assert uploads.spool_of(store, asked).is_dir()
    assert brought(store, asked).place not in (PLACE, LATER), "those places have others' files"


def test_a_disk_that_fails_is_an_error_and_loses_no_upload(store: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = uploads.upload(store, RPM)
    spool = uploads.spool_of(store, asked)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="Input/output error"):
        brought(store, asked)
    with pytest.raises(OSError, match="Input/output error"):
        archive_logs(uploads.copier_of(store), spool)
    assert (spool / "hello-1-1.x86_64.rpm").exists()


def test_a_manifest_that_vanishes_while_it_is_copied_is_a_bad_upload(store: StorePaths) -> None:
    asked = uploads.upload(store, RPM)

    def vanish() -> bool:
        (uploads.spool_of(store, asked) / "build.json").unlink(missing_ok=True)
        return False

    with pytest.raises(InvalidUpload, match=r"build\.json vanished"):
        store_upload(uploads.copier_of(store), asked, CancelToken(), vanish)


def test_after_a_crash_the_place_that_the_index_names_comes_first(store: StorePaths) -> None:
    asked = uploads.upload(store, RPM)
    (store.index / leg_key(asked.build_id, "x86_64")).symlink_to(f"../{LATER}")
    assert brought(store, asked).place == LATER


def test_a_place_of_another_version_in_the_index_is_not_taken(store: StorePaths) -> None:
    asked = uploads.upload(store, RPM)
    entry = store.index / leg_key(asked.build_id, "x86_64")
    entry.symlink_to(f"../repo/{TARGET}/hello/20240102030405/2-1.x86_64")
    assert brought(store, asked).place == PLACE
    assert os.readlink(entry) == f"../{PLACE}"


def test_logs_that_are_kept_already_stay(store: StorePaths) -> None:
    asked = uploads.upload(store, {}, status=Status.FAILED)
    spool = uploads.spool_of(store, asked)
    kept = store.attempts / spool.name
    kept.mkdir()
    (kept / "build.log").write_text("the first ones")
    archive_logs(uploads.copier_of(store), spool)
    assert (kept / "build.log").read_text() == "the first ones"
    assert tree(store.publishing) == tree(store.spool) == set()


def test_a_failure_whose_logs_are_kept_already_gives_way_to_a_success_too(store: StorePaths) -> None:
    of = request()
    failed = uploads.upload(store, {}, of=of, status=Status.FAILED)
    brought(store, failed)
    kept = store.attempts / spool_name(of.build_id, "x86_64", failed.attempt)
    kept.mkdir()
    (kept / "build.log").write_text("the first ones")
    leg = brought(store, uploads.upload(store, RPM, of=of))
    assert (leg.place, leg.is_publishable) == (PLACE, True)
    assert (kept / "build.log").read_text() == "the first ones"


# --- messages


URLS = StoreUrls("http://localhost/bstore/", "rsync://localhost/")


def test_published_names_the_place_and_the_packages(store: StorePaths) -> None:
    leg = brought(store, uploads.upload(store, RPM))
    news = make_published_event(leg, URLS)
    assert (news.status, news.place, news.reason) == ("Published", PLACE, "")
    assert (news.url, news.rpm_count, list(news.rpms)) == (URLS.place(PLACE), 1, ["hello-1-1.x86_64.rpm"])
    assert (news.pkgname, news.builder_fqdn, news.attempt) == ("hello", "builder1.example.org", leg.manifest.attempt)
    moved = make_published_event(brought(store, uploads.upload(store, RPM)), URLS)
    assert moved.reason == f"{PLACE} is another build's: it is in {LATER}"
    assert moved.timestamp == "20240102030406"


def test_a_sign_request_names_the_build_and_its_place(store: StorePaths) -> None:
    leg = brought(store, uploads.upload(store, RPM))
    asked = make_sign_request(leg)
    assert (asked.place, asked.build_id, asked.arch) == (PLACE, leg.manifest.build_id, "x86_64")
    assert (asked.status, asked.target, asked.timestamp) == ("Success", TARGET, "20240102030405")


def test_a_cancel_after_the_build_says_what_is_known(store: StorePaths) -> None:
    of = request()
    leg = brought(store, uploads.upload(store, RPM, of=of))
    asked = RepogenRequest(
        target=TARGET, build_id=of.build_id, arch="x86_64", attempt=leg.manifest.attempt, place=PLACE, request=of
    )
    known = make_cancelled_event(asked, leg.manifest, "a typo", URLS)
    assert known
    assert (known.status, known.reason, known.arch, known.evr) == ("Cancelled", "a typo", "x86_64", "1-1")
    assert known.finished == 2.0, "the build's own end"
    assert known.url == URLS.attempt(of.build_id, "x86_64", leg.manifest.attempt)
    bare = make_cancelled_event(asked, None, "a typo", URLS)
    assert bare
    assert (bare.reason, bare.evr, bare.finished) == ("a typo", "", round(bare.finished, 3))
    assert make_cancelled_event(RepogenRequest(target=TARGET), None, "a typo", URLS) is None
