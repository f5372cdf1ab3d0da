# SPDX-License-Identifier: Apache-2.0
"""A log that is followed: its end, an end that never comes, and a history that is away meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reimzul.core.bstore import StoreUrls
from reimzul.notifier.history import HistoryAway
from reimzul.operator import logs as module
from reimzul.operator.logs import Logs
from tests.events import ATTEMPT, build_id
from tests.webserver import close, serve


class Said:
    """What was printed."""

    def __init__(self) -> None:
        self.body, self.notes = b"", ""

    def write(self, piece: bytes) -> None:
        self.body += piece

    def note(self, words: str) -> None:
        self.notes += f"{words}\n"


def leg(status: str) -> dict[str, Any]:
    attempt = {"attempt": ATTEMPT, "builder_fqdn": "b1", "status": status}
    return {"build_id": build_id(1), "arch": "x86_64", "status": status, "attempts": [attempt]}


def follow(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, *told: dict[str, Any] | None
) -> tuple[bool, Said]:
    """Follow a log that lies there while the history says this, one after the other; None: it is away."""
    for name in ("_LOOK", "_ASK", "_ON_ITS_WAY"):
        monkeypatch.setattr(module, name, 0.05)
    server = serve(folder)
    urls = StoreUrls.of(f"http://127.0.0.1:{server.server_port}/repo/", "")
    place = urls.live if where == "live" else urls.attempt
    path = folder / place(build_id(1), "x86_64", ATTEMPT).partition(f":{server.server_port}/")[2]
    path.mkdir(parents=True)
    (path / "build.log").write_bytes(b"+ make\n")
    logs, left, said = Logs("", urls, build_id(1), None, "build.log"), list(told), Said()

    def now() -> dict[str, Any]:
        found = left.pop(0) if len(left) > 1 else left[0]
        if found is None:
            raise HistoryAway("away")
        return found

    monkeypatch.setattr(logs, "_leg", now)
    try:
        return logs.print(said, None, follow=True), said  # type: ignore[arg-type]
    finally:
        close(server)


def test_a_log_that_is_complete_is_followed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, said = follow(tmp_path, monkeypatch, "attempts", leg("Failed"))
    assert (whole, said.body, said.notes) == (True, b"+ make\n", "")


def test_an_end_that_never_comes_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, said = follow(tmp_path, monkeypatch, "live", leg("Failed"))
    assert (whole, said.body) == (False, b"+ make\n")
    assert said.notes == "attempt 1 on b1 is over, and the end of this log is not there yet\n"


def test_a_history_that_is_away_for_a_while_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [leg("Building"), None, None, leg("Failed")]
    whole, said = follow(tmp_path, monkeypatch, "attempts", *told)
    assert (whole, said.body) == (True, b"+ make\n")
