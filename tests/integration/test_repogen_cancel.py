# SPDX-License-Identifier: Apache-2.0
"""repogen and builds that are cancelled before they have their place; logs of attempts that decide nothing."""

from __future__ import annotations

import os
from pathlib import Path

import attr
import pytest

from reimzul.core import control
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, PRIORITY, TOSIGN, Broker, arch_tube, cancel_tube
from reimzul.core.manifest import read_manifest
from reimzul.core.message import RepogenRequest, Status
from reimzul.core.store_paths import StorePaths, spool_name
from reimzul.repogen import daemon as repogen_daemon
from reimzul.repogen.cli import make_daemon
from reimzul.repogen.daemon import Repogen
from tests import uploads
from tests.conftest import Beanstalkd
from tests.repogen import NAME, Rpms, ask, make_settings, take_messages, work
from tests.uploads import tree


def make_scene(folder: Path, beanstalkd: Beanstalkd) -> Repogen:
    folder.mkdir()
    settings = make_settings(folder, beanstalkd)
    uploads.make_store(settings.bstore.root)
    return make_daemon(settings)


def work_on(daemon: Repogen, broker: Broker, *asked: RepogenRequest) -> None:
    ask(broker, *asked)
    work(daemon)


def cancel(broker: Broker, asked: RepogenRequest) -> None:
    control.set_flag(broker, cancel_tube(asked.build_id), control.new_flag("johnny", "wrong disttag"))


def name_of(asked: RepogenRequest) -> str:
    return spool_name(asked.build_id, asked.arch, asked.attempt)


@pytest.mark.parametrize("scratch", [False, True])
def test_what_is_cancelled_before_its_place_gets_none(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms, scratch: bool
) -> None:
    asked = uploads.upload(store, rpms, of=uploads.request(scratch=scratch))
    other = uploads.upload(store, rpms, of=uploads.request(timestamp="20240102030406"))
    cancel(broker, asked)
    work_on(daemon, broker, asked, other)
    events = {event.build_id: event for event in take_messages(broker, NOTIFY)}
    assert {event.status for event in events.values()} == {"Cancelled", "Published"}
    told = events[asked.build_id]
    assert (told.status, told.reason) == ("Cancelled", "cancelled by johnny: wrong disttag")
    assert (told.attempt, told.builder_fqdn) == (asked.attempt, "builder1.example.org")
    assert told.url == f"http://localhost:11081/bstore/attempts/{name_of(asked)}/"
    assert [sign.build_id for sign in take_messages(broker, TOSIGN)] == [other.build_id]
    assert not (store.root / asked.place).exists()
    assert not list(store.spool.iterdir())
    assert tree(store.attempts / name_of(asked)) == {"build.log", "root.log", "state.log", "build.json"}
    assert not os.path.lexists(store.index / f"{asked.build_id}.{asked.arch}")


