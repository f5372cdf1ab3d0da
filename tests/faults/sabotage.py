# SPDX-License-Identifier: Apache-2.0
"""What must never be, made on purpose on a farm that is well, and undone: a check that finds nothing proves nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Callable

from reimzul.core.store_paths import leg_key
from reimzul.store.repodata import REPODATA
from tests.faults.ground import BUILDERS, Ground
from tests.faults.ledger import ARCH, Build
from tests.waiting import until

_ORPHAN = """
import subprocess, sys
nowhere = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]], **nowhere).pid)
"""
#: Plants one thing, and says which words a check has to find it with.
Plant = Callable[[Ground, Build], AbstractContextManager[str]]


def place(ground: Ground, build: Build) -> Path:
    """Where a build lies."""
    return (ground.farm.layout.store.index / leg_key(build.build_id, ARCH)).resolve()


@contextlib.contextmanager
def change_file(path: Path, content: bytes) -> Iterator[None]:
    """A file with another content."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_bytes(before)


@contextlib.contextmanager
def lose_record(ground: Ground, build: Build) -> Iterator[str]:
    """The history knows nothing of a build."""
    path = ground.farm.layout.history
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as history:
        rows = history.execute("SELECT * FROM builds WHERE submitter = ?", (build.name,)).fetchall()
        history.execute("DELETE FROM builds WHERE submitter = ?", (build.name,))
        try:
            yield "0 builds in history"
        finally:
            history.executemany(f"INSERT INTO builds VALUES ({', '.join('?' * len(rows[0]))})", rows)


@contextlib.contextmanager
def cancelled(ground: Ground, build: Build) -> Iterator[str]:
    """A build is cancelled, says the history, and published all the same."""
    path, legs = ground.farm.layout.history, dict(build.legs)
    change = "UPDATE builds SET document = json_set(document, '$.status', ?, '$.published', ?) WHERE submitter = ?"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as history:
        find = "SELECT json_extract(document, '$.published') FROM builds WHERE submitter = ?"
        (published,) = history.execute(find, (build.name,)).fetchone()
        history.execute(change, ("Cancelled", 0.0, build.name))
        build.cancelled = True
        try:
            yield "it is cancelled, and has a place"
        finally:
            build.cancelled, build.legs = False, legs
            history.execute(change, ("Success", published, build.name))


@contextlib.contextmanager
def half(ground: Ground, build: Build) -> Iterator[str]:
    """A published package is cut short."""
    package = next(place(ground, build).glob("*.noarch.rpm"))
    with change_file(package, package.read_bytes()[:100]):
        yield "is not what was built"


@contextlib.contextmanager
def unlisted(ground: Ground, build: Build) -> Iterator[str]:
    """The repodata knows nothing of it."""
    target = ground.farm.layout.store.target(f"{build.target}.{ARCH}")
    aside = ground.farm.layout.store.root / "aside"
    (target / REPODATA).rename(aside)
    try:
        yield "the repodata lists []"
    finally:
        aside.rename(target / REPODATA)


@contextlib.contextmanager
def unstaged(ground: Ground, build: Build) -> Iterator[str]:
    """It is not there for the signer."""
    staged = next(ground.farm.layout.store.tosign.glob(f"*/*.{build.build_id}"))
    aside = ground.home / "staged-aside"
    shutil.copytree(staged, aside)
    shutil.rmtree(staged)
    try:
        yield "staged for signing is False"
    finally:
        shutil.move(aside, staged)


@contextlib.contextmanager
def twice(ground: Ground, build: Build) -> Iterator[str]:
    """It has two places."""
    original = place(ground, build)
    copy = original.parent.parent / "20200101000000" / original.name
    shutil.copytree(original, copy)
    try:
        yield "has 2 places"
    finally:
        shutil.rmtree(copy.parent)


@contextlib.contextmanager
def told_again(ground: Ground, build: Build) -> Iterator[str]:
    """A result arrives a second time, with another id."""
    heard = ground.home / "heard"
    before = heard.stat().st_size
    line = next(
        f"{topic} {json.dumps({**said, 'id': 'another'})}\n"
        for topic, said in ground.heard()
        if topic.endswith("results") and said["build_id"] == build.build_id
    )
    with heard.open("a") as stream:
        stream.write(line)
    try:
        yield "MQTT told {'Success': 2}"
    finally:
        os.truncate(heard, before)


@contextlib.contextmanager
def mailed_again(ground: Ground, build: Build) -> Iterator[str]:
    """A mail comes a second time."""
    mails = ground.mail.mailbox.mails
    mails.append(next(mail for mail in mails if mail["X-Reimzul-Build-Id"] == build.build_id))
    try:
        yield "mailed 2 times"
    finally:
        mails.pop()


@contextlib.contextmanager
def stranger(ground: Ground, _: Build) -> Iterator[str]:
    """A process of the farm lives on beside it."""
    # its parent ends at once, and it is nobody's from then on
    argv = [sys.executable, "-c", _ORPHAN, str(ground.state)]
    pid = int(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
    try:
        yield f"process {pid} is nobody's"
    finally:
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def root(ground: Ground, _: Build) -> Iterator[str]:
    """A root of mock's is left."""
    folder = ground.home / "roots" / "planted"
    folder.mkdir()
    try:
        yield "root planted is left"
    finally:
        folder.rmdir()


@contextlib.contextmanager
def workspace(ground: Ground, _: Build) -> Iterator[str]:
    """A builder has a folder of a build that is over."""
    folder = ground.farm.layout.results(BUILDERS[0]) / "builds" / "planted"
    folder.mkdir()
    try:
        yield "has planted left"
    finally:
        folder.rmdir()


@contextlib.contextmanager
def upload(ground: Ground, _: Build) -> Iterator[str]:
    """An upload is in the spool that nobody takes up."""
    folder = ground.farm.layout.store.spool / "planted"
    folder.mkdir()
    try:
        yield "spool/planted is left"
    finally:
        folder.rmdir()


@contextlib.contextmanager
def lock(ground: Ground, build: Build) -> Iterator[str]:
    """A target's lock is held."""
    with ground.farm.layout.store.lock(f"{build.target}.{ARCH}").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield "is held"


@contextlib.contextmanager
def mount(ground: Ground, _: Build) -> Iterator[str]:
    """Something is mounted that was not."""
    folder = ground.home / "planted"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "planted", folder], check=True)
    try:
        yield "planted is mounted"
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


@contextlib.contextmanager
def job(ground: Ground, _: Build) -> Iterator[str]:
    """A job is buried."""
    with ground.broker() as broker:
        number = broker.put_raw("tosign", b"not JSON", priority=1)
        until(lambda: broker.job_stats(number).state == "buried", 20, "it is buried")
        try:
            yield "should be 0"
        finally:
            broker.delete(number)


ALL: Mapping[str, Plant] = MappingProxyType(
    {
        plant.__name__: plant
        for plant in (
            lose_record,
            cancelled,
            half,
            unlisted,
            unstaged,
            twice,
            told_again,
            mailed_again,
            stranger,
            root,
            workspace,
            upload,
            lock,
            mount,
            job,
        )  # fmt: skip
    }
)
