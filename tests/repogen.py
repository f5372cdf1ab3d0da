# SPDX-License-Identifier: Apache-2.0
"""repogen on a store with a real package: its settings, its daemon, and jobs put, worked on and taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reimzul.core import fs
from reimzul.core.beanstalk import CREATEREPO, PRIORITY, Broker, Tube
from reimzul.core.config import parse_settings
from reimzul.core.message import RepogenRequest, WorkerHeartbeat
from reimzul.core.retry import CancelToken
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StorePaths
from reimzul.repogen.daemon import Repogen
from reimzul.store.createrepo import CreaterepoRunner
from reimzul.store.listing import read_listing
from tests.conftest import Beanstalkd
from tests.uploads import TARGET

#: The package that the fixture `rpms` makes.
NAME = "hello-1.0-1.noarch.rpm"
#: Packages by file name: content and NEVRA, as `uploads.upload` takes them.
Rpms = Mapping[str, tuple[bytes, str]]


def as_rpms(*paths: Path) -> Rpms:
    """Package files as `uploads.upload` takes them."""
    return {path.name: (path.read_bytes(), path.name[: -len(".rpm")]) for path in paths}


def make_settings(folder: Path, beanstalkd: Beanstalkd, more: str = "") -> Settings:
    """Settings of a store in a folder, which also gets the file."""
    ini = f"[beanstalkd]\nhost = 127.0.0.1\nport = {beanstalkd.port}\n[bstore]\nroot = {folder / 'bstore'}\n{more}"
    (folder / "reimzul.ini").write_text(ini)
    return parse_settings(ini, "test")


def ask(broker: Broker, *requests: RepogenRequest) -> None:
    """Put requests into the tube of repogen."""
    for request in requests:
        broker.put(CREATEREPO, request, priority=PRIORITY)


def work(daemon: Repogen) -> None:
    """Handle what waits now, on a connection of its own; dying closes it, as the kernel would."""
    with daemon.connect() as broker:
        broker.watch(daemon.tubes)
        while broker.tube_stats("createrepo").ready:
            daemon.settle_all(broker, daemon.reserve_jobs(broker))


def take_messages(broker: Broker, tube: Tube[Any]) -> list[Any]:
    """Take the messages that lie ready in a tube, apart from heartbeats."""
    broker.watch([tube.name])
    messages = []
    while claim := broker.reserve({tube.name: tube}, 0):
        if not isinstance(claim.message, WorkerHeartbeat):
            messages.append(claim.message)
        claim.delete()
    return messages


def list_packages(store: StorePaths, target: str = TARGET) -> set[str]:
    """The packages that a target's visible repodata lists."""
    return set(read_listing(store.target(target) / "repodata"))


def index(createrepo: CreaterepoRunner, **more: Any) -> None:
    """Index the target, and make the result visible."""
    with fs.file_lock(createrepo.store.lock(TARGET)) as lock:
        assert lock
        createrepo.run(TARGET, lock, CancelToken(), **more)
        createrepo.show(createrepo.make_draft(TARGET), CancelToken())
