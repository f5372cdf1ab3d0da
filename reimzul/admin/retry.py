# SPDX-License-Identifier: Apache-2.0
"""`reimzul retry`: submits builds again as they were, or only their failed legs."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.lookup import BuildLegs
from reimzul.admin.options import confirm, json_option, now_option
from reimzul.admin.output import print_json
from reimzul.core import validators
from reimzul.core.arch import Arches, read_arches
from reimzul.core.beanstalk import PRIORITY, PRIORITY_NOW, Broker, arch_tube
from reimzul.core.cli import EXIT_CODES, current_user, load_settings, print_error, shared_options
from reimzul.core.errors import EXIT_FAILED, InputError, InvalidMessage, ReimzulError
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.json_message import parse_json
from reimzul.core.manifest import MAX_BYTES, Manifest, sha256_of
from reimzul.core.message import BuildRequest, Status, event_for, new_build_id
from reimzul.core.readable import find_unreadable
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls

log = logging.getLogger(__name__)

_FAILED = (Status.FAILED, Status.REJECTED, Status.CANCELLED)


@attr.frozen(kw_only=True)
class RetryResult:
    parent: str
    build_id: str
    arches: Sequence[str]  #: of its legs, where not all are built again; else the arch it is queued for
    tube: str
    job: int
    target: str
    timestamp: str


@click.command("retry", epilog=EXIT_CODES)
@lookup.build_ids_argument()
@click.option("--failed", is_flag=True, help="Only the legs that failed, were rejected or cancelled.")
@now_option
@click.option("--yes", is_flag=True, help="Replace published builds without asking. Required without a terminal.")
@json_option("the queued builds")
@shared_options
def retry(
    config: Path | None, verbose: bool, given: tuple[str, ...], failed: bool, now: bool, yes: bool, as_json: bool
) -> int:
    """Submit builds again with the same source rpm, target, disttag and arch, as new builds that name the old ones.

    The source rpm has to be in incoming/, unchanged. Everything is checked before anything is queued. If a leg is
    published, the rebuild replaces it in the repodata; this asks for confirmation. IDs may be shortened to what no
    other build has.

    \b
    Examples:
      reimzul retry 72b893f8
      reimzul retry 72b893f8 --failed --now
    """
    settings = load_settings(config, verbose)
    with lookup.reading_history(settings.history.url) as history:
        builds = lookup.find_builds(history, given)
    known = read_arches(settings.farm.arches)
    user = current_user()
    requests = retry_requests(settings, builds, known, user, failed=failed)
    published = [build.label for build, request in requests if _is_published(build, request)]
    if published:
        confirm(f"{', '.join(published)}: published; replace it by a rebuild?", yes)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        name = lookup.submitter_for_workers(broker, user, settings)
        requests = [(build, attr.evolve(request, submitter=name)) for build, request in requests]
        done, fault = queue_retries(broker, requests, known, PRIORITY_NOW if now else PRIORITY)
    if as_json:
        print_json([attr.asdict(each) for each in done])
    else:
        for each in done:
            what = f"{', '.join(each.arches)} for {each.target}, tube {each.tube}"
            click.echo(f"{each.parent[:8]} again as build {each.build_id}: {what}")
    if fault:
        print_error(retry, fault)
    return EXIT_FAILED if fault else 0


def retry_requests(
    settings: Settings, builds: Sequence[BuildLegs], known: Arches, user: str, *, failed: bool
) -> list[tuple[BuildLegs, BuildRequest]]:
    """The requests to queue. Raises `InputError` with a line for each build that cannot be submitted again."""
    found, faults = [], []
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    for build in builds:
        try:
            before = _read_request(build, urls)
            legs = _failed_legs(build, before) if failed else _requested_legs(build, before)
            sha256 = _check_source(settings.incoming.folder, build, before)
            request = _new_request(build, legs, sha256, user, known)
            is_rebuild = _is_published(build, request) or (before is not None and before.rebuild)
            found.append((build, attr.evolve(request, rebuild=is_rebuild)))
        except InputError as error:
            faults.append(f"{build.label}: {error}")
    if faults:
        raise InputError("\n".join(faults))
    return found


def _is_published(build: BuildLegs, request: BuildRequest) -> bool:
    """Whether a leg that a request builds again is published, or about to be."""
    legs = [leg for leg in build.legs if leg.arch in (request.legs or _arches_of(build))]
    return not build.main.scratch and any(leg.status == Status.SUCCESS or leg.published for leg in legs)


def _requested_legs(build: BuildLegs, before: BuildRequest | None) -> tuple[str, ...]:
    """The legs that the build was restricted to; empty for all of them."""
    if before is not None:  # a retry of one leg may have been of the arch that stands for all legs
        return before.legs
    return () if _requested_arch(build) in _arches_of(build) else _arches_of(build)


def _arches_of(build: BuildLegs) -> tuple[str, ...]:
    return tuple(leg.arch for leg in build.legs)


def _requested_arch(build: BuildLegs) -> str:
    """The arch of the build's request, which its target ends with."""
    main = build.main
    return main.arch if main.target.endswith(f".{main.arch}") else main.target.rpartition(".")[2]


