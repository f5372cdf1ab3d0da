# SPDX-License-Identifier: Apache-2.0
"""A submission: checks what builds are to be of, and queues one request for each source rpm and arch.

Everything is checked before anything is queued.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable
from urllib.parse import quote

import attr

from reimzul.core import validators
from reimzul.core.arch import Arches
from reimzul.core.beanstalk import BATCH, BATCH_REQUEST, CREATEREPO, PRIORITY, PRIORITY_NOW, Broker, arch_tube
from reimzul.core.errors import InputError, InvalidMessage, ReimzulError
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.json_message import parse_json
from reimzul.core.listed_packages import fetch_repomd, iterate_packages
from reimzul.core.manifest import MAX_BYTES, Manifest
from reimzul.core.message import BuildRequest, RepogenRequest, Status, event_for, new_build_id
from reimzul.core.rpm_header import Header
from reimzul.core.store_paths import MANIFEST, StoreUrls
from reimzul.submit.sources import RefusedSource, Source, SourceFile

log = logging.getLogger(__name__)

#: Seconds to wait for the store: for what a target lists, and for whether it has repodata, which nothing depends on.
_LISTING_TIMEOUT_SECONDS, _REPODATA_TIMEOUT_SECONDS = 5.0, 2.0
#: A disttag as distributions write it, with what derivatives add.
_DISTTAG = re.compile(
    r"\.(?:el|fc|amzn|mga|lp|eln|suse|oe|ocs|cl|ol|rhel|epel)[0-9][A-Za-z0-9_]*"
    r"(?:\.(?:centos|rocky|alma|alma_plus|sl|ol)\b)?"
)
#: The name and the version-release of a package.
Package = tuple[str, str]


@attr.frozen(kw_only=True)
class SubmissionOptions:
    arches: tuple[str, ...]
    target: str  #: without an arch
    disttag: str
    now: bool = False
    scratch: bool = False
    rebuild: bool = False
    after: tuple[str, ...] = ()  #: builds that have to be published first
    dep_wait: int = 0  #: seconds that a requirement which nobody provides is waited for

    @property
    def targets(self) -> dict[str, str]:
        """The target of each arch."""
        return {arch: f"{self.target}.{arch}" for arch in self.arches}


@attr.frozen(kw_only=True)
class QueuedBuild:
    """The job queued for a source rpm and an arch, or why there is none."""

    srpm: str
    arch: str
    target: str
    tube: str
    build_id: str
    timestamp: str
    copied: bool  #: whether the source rpm was copied to incoming/
    job: int | None = None  #: its number in beanstalkd
    watchers: int | None = None  #: how many builders watch the tube; None where beanstalkd did not answer
    message: str = ""  #: why it is not queued


# --- checks of options


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


# --- what a target lists already


def refuse_listed(
    files: Sequence[SourceFile], disttag: str, targets: Iterable[str], base_url: str, warn: Callable[[str], None]
) -> tuple[list[SourceFile], list[RefusedSource]]:
    """Return the source rpms that no target lists in this version and release already, and the others.

    An estimate: repogen checks it again. Reads what a target lists once for all. Calls `warn` for each target of which
    the store does not answer.
    """
    listed = defaultdict(list)
    wanted = _packages_of(files, disttag)
    with HttpSession(timeout=_LISTING_TIMEOUT_SECONDS) as session:
        for target in targets if wanted else ():
            url = f"{base_url}{quote(target)}/"
            try:
                places = _find_places(session, url, wanted)
            except NotFound:
                continue  # nothing was ever published
            except HttpUnavailable as error:
                why = str(error).replace(base_url, "bstore: repo/")  # nobody can open the URL
                warn(f"it is unknown what {target} lists ({why}): repogen will reject a build that it has already")
                continue
            for package, place in places.items():
                fault = _describe_listed(session, url, target, package, place)
                for file in wanted[package]:
                    listed[file.path].append(fault)
    refused = [
        RefusedSource(srpm=file.given, message="; ".join(listed[file.path])) for file in files if file.path in listed
    ]
    return [file for file in files if file.path not in listed], refused


def _packages_of(files: Iterable[SourceFile], disttag: str) -> Mapping[Package, Sequence[SourceFile]]:
    """The packages that builds of these source rpms may be."""
    found = defaultdict(list)
    for file in files:
        for release in estimate_releases(file.header.release, disttag):
            found[file.header.name, f"{file.header.version}-{release}"].append(file)
    return found


def estimate_releases(release: str, disttag: str) -> tuple[str, ...]:
    """The releases that a build with a disttag may get from a source rpm with this release."""
    exchanged, count = _DISTTAG.subn(lambda _: disttag, release)
    if count or disttag in release:
        return (exchanged,)
    # the source rpm was made where %dist is empty, or its spec file does not use it
    return (release, release + disttag)


def _find_places(session: HttpSession, url: str, wanted: Collection[Package]) -> dict[Package, str]:
    """The folder, relative to its target, of a build of each package that is listed."""
    builds = (package.build for package in iterate_packages(session, url))
    return {(build.name, build.evr): build.place for build in builds if build and (build.name, build.evr) in wanted}


def _describe_listed(session: HttpSession, url: str, target: str, package: Package, place: str) -> str:
    try:
        build = Manifest.from_json(parse_json(session.get(f"{url}{quote(place)}/{MANIFEST}", MAX_BYTES))).build_id[:8]
    except (NotFound, HttpUnavailable, InvalidMessage):
        build = "in " + place
    return (
        f"{target} lists {'-'.join(package)} of build {build} already (an estimate: the disttag was exchanged); "
        "give --rebuild to replace it, or give the package another release"
    )


# --- requests


def request_repodata(broker: Broker, urls: StoreUrls, targets: Iterable[str]) -> None:
    """Request empty repodata for each target that has none, before its first build reads it.

    Without repodata the target's own URL answers 404, and mock would have to skip the target, which would hide all
    its other faults. A store that does not answer is not waited for.
    """
    with HttpSession(timeout=_REPODATA_TIMEOUT_SECONDS) as session:
        for target in dict.fromkeys(targets):
            try:
                fetch_repomd(session, urls.target(target))
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
            target=target,
            disttag=options.disttag,
            scratch=options.scratch,
            submitter=submitter,
            build_id=new_build_id(),
            timestamp=timestamp,
            srpm_sha256=source.sha256,
            rebuild=options.rebuild,
            after=options.after,
            dep_wait=options.dep_wait,
        )
        for arch, target in options.targets.items()
    ]


def queue_requests(
    broker: Broker, requests: Iterable[tuple[Source, BuildRequest]], options: SubmissionOptions, known: Arches
) -> Iterator[QueuedBuild]:
    """Queue each request in its arch's tube, until beanstalkd fails; raises if that is at the first."""
    fault = ""
    is_first = True
    for source, request in requests:
        build = QueuedBuild(
            srpm=request.srpm,
            arch=request.arch,
            target=request.target,
            tube=BATCH.name if request.after else known.tube_of(request.arch),
            build_id=request.build_id,
            timestamp=request.timestamp,
            copied=source.copied,
            message=fault,
        )
        if not fault:
            try:
                build = _queue_request(broker, request, build, source.header, options)
            except ReimzulError as error:
                if is_first:
                    raise
                fault = str(error)
                build = attr.evolve(build, message=f"beanstalkd did not confirm it: {fault}")
        is_first = False
        yield build


