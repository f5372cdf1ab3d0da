# SPDX-License-Identifier: Apache-2.0
"""Who is there: the file the notifier keeps, what it writes into it, and how a worker's voice spares the tube."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any, cast

import pytest

from reimzul.core.errors import Again, ClaimLost
from reimzul.core.message import Presence, State
from reimzul.core.tube import Broker, Claim, TubeStats
from reimzul.notifier import roll as roll_module
from reimzul.notifier.history.presence import NoPresences, Presences, Seen
from reimzul.notifier.roll import Roll
from reimzul.worker import voice as voice_module
from reimzul.worker.voice import CROWD, Self, Voice


def word(host: str = "b1.example.org", instance: str = "1", **more: Any) -> Presence:
    return Presence(**{"host": host, "instance": instance, "state": State.IDLE, "at": 5.0, **more})


def seen(heard: float, *given: str, **more: Any) -> Seen:
    return Seen(presence=word(*given, **more), heard=heard)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notifier" / "presence.sqlite"


# --- the file


def test_the_latest_word_of_each_is_kept(path: Path) -> None:
    file = Presences(path)
    file.keep([seen(10, load=1.0), seen(10, "b1.example.org", "2"), seen(10, "a1.example.org")])
    file.keep([seen(40, load=2.0)])
    found = Presences(path).all()
    assert [(each.presence.host, each.presence.instance) for each in found] == [
        ("a1.example.org", "1"), ("b1.example.org", "1"), ("b1.example.org", "2"),
    ]  # fmt: skip
    assert (found[1].heard, found[1].presence.load) == (40, 2.0)
    file.close()
    assert Presences(path).all() == found, "nobody has it open"


def test_an_older_word_takes_no_newer_one_away(path: Path) -> None:
    file = Presences(path)
    file.keep([seen(40, load=2.0)])
    file.keep([seen(10, load=1.0)])
    assert file.all()[0].presence.load == 2.0
    file.close()


def test_who_is_silent_for_long_is_forgotten(path: Path) -> None:
    file = Presences(path)
    file.keep([seen(10), seen(50, "b2.example.org")])
    file.forget(40)
    assert [each.presence.host for each in file.all()] == ["b2.example.org"]
    file.close()


def test_a_file_that_is_not_there_has_nobody_in_it(path: Path) -> None:
    assert Presences(path).all() == []


def test_an_empty_file_and_a_strange_row_are_no_fault(path: Path) -> None:
    file = Presences(path)
    file.keep([seen(10)])
    file.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("INSERT INTO presence VALUES ('x', '1', 1, '{\"colour\": 1}')")
    assert [each.presence.host for each in Presences(path).all()] == ["b1.example.org"]
    path.unlink()
    path.touch()
    assert Presences(path).all() == []


def test_a_file_that_is_none_is_said_in_one_line(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("this is no database" * 100)
    with pytest.raises(NoPresences, match=r"presence\.sqlite: who is there cannot be read or written"):
        Presences(path).all()


# --- what the notifier hears


class OfAge:
    """A claim on a job that was put some seconds ago."""

    def __init__(self, age: int) -> None:
        self.age = age

    @property
    def facts(self) -> OfAge:
        if self.age < 0:
            raise ClaimLost("gone")
        return self


def heard(*words: tuple[int, Presence]) -> list[tuple[Claim[Any], Presence]]:
    return [(cast("Claim[Any]", OfAge(age)), said) for age, said in words]


def test_what_is_stale_is_dropped(path: Path) -> None:
    roll = Roll(path)
    roll.call(heard((roll_module.STALE + 1, word()), (3, word("b2.example.org")), (-1, word("b3.example.org"))))
    assert [each.presence.host for each in Presences(path).all()] == ["b2.example.org"]
    roll.close()


def test_of_several_words_the_last_said_is_kept(path: Path) -> None:
    roll = Roll(path)
    roll.call(heard((20, word(load=1.0)), (9, word(load=2.0))))
    assert Presences(path).all()[0].presence.load == 2.0
    roll.close()


def test_a_file_that_cannot_be_written_holds_up_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    roll = Roll(Path("/proc/nowhere/presence.sqlite"))
    for _ in range(3):
        roll.call(heard((1, word())))
    assert len(caplog.records) == 1


# --- a worker's voice


class Listener:
    """As much of a broker as a voice needs."""

    def __init__(self, ready: int = 0) -> None:
        self.ready = ready
        self.full = False
        self.heard: list[Presence] = []

    def stats(self, tube: str) -> TubeStats:
        return TubeStats(tube, ready=self.ready)

    def announce(self, said: Presence) -> None:
        if self.full:
            raise Again("beanstalkd takes nothing now")
        self.heard.append(said)


class Clock:
    """A clock that stands still unless it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(voice_module, "time", stopped)
    return stopped


def voice(tmp_path: Path, every: int = 30) -> Voice:
    return Voice(Self(host="b1.example.org", instance="1", arches=("x86_64",), folders=(tmp_path,)), every)


def say(speaker: Voice, listener: Listener, state: str = State.IDLE, why: str = "") -> int:
    speaker.say(cast("Broker", listener), state, why)
    return len(listener.heard)


def test_a_word_is_said_every_so_often_and_soon_after_a_change(tmp_path: Path, clock: Clock) -> None:
    speaker, listener = voice(tmp_path), Listener()
    assert say(speaker, listener) == 1
    clock.now += 10
    assert say(speaker, listener) == 1, "nothing has changed"
    assert say(speaker, listener, State.UNFIT, "disk") == 2
    clock.now += 1
    assert say(speaker, listener) == 2, "a breath is drawn first"
    clock.now += 5
    assert say(speaker, listener) == 3
    clock.now += 31
    assert say(speaker, listener) == 4
    assert (listener.heard[1].state, listener.heard[1].why) == ("unfit", "disk")
    free = os.statvfs(tmp_path)
    assert listener.heard[0].free_mib == pytest.approx(free.f_bavail * free.f_frsize // 2**20, abs=2000)


def test_nobody_speaks_into_a_crowd(tmp_path: Path, clock: Clock) -> None:
    speaker, listener = voice(tmp_path), Listener(ready=CROWD + 1)
    assert say(speaker, listener) == 0
    listener.ready = CROWD
    assert say(speaker, listener) == 0, "not before it is due again"
    clock.now += 31
    assert say(speaker, listener) == 1


def test_a_beanstalkd_that_takes_nothing_is_no_fault(tmp_path: Path, clock: Clock) -> None:
    speaker, listener = voice(tmp_path), Listener()
    listener.full = True
    assert say(speaker, listener) == 0


def test_who_is_to_be_silent_is(tmp_path: Path) -> None:
    assert say(voice(tmp_path, every=0), Listener()) == 0
