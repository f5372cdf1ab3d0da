# SPDX-License-Identifier: Apache-2.0
"""A power cut on bstore after any effect of repogen and tosign loses nothing announced; that needs each fsync."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, Union

import attr
import pytest

from reimzul.core import fs
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, PRIORITY, TOSIGN, Broker, ReservedJob, arch_tube
from reimzul.core.errors import InvalidMessage
from reimzul.core.manifest import read_manifest, sha256_of
from reimzul.core.message import RepogenRequest, SignRequest, Status
from reimzul.core.retry import CancelToken
from reimzul.core.settings import Settings
from reimzul.core.store_paths import MANIFEST, StorePaths, leg_key
from reimzul.core.unlisted import UnlistedLeg, write_records
from reimzul.repogen import cli as repogen_cli
from reimzul.repogen.daemon import Repogen
from reimzul.store.listing import read_listing
from reimzul.store.repodata import DAMAGED, REPODATA, read_records
from reimzul.tosign import cli as tosign_cli
from reimzul.tosign import daemon as tosign_daemon
from reimzul.tosign.daemon import SignableLeg, Tosign
from tests import uploads
from tests.powercut import Cut, Recorder, write_tree
from tests.repogen import NAME, Rpms, taken
from tests.uploads import TARGET

pytestmark = pytest.mark.usefixtures("no_rest")

Daemon = Union[Repogen, Tosign]
Request = Union[RepogenRequest, SignRequest]
TUBES = {"createrepo": CREATEREPO, "tosign": TOSIGN}
ATTEMPT_LOGS = {*uploads.LOGS, MANIFEST}


@attr.define
class Play:
    """What daemons do on a store: the jobs they get one after another, and what must be true of it."""

    make: Callable[[Settings], Daemon]
    prepare: Callable[[StorePaths, Rpms], list[Request]]
    check: Callable[[Scene], Iterator[str]]
    held: tuple[str, ...] = ("",)  #: of which functions this play holds the fsyncs, and which of them
    elsewhere: tuple[str, ...] = ()  #: those that other plays hold
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


# --- what must be true


def find_broken_places(store: StorePaths) -> Iterator[str]:
    for place in [*store.repo.glob("*/[!.]*/*/*"), *store.scratch.glob("*/*/*/*")]:
        if REPODATA not in place.parts:
            yield from find_damage(place)


def find_damage(folder: Path) -> Iterator[str]:
    """What a folder with a manifest lacks."""
    try:
        manifest = read_manifest(folder)
    except (OSError, InvalidMessage) as error:
        yield f"{folder.name} has no manifest: {error}"
        return
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file() or sha256_of(path) != file.sha256:
            yield f"{folder.name}/{file.name} is not what was uploaded"


def read_listed(store: StorePaths) -> dict[str, str]:
    folder = store.target(TARGET) / REPODATA
    return read_listing(folder) if folder.exists() else {}


def find_wrong_listing(store: StorePaths) -> Iterator[str]:
    """Each file that repomd.xml names is there, and each package that is listed is there as it is listed."""
    folder = store.target(TARGET) / REPODATA
    try:
        records = read_records(folder) if folder.exists() else []
        listed = read_listed(store)
    except DAMAGED as error:
        yield f"the visible repodata cannot be read: {error!r}"
        return
    for record in records:
        if not record.file or not (folder / record.file).is_file() or not (folder / record.file).stat().st_size:
            yield f"repomd.xml names {record.file}, which is lost"
    for path, sha256 in listed.items():
        package = store.target(TARGET) / path
        if not package.is_file() or sha256_of(package) != sha256:
            yield f"{path} is listed and not there as it is listed"


def check_published(scene: Scene) -> Iterator[str]:
    """Whole or not there; what was announced is listed, and found by its index entry."""
    store = scene.store
    yield from find_broken_places(store)
    yield from find_wrong_listing(store)
    for request in scene.requests:
        assert isinstance(request, RepogenRequest)
        if request.build_id in scene.events(Status.PUBLISHED) or scene.is_done(request):
            if not (store.index / leg_key(request.build_id, request.arch) / MANIFEST).is_file():
                yield f"{request.place} was announced, and its index entry leads nowhere"
            elif not any(path.startswith(request.place.split("/", 2)[2]) for path in read_listed(store)):
                yield f"{request.place} was announced, and is not listed"
        signs = [body["build_id"] for tube, body in scene.puts if tube == "tosign"]
        if scene.is_done(request) and not {request.build_id} <= scene.events(Status.PUBLISHED) & {*signs}:
            yield f"{request.place} is done, and was not announced or given to the signer"


def check_rejected(scene: Scene) -> Iterator[str]:
    """The build is made again; its upload is kept for a person, its logs can be read, before that is announced."""
    (request,) = scene.requests
    assert isinstance(request, RepogenRequest)
    if request.build_id in scene.events(Status.QUEUED) or scene.is_done(request):
        name = f"{request.build_id}.{request.arch}.{request.attempt}"
        store = scene.store
        logs = {path: uploads.LOGS.get(path, b"?") for path in ATTEMPT_LOGS - {"root.log"}}  # that one was cut short
        for folder in (store.rejected / name, store.attempts / name):
            yield from find_lost(folder, logs)
        if not is_json(store.rejected / f"{name}.json"):
            yield "the note in rejected/ is lost"
    if scene.is_done(request) and not any(body.get("tries") for tube, body in scene.puts if tube == "x86_64"):
        yield "the build is not made again"


def is_json(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()))
    except (OSError, ValueError):
        return False


def find_lost(folder: Path, contents: Mapping[str, bytes]) -> Iterator[str]:
    """Files that a folder lacks; of one whose content is b"?" any content will do."""
    for name, content in contents.items():
        found = (folder / name).read_bytes() if (folder / name).is_file() else b""
        if found != content and not (content == b"?" and found):
            yield f"{folder.parent.name}/…/{name} is lost"


def check_archived(scene: Scene) -> Iterator[str]:
    """A job for logs alone is done when they are kept."""
    (request,) = scene.requests
    assert isinstance(request, RepogenRequest)
    if scene.is_done(request):
        kept = scene.store.attempts / f"{request.build_id}.{request.arch}.{request.attempt}"
        yield from find_lost(kept, {name: uploads.LOGS.get(name, b"?") for name in ATTEMPT_LOGS})


def check_outranked(scene: Scene) -> Iterator[str]:
    """A success takes the place of a failed attempt, whose logs are kept."""
    failed, succeeded = scene.requests
    assert isinstance(failed, RepogenRequest)
    assert isinstance(succeeded, RepogenRequest)
    store = scene.store
    yield from find_broken_places(store)
    yield from find_wrong_listing(store)
    if scene.is_done(failed) and not (store.index / leg_key(failed.build_id, failed.arch)).is_symlink():
        yield "the failed attempt is done, and has no index entry"
    if scene.is_done(succeeded):
        yield from check_published(attr.evolve(scene, requests=[succeeded]))
        kept = store.attempts / f"{failed.build_id}.{failed.arch}.{failed.attempt}"
        yield from find_lost(kept, {name: uploads.LOGS.get(name, b"?") for name in ATTEMPT_LOGS})
    elif scene.is_done(failed):
        places = [store.index / leg_key(failed.build_id, failed.arch)]
        kept = store.attempts / f"{failed.build_id}.{failed.arch}.{failed.attempt}"
        if not any((folder / MANIFEST).is_file() for folder in [*places, kept]):
            yield "the failed attempt is done, and lies nowhere"


def check_staged(scene: Scene) -> Iterator[str]:
    """A stage is whole; a leg that is done lies there once, or was collected once."""
    store = scene.store
    staged = [path for path in store.tosign.glob("*/*") if path.parent != store.staging]
    for folder in staged:
        (place,) = store.repo.glob(f"*/*/*/{folder.name.rpartition('.')[0].split('-', 1)[1]}")
        for package in place.glob("*.rpm"):
            if not (folder / package.name).is_file() or sha256_of(folder / package.name) != sha256_of(package):
                yield f"{folder.name} is staged without {package.name}"
    for request in scene.requests:
        assert isinstance(request, SignRequest)
        count = [path.name.endswith(request.build_id) for path in staged].count(True)
        count += [name.endswith(request.build_id) for name in scene.collected].count(True)
        if count > 1 or (scene.is_done(request) and not count):
            yield f"{request.place} is staged {count} times"


def check_replaced(scene: Scene) -> Iterator[str]:
    """A leg that a rebuild has replaced is not there for the signer; the rebuild names it."""
    rebuild, replaced = scene.requests
    assert isinstance(rebuild, SignRequest)
    assert isinstance(replaced, SignRequest)
    store = scene.store
    for folder in [path for path in store.tosign.glob("*/*") if path.parent != store.staging]:
        packages = sorted(path.name for path in folder.glob("*.rpm") if path.stat().st_size)
        if packages != [NAME]:
            yield f"{folder.name} has {packages}"
        if folder.name.endswith(replaced.build_id) and (scene.is_done(replaced) or scene.is_done(rebuild)):
            yield "what was taken back is staged again"
        if folder.name.endswith(rebuild.build_id):
            yield from find_lost(folder, {"replaces": f"replaces {replaced.build_id}\n".encode()})
    if scene.is_done(rebuild) and not list(store.tosign.glob(f"*/*.{rebuild.build_id}")):
        yield "the rebuild is not staged"


# --- what is done


def prepare_builds(store: StorePaths, rpms: Rpms) -> list[Request]:
    """Two builds, one after the other: the first makes the target's repodata, the second replaces it."""
    stamps = ("20240102030405", "20240102030406")
    return [uploads.upload(store, rpms, of=uploads.request(timestamp=stamp)) for stamp in stamps]


