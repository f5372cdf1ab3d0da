# SPDX-License-Identifier: Apache-2.0
"""The interfaces that other programs read, made from fixed inputs: messages, history documents, JSON output, settings.

tests/samples/golden/ holds these texts. A change of one of them is a change of an interface: update the files with
`python -m tests.golden`, in a commit of its own whose body lists old and new.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attr

from reimzul.core.config import sample_text
from reimzul.core.control import ControlFlag
from reimzul.core.json_message import Message
from reimzul.core.manifest import File, Manifest
from reimzul.core.message import (
    BuilderEvent,
    BuildEvent,
    BuildRequest,
    CurrentBuild,
    FailedAttempt,
    Phase,
    RecentError,
    RepogenRequest,
    Role,
    SignRequest,
    WorkerHeartbeat,
    event_for,
)
from reimzul.history import open_history
from tests.events import ATTEMPT, BEGINNING, OTHER_ATTEMPT, batch_event, build_id, event, refusal

FOLDER = Path(__file__).with_name("samples") / "golden"
_ANY_JOB = 17
_PLACE = "repo/c7.1708.u.x86_64/time/20251122000001/1.7-45.el7.x86_64"


def _request() -> BuildRequest:
    return BuildRequest(
        srpm="time-1.7-45.el7.src.rpm",
        arch="x86_64",
        target="c7.1708.u.x86_64",
        disttag=".el7",
        submitter="johnny",
        build_id=build_id(1),
        timestamp="20251122000001",
        srpm_sha256="0" * 64,
        tries=(FailedAttempt(builder="b1.example.org", when=BEGINNING, words="no space left"),),
        parent=build_id(9),
        legs=("x86_64", "i386"),
        source_rounds=2,
    )


def _messages() -> Iterator[Message]:
    request = _request()
    yield request
    yield BuildRequest(srpm="a-1-1.src.rpm", arch="i386", target="c7.i386", disttag=".el7", submitter="root")
    yield event_for(request, "Queued", at=BEGINNING, job=_ANY_JOB, tube="x86_64")
    yield attr.evolve(request, batch="5f0c12ab", bconds=("bootstrap",), tries=(), legs=())
    yield event("Queued", attempt=ATTEMPT, job=_ANY_JOB, held=True, missing=("b-devel >= 2",), batch="5f0c12ab")
    yield event("Building", skipped={"i386": "a noarch package is built once"})
    yield event("Failed", exit_code=10, reason="mock: build failed", first_error="x\ny", error_line="y")
    yield event(
        "Success",
        rpms=("time-1.7-45.el7.x86_64.rpm",),
        exit_code=0,
        phases=(Phase(name="chroot", start=BEGINNING, end=BEGINNING + 1.5),),
    )
    yield refusal()
    yield BuilderEvent(status="Quarantined", builder="b1.example.org", reason="6 faults", at=BEGINNING)
    yield batch_event()
    current: dict[str, Any] = {
        "build_id": build_id(1),
        "srpm": request.srpm,
        "target": request.target,
        "arch": request.arch,
    }
    yield WorkerHeartbeat(
        host="b1.example.org",
        instance="1",
        state="building",
        build=CurrentBuild(attempt=ATTEMPT, phase="rpmbuild", **current),
        at=BEGINNING,
        arches=("x86_64",),
        version="0.1.0",
    )
    failing = RecentError(what="indexing", message="createrepo_c ended with 1", target=request.target, since=BEGINNING)
    yield WorkerHeartbeat(
        host="s1.example.org",
        instance="repogen-1",
        role=Role.REPOGEN,
        state="idle",
        at=BEGINNING,
        interval=30,
        errors=(failing,),
    )
    yield RepogenRequest(target=request.target)
    yield RepogenRequest(target=request.target, build_id=build_id(1), arch="x86_64", attempt=ATTEMPT, place=_PLACE)
    yield SignRequest(
        pkgname="time",
        status="Success",
        target=request.target,
        build_id=build_id(1),
        arch="x86_64",
        timestamp=request.timestamp,
        place=_PLACE,
    )
    yield ControlFlag(by="johnny", why="wrong branch", at=BEGINNING)
    yield Manifest(
        request=request,
        attempt=ATTEMPT,
        status="Success",
        arch="x86_64",
        builder_fqdn="b1.example.org",
        pkgname="time",
        evr="1.7-45.el7",
        started=BEGINNING,
        finished=BEGINNING + 60,
        files=(File(name="build.log", size=3, sha256="1" * 64),),
    )


def message_lines() -> str:
    """One message a line, as it is sent."""
    return "".join(f"{message.encode().decode()}\n" for message in _messages())


def _events() -> list[Any]:
    """The events of three builds: one published after a retry, one failed, one still building."""

    def make_queued(number: int) -> BuildEvent:
        return event("Queued", number, job=_ANY_JOB, tube="x86_64")

    fault = event("Queued", 1, builder_fqdn="b1.example.org", attempt=ATTEMPT, reason="no space left", job=18)
    done: dict[str, Any] = {"attempt": OTHER_ATTEMPT, "exit_code": 0, "rpms": ("time-1.7-45.el7.x86_64.rpm",)}
    return [
        *(make_queued(number) for number in (1, 2, 3)),
        event("Building", 1),
        fault,
        event("Building", 1, attempt=OTHER_ATTEMPT),
        event("Success", 1, **done),
        event("Published", 1, **done),
        event("Building", 2),
        event("Failed", 2, exit_code=1, reason="mock: build failed", first_error="a\nb", error_line="b"),
        event("Building", 3, arch="i386", submitter="karanbir"),
        refusal(),
    ]


def _fill_history(folder: Path) -> Path:
    history = open_history(f"sqlite:///{folder}/history.sqlite")
    history.record(_events())
    history.close()
    return folder / "history.sqlite"


def history_lines(folder: Path) -> str:
    """The documents that the history keeps of these builds and of a refused message, one a line."""
    with sqlite3.connect(_fill_history(folder)) as db:
        rows = [
            row for table in ("builds", "refused") for row in db.execute(f"SELECT document FROM {table} ORDER BY key")
        ]
    db.close()
    return "".join(f"{json.dumps(json.loads(text), sort_keys=True)}\n" for (text,) in rows)


def json_output(folder: Path) -> str:
    """The JSON of the commands that need the history alone."""
    _fill_history(folder)
    (folder / "reimzul.ini").write_text(f"[history]\nurl = sqlite:///{folder}/history.sqlite\n[beanstalkd]\nport = 9\n")
    program = [sys.executable, "-m", "reimzul.admin.main"]
    environment = {**os.environ, "REIMZUL_CONFIG": str(folder / "reimzul.ini")}
    output: list[str] = []
    for words in (["builds"], ["builds", "--status", "failed"], ["stats", "--since", "2025-11-01"]):
        done = subprocess.run([*program, *words, "--json"], stdout=subprocess.PIPE, env=environment, check=True)
        lines = [line for line in done.stdout.decode().splitlines() if '"until"' not in line]  # the time of the call
        output += [f"$ reimzul {' '.join(words)} --json", *lines]
    return "\n".join(output) + "\n"


def settings_lines() -> str:
    """Every section and setting with its default, without the comments."""
    return "".join(f"{line}\n" for line in sample_text().splitlines() if line and not line.startswith("#"))


def texts() -> dict[str, str]:
    """Every text, by the name of its file."""
    with tempfile.TemporaryDirectory() as history, tempfile.TemporaryDirectory() as output:
        return {
            "messages.txt": message_lines(),
            "history.txt": history_lines(Path(history)),
            "json.txt": json_output(Path(output)),
            "settings.txt": settings_lines(),
        }


if __name__ == "__main__":
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
