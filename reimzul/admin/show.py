# SPDX-License-Identifier: Apache-2.0
"""`reimzul show`: all that is known of one build, out of the history and of the manifests in the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union

import click

from reimzul.admin import finding, reading
from reimzul.admin.finding import BuildLegs
from reimzul.admin.table import show_json, when
from reimzul.admin.usual import duration
from reimzul.admin.words import size, skewed, span
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.errors import ReimzulError
from reimzul.core.http_client import HttpSession, NotFound
from reimzul.core.manifest import MAX_BYTES, Manifest
from reimzul.core.message import Status, parse_json
from reimzul.core.mock_exit_codes import describe_code
from reimzul.core.store_paths import MANIFEST, StoreUrls
from reimzul.history import Document

#: A leg's manifest, or why there is none.
Told = Union[Manifest, str]
#: The statuses of a leg that has its place in the store, or had.
_PLACED = (Status.SUCCESS, Status.FAILED, Status.OVERRIDE)
#: How wide the names of a leg's facts are.
_WIDE = 12


@click.command("show", epilog=EXIT_CODES)
@finding.build_ids_argument(many=False)
@click.option("--json", "as_json", is_flag=True, help="An object: build_id, legs. docs/json.md has its keys.")
@shared_options
def command(config: Path | None, verbose: bool, given: str, as_json: bool) -> None:
    """Show everything of one build: its legs and their attempts, what took how long, why it failed, its files.

    ID is a build id, or as much of its beginning as no other build has. Sizes and checksums of files are those of the
    manifest in the store; where that cannot be read, it is said.

    \b
    Examples:
      reimzul show 72b893f8
      reimzul show 72b893f8 --json
    """
    settings = load_settings(config, verbose)
    with reading.reading_history(settings.history.url) as history:
        build = finding.find_build(history, given)
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    told = fetch_manifests(urls, build)
    if as_json:
        show_json(as_object(build, told))
    else:
        for line in as_lines(build, told):
            click.echo(line)


def fetch_manifests(urls: StoreUrls, build: BuildLegs) -> dict[str, Told]:
    """The manifest of each leg, by arch, or the words why there is none."""
    told: dict[str, Told] = {}
    with HttpSession(timeout=5) as site:
        for leg in build.legs:
            told[leg["arch"]] = "no attempt at it has sent anything"
            for url in _where(urls, leg):
                try:
                    told[leg["arch"]] = Manifest.from_json(parse_json(site.get(url, MAX_BYTES)))
                    break
                except NotFound as error:
                    told[leg["arch"]] = str(error)
                except ReimzulError as error:
                    told[leg["arch"]] = str(error)
                    break
    return told


def _where(urls: StoreUrls, leg: Document) -> Iterator[str]:
    """Where the manifest of a leg may be: in its place, or with the logs of an attempt that came to nothing."""
    if leg["status"] in _PLACED:
        yield urls.manifest(leg["build_id"], leg["arch"])
    if leg.get("attempt"):
        yield urls.attempt(leg["build_id"], leg["arch"], leg["attempt"]) + MANIFEST


def as_object(build: BuildLegs, told: Mapping[str, Told]) -> dict[str, Any]:
    """The same for a program: the history's documents, each with its manifest."""
    legs = []
    for leg in build.legs:
        manifest = told[leg["arch"]]
        found = isinstance(manifest, Manifest)
        legs.append(
            {
                **leg,
                "exit_code_means": describe_code(leg["exit_code"]),
                "manifest": manifest.to_json() if isinstance(manifest, Manifest) else None,
                "no_manifest": "" if found else manifest,
            }
        )
    return {"build_id": build.build_id, "legs": legs}


def as_lines(build: BuildLegs, told: Mapping[str, Told]) -> Iterator[str]:
    """The same for a person."""
    main = build.main
    yield f"build {build.build_id}"
    yield _fact("source", main["srpm"])
    yield _fact("target", f"{main['target']}, disttag {main['disttag'] or '-'}{', scratch' * bool(main['scratch'])}")
    yield _fact("submitted", f"{_stamp(main['timestamp'])} by {main['submitter']}")
    if main.get("parent"):
        yield _fact("repeats", f"build {main['parent']}")
    for arch, why in (main.get("skipped") or {}).items():
        yield _fact("not built", f"for {arch}: {why}")
    for leg in build.legs:
        yield ""
        yield f"{leg['arch']}: {state(leg)}"
        yield from _leg(leg, told[leg["arch"]])