def prepare_bad_upload(store: StorePaths, rpms: Rpms) -> list[Request]:
    asked = uploads.upload(store, rpms)
    (uploads.spool_of(store, asked) / "root.log").write_bytes(b"")
    return [asked]


def prepare_logs(store: StorePaths, rpms: Rpms) -> list[Request]:
    return [attr.evolve(uploads.upload(store, {}, status=Status.FAILED), logs=True, index=False)]


def prepare_attempts(store: StorePaths, rpms: Rpms) -> list[Request]:
    of = uploads.request()
    return [uploads.upload(store, {}, of=of, status=Status.FAILED), uploads.upload(store, rpms, of=of)]


def place_leg(store: StorePaths, rpms: Rpms, timestamp: str) -> SignRequest:
    of = uploads.request(timestamp=timestamp)
    asked = uploads.upload(store, rpms, of=of)
    store.place(asked.place).parent.mkdir(parents=True)
    uploads.spool_of(store, asked).rename(store.place(asked.place))
    return SignRequest(
        pkgname="hello", status=Status.SUCCESS, target=TARGET, arch=asked.arch, timestamp=timestamp,
        build_id=of.build_id, place=asked.place,
    )  # fmt: skip


def prepare_leg(store: StorePaths, rpms: Rpms) -> list[Request]:
    return [place_leg(store, rpms, "20240102030405")]


