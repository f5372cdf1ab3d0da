# SPDX-License-Identifier: Apache-2.0
"""A power cut on bstore after any effect of repogen and tosign loses nothing announced; that needs each fsync.

A play is recorded once. For each state of the disk that a cut can leave, the store is written anew, checked, given to a
new daemon with the jobs that are not done, and checked again. Then the play is recorded without the fsyncs of one call
site after another: each time some state must break a promise. beanstalkd is the simulator's, and createrepo_c runs once
for each different input, since there are hundreds of states.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import attr
import pytest

from reimzul.core.config import parse_settings
from reimzul.core.errors import InvalidMessage
from reimzul.core.manifest import read_manifest, sha256_of
from reimzul.core.message import RepogenRequest, SignRequest, Status
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import MANIFEST, StorePaths, leg_key
from reimzul.repogen import cli as repogen_cli
from reimzul.store.listing import ListingCache, UnlistedLeg, read_listing, write_records
from reimzul.store.repodata import DAMAGED, REPODATA, read_records
from reimzul.tosign import cli as tosign_cli
from reimzul.tosign import daemon as tosign_daemon
from tests import uploads
from tests.powercut_stage import Createrepo, Play, Request, Scene, Stage
from tests.repogen import NAME, Rpms
from tests.uploads import TARGET

pytestmark = pytest.mark.usefixtures("no_rest")

#: So many states of a play are tried, chosen by the seed; with the environment variable POWERCUT_ALL all of them.
MAX_STATES, SEED = 80, 1
ATTEMPT_LOGS = {*uploads.LOGS, MANIFEST}


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
    try:
        return read_listing(folder) if folder.exists() else {}
    except DAMAGED:  # which `find_wrong_listing` reports
        return {}


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
        yield from find_lost(store.attempts / name, logs)
        yield from find_lost(store.rejected / name, {**logs, NAME: b"?"})
        if not is_json(store.rejected / f"{name}.json"):
            yield "the note in rejected/ is lost"
    if scene.is_done(request) and not any(body.get("tries") for tube, body in scene.puts if tube == "x86_64"):
        yield "the build is not made again"
    tubes = [tube for tube, _ in scene.puts]
    if "notify" in tubes and "x86_64" in tubes[tubes.index("notify") :]:
        yield "the build is made again twice"


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
    if (scene.is_done(replaced) or scene.is_done(rebuild)) and any(store.staged_marks.glob(f"{replaced.build_id}.*")):
        yield "what was taken back keeps its mark: it is never staged again, should the rebuild not be listed"


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
    uploads.list_all(store)
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
    assert tosign_daemon.stage_leg(ListingCache(store), leg, CancelToken())
    record = UnlistedLeg(place=old.place, replaced_by=new.build_id, replacement=new.place, was_listed=True)
    write_records(store, TARGET, {leg.key: record})
    return [new, old]


def prepare_replaced(store: StorePaths, rpms: Rpms) -> list[Request]:
    return [*reversed(prepare_rebuild(store, rpms))]


def check_replaced_first(scene: Scene) -> Iterator[str]:
    yield from check_replaced(attr.evolve(scene, requests=[*reversed(scene.requests)]))


#: The daemon makes its folders in every play; "stage" holds their fsyncs. What is renamed into one of them, and synced,
#: needs no fsync of the root besides: only a kill between the mkdir and its fsync makes it needed.
_FOLDERS = ("create_store_dirs", "sync_parents(stays, top) > fs.py sync_parents: sync(folder), folder at depth 0")
#: Losing this record keeps old files for longer.
_RETAINED = ("repodata.py write: ",)
#: Only the name of a mark counts, not its content.
_MARK_CONTENT = ('mark, f"{leg.name}\\n") > fs.py write_atomic: os.fsync',)
#: A second fsync of what another one has synced, or soon syncs.
_REPLACED = (
    "create_store_dirs", "_expose: fs.sync(store.tosign)", "stage_leg: fs.sync(staging)", "fs.write_atomic(mark",
    '"replaces", text) > fs.py write_atomic: sync(path.parent)',
)  # fmt: skip
PLAYS = {
    "publish": Play(repogen_cli.make_daemon, prepare_builds, check_published, (*_FOLDERS, *_RETAINED)),
    # The note's name is synced again with the folder it announces, the copy's names with the links of its logs.
    "reject": Play(
        repogen_cli.make_daemon,
        prepare_bad_upload,
        check_rejected,
        (
            "create_store_dirs",
            "verify_checksum",
            "move_folder: fs.sync(path), folder",
            'indent=1) + "\\n") > fs.py write_atomic: sync(',
            'mark, reason + "\\n") > fs.py write_atomic: os.fsync',
        ),
    ),
    "archive": Play(repogen_cli.make_daemon, prepare_logs, check_archived, ("create_store_dirs",)),
    # The attempt that has failed was synced when it got its place, and its move is with the rename that follows.
    "outrank": Play(repogen_cli.make_daemon, prepare_attempts, check_outranked, (*_FOLDERS, *_RETAINED, "move_folder")),
    # "collect" holds the name of the mark.
    "stage": Play(tosign_cli.make_daemon, prepare_leg, check_staged, ("fs.write_atomic(mark",)),
    "collect": Play(
        tosign_cli.make_daemon,
        prepare_leg,
        check_staged,
        ("_expose: fs.sync(leg.exposed.parent)", *_MARK_CONTENT),
        is_collected=True,
    ),
    "replace": Play(tosign_cli.make_daemon, prepare_rebuild, check_replaced, _REPLACED),
    "take-back": Play(tosign_cli.make_daemon, prepare_replaced, check_replaced_first, _REPLACED),
}


@pytest.fixture(params=PLAYS)
def stage(request: pytest.FixtureRequest, rpms: Rpms) -> Iterator[Stage]:
    """A play, in memory where that can be had: no fsync is a real one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        folder = Path(name)
        settings = parse_settings("", "test")
        yield Stage(PLAYS[request.param], settings, folder, rpms, Createrepo(folder / "createrepo"))


@pytest.mark.slow
def test_power_cut_on_bstore_keeps_promises_and_needs_each_fsync(stage: Stage) -> None:
    whole = stage.record("whole")
    states = [*stage.find_states(whole)]
    if len(states) > MAX_STATES and "POWERCUT_ALL" not in os.environ:
        states = random.Random(SEED).sample(states, MAX_STATES)
    assert list(itertools.islice(stage.find_faults(states), 5)) == []
    unneeded = []
    sites = {site for site in whole.sites if not any(part in site for part in stage.play.spare)}
    for number, site in enumerate(sorted(sites)):
        without = stage.record(f"without-{number}", site)
        if not any(stage.find_faults(stage.find_states(without))):
            unneeded.append(site)

    assert unneeded == []
