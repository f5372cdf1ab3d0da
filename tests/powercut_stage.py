# SPDX-License-Identifier: Apache-2.0
"""Records what repogen and tosign do on a store, and restarts them on each state that a power cut can leave."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, Union

import attr
import greenstalk
import pytest

from reimzul.core import beanstalk, fs, process
from reimzul.core.beanstalk import PRIORITY, Broker, ReservedJob
from reimzul.core.message import RepogenRequest, SignRequest
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StorePaths
from reimzul.repogen.daemon import Repogen
from reimzul.store import createrepo
from reimzul.store.repodata import REPODATA
from reimzul.tosign import daemon as tosign_daemon
from reimzul.tosign.daemon import SignableLeg, Tosign
from tests import uploads
from tests.powercut import Cut, Recorder, Tree, write_tree
from tests.repogen import Rpms
from tests.simulate.beanstalkd import Client, Server
from tests.simulate.primitives import StandIn
from tests.uploads import TARGET

Daemon = Union[Repogen, Tosign]
Request = Union[RepogenRequest, SignRequest]


@attr.define
class Play:
    """A play of daemons on a store: the jobs they get one after another, and the promises that must hold."""

    make: Callable[[Settings], Daemon]
    prepare: Callable[[StorePaths, Rpms], list[Request]]
    check: Callable[[Scene], Iterator[str]]
    spare: tuple[str, ...] = ()  #: parts of the call sites whose fsync this play does not need, as other plays may
    is_collected: bool = False  #: whether the signer takes away at once what is staged


@attr.define
class Scene:
    """A store after a power cut, and then after the restart."""

    store: StorePaths
    requests: list[Request]
    done: list[Any]  #: the bodies of the jobs that were deleted
    puts: list[tuple[str, Any]]  #: tube and body of each job that was put
    collected: list[str]  #: what the signer has taken

    def is_done(self, request: Request) -> bool:
        return request.to_json() in self.done

    def events(self, status: str) -> set[str]:
        """The builds of which such an event was announced."""
        return {body["build_id"] for tube, body in self.puts if tube == "notify" and body["status"] == status}


class Createrepo:
    """createrepo_c, run once for each different input; later runs get a copy of what that one left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._codes: dict[str, int] = {}

    def run(self, argv: Sequence[str | os.PathLike[str]], *, output: Path, **options: Any) -> int:
        words = [os.fspath(word) for word in argv]
        root = str(Path(words[-1]).parents[1])
        names = dict(zip(words, words[1:]))
        cache = Path(names["--cachedir"])  # the output lies in it
        digest = hashlib.sha256(repr([word.replace(root, "") for word in words]).encode())
        packages = [Path(words[-1], line) for line in Path(names["--pkglist"]).read_text().splitlines()]
        visible = [Path(words[-1], REPODATA)] if "--update-md-path" in words else []
        for path in [*packages, *(path for folder in [cache, *visible] for path in sorted(folder.rglob("*")))]:
            digest.update(repr((str(path).replace(root, ""), path.is_file() and path.read_bytes())).encode())
        kept = self.folder / digest.hexdigest()
        if kept.name not in self._codes:
            self._codes[kept.name] = process.run(argv, output=output, **options)
            shutil.copytree(cache, kept / cache.name)
            shutil.copy(output, kept)
        else:
            shutil.rmtree(cache)
            shutil.copytree(kept / cache.name, cache)
            shutil.copy(kept / output.name, output)
        return self._codes[kept.name]


class Clock:
    """beanstalkd's clock: nobody waits for it."""

    now = 0.0

    def wait_for_change(self, until: float) -> None:
        self.now = until

    def changed(self) -> None:
        """Nobody waits."""


#: Text that differs between recordings of a play: names of temporary folders, and times.
_VARYING_PATH = re.compile(r"(?<=^publishing/)[^/]*|(?<=/\.repodata/)[^/]*")
_TIME = re.compile(rb"\d{9,}\.\d+")


def identify(tree: Tree) -> frozenset[tuple[str, Any]]:
    """A tree without names and times that differ by chance."""
    return frozenset(
        (
            _VARYING_PATH.sub("x", path),
            _TIME.sub(b"", content) if path.startswith("state/") and isinstance(content, bytes) else content,
        )
        for path, content in tree.items()
    )


