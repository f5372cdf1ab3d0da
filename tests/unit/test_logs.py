# SPDX-License-Identifier: Apache-2.0
"""Following a log: to its end, without an end, and while the history is unavailable."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import attr
import pytest

from reimzul.admin import logs as module
from reimzul.admin.logs import LogFollower, LogOutput, NoLog
from reimzul.admin.output import Table, print_result, print_table
from reimzul.core.store_paths import StoreUrls
from reimzul.history import BuildRecord, HistoryUnavailable
from reimzul.history.build_record import RecordedAttempt
from tests.events import ATTEMPT, build_id
from tests.webserver import close, serve


class Printed:
    """An output that keeps what is printed."""

    def __init__(self) -> None:
        self.body, self.notes = b"", ""

    def write(self, piece: bytes) -> None:
        self.body += piece

    def print_note(self, text: str) -> None:
        self.notes += f"{text}\n"


def leg(status: str) -> BuildRecord:
    attempt = RecordedAttempt(attempt=ATTEMPT, builder_fqdn="b1", status=status)
    return BuildRecord(build_id=build_id(1), arch="x86_64", status=status, attempts=(attempt,))


def follow(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, *told: BuildRecord | None
) -> tuple[bool, Printed]:
    """Follow a log that lies there while the history says this, one after the other; None: it is away."""
    for name in ("_POLL_SECONDS", "_HISTORY_POLL_SECONDS", "_ARRIVAL_TIMEOUT_SECONDS"):
        monkeypatch.setattr(module, name, 0.05)
    server = serve(folder)
    urls = StoreUrls.from_settings(f"http://127.0.0.1:{server.server_port}/repo/", "")
    place = urls.live if where == "live" else urls.attempt
    path = folder / place(build_id(1), "x86_64", ATTEMPT).partition(f":{server.server_port}/")[2]
    path.mkdir(parents=True)
    (path / "build.log").write_bytes(b"+ make\n")
    logs, left, said = LogFollower("", urls, build_id(1), None, "build.log"), list(told), Printed()

    def find_record() -> BuildRecord:
        found = left.pop(0) if len(left) > 1 else left[0]
        if found is None:
            raise HistoryUnavailable("away")
        return found

    monkeypatch.setattr(logs, "_read_leg", find_record)
    try:
        return logs.print_log(said, None, follow=True), said  # type: ignore[arg-type]
    finally:
        close(server)


def test_a_complete_log_is_followed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, said = follow(tmp_path, monkeypatch, "attempts", leg("Failed"))
    assert (whole, said.body, said.notes) == (True, b"+ make\n", "")


def test_a_log_whose_end_never_arrives_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, said = follow(tmp_path, monkeypatch, "live", leg("Failed"))
    assert (whole, said.body) == (False, b"+ make\n")
    assert said.notes == "attempt 1 on b1 is over, and the end of this log has not arrived\n"


def test_following_survives_an_unavailable_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [leg("Building"), None, None, leg("Failed")]
    whole, said = follow(tmp_path, monkeypatch, "attempts", *told)
    assert (whole, said.body) == (True, b"+ make\n")


def print_failed_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch, logs: dict[str, bytes], name: str | None, **known: Any
) -> Printed:
    """Print a log of a failed attempt of which these logs are kept."""
    server = serve(folder)
    urls = StoreUrls.from_settings(f"http://127.0.0.1:{server.server_port}/repo/", "")
    path = folder / urls.attempt(build_id(1), "x86_64", ATTEMPT).partition(f":{server.server_port}/")[2]
    path.mkdir(parents=True)
    for log, body in logs.items():
        (path / log).write_bytes(body)
    document = leg("Failed")
    document = attr.evolve(document, attempts=(attr.evolve(document.attempts[0], **known),))
    wanted, said = LogFollower("", urls, build_id(1), None, name), Printed()
    monkeypatch.setattr(wanted, "_read_leg", lambda: document)
    try:
        wanted.print_log(said, None, follow=False)  # type: ignore[arg-type]
    finally:
        close(server)
    return said


LONG = b"".join(b"line %d of a long log\n" % number for number in range(200_000))


@pytest.mark.parametrize("packed", [gzip.compress(LONG), gzip.compress(LONG[:99]) + gzip.compress(LONG[99:])])
def test_a_gzipped_log_is_printed_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bytes) -> None:
    assert print_failed_log(tmp_path, monkeypatch, {"build.log.gz": packed}, "build.log").body == LONG


def test_a_damaged_gzipped_log_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoLog, match=r"build\.log\.gz is damaged"):
        print_failed_log(tmp_path, monkeypatch, {"build.log.gz": b"no gzip"}, "build.log")


@pytest.mark.parametrize(
    ("known", "name", "body"),
    [
        ({"error_log": "root.log"}, None, b"root"),
        ({"error_log": "root.log"}, "build.log", b"build"),
        ({"error_log": "../../x"}, None, b"build"),
        ({}, None, b"build"),
    ],
)
def test_the_log_with_the_cause_is_printed_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any], name: str | None, body: bytes
) -> None:
    said = print_failed_log(tmp_path, monkeypatch, {"build.log": b"build", "root.log": b"root"}, name, **known)
    assert said.body == body
    assert said.notes == ("root.log: it has the cause of the failure\n" if body == b"root" else "")


def test_a_log_followed_from_live_into_a_packed_one_is_printed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = print_failed_log(tmp_path / "a", monkeypatch, {"build.log.gz": gzip.compress(LONG)}, "build.log")
    assert printed.body == LONG
    unpacker = module._GzipLog(len(LONG) // 2)
    assert unpacker.unpack(gzip.compress(LONG)) == LONG[len(LONG) // 2 :]


def test_a_log_on_a_terminal_neither_controls_it_nor_turns_text_around(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    LogOutput().write("a\x1b[2Jb\u202ec\u2066d\u200fe\u061cf\n".encode())
    assert capsys.readouterr().out == "a?[2Jb?c?d?e?f\n"


def test_a_table_and_a_result_turn_no_text_around(capsys: pytest.CaptureFixture[str]) -> None:
    """The history of a farm may have texts from before such characters were refused."""
    print_table(Table(["A"]), [["a\u202eb"]])
    print_result(None, ["c\u2066d"], False)
    assert capsys.readouterr().out == "a?b\nc?d\n"
