# SPDX-License-Identifier: Apache-2.0
"""A SQLite history that is damaged on its disk: what can be read is kept, the rest is reported as lost."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.core import sqlite as files
from reimzul.core.links import LinkSource
from reimzul.core.settings import Settings, StoreSettings
from reimzul.history import CORRUPT_PATTERN, BuildFilter, History, HistoryDamaged, open_history, repair_history
from reimzul.history.result_rules import Notification
from reimzul.notifier.delivery import SinkUnavailable
from reimzul.notifier.sinks import HistorySink
from tests.events import build_id, event, refusal

_PAGE = 4096
_COUNT = 90


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A history of many builds, in one file."""
    with contextlib.closing(open_history(f"sqlite://{tmp_path}/history.sqlite")) as history:
        history.record([*(event("Success", number) for number in range(_COUNT)), refusal()])
    return tmp_path / "history.sqlite"


def _overwrite(path: Path, at: int, what: bytes = b"\xa5" * _PAGE) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(what)


def _leaf(path: Path, number: int) -> int:
    """Where the page with a build's document begins."""
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        (document,) = db.execute("SELECT document FROM builds WHERE key LIKE ?", [f"{build_id(number)}%"]).fetchone()
    return path.read_bytes().index(document.encode()) // _PAGE * _PAGE


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[History]:
    with contextlib.closing(open_history(f"sqlite://{path}", reading=True)) as history:
        yield history


def _read_ids(path: Path) -> set[str]:
    with _reading(path) as history:
        return {build.build_id for build in history.iterate_builds(BuildFilter())}


def _deliver(sink: HistorySink, number: int) -> None:
    list(sink.deliver([Notification(event("Success", number), "Success", seq=1)]))


def _asides(path: Path) -> list[Path]:
    return [each for each in path.parent.glob(CORRUPT_PATTERN) if each.suffix.startswith(".corrupt")]


def _sink(path: Path) -> HistorySink:
    return HistorySink(
        f"sqlite://{path}", LinkSource(Settings(bstore=StoreSettings(public_url="http://bstore.example.org/")))
    )


def _damage(path: Path, harm: str) -> None:
    if harm == "header":
        _overwrite(path, 0)
    elif harm == "cut":
        os.truncate(path, path.stat().st_size // _PAGE // 2 * _PAGE)
    else:
        for at in [_leaf(path, number) for number in (20, 60)]:
            _overwrite(path, at)


@pytest.mark.parametrize(("harm", "least", "lost"), [("header", -1, _COUNT), ("cut", -1, 1), ("pages", _COUNT - 40, 2)])
def test_a_damaged_history_is_replaced_by_what_can_be_read(
    path: Path, harm: str, least: int, lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    _damage(path, harm)
    damaged = path.read_bytes()
    sink = _sink(path)
    _deliver(sink, 99)
    sink.close()
    (aside,) = _asides(path)
    assert aside.read_bytes() == damaged
    known = _read_ids(path)
    assert build_id(99) in known
    assert least < len(known) - 1 <= _COUNT - lost, "a damaged page costs its own builds alone"
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said == (
        f"the history {path} was damaged: it is now {aside}, and {len(known) - 1} builds could be read from it; "
        "others are lost"
    )


def test_damage_that_comes_while_the_notifier_runs_is_found_when_sqlite_meets_it(path: Path) -> None:
    sink = _sink(path)
    _deliver(sink, 98)
    sink.close()  # SQLite has all of so small a file in memory
    _overwrite(path, 0, b"\xa5" * path.stat().st_size)
    with pytest.raises(SinkUnavailable, match="the history cannot be used"):
        _deliver(sink, 99)
    _deliver(sink, 99)
    sink.close()
    assert build_id(99) in _read_ids(path)
    assert len(_asides(path)) == 1


def test_an_index_that_does_not_fit_is_mended(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'refused') "
                   "WHERE name = 'builds_group'")  # fmt: skip
        db.commit()
    assert "90 builds" in repair_history(f"sqlite://{path}", thorough=True)
    assert len(_read_ids(path)) == _COUNT


def test_a_record_that_is_no_json_is_left_out_and_made_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        query = "UPDATE builds SET document = CAST(? AS TEXT) WHERE key LIKE ?"
        for number, harm in enumerate((b"{", b"\xff\xfe{}", b"[17]", b"")):
            db.execute(query, (harm, f"{build_id(number)}%"))
        db.commit()
    assert len(_read_ids(path)) == _COUNT - 4
    assert caplog.text.count("is damaged, and left out") == 4
    sink = _sink(path)
    _deliver(sink, 1)
    sink.close()
    assert len(_read_ids(path)) == _COUNT - 3
    assert not _asides(path)


def test_the_latest_build_of_a_group_is_named_again_where_it_is_lost(path: Path) -> None:
    with _reading(path) as history:
        (latest,) = [build.build_id for build in history.iterate_builds(BuildFilter()) if build.latest_build]
    with contextlib.closing(sqlite3.connect(str(path))) as db:
        db.execute("UPDATE builds SET document = '{' WHERE key LIKE ?", (f"{latest}%",))
        db.commit()
    _overwrite(path, _leaf(path, 40))
    assert repair_history(f"sqlite://{path}")
    with _reading(path) as history:
        assert sum(build.latest_build for build in history.iterate_builds(BuildFilter())) == 1


def test_a_kill_between_the_two_renames_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _overwrite(path, _leaf(path, 40))

    def raise_interrupt(source: object, _: object) -> None:
        raise KeyboardInterrupt(source)

    with monkeypatch.context() as patch:
        patch.setattr(
            "reimzul.history.sqlite.os.rename",
            _rename_instead(path.parent / "history.sqlite.salvaged", raise_interrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            repair_history(f"sqlite://{path}")
    assert not path.exists()
    assert repair_history(f"sqlite://{path}") == ""
    assert len(_read_ids(path)) > _COUNT / 2


def _rename_instead(source: Path, instead: object) -> object:
    real = os.rename

    def rename(old: object, new: object) -> None:
        if Path(str(old)) == source:
            instead(old, new)  # type: ignore[operator]
        else:
            real(old, new)  # type: ignore[arg-type]

    return rename


def test_what_is_only_busy_or_full_is_not_damaged(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        sink = _sink(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "BUSY_TIMEOUT_SECONDS", 0.1)
            with pytest.raises(SinkUnavailable, match="locked"):
                _deliver(sink, 1)
    sink.close()
    assert not _asides(path)


def test_a_reader_of_a_damaged_history_is_told_so(path: Path) -> None:
    _overwrite(path, 0, b"\xa5" * path.stat().st_size)
    with pytest.raises(HistoryDamaged, match="the history cannot be used"):
        _read_ids(path)