@attr.define
class Stage:
    """Runs a play: records it, and restarts it after each power cut."""

    play: Play
    settings: Settings
    folder: Path
    rpms: Rpms
    createrepo: Createrepo
    requests: list[Request] = attr.field(factory=list)
    _seen: set[Any] = attr.field(factory=set)

    def __attrs_post_init__(self) -> None:
        made = uploads.make_store(self.folder / "before")
        self.requests = self.play.prepare(made, self.rpms)
        # The daemon's folders are not made yet; what is there is durable.
        for path in [each for each in sorted(made.root.rglob("*"), reverse=True) if each.is_dir()]:
            if not any(path.iterdir()):
                path.rmdir()

    def record(self, name: str, omitted: str | None = None) -> Recorder:
        root = self.folder / name
        shutil.copytree(self.folder / "before", root, symlinks=True)
        with pytest.MonkeyPatch.context() as patch:
            recorder = Recorder(root, patch, omitted)
            self._watch_puts(patch, recorder.announce)
            if self.play.is_collected:
                self._collect_at_once(patch, recorder, StorePaths(root))
            self._run(patch, root, self.requests)
        return recorder

    def find_states(self, recorder: Recorder) -> Iterator[tuple[str, Cut, Tree]]:
        """The trees that power cuts leave, the last first; each once, apart from names that differ by chance."""
        for number, cut in reversed([*enumerate(recorder.cuts)]):
            for variant, survived in cut.states():
                state = hash((identify(survived), repr(cut.announced)))
                if state not in self._seen:
                    self._seen.add(state)
                    yield f"cut {number}, after {cut.effect}, {variant}", cut, survived

    def find_faults(self, states: Iterable[tuple[str, Cut, Tree]]) -> Iterator[str]:
        """Look at the store that is left, restart, and look again."""
        for name, cut, survived in states:
            with tempfile.TemporaryDirectory(dir=self.folder) as root:
                write_tree(survived, Path(root))
                yield from (f"{name}: {fault}" for fault in self._find_faults_at(cut, Path(root)))

    def _find_faults_at(self, cut: Cut, root: Path) -> Iterator[str]:
        scene = self._scene(root, cut.announced)
        faults = list(self.play.check(scene))
        if faults:
            yield from (f"before the restart: {fault}" for fault in faults)
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)  # nobody cuts the power now
            after = list(cut.announced)
            self._watch_puts(patch, after.append)
            self._run(patch, root, [request for request in self.requests if not scene.is_done(request)])
        scene = self._scene(root, after)
        yield from (f"after the restart: {fault}" for fault in self.play.check(scene))
        yield from (f"{request.place} is not done" for request in self.requests if not scene.is_done(request))

    def _scene(self, root: Path, announced: Iterable[Any]) -> Scene:
        by_kind: dict[str, list[Any]] = {"done": [], "put": [], "collected": []}
        for kind, what in announced:
            by_kind[kind].append(what)
        return Scene(StorePaths(root), self.requests, by_kind["done"], by_kind["put"], by_kind["collected"])

    def _run(self, patch: pytest.MonkeyPatch, root: Path, requests: Iterable[Request]) -> None:
        """Start a daemon, and have it do these jobs one after another, and whatever it puts for itself."""
        server = Server(Clock())
        patch.setattr(beanstalk, "socket", StandIn(socket, create_connection=lambda *_: server.connect()))
        patch.setattr(beanstalk, "select", StandIn(select, select=lambda *_: ([], [], [])))
        patch.setattr(beanstalk, "greenstalk", StandIn(greenstalk, Client=Client))
        patch.setattr(createrepo, "run", self.createrepo.run)
        patch.setattr(fs, "_SYNCED", {})
        daemon = self.play.make(attr.evolve(self.settings, bstore=attr.evolve(self.settings.bstore, root=root)))
        with daemon.connect() as broker:
            broker.watch(daemon.tubes)
            for request in requests:
                broker.client.use("tosign" if isinstance(request, SignRequest) else "createrepo")
                broker.client.put(request.encode(), PRIORITY)
                while any(broker.tube_stats(tube).ready for tube in daemon.tubes):
                    daemon.settle_all(broker, daemon.reserve_jobs(broker))  # type: ignore[arg-type]

    def _collect_at_once(self, patch: pytest.MonkeyPatch, recorder: Recorder, store: StorePaths) -> None:
        expose = tosign_daemon._expose

        def expose_and_collect(store: StorePaths, leg: SignableLeg) -> bool:
            exposed = expose(store, leg)
            cuts = len(recorder.cuts)
            for path in (store.tosign / TARGET).iterdir():
                os.rename(path, Path(tempfile.mkdtemp(prefix="signer-", dir=self.folder)) / path.name)
                fs.sync(store.tosign / TARGET)
                del recorder.cuts[cuts:]  # what the signer does is its own
                recorder.announce(("collected", path.name))
            return exposed

        patch.setattr(tosign_daemon, "_expose", expose_and_collect)

    def _watch_puts(self, patch: pytest.MonkeyPatch, announce: Callable[[Any], None]) -> None:
        put_raw, delete = Broker.put_raw, ReservedJob.delete

        def put(broker: Broker, tube: str, body: bytes, *args: Any, **options: Any) -> int:
            number = put_raw(broker, tube, body, *args, **options)
            announce(("put", (tube, json.loads(body))))
            return number

        def delete_job(job: ReservedJob[Any]) -> None:
            body = job.message.to_json()
            delete(job)
            announce(("done", body))

        patch.setattr(Broker, "put_raw", put)
        patch.setattr(ReservedJob, "delete", delete_job)
