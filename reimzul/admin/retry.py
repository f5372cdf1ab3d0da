# SPDX-License-Identifier: Apache-2.0
"""`reimzul retry`: submit a build again as it was, or those of its legs that came to nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.asking import agreed
from reimzul.admin.lookup import BuildLegs
from reimzul.admin.table import show_json
from reimzul.core import validators
from reimzul.core.arch import Arches, read_arches
from reimzul.core.beanstalk import PRIORITY, PRIORITY_NOW, Broker, arch_tube
from reimzul.core.cli import EXIT_CODES, current_user, load_settings, print_error, shared_options
from reimzul.core.config import Settings
from reimzul.core.errors import EXIT_FAILED, InputError, InvalidMessage, ReimzulError
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.manifest import MAX_BYTES, Manifest, sha256_of
from reimzul.core.message import BuildRequest, Status, event_for, new_build_id, parse_json
from reimzul.core.readable import find_unreadable
from reimzul.core.store_paths import StoreUrls

log = logging.getLogger(__name__)

_LOST = (Status.FAILED, Status.REJECTED, Status.CANCELLED)


@attr.frozen(kw_only=True)
class Retried:
    """A build that was submitted again."""

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
@click.option("--now", is_flag=True, help="Put it in front of what waits (priority 1024 instead of 8192).")
@click.option("--yes", is_flag=True, help="Do not ask whether to replace what is published. Needed without a terminal.")
@click.option("--json", "as_json", is_flag=True, help="A list of what was queued. docs/json.md has its keys.")
@shared_options
def command(
    config: Path | None, verbose: bool, given: tuple[str, ...], failed: bool, now: bool, yes: bool, as_json: bool
) -> int:
    """Submit builds again: the same source rpm, target, disttag and arch, as new builds that name the old ones.

    The source rpm has to be in incoming/ still, unchanged. Everything is checked before anything is queued. Where a
    leg that is built again is published, the new one replaces it in the repodata, once you agree. IDs may be shortened
    to what no other build has.

    \b
    Examples:
      reimzul retry 72b893f8
      reimzul retry 72b893f8 --failed --now
    """
    settings = load_settings(config, verbose)
    with lookup.reading_history(settings.history.url) as history:
        builds = lookup.find_builds(history, given)
    known = read_arches(settings.farm.arches)
    who = current_user()
    asked = requests(settings, builds, known, who, failed=failed)
    published = [build.label for build, request in asked if is_listed(build, request)]
    if published:
        agreed(f"{', '.join(published)}: published; replace it by a rebuild?", yes)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        name = lookup.submitter_for_workers(broker, who, settings)
        asked = [(build, attr.evolve(request, submitter=name)) for build, request in asked]
        done, fault = _queue_all(broker, asked, known, PRIORITY_NOW if now else PRIORITY)
    if as_json:
        show_json([attr.asdict(each) for each in done])
    else:
        for each in done:
            what = f"{', '.join(each.arches)} for {each.target}, tube {each.tube}"
            click.echo(f"{each.parent[:8]} again as build {each.build_id}: {what}")
    if fault:
        print_error(command, fault)
    return EXIT_FAILED if fault else 0


def requests(
    settings: Settings, builds: Sequence[BuildLegs], known: Arches, who: str, *, failed: bool
) -> list[tuple[BuildLegs, BuildRequest]]:
    """What is to be submitted. Raises `InputError` with a line for each build that cannot be submitted again."""
    asked, faults = [], []
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    for build in builds:
        try:
            before = _before(build, urls)
            legs = _lost_legs(build, before) if failed else _all_legs(build, before)
            sha256 = _checked(settings.incoming.folder, build, before)
            request = _request(build, legs, sha256, who, known)
            is_rebuild = is_listed(build, request) or (before is not None and before.rebuild)
            asked.append((build, attr.evolve(request, rebuild=is_rebuild)))
        except InputError as error:
            faults.append(f"{build.label}: {error}")
    if faults:
        raise InputError("\n".join(faults))
    return asked


def is_listed(build: BuildLegs, request: BuildRequest) -> bool:
    """Whether a leg that a request builds again is published, or about to be."""
    legs = [leg for leg in build.legs if leg.arch in (request.legs or _arches(build))]
    return not build.main.scratch and any(leg.status == Status.SUCCESS or leg.published for leg in legs)


def _all_legs(build: BuildLegs, before: BuildRequest | None) -> tuple[str, ...]:
    """The legs that were asked for; none where it was not said which."""
    if before is not None:  # a retry of one leg may have been of the arch that all are asked for by
        return before.legs
    return () if _asked(build) in _arches(build) else _arches(build)


def _arches(build: BuildLegs) -> tuple[str, ...]:
    return tuple(leg.arch for leg in build.legs)


def _asked(build: BuildLegs) -> str:
    """The arch of the build's request, which its target ends with."""
    main = build.main
    return main.arch if main.target.endswith(f".{main.arch}") else main.target.rpartition(".")[2]