def prepare_rebuild(store: StorePaths, rpms: Rpms, *, only_replaced: bool = False) -> list[Request]:
    """A leg was staged, and then a rebuild took its place; then the old leg's request comes again."""
    old, new = (place_leg(store, rpms, stamp) for stamp in ("20240102030405", "20240102030406"))
    (leg,) = tosign_daemon.find_signable(store, old)
    assert tosign_daemon.stage_leg(store, leg, CancelToken())
    record = UnlistedLeg(place=old.place, replaced_by=new.build_id, replacement=new.place, was_listed=True)
    write_records(store, TARGET, {leg.key: record})
    return [new, old]


def prepare_replaced(store: StorePaths, rpms: Rpms) -> list[Request]:
    return [*reversed(prepare_rebuild(store, rpms))]


def check_replaced_first(scene: Scene) -> Iterator[str]:
    yield from check_replaced(attr.evolve(scene, requests=[*reversed(scene.requests)]))


PLAYS = {
    "publish": Play(repogen_cli.make_daemon, prepare_builds, check_published),
    "reject": Play(repogen_cli.make_daemon, prepare_bad_upload, check_rejected, ("keep_logs: fs.sync(goal",)),
    "archive": Play(repogen_cli.make_daemon, prepare_logs, check_archived, ("move_folder",)),
    "outrank": Play(repogen_cli.make_daemon, prepare_attempts, check_outranked),
    # Of a leg's mark only the name counts, and "collect" holds that.
    "stage": Play(tosign_cli.make_daemon, prepare_leg, check_staged, elsewhere=("fs.write_atomic(mark",)),
    "collect": Play(
        tosign_cli.make_daemon,
        prepare_leg,
        check_staged,
        elsewhere=("file at depth 3", "_expose"),
        is_collected=True,
    ),
    "replace": Play(
        tosign_cli.make_daemon, prepare_rebuild, check_replaced, ("_take_back", "write_atomic, file at depth 4")
    ),
    "take-back": Play(
        tosign_cli.make_daemon, prepare_replaced, check_replaced_first, ("_take_back: fs.sync(exposed.parent)",)
    ),
}