def _failed_legs(build: BuildLegs, before: BuildRequest | None) -> tuple[str, ...]:
    """The legs that failed; empty where all of them did."""
    failed = [leg.arch for leg in build.legs if leg.status in _FAILED]
    if not failed:
        each = [f"{leg.arch} is {leg.status}" for leg in build.legs]
        raise InputError(f"no leg of it has failed: {', '.join(each)}")
    return _requested_legs(build, before) if len(failed) == len(build.legs) else tuple(failed)


def _check_source(incoming: Path, build: BuildLegs, before: BuildRequest | None) -> str:
    """The sha256 of the source rpm. Raises `InputError` where it is not the file that was built before."""
    path = incoming / build.main.srpm
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise InputError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    if bar := find_unreadable(path, incoming):
        raise InputError(f"no builder can download it: {bar}")
    was = before.srpm_sha256 if before else ""
    if was and was != sha256:
        raise InputError(f"{path} is not the file that was built: its sha256 was {was}, and is {sha256}")
    return sha256


def _read_request(build: BuildLegs, urls: StoreUrls) -> BuildRequest | None:
    """The build's request as a leg's manifest in the store has it; None where no leg got there or the store is down."""
    with HttpSession(timeout=5) as session:
        for leg in build.legs:
            try:
                body = session.get(urls.manifest(build.build_id, leg.arch), MAX_BYTES)
                return Manifest.from_json(parse_json(body)).request
            except (NotFound, InvalidMessage):
                continue
            except HttpUnavailable:
                break
    return None


def _new_request(build: BuildLegs, legs: Sequence[str], sha256: str, user: str, known: Arches) -> BuildRequest:
    main, arch = build.main, _requested_arch(build)
    if arch not in known.known:
        raise InputError(f"arch {validators.quoted(arch)} is not known any more")
    return BuildRequest(
        srpm=main.srpm,
        arch=arch,
        target=main.target,
        disttag=main.disttag,
        scratch=bool(main.scratch),
        submitter=user,
        build_id=new_build_id(),
        timestamp=validators.now_timestamp(),
        srpm_sha256=sha256,
        parent=build.build_id,
        legs=tuple(legs),
    )


def queue_retries(
    broker: Broker, requests: Sequence[tuple[BuildLegs, BuildRequest]], known: Arches, priority: int
) -> tuple[list[RetryResult], str]:
    """Queue each request until one fails; returns those queued before and the fault. Raises if the first one fails."""
    done: list[RetryResult] = []
    for build, request in requests:
        try:
            done.append(_queue(broker, build, request, known.tube_of(request.arch), priority))
        except ReimzulError as error:
            if not done:
                raise
            return done, f"not queued: {', '.join(each.label for each, _ in requests[len(done) :])}: {error}"
    return done, ""


def _queue(broker: Broker, build: BuildLegs, request: BuildRequest, tube: str, priority: int) -> RetryResult:
    job = broker.put(arch_tube(tube), request, priority=priority)
    about = {name: getattr(build.main, name) for name in ("pkgname", "evr")}
    reason = f"job {job} of tube {tube}; it repeats build {build.build_id}"
    at = round(time.time(), 3)
    try:
        for arch in request.announced_arches:
            queued = event_for(request, Status.QUEUED, reason=reason, at=at, arch=arch, **about)
            broker.announce(attr.evolve(queued, tube=tube, job=job, priority=priority))
    except ReimzulError as error:  # the request is queued all the same: retrying would build it twice
        log.warning("%s: queued, but not announced: %s", request.build_id, error)
    return RetryResult(
        parent=build.build_id,
        build_id=request.build_id,
        arches=request.announced_arches,
        tube=tube,
        job=job,
        target=request.target,
        timestamp=request.timestamp,
    )