def _lost_legs(build: BuildLegs, before: BuildRequest | None) -> tuple[str, ...]:
    """The legs that came to nothing; none where that is all there are."""
    lost = [leg.arch for leg in build.legs if leg.status in _LOST]
    if not lost:
        each = [f"{leg.arch} is {leg.status}" for leg in build.legs]
        raise InputError(f"no leg of it has failed: {', '.join(each)}")
    return _all_legs(build, before) if len(lost) == len(build.legs) else tuple(lost)


def _checked(incoming: Path, build: BuildLegs, before: BuildRequest | None) -> str:
    """The sha256 of its source rpm, which has to be what was built before."""
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


def _before(build: BuildLegs, urls: StoreUrls) -> BuildRequest | None:
    """The request that the build was, where a leg of it got as far as the store and that answers."""
    with HttpSession(timeout=5) as site:
        for leg in build.legs:
            try:
                body = site.get(urls.manifest(build.build_id, leg.arch), MAX_BYTES)
                return Manifest.from_json(parse_json(body)).request
            except (NotFound, InvalidMessage):
                continue
            except HttpUnavailable:
                break
    return None


def _request(build: BuildLegs, legs: Sequence[str], sha256: str, who: str, known: Arches) -> BuildRequest:
    main, arch = build.main, _asked(build)
    if arch not in known.known:
        raise InputError(f"arch {validators.quoted(arch)} is not known any more")
    return BuildRequest(
        srpm=main.srpm,
        arch=arch,
        target=main.target,
        disttag=main.disttag,
        scratch=main.scratch,
        submitter=who,
        build_id=new_build_id(),
        timestamp=validators.now_timestamp(),
        srpm_sha256=sha256,
        parent=build.build_id,
        legs=tuple(legs),
    )


def _queue_all(
    broker: Broker, asked: Sequence[tuple[BuildLegs, BuildRequest]], known: Arches, priority: int
) -> tuple[list[Retried], str]:
    """Put each; the first fault ends it, and is said beside what was queued before."""
    done: list[Retried] = []
    for build, request in asked:
        try:
            done.append(_queue(broker, build, request, known.tube_of(request.arch), priority))
        except ReimzulError as error:
            if not done:
                raise
            return done, f"not queued: {', '.join(each.label for each, _ in asked[len(done) :])}: {error}"
    return done, ""


def _queue(broker: Broker, build: BuildLegs, request: BuildRequest, tube: str, priority: int) -> Retried:
    job = broker.put(arch_tube(tube), request, priority=priority)
    try:
        _announce(broker, build, request, {"tube": tube, "job": job, "priority": priority})
    except ReimzulError as error:  # the build itself is safe in its tube: who retries it again has two
        log.warning("%s: queued, but not announced: %s", request.build_id, error)
    return Retried(
        parent=build.build_id,
        build_id=request.build_id,
        arches=request.announced_arches,
        tube=tube,
        job=job,
        target=request.target,
        timestamp=request.timestamp,
    )


def _announce(broker: Broker, build: BuildLegs, request: BuildRequest, where: Mapping[str, Any]) -> None:
    about = {"pkgname": build.main.pkgname, "evr": build.main.evr}
    reason = f"job {where['job']} of tube {where['tube']}; it repeats build {build.build_id}"
    at = round(time.time(), 3)
    for arch in request.announced_arches:
        broker.announce(event_for(request, Status.QUEUED, reason=reason, at=at, arch=arch, **about, **where))