@attr.define
class Stage:
    """Runs a play: records it, and restarts it after each power cut."""

    play: Play
    settings: Settings
    broker: Broker
    rpms: Rpms
    folder: Path
    requests: list[Request] = attr.field(factory=list)

    def record(self, name: str, omitted: str | None = None) -> Recorder:
        settings = self._settings_in(self.folder / name)
        # The upload and what was published before are durable, and the daemon's folders are not made yet.
        with pytest.MonkeyPatch.context() as patch:
            store = StorePaths(settings.bstore.root)
            store.root.mkdir(parents=True)
            made = StorePaths(self.folder / f"{name}-before")
            made.root.mkdir()
            self.requests = self.play.prepare(uploads.make_store(made.root), self.rpms)
            for path in [each for each in sorted(made.root.rglob("*"), reverse=True) if each.is_dir()]:
                if not any(path.iterdir()):
                    path.rmdir()
            shutil.copytree(made.root, store.root, symlinks=True, dirs_exist_ok=True)
            recorder = Recorder(store.root, patch, omitted)
            self._watch(patch, recorder, store)
            daemon = self.play.make(settings)
            for request in self.requests:
                self._run(daemon, [(self._tube(request), request.to_json())])
        return recorder

    def find_faults(self, recorder: Recorder, name: str, *, backwards: bool = False) -> Iterator[str]:
        """Cut the power after each effect, look, restart, and look again."""
        seen = set()
        cuts = [*reversed(recorder.cuts)] if backwards else recorder.cuts
        for number, cut in enumerate(cuts):
            for which, (variant, survived) in enumerate(cut.states()):
                state = hash((frozenset(survived.items()), repr(cut.announced)))
                if state in seen:
                    continue
                seen.add(state)
                root = self.folder / f"{name}-{number}.{which}"
                root.mkdir()
                write_tree(survived, root)
                for fault in self._find_faults_at(cut, root):
                    yield f"cut {number}, after {cut.effect}, {variant}: {fault}"
                shutil.rmtree(root)

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
            daemon = self.play.make(self._settings_in(root))
            jobs = [(self._tube(request), request.to_json()) for request in self.requests]
            self._run(daemon, [job for job in jobs if job[1] not in scene.done])
        scene = self._scene(root, after)
        yield from (f"after the restart: {fault}" for fault in self.play.check(scene))
        yield from (f"{request.place} is not done" for request in self.requests if not scene.is_done(request))

    def _scene(self, root: Path, announced: Iterable[Any]) -> Scene:
        by_kind: dict[str, list[Any]] = {"done": [], "put": [], "collected": []}
        for kind, what in announced:
            by_kind[kind].append(what)
        return Scene(StorePaths(root), self.requests, by_kind["done"], by_kind["put"], by_kind["collected"])

    def _settings_in(self, root: Path) -> Settings:
        return attr.evolve(self.settings, bstore=attr.evolve(self.settings.bstore, root=root))

    def _tube(self, request: Request) -> str:
        return "tosign" if isinstance(request, SignRequest) else "createrepo"

    def _run(self, daemon: Daemon, jobs: Iterable[tuple[str, Any]]) -> None:
        """Have a daemon do these jobs, and whatever it puts for itself."""
        for tube in (NOTIFY, TOSIGN, CREATEREPO, arch_tube("x86_64")):
            taken(self.broker, tube)
        for tube_name, body in jobs:
            self.broker.client.use(tube_name)
            self.broker.client.put(json.dumps(body).encode(), PRIORITY)
        with daemon.connect() as broker:
            broker.watch(daemon.tubes)
            while any(broker.tube_stats(tube).ready for tube in daemon.tubes):
                daemon.settle_all(broker, daemon.reserve_jobs(broker))  # type: ignore[arg-type]

    def _watch(self, patch: pytest.MonkeyPatch, recorder: Recorder, store: StorePaths) -> None:
        self._watch_puts(patch, recorder.announce)
        if self.play.is_collected:
            expose = tosign_daemon._expose

            def expose_and_collect(store: StorePaths, leg: SignableLeg) -> bool:
                exposed = expose(store, leg)
                cuts = len(recorder.cuts)
                for path in (store.tosign / TARGET).iterdir():
                    os.rename(path, self.folder / f"signer-{path.name}-{id(recorder)}")
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


_TOO_SLOW = pytest.mark.skip(reason="not proven yet: takes over 70 s, with a createrepo_c for each state")
_PARAMS = [pytest.param(name, marks=_TOO_SLOW if name in ("publish", "outrank") else ()) for name in PLAYS]


@pytest.fixture(params=_PARAMS)
def stage(request: pytest.FixtureRequest, settings: Settings, broker: Broker, rpms: Rpms, tmp_path: Path) -> Stage:
    return Stage(PLAYS[request.param], settings, broker, rpms, tmp_path / "stores")


@pytest.mark.slow
def test_power_cut_on_bstore_keeps_promises_and_needs_each_fsync(stage: Stage) -> None:
    stage.folder.mkdir()
    whole = stage.record("whole")
    assert list(itertools.islice(stage.find_faults(whole, "after"), 5)) == []
    unneeded = []
    sites = {site for site in whole.sites if any(name in site for name in stage.play.held)}
    for number, site in enumerate(sorted(sites)):
        without = stage.record(f"without-{number}", site)
        if not any(stage.find_faults(without, f"after-{number}", backwards=True)):
            unneeded.append(site)
    unneeded = [site for site in unneeded if not any(name in site for name in stage.play.elsewhere)]

    assert unneeded == []