def state(leg: Document) -> str:
    """What became of a leg, in one phrase."""
    if leg["status"] == Status.SUCCESS and leg.get("published"):
        return f"{Status.SUCCESS}, published {when(leg['published'])}"
    return str(leg["status"]) + (f": {leg['reason']}" if leg.get("reason") else "")


def _leg(leg: Document, told: Told) -> Iterator[str]:
    if leg.get("comment"):
        yield _fact("comment", leg["comment"])
    if leg.get("pkgname"):
        yield _fact("package", f"{leg['pkgname']} {leg['evr']}")
    yield from _times(leg)
    phases = [f"{each['name']} {_took(each)}" for each in leg.get("phases") or ()]
    if phases:
        yield _fact("phases", ", ".join(phases))
    if leg["status"] in Status.FINAL and leg["exit_code"] is not None:
        yield _fact("exit code", f"{leg['exit_code']}: {describe_code(leg['exit_code'])}")
    if leg.get("first_error"):
        yield from _facts("first error", leg["first_error"].splitlines())
    attempts = leg.get("attempts") or ()
    for number, attempt in enumerate(attempts, 1):
        if len(attempts) > 1:
            yield _fact(f"attempt {number}", _attempt(attempt))
    if leg.get("url"):
        yield _fact("URL", leg["url"])
    if leg["status"] not in (Status.QUEUED, Status.BUILDING):
        yield from _files(told)


def _times(leg: Document) -> Iterator[str]:
    if leg.get("queued_at"):
        where = f" as job {leg['job']} of tube {leg['tube']}" if leg.get("job") else ""
        yield _fact("queued", when(leg["queued_at"]) + where)
    if leg.get("started"):
        own = leg.get("skew")
        waited = f", after {span(leg['started'] - leg['queued_at'])}" if leg.get("queued_at") and not own else ""
        clock = f" (its clock is {skewed(own)})" if own else ""
        yield _fact("started", f"{when(leg['started'])} on {leg['builder_fqdn'] or '-'}{clock}{waited}")
    if leg.get("finished"):
        took = "" if duration(leg) is None else f", after {span(duration(leg) or 0.0)}"
        yield _fact("finished", when(leg["finished"]) + took)
    if leg.get("published"):
        known = leg.get("finished") and not leg.get("skew")
        took = f", after {span(leg['published'] - leg['finished'])}" if known else ""
        yield _fact("published", when(leg["published"]) + took)


def _attempt(attempt: Mapping[str, Any]) -> str:
    took = ""
    if attempt.get("started"):
        end = attempt.get("finished") or attempt.get("at") or attempt["started"]
        took = f" {when(attempt['started'])}"
        took += "" if attempt.get("skew") else f", {span(end - attempt['started'])}"
    why = f": {attempt['reason']}" if attempt.get("reason") else ""
    where = f"; {attempt['url']}" if attempt.get("url") else ""
    return f"{attempt['attempt']} on {attempt['builder_fqdn']}{took}: {attempt['status']}{why}{where}"


def _took(phase: Mapping[str, Any]) -> str:
    return span(phase["end"] - phase["start"]) if phase.get("end") else "did not end"


def _files(told: Told) -> Iterator[str]:
    if isinstance(told, str):
        yield _fact("files", f"not known: {told}")
        return
    yield _fact("config", told.config or "-")
    yield _fact("files", f"{len(told.files)}, {size(sum(file.size for file in told.files))}")
    for file in told.files:
        yield f"    {file.sha256}  {file.size:>12,}  {file.name}"


def _fact(name: str, words: str) -> str:
    return f"  {name.ljust(_WIDE)}{words}"


def _facts(name: str, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield _fact("" if number else name, line)


def _stamp(timestamp: str) -> str:
    """A timestamp of the farm as other times are shown."""
    if len(timestamp) != 14:
        return timestamp or "-"
    day, clock = timestamp[:8], timestamp[8:]
    return f"{day[:4]}-{day[4:6]}-{day[6:]}T{clock[:2]}:{clock[2:4]}:{clock[4:]}Z"