def _queue_request(
    broker: Broker, request: BuildRequest, build: QueuedBuild, header: Header, options: SubmissionOptions
) -> QueuedBuild:
    """Queue a request and announce it. Failing at the latter is only logged: the build is safe in its tube."""
    priority = PRIORITY_NOW if options.now else PRIORITY
    held: dict[str, Any] = {}
    if request.after:  # reimzul-batch holds it
        job = broker.put(BATCH, request, priority=BATCH_REQUEST)
        held = {"held": True, "waits_for": f"the builds {', '.join(each[:8] for each in request.after)}"}
    else:
        job = broker.put(arch_tube(build.tube), request, priority=priority)
    event = event_for(
        request,
        Status.QUEUED,
        pkgname=header.name,
        evr=header.evr,
        reason=f"job {job} of tube {build.tube}",
        tube=build.tube,
        job=job,
        priority=priority,
        **held,
    )
    try:
        broker.announce(event)
    except ReimzulError as error:
        log.warning("%s: queued, but not announced: %s", request.build_id, error)
    return attr.evolve(build, job=job)


def count_watchers(broker: Broker, builds: Iterable[QueuedBuild]) -> list[QueuedBuild]:
    """Return the builds with the number of connections that watch their tubes."""
    builds = list(builds)
    watchers: dict[str, int] = {}
    try:
        for tube in dict.fromkeys(build.tube for build in builds):
            watchers[tube] = broker.tube_stats(tube).watchers
    except ReimzulError as error:
        log.debug("who watches the tubes is unknown: %s", error)
    return [attr.evolve(build, watchers=watchers.get(build.tube)) for build in builds]
