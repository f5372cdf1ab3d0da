# SPDX-License-Identifier: Apache-2.0
"""The tosign daemon: lays published legs out for the signer, each whole by one rename, and never twice.

A request proves nothing, since a builder can put one too: only what the repodata of its target lists is staged, and
only from a folder that no link leads to.

The packages are copied, not linked: a signer rewrites its files, and the published ones must stay as they are listed.
The mark that a leg was staged lasts for ever and is written before the rename. So a mark with a folder still in
`.staging` means that the rename has to be finished, and a mark alone that the signer has the leg, or has collected it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Callable

import attr

from reimzul.core import fs
from reimzul.core.beanstalk import TOSIGN, Broker, ReservedJob
from reimzul.core.daemon import Daemon, Outcome, retry_or_give_up
from reimzul.core.errors import BrokerUnavailable, InvalidMessage, ReimzulError, RetryLater, ShutdownRequested
from reimzul.core.heartbeat import HeartbeatSender
from reimzul.core.manifest import Manifest, read_manifest
from reimzul.core.message import NAMESPACE, SignRequest, Status, WorkerState
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import MANIFEST, StorePaths, leg_key
from reimzul.store.listing import ListingCache, UnlistedLeg, read_records, replaced_builds

log = logging.getLogger(__name__)

#: The step of laying packages out for the signer, among the errors that heartbeats carry.
STAGING_STEP = "staging for the signer"
#: Seconds between attempts to get the lock while another daemon stages.
LOCK_POLL_SECONDS = 0.05
#: The pause after an error of the disk.
DISK_PAUSE_SECONDS = 30
_CHUNK_BYTES = 1024 * 1024

_Claim = ReservedJob[SignRequest]


class Tosign(Daemon[SignRequest]):
    heartbeat: HeartbeatSender

    def __init__(self, connect: Callable[[], Broker], host: str, store: StorePaths, heartbeat: HeartbeatSender) -> None:
        super().__init__(connect, [TOSIGN], host, heartbeat=heartbeat)
        self.store = store
        self.listings = ListingCache(store)

    def handle(self, broker: Broker, claims: list[_Claim]) -> Iterator[tuple[_Claim, Outcome]]:
        """Stage what is requested; wait a limited time for missing files, and as long as it takes for the disk."""
        for claim in claims:
            outcome: Outcome = None
            try:
                self._handle_request(claim)
            except FileNotFoundError as error:
                outcome = retry_or_give_up(claim, str(error.filename))
            except OSError as error:
                outcome = RetryLater(str(error), pause=DISK_PAUSE_SECONDS)
            except (BrokerUnavailable, ShutdownRequested):
                raise
            except ReimzulError as error:
                outcome = error
            request = claim.message
            self.heartbeat.errors.record(
                STAGING_STEP, outcome, build_id=request.build_id, arch=request.arch, target=request.target
            )
            yield claim, outcome

    def do_idle_work(self, broker: Broker) -> None:
        self.send_heartbeat(broker, WorkerState.IDLE)

    def _handle_request(self, claim: _Claim) -> None:
        request = claim.message
        if request.status != Status.SUCCESS:
            log.info("%s for %s is %s: not staged", request.pkgname, request.arch, request.status)
            return
        legs = find_signable(self.store, request)
        if not legs:
            raise retry_or_give_up(claim, f"the place of {request.pkgname} {request.timestamp} for {request.arch}")
        for leg in legs:
            self._stage(claim, leg)

    def _stage(self, claim: _Claim, leg: SignableLeg) -> None:
        """Stage a leg under the store's lock: two daemons that copy the same leg would both expose it."""

        def check_progress() -> None:
            self.stop.raise_if_stopping()
            self.ping_watchdog()
            claim.touch_if_due()
            self.send_heartbeat(claim.broker, WorkerState.BUILDING)

        self.service.set_status(f"staging {leg.name}")
        while True:
            with fs.file_lock(self.store.lock(".tosign")) as lock:  # no target begins with a dot
                if lock is not None:
                    is_new = stage_leg(self.listings, leg, CancelToken(check_progress))
                    break
            check_progress()
            self.stop.now.wait(LOCK_POLL_SECONDS)
        log.info("%s %s", leg.name, "staged" if is_new else "was staged before")


