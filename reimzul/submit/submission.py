# SPDX-License-Identifier: Apache-2.0
"""A submission: finds and checks the source rpm, brings it into `incoming/`, and queues one request for each arch.

Everything is checked before anything is queued.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import logging
import lzma
import os
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote, unquote

import attr

from reimzul.core import fs, validators
from reimzul.core.arch import Arches
from reimzul.core.beanstalk import CREATEREPO, PRIORITY, PRIORITY_NOW, Broker, arch_tube
from reimzul.core.errors import InputError, InvalidMessage, ReimzulError, describe_os_error
from reimzul.core.fs import find_unreadable
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.json_message import parse_json
from reimzul.core.manifest import MAX_BYTES, Manifest, sha256_of
from reimzul.core.message import BuildRequest, RepogenRequest, Status, event_for, new_build_id
from reimzul.core.process import output_of
from reimzul.core.rpm_header import Header
from reimzul.core.store_paths import MANIFEST, StoreUrls
from reimzul.core.submitters import SeenWorker, all_accept_any_name, is_plain

log = logging.getLogger(__name__)

#: Seconds `reimzul builders` may take.
_BUILDERS_TIMEOUT_SECONDS = 20.0
#: Seconds to wait for the store: for what a target lists, and for whether it has repodata, which nothing depends on.
_LISTING_TIMEOUT_SECONDS, _REPODATA_TIMEOUT_SECONDS = 5.0, 2.0
#: The largest repomd.xml (one has some 3 kB) and primary.xml (15 MB packed for 50,000 packages) that are read.
_MAX_REPOMD_BYTES, _MAX_PRIMARY_BYTES = 1 << 20, 256 << 20
#: How much of a packed primary.xml is unpacked at a time, and the longest location that is found across two pieces.
_PIECE_BYTES, _MAX_LOCATION_BYTES = 1 << 20, 1024
_PRIMARY_HREF = re.compile(rb'<data type="primary">.*?<location [^>]*?href="([^"]+)"', re.DOTALL)
#: A disttag as distributions write it, with what derivatives add.
_DISTTAG = re.compile(
    r"\.(?:el|fc|amzn|mga|lp|eln|suse|oe|ocs|cl|ol|rhel|epel)[0-9][A-Za-z0-9_]*"
    r"(?:\.(?:centos|rocky|alma|alma_plus|sl|ol)\b)?"
)
#: How a primary.xml is opened, by the suffix of its name.
_OPENERS: dict[str, Callable[[io.BytesIO], Any]] = {
    ".xml": contextlib.nullcontext, ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open,
}  # fmt: skip
#: Prefix of unfinished copies, and the seconds after which one is left over from a killed submission.
_COPY_PREFIX, _STALE_COPY_SECONDS = ".incoming-", 86_400


@attr.frozen(kw_only=True)
class SubmissionOptions:
    arches: tuple[str, ...]
    target: str  #: without an arch
    disttag: str
    now: bool = False
    scratch: bool = False
    rebuild: bool = False


@attr.frozen(kw_only=True)
class QueuedBuild:
    """The job queued for one arch, or why there is none."""

    arch: str
    tube: str
    target: str
    build_id: str
    timestamp: str
    job: int | None = None  #: its number in beanstalkd
    watchers: int | None = None  #: how many builders watch the tube; None where beanstalkd did not answer
    fault: str = ""


@attr.frozen(kw_only=True)
class Source:
    name: str  #: of the file
    sha256: str
    copied: bool  #: whether this submission copied it there


# --- checks of options and package


def check_options(arches: Iterable[str], target: str, disttag: str, known: Arches) -> tuple[str, ...]:
    """The requested arches, each once. Raises `InputError` with a line for each fault."""
    requested = tuple(dict.fromkeys(arches))
    faults = [
        f"unknown arch {validators.quoted(arch)}; known arches: {', '.join(known.known)}"
        for arch in requested
        if arch not in known.known
    ]
    faults += _target_faults(target, known) + _disttag_faults(disttag)
    if not requested:
        faults.append("no arch is given")
    if faults:
        raise InputError("\n".join(faults))
    return requested


def _target_faults(target: str, known: Arches) -> list[str]:
    try:
        validators.target(target)
        validators.target(f"{target}.{max(known.known, key=len)}")  # as it is in the request
    except ValueError as error:
        return [f"target {error}"]
    stem, _, arch = target.rpartition(".")
    if stem and arch in known.known:
        return [f"target {target!r} ends with an arch: give it without, as {stem}; each arch adds its own"]
    return []


def _disttag_faults(disttag: str) -> list[str]:
    try:
        validators.disttag(disttag)
    except ValueError as error:
        return [f"disttag {error}"]
    return [] if disttag.startswith(".") else [f"disttag {disttag!r} has no dot before it; is .{disttag} meant?"]


def check_arches(name: str, header: Header, arches: Sequence[str], known: Arches) -> list[str]:
    """Raise `InputError` with a line for each arch that the package excludes.

    Returns a warning for each arch that only mock can decide on, because the header has an unexpanded macro.
    """
    reasons = [(arch, known.exclusion_reason(arch, header)) for arch in arches]
    faults = [f"{name} is not built for {arch}: {reason}" for arch, reason in reasons if reason]
    if faults:
        raise InputError("\n".join(faults))
    doubts = [(arch, known.exclusion_doubt(arch, header)) for arch in arches]
    return [f"mock decides whether {name} is built for {arch}: {doubt}, unexpanded" for arch, doubt in doubts if doubt]


# --- the source rpm in incoming/


def find_source(given: str, incoming: Path) -> Path:
    """The file that `-s` names: one in `incoming/`, else a path. Raises `InputError` where there is neither."""
    if not given.isprintable():
        raise InputError(f"{validators.quoted(given)} is not accepted as a file name: it has unprintable characters")
    inside = incoming / given
    if "/" not in given and os.path.isfile(inside):  # Path.is_file raises for a name too long
        return inside
    path = Path(given)
    if os.path.isfile(path):
        return path
    if "/" in given:
        raise InputError(f"{given}: no such file")
    raise InputError(f"{given}: not in {incoming}, and no such file here")


def import_source(path: Path, incoming: Path) -> Source:
    """Copy a source rpm to `incoming/` if it is elsewhere. Raises `InputError`, leaving nothing."""
    try:
        name = validators.srpm(path.name)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    place = incoming / name
    if place.exists() and path.resolve() == place.resolve():
        _check_readable(place)
        return Source(name=name, sha256=sha256_of(place), copied=False)
    try:
        _remove_stale_copies(incoming)
        return _copy_in(path, place)
    except OSError as error:  # the folder cannot be written to, or is full
        reason = describe_os_error(error)
        raise InputError(f"{incoming}: the file cannot be copied in: {reason}") from error


def _check_readable(place: Path) -> None:
    if bar := find_unreadable(place, place.parent):
        raise InputError(f"no builder can download it: {bar}")


def _remove_stale_copies(incoming: Path) -> None:
    for copy in incoming.glob(f"{_COPY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - copy.stat().st_mtime > _STALE_COPY_SECONDS:
                copy.unlink()


def _copy_in(path: Path, place: Path) -> Source:
    """Copy to a temporary name, then link(2): that never replaces a file, and shows the whole file or none."""
    descriptor, copy = tempfile.mkstemp(prefix=_COPY_PREFIX, dir=place.parent)
    try:
        with open(descriptor, "wb") as sink, path.open("rb") as source:
            shutil.copyfileobj(source, sink)
            os.fchmod(sink.fileno(), 0o644)  # the web server reads it as another user
            sink.flush()
            os.fsync(sink.fileno())
        _check_readable(Path(copy))
        digest = sha256_of(Path(copy))
        try:
            os.link(copy, place)
            copied = True
        except FileExistsError:
            if sha256_of(place) != digest:
                raise InputError(
                    f"{place}: a different file of that name is there already; "
                    "submit that one by its name alone, or give yours another release"
                ) from None
            _check_readable(place)
            copied = False
    finally:
        os.unlink(copy)
    fs.sync(place.parent)  # the request that is put next needs the file after a power cut too
    return Source(name=place.name, sha256=digest, copied=copied)


# --- what a target lists already


def refuse_listed(
    header: Header, disttag: str, targets: Iterable[str], base_url: str, warn: Callable[[str], None]
) -> None:
    """Raise `InputError` where targets list this version and release already. An estimate: repogen checks it again.

    Calls `warn` for each target of which the store does not answer.
    """
    faults = []
    releases = estimate_releases(header.release, disttag)
    with HttpSession(timeout=_LISTING_TIMEOUT_SECONDS) as session:
        for target in targets:
            url = f"{base_url}{quote(target)}/"
            try:
                place = _find_place(session, url, header, releases)
            except NotFound:
                continue  # nothing was ever published
            except (HttpUnavailable, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
                why = str(error).replace(base_url, "bstore: repo/")  # nobody can open the URL
                warn(f"it is unknown what {target} lists ({why}): repogen will reject a build that it has already")
                continue
            if place:
                faults.append(_describe_listed(session, url, target, header, place))
    if faults:
        raise InputError("\n".join(faults))


def _fetch_repomd(session: HttpSession, url: str) -> bytes:
    return session.get(f"{url}repodata/repomd.xml", _MAX_REPOMD_BYTES)


def estimate_releases(release: str, disttag: str) -> tuple[str, ...]:
    """The releases that a build with a disttag may get from a source rpm with this release."""
    exchanged, count = _DISTTAG.subn(lambda _: disttag, release)
    if count or disttag in release:
        return (exchanged,)
    # the source rpm was made where %dist is empty, or its spec file does not use it
    return (release, release + disttag)


def _find_place(session: HttpSession, url: str, header: Header, releases: Iterable[str]) -> str:
    """The folder, relative to its target, of a build that is listed; empty where none is."""
    name = re.escape(quote(header.name).encode())
    folders = b"|".join(
        re.escape(spelled.encode())
        for release in releases
        for evr in [f"{header.version}-{release}"]
        for spelled in {evr, quote(evr)}
    )
    wanted = re.compile(rb'href="(' + name + rb"/[0-9]{14}/(?:" + folders + rb')\.[A-Za-z0-9_]+)/[^"/]+"')
    primary = _PRIMARY_HREF.search(_fetch_repomd(session, url))
    if primary is None:
        raise ValueError("its repomd.xml names no primary.xml")
    href = primary[1].decode()
    before = b""
    for piece in _unpack(href, session.get(url + href, _MAX_PRIMARY_BYTES)):
        if found := wanted.search(before + piece):
            return unquote(found[1].decode())
        before = piece[-_MAX_LOCATION_BYTES:]
    return ""


def _unpack(name: str, packed: bytes) -> Iterator[bytes]:
    suffix = Path(name).suffix
    if suffix not in _OPENERS:
        raise ValueError(f"{suffix} of its primary.xml cannot be read")
    with _OPENERS[suffix](io.BytesIO(packed)) as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece


def _describe_listed(session: HttpSession, url: str, target: str, header: Header, place: str) -> str:
    evr = place.rpartition("/")[2].rpartition(".")[0]
    try:
        build = Manifest.from_json(parse_json(session.get(f"{url}{quote(place)}/{MANIFEST}", MAX_BYTES))).build_id
    except (NotFound, HttpUnavailable, InvalidMessage):
        build = "in " + place
    return (
        f"{target} lists {header.name}-{evr} of build {build} already (an estimate: the disttag was exchanged); "
        "give --rebuild to replace it, or give the package another release"
    )


# --- the submitter's name


def submitter_for_workers(broker: Broker, name: str, options: Sequence[str]) -> str:
    """The submitter's name, restricted to the characters of version 0.1 while a worker may refuse others.

    Only an unusual name needs a look at the workers. `reimzul builders` lists them, called with `options`: submit
    does not import the admin package.
    """
    if is_plain(name):
        return name
    try:
        if all_accept_any_name(broker, _list_workers(options)):
            return name
        reason = "a worker is older than 0.2, or sends no heartbeats"
    except (ReimzulError, ValueError, LookupError, TypeError) as error:
        reason = f"the workers' versions are unknown: {error}"
    plain = validators.restrict_submitter(name)
    log.warning("submitted as %s, not as %s: %s", plain, name, reason)
    return plain


def _list_workers(options: Sequence[str]) -> list[SeenWorker]:
    program = Path(sys.argv[0]).resolve().with_name("reimzul")
    output = output_of([program, "builders", "--json", "--since", "1h", *options], timeout=_BUILDERS_TIMEOUT_SECONDS)
    return [
        SeenWorker(host=row["host"], version=row["version"], features=row["features"]) for row in json.loads(output)
    ]


# --- requests


def request_repodata(broker: Broker, urls: StoreUrls, targets: Iterable[str]) -> None:
    """Request empty repodata for each target that has none, before its first build reads it.

    Without repodata the target's own URL answers 404, and mock would have to skip the target, which would hide all
    its other faults. A store that does not answer is not waited for.
    """
    with HttpSession(timeout=_REPODATA_TIMEOUT_SECONDS) as session:
        for target in dict.fromkeys(targets):
            try:
                _fetch_repomd(session, urls.target(target))
            except NotFound:
                _request_empty_repodata(broker, target)
            except HttpUnavailable as error:
                log.debug("whether %s has repodata is unknown: %s", target, error)
                return


def _request_empty_repodata(broker: Broker, target: str) -> None:
    try:
        broker.put(CREATEREPO, RepogenRequest(target=target), priority=PRIORITY_NOW)
    except ReimzulError as error:
        log.debug("no repodata is requested for %s: %s", target, error)


def make_requests(source: Source, options: SubmissionOptions, submitter: str) -> list[BuildRequest]:
    """One request for each arch, all with the same timestamp."""
    timestamp = validators.now_timestamp()
    return [
        BuildRequest(
            srpm=source.name,
            arch=arch,
            target=f"{options.target}.{arch}",
            disttag=options.disttag,
            scratch=options.scratch,
            submitter=submitter,
            build_id=new_build_id(),
            timestamp=timestamp,
            srpm_sha256=source.sha256,
            rebuild=options.rebuild,
        )
        for arch in options.arches
    ]


def queue_requests(
    broker: Broker, requests: Sequence[BuildRequest], header: Header, options: SubmissionOptions, known: Arches
) -> list[QueuedBuild]:
    """Queue each request in its arch's tube, until one fails. Raises if that is the first."""
    builds: list[QueuedBuild] = []
    priority = PRIORITY_NOW if options.now else PRIORITY
    fault = ""
    for request in requests:
        build = QueuedBuild(
            arch=request.arch,
            tube=known.tube_of(request.arch),
            target=request.target,
            build_id=request.build_id,
            timestamp=request.timestamp,
            fault=fault,
        )
        if not fault:
            try:
                job = broker.put(arch_tube(build.tube), request, priority=priority)
                build = attr.evolve(build, job=job)
                _announce(broker, request, build, header, priority)
            except ReimzulError as error:
                if not builds:
                    raise
                fault = str(error)
                build = attr.evolve(build, fault=f"beanstalkd did not confirm it: {fault}")
        builds.append(build)
    return [_count_watchers(broker, build) for build in builds]


def _announce(broker: Broker, request: BuildRequest, build: QueuedBuild, header: Header, priority: int) -> None:
    """Announce a queued build. Failing at that is only logged: the build itself is safe in its tube."""
    event = event_for(
        request,
        Status.QUEUED,
        pkgname=header.name,
        evr=header.evr,
        reason=f"job {build.job} of tube {build.tube}",
        tube=build.tube,
        job=build.job,
        priority=priority,
    )
    try:
        broker.announce(event)
    except ReimzulError as error:
        log.warning("%s: queued, but not announced: %s", request.build_id, error)


def _count_watchers(broker: Broker, build: QueuedBuild) -> QueuedBuild:
    try:
        return attr.evolve(build, watchers=broker.tube_stats(build.tube).watchers)
    except ReimzulError as error:
        log.debug("tube %s: %s", build.tube, error)
        return build
