# SPDX-License-Identifier: Apache-2.0
"""Logs that are sent while they grow: what a leg has left is sent too, once it is over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from reimzul.core.store_paths import StoreUrls
from reimzul.worker.upload import LogStreamer
from tests.events import ATTEMPT, build_id


def make_leg(folder: Path, script: str) -> Any:
    """A leg that writes a line just before it is over, with a program for rsync."""
    rsync = folder / "rsync"
    rsync.write_text(f"#!/bin/sh\n{script}\n")
    rsync.chmod(0o755)
    (folder / "result").mkdir()
    attempt = SimpleNamespace(request=SimpleNamespace(build_id=build_id(1)), token=ATTEMPT)
    source = folder / "time-1.7-45.el7.src.rpm"
    leg: Any = SimpleNamespace(attempt=attempt, source=source, arch="x86_64", folder=folder, results=folder / "result")
    live = LogStreamer(
        str(rsync), (), StoreUrls.from_settings("http://127.0.0.1:9/repo/", "rsync://127.0.0.1/bstore/"), 3600
    )
    with live.streaming(leg):
        (folder / "result" / "build.log").write_text("the end\n")
    return leg


def test_the_end_of_a_log_is_sent_when_the_leg_is_over(tmp_path: Path) -> None:
    make_leg(tmp_path, f'for word; do case $word in */build.log) cp "$word" {tmp_path}/sent;; esac; done')
    assert (tmp_path / "sent").read_text() == "the end\n"


def test_a_store_that_is_away_ends_no_leg(tmp_path: Path) -> None:
    make_leg(tmp_path, f"touch {tmp_path}/tried; exit 10")
    assert (tmp_path / "tried").exists()