# --- which legs a request means


@attr.frozen(kw_only=True)
class SignableLeg:
    place: str  #: relative to the store's root
    target: str
    arch: str
    build_id: str
    exposed: Path  #: where the signer finds it
    sha256s: Mapping[str, str | None]  #: of each package; None if no manifest says it

    @property
    def key(self) -> str:
        return leg_key(self.build_id, self.arch)

    @property
    def name(self) -> str:
        return f"{self.target}/{self.exposed.name}"


def find_signable(store: StorePaths, request: SignRequest) -> list[SignableLeg]:
    """The legs that a request means. Raises `InvalidMessage` if one of them must not be signed."""
    return [leg for place in _find_places(store, request) if (leg := _read_leg(store, place, request))]


def _find_places(store: StorePaths, request: SignRequest) -> list[str]:
    """The place that a request names; the original's request only says in which folder it is."""
    parent = f"repo/{request.target}/{request.pkgname}/{request.timestamp}"
    if request.place:
        if request.place.rpartition("/")[0] != parent:
            raise InvalidMessage(f"{request.place} is not a place in {parent}")
        return [request.place] if store.place(request.place).is_dir() else []
    try:
        return sorted(
            f"{parent}/{entry.name}"
            for entry in os.scandir(store.place(parent))
            if entry.name.endswith(f".{request.arch}") and entry.is_dir(follow_symlinks=False)
        )
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_leg(store: StorePaths, place: str, request: SignRequest) -> SignableLeg | None:
    """Read the leg in a place. One without manifest is from the original's farm; None if its packages are to come."""
    folder = store.place(place)
    if os.path.realpath(folder) != os.path.join(os.path.realpath(store.root), place):
        raise InvalidMessage(f"{folder} is behind a symbolic link: only a folder in {store.repo} itself is signed")
    sha256s: dict[str, str | None]
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        if request.build_id:
            raise InvalidMessage(f"{folder} has no {MANIFEST}, so it is not of build {request.build_id}") from None
        build_id = uuid.uuid5(NAMESPACE, place).hex
        entries = [entry for entry in os.scandir(folder) if entry.name.endswith(".rpm")]
        sha256s = {entry.name: None for entry in entries if entry.is_file(follow_symlinks=False)}
        if not sha256s:
            return None
    else:
        _check_signable(manifest, request)
        build_id = manifest.build_id
        sha256s = {file.name: file.sha256 for file in manifest.rpm_files}
    exposed = store.exposed(place, build_id)
    if len(exposed.name) > 255:  # Linux's NAME_MAX, in bytes
        raise InvalidMessage(f"{exposed.name} is too long for a folder's name")
    return SignableLeg(
        place=place, target=request.target, arch=request.arch, build_id=build_id, exposed=exposed, sha256s=sha256s
    )


def _check_signable(manifest: Manifest, request: SignRequest) -> None:
    """Raise `InvalidMessage` for what must never get to the signer, whatever the request says."""
    which = f"build {manifest.build_id} for {manifest.arch}"
    if manifest.status != Status.SUCCESS:
        raise InvalidMessage(f"{which} has failed: nothing of it is signed")
    if manifest.request.scratch:
        raise InvalidMessage(f"{which} is a scratch build: nothing of it is signed")
    if request.build_id not in ("", manifest.build_id) or request.arch != manifest.arch:
        raise InvalidMessage(f"the place is of {which}, not the request's")


# --- staging