def test_a_second_job_of_an_archived_upload_ends_when_the_flag_is_gone(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    """Two repogens may take up one upload that nobody asked for; the notifier deletes the flag after `Cancelled`."""
    asked = uploads.upload(store, rpms)
    cancel(broker, asked)
    work_on(daemon, broker, asked)
    assert [event.status for event in take_messages(broker, NOTIFY)] == ["Cancelled"]
    control.clear_flag(broker, cancel_tube(asked.build_id))
    work_on(daemon, broker, asked)
    assert take_messages(broker, NOTIFY) == []
    stats = broker.tube_stats("createrepo")
    assert (stats.delayed, stats.buried) == (0, 0)
    assert not (store.root / asked.place).exists()


def test_what_has_its_place_is_published_though_it_is_cancelled(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    asked = uploads.upload(store, rpms)
    work_on(daemon, broker, asked)
    cancel(broker, asked)
    work_on(daemon, broker, asked)
    assert [event.status for event in take_messages(broker, NOTIFY)] == ["Published", "Published"]
    assert (store.root / asked.place / NAME).exists()


def test_what_failed_by_itself_keeps_its_place_and_its_logs(broker: Broker, daemon: Repogen, store: StorePaths) -> None:
    asked = uploads.upload(store, {}, status=Status.FAILED)
    cancel(broker, asked)
    work_on(daemon, broker, asked)
    assert take_messages(broker, NOTIFY) == []
    assert (store.root / asked.place / "build.log").exists()


def test_a_bad_upload_of_a_cancelled_build_is_not_built_again(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    asked = uploads.upload(store, rpms)
    (uploads.spool_of(store, asked) / NAME).write_bytes(b"short")
    cancel(broker, asked)
    for _ in range(2):  # as it comes again after a crash
        work_on(daemon, broker, asked)
        assert [event.status for event in take_messages(broker, NOTIFY)] == ["Cancelled"]
    assert broker.tube_stats("x86_64").ready == 0


def test_a_bad_upload_says_as_which_job_it_is_built_again(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    asked = uploads.upload(store, rpms)
    (uploads.spool_of(store, asked) / NAME).write_bytes(b"short")
    work_on(daemon, broker, asked)
    (event,) = take_messages(broker, NOTIFY)
    assert (event.status, event.tube, event.priority) == ("Queued", "x86_64", PRIORITY)
    assert broker.job_stats(event.job).tube == "x86_64"


@pytest.mark.parametrize("status", [Status.UNFIT, Status.CANCELLED])
def test_logs_of_an_attempt_that_decides_nothing_are_kept_and_no_more(
    broker: Broker, daemon: Repogen, store: StorePaths, status: str
) -> None:
    asked = attr.evolve(uploads.upload(store, {}, status=status), index=False, logs=True)
    (uploads.spool_of(store, asked) / "early.rpm").write_bytes(b"cut")
    (uploads.spool_of(store, asked) / ".build.log.Xy12").write_bytes(b"cut")
    (store.live / name_of(asked)).mkdir()
    work_on(daemon, broker, asked, asked)
    assert take_messages(broker, NOTIFY) == []
    assert take_messages(broker, TOSIGN) == []
    assert tree(store.attempts / name_of(asked)) == {"build.log", "root.log", "state.log", "build.json"}
    assert read_manifest(store.attempts / name_of(asked)).status == status
    assert not list(store.spool.iterdir())
    assert not list(store.repo.iterdir())
    assert not list(store.live.iterdir())
    assert broker.tube_stats("createrepo").delayed == broker.tube_stats("createrepo").buried == 0


def test_such_logs_are_found_where_nobody_asked_for_them(
    broker: Broker, daemon: Repogen, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = uploads.upload(store, {}, status=Status.UNFIT)
    monkeypatch.setattr("reimzul.repogen.verify.UNREQUESTED_SECONDS", -10)
    daemon.do_idle_work(broker)
    (found,) = take_messages(broker, CREATEREPO)
    assert (found.logs, found.index, found.attempt) == (True, False, asked.attempt)


def test_growing_logs_go_when_their_leg_has_its_place(
    broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms
) -> None:
    asked, other = uploads.upload(store, rpms), uploads.upload(store, {}, status=Status.FAILED)
    for one in (asked, other):
        (store.live / name_of(one)).mkdir()
        (store.live / name_of(one) / "build.log").write_text("+ make\n")
    (store.live / "0123.x86_64.1-0").mkdir()
    work_on(daemon, broker, asked, other)
    assert [folder.name for folder in store.live.iterdir()] == ["0123.x86_64.1-0"], "of a build under way"


def test_growing_logs_of_a_killed_worker_go_in_the_end(
    broker: Broker, daemon: Repogen, store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.live / "0123.x86_64.1-0").mkdir()
    daemon.do_idle_work(broker)
    assert len(list(store.live.iterdir())) == 1
    monkeypatch.setattr(repogen_daemon, "LIVE_LOGS_SECONDS", -10.0)
    daemon._next_scan = 0.0
    daemon.do_idle_work(broker)
    assert not list(store.live.iterdir())


@pytest.mark.slow
def test_dying_at_any_step_of_a_cancelled_leg_publishes_nothing(
    broker: Broker, beanstalkd: Beanstalkd, rpms: Rpms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, rounds = uploads.Steps(monkeypatch), iter(range(1000))

    def scene() -> tuple[Repogen, RepogenRequest]:
        at, steps.die_at = steps.die_at, -1
        made = make_scene(tmp_path / str(next(rounds)), beanstalkd)
        asked = uploads.upload(made.context.store, rpms)
        cancel(broker, asked)
        broker.put(CREATEREPO, asked, priority=PRIORITY)
        steps.count, steps.die_at = 0, at
        return made, asked

    for _ in steps.deaths(lambda: work(scene()[0])):
        at, steps.die_at = steps.die_at, -1
        for tube in (NOTIFY, TOSIGN, CREATEREPO, arch_tube("x86_64")):
            take_messages(broker, tube)
        steps.die_at = at
        daemon, asked = scene()
        with pytest.raises(uploads.Died):
            work_on(daemon, broker)
        steps.live()
        work_on(daemon, broker)
        assert {event.status for event in take_messages(broker, NOTIFY)} == {"Cancelled"}
        assert take_messages(broker, TOSIGN) == []
        assert not tree(daemon.context.store.repo)
        assert tree(daemon.context.store.attempts / name_of(asked)) >= {"build.log", "build.json"}
        assert broker.tube_stats("createrepo").delayed == broker.tube_stats("createrepo").buried == 0