def stage_leg(listings: ListingCache, leg: SignableLeg, cancel: CancelToken) -> bool:
    """Lay a leg out for the signer; return false if that was done before. Callers hold the lock."""
    store = listings.store
    records = read_records(store, leg.target)
    record = records.get(leg.key, UnlistedLeg(place=leg.place))
    replaced = replaced_builds(records, leg.build_id, leg.arch)
    for key, old in replaced.items():
        _take_back(store, key, old.place)
    if record.replaced_by:
        log.info("%s is not staged: build %s has replaced it", leg.exposed.name, record.replaced_by)
        _take_back(store, leg.key, leg.place)
        return False
    staging, mark = store.staging / leg.key, store.staged_marks / leg.key
    if os.path.lexists(mark):
        return staging.is_dir() and _expose(store, leg)
    fs.remove(staging)
    packages = sorted(leg.sha256s.keys() - record.left_out.keys())
    if not packages:
        log.info("%s has no packages: nothing to be signed", leg.exposed.name)
        return False
    _require_listed(listings, leg, packages)
    staging.mkdir(parents=True)
    for name in packages:
        _copy(store.place(leg.place) / name, staging / name, leg.sha256s[name], cancel)
    if replaced:  # names the builds that a rebuild replaces
        text = "".join(f"replaces {key.partition('.')[0]}\n" for key in sorted(replaced))
        fs.write_atomic(staging / "replaces", text)
    fs.sync(staging)
    fs.sync(store.staging)
    fs.write_atomic(mark, f"{leg.name}\n")
    return _expose(store, leg)


def _require_listed(listings: ListingCache, leg: SignableLeg, packages: Sequence[str]) -> None:
    """Raise `FileNotFoundError` unless the repodata lists these packages: anybody may have put the request."""
    listed = listings.visible(leg.target).packages
    for name in packages:
        found = listed.get(f"{leg.place.split('/', 2)[2]}/{name}")
        if found is None or leg.sha256s[name] not in (None, found):
            raise FileNotFoundError(errno.ENOENT, "is not listed", f"the entry of {leg.place}/{name} in the repodata")


def _take_back(store: StorePaths, key: str, place: str) -> None:
    """Remove a replaced leg and its mark, unless the signer has collected it."""
    staging, mark = store.staging / key, store.staged_marks / key
    exposed = store.exposed(place, key.partition(".")[0])
    if not os.path.lexists(exposed) and not os.path.lexists(staging):
        return
    mark.unlink(missing_ok=True)
    fs.sync(store.staged_marks)
    if os.path.lexists(exposed):
        fs.remove(staging)
        try:
            os.rename(exposed, staging)
        except FileNotFoundError:
            fs.write_atomic(mark, f"{place}\n")  # collected at this moment
        else:
            fs.sync(exposed.parent)  # after a power cut the signer must not find half of it
    fs.remove(staging)
    log.info("%s: a rebuild has replaced it: taken back, unless it was collected right now", exposed.name)


def _expose(store: StorePaths, leg: SignableLeg) -> bool:
    leg.exposed.parent.mkdir(exist_ok=True)
    fs.sync(store.tosign)  # before the rename: a folder that a power cut takes away would take the leg with it
    try:
        os.rename(store.staging / leg.key, leg.exposed)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # This happens only if the disk has lost the mark of a leg that is still to be collected.
        fs.remove(store.staging / leg.key)
        return False
    fs.sync(leg.exposed.parent)
    return True


def _open_package(path: Path) -> BinaryIO:
    """Open a package. Raises `InvalidMessage` if it is a link: what that leads to was never published."""
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InvalidMessage(f"{path} is a link, not the package that was published") from error


def _copy(source: Path, goal: Path, sha256: str | None, cancel: CancelToken) -> None:
    """Copy a package. Raises `InvalidMessage` if it is not the one that was published."""
    digest = hashlib.sha256()
    with _open_package(source) as original, goal.open("xb") as copy:
        while chunk := original.read(_CHUNK_BYTES):
            digest.update(chunk)
            copy.write(chunk)
            cancel.raise_if_cancelled()
        copy.flush()
        os.fchmod(copy.fileno(), stat.S_IMODE(os.fstat(original.fileno()).st_mode) | 0o644)
        os.fsync(copy.fileno())
    if sha256 not in (None, digest.hexdigest()):
        raise InvalidMessage(f"{source} is not as it was published: its sha256 is {digest.hexdigest()}, not {sha256}")
