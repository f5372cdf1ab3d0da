# SPDX-License-Identifier: Apache-2.0
"""`reimzul builds` lists builds and their results, `reimzul show` shows everything about one build.

`reimzul override` sets a status by hand.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, Union

import click

from reimzul.admin import lookup
from reimzul.admin.lookup import BuildLegs
from reimzul.admin.output import (
    Table,
    check_input,
    format_skew,
    json_option,
    pass_settings,
    print_json,
    print_result,
    print_table,
    table_options,
)
from reimzul.core import validators
from reimzul.core.cli import EXIT_CODES
from reimzul.core.errors import InputError, ReimzulError
from reimzul.core.formatting import format_duration, format_size, format_time, format_timestamp
from reimzul.core.json_message import parse_json
from reimzul.core.links import describe_files, name_store
from reimzul.core.manifest import MAX_BYTES, Manifest
from reimzul.core.message import Status
from reimzul.core.mock_exit_codes import describe_code
from reimzul.core.settings import Settings
from reimzul.core.store_paths import MANIFEST, StoreUrls
from reimzul.history import BuildFilter, BuildRecord, NoHistory, open_history
from reimzul.history.build_record import BuildState, RecordedAttempt

if TYPE_CHECKING:  # `reimzul builds` needs no HTTP, and starts a tenth sooner without
    from reimzul.core.http_client import HttpSession

#: A leg's manifest, or why there is none.
ManifestOrReason = Union[Manifest, str]
_TABLE = Table(
    ("ID", "STATE", "SRPM", "ARCH", "TARGET", "SUBMITTED", "SUBMITTER", "BUILDER"),
    dispensable=("SUBMITTER", "BUILDER", "SUBMITTED", "TARGET"),
)
#: The statuses of a leg that has its place in the store, or had.
_PLACED = (Status.SUCCESS, Status.FAILED, Status.OVERRIDE)


# --- reimzul builds


@click.command("builds", epilog=EXIT_CODES)
@click.option(
    "--status",
    type=click.Choice(Status.BUILD, case_sensitive=False),
    help="Published: Success, and published.",
)
@click.option("--target", metavar="TARGET", help="With its arch, as c7.1708.u.x86_64.")
@click.option("--arch", metavar="ARCH")
@click.option("--srpm", metavar="NAME", help="A file's whole name, or its beginning.")
@click.option("--submitter", metavar="NAME")
@click.option("--build", "build_id", metavar="ID", help="A build id, or its beginning.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, metavar="COUNT")
@table_options(_TABLE)
@json_option("a list with all that is known of each")
@pass_settings
def command(
    settings: Settings, columns: Sequence[str], wide: bool, as_json: bool, limit: int, **wanted: str | None
) -> None:
    """List builds and their results, the newest first; only those that match all options.

    On a terminal this is a table of its width; in a pipe one line per build, all columns, separated by tabs.

    \b
    Examples:
      reimzul builds --status failed --target c7.1708.u.x86_64
      reimzul builds --srpm time-1.7 --json
    """
    found: list[BuildRecord] = []
    try:
        with lookup.reading_history(settings.history.url) as history:
            found = history.find_builds(BuildFilter(**wanted), limit)
    except NoHistory as error:
        click.echo(str(error), err=True)
    if as_json:
        print_json([record.to_document() for record in lookup.add_links(settings, found)])
    elif found or not sys.stdout.isatty():
        print_table(_TABLE, [_row(record) for record in found], columns=columns, wide=wide)
    else:
        click.echo("No build matches.")


def _row(record: BuildRecord) -> list[str]:
    state = f"{record.state}, {record.claim_text}" if record.claimed else record.state
    about = (record.srpm, record.arch, record.target, format_timestamp(record.timestamp))
    return [value or "-" for value in (record.build_id[:8], state, *about, record.submitter, record.builder_fqdn)]


# --- reimzul show


@click.command("show", epilog=EXIT_CODES)
@lookup.build_ids_argument(many=False)
@json_option("an object: build_id, legs")
@pass_settings
def show_command(settings: Settings, given: str, as_json: bool) -> None:
    """Show everything about a build: its legs and attempts, how long each phase took, why it failed, its files.

    ID is a build id, or a prefix that no other build has. Sizes and checksums of files come from the manifest in the
    store; if that cannot be read, the output shows why.

    \b
    Examples:
      reimzul show 72b893f8
      reimzul show 72b893f8 --json
    """
    build = BuildLegs(lookup.add_links(settings, lookup.read_builds(settings, [given])[0].legs))
    manifests = fetch_manifests_by_arch(
        StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url), build
    )
    print_result(to_dict(build, manifests), format_build(build, manifests), as_json)


def fetch_manifests_by_arch(urls: StoreUrls, build: BuildLegs) -> dict[str, ManifestOrReason]:
    from reimzul.core.http_client import HttpSession, NotFound

    found: dict[str, ManifestOrReason] = {}
    with HttpSession(timeout=5) as session:
        for leg in build.legs:
            found[leg.arch] = "no attempt at it has sent anything"
            for url in _manifest_urls(urls, leg):
                try:
                    found[leg.arch] = fetch_manifest(session, url)
                    break
                except ReimzulError as error:
                    found[leg.arch] = name_store(str(error), urls)
                    if not isinstance(error, NotFound):
                        break
    return found


def fetch_manifest(session: HttpSession, url: str) -> Manifest:
    """Read a leg's manifest from the store. Raises `NotFound`, `HttpUnavailable` and `InvalidMessage`."""
    return Manifest.from_json(parse_json(session.get(url, MAX_BYTES)))


def _manifest_urls(urls: StoreUrls, leg: BuildRecord) -> Iterator[str]:
    """Yield where a leg's manifest may be: in its place, or with the logs of an attempt without a result."""
    if leg.status in _PLACED:
        yield urls.manifest(leg.build_id, leg.arch)
    if leg.attempt:
        yield urls.attempt(leg.build_id, leg.arch, leg.attempt) + MANIFEST


def to_dict(build: BuildLegs, manifests: Mapping[str, ManifestOrReason]) -> dict[str, Any]:
    legs = []
    for leg in build.legs:
        found = manifests[leg.arch]
        reason, manifest = (found, None) if isinstance(found, str) else ("", found.to_json())
        about = {"exit_code_means": describe_code(leg.exit_code), "manifest": manifest, "no_manifest": reason}
        legs.append({**leg.to_document(), **about})
    return {"build_id": build.build_id, "legs": legs}


def format_build(build: BuildLegs, manifests: Mapping[str, ManifestOrReason]) -> Iterator[str]:
    main = build.main
    yield f"build {build.build_id}"
    yield from _format_facts(
        ("source", main.srpm),
        ("target", f"{main.target}, disttag {main.disttag or '-'}{', scratch' * bool(main.scratch)}"),
        ("submitted", f"{format_timestamp(main.timestamp)} by {main.submitter}"),
        ("repeats", f"build {main.parent}" if main.parent else None),
        *(("not built", f"for {arch}: {why}") for arch, why in main.skipped.items()),
    )
    for leg in build.legs:
        yield ""
        yield f"{leg.arch}: {_state_text(leg)}"
        yield from _format_leg(leg)
        if not leg.is_unfinished:
            yield from _format_files(manifests[leg.arch])


def _format_facts(*facts: tuple[str, str | None]) -> Iterator[str]:
    """Format facts with their labels; None: there is no such fact."""
    for label, text in facts:
        if text is not None:
            yield f"  {label:12}{text}"


def _state_text(leg: BuildRecord) -> str:
    if leg.state == BuildState.PUBLISHED:
        return f"{Status.SUCCESS}, published {format_time(leg.published)}"
    claim = f", {leg.claim_text}" if leg.claimed else ""
    return leg.status + claim + (f": {leg.reason}" if leg.reason else "")


def _format_leg(leg: BuildRecord) -> Iterator[str]:
    phases = [
        f"{each['name']} {format_duration(each['end'] - each['start']) if each.get('end') else 'did not end'}"
        for each in leg.phases
    ]
    has_exit_code = leg.status in Status.FINAL and leg.exit_code is not None
    attempts = leg.attempts if len(leg.attempts) > 1 else ()
    yield from _format_facts(
        ("comment", leg.comment or None),
        ("package", f"{leg.pkgname} {leg.evr}" if leg.pkgname else None),
        *_describe_times(leg),
        ("phases", ", ".join(phases) or None),
        ("exit code", f"{leg.exit_code}: {describe_code(leg.exit_code)}" if has_exit_code else None),
        *(("" if number else "first error", line) for number, line in enumerate(leg.first_error.splitlines())),
        *((f"attempt {number}", _format_attempt(attempt)) for number, attempt in enumerate(attempts, 1)),
        (_files_label(leg), describe_files(leg) or None),
    )


def _files_label(leg: BuildRecord) -> str:
    """What the last line of a leg has: a link, a path, or a command that prints a log."""
    return "URL" if leg.url else "log" if leg.logs_folder.startswith("attempts/") else "folder"


def _describe_times(leg: BuildRecord) -> Iterator[tuple[str, str]]:
    """Yield the label and the text of each time; a span between two clocks is left out where one of them is off."""
    if leg.queued_at:
        where = f" as job {leg.job} of tube {leg.tube}" if leg.job else ""
        yield "queued", format_time(leg.queued_at) + where
    if leg.started:
        clock = f" (its clock is {format_skew(leg.skew)})" if leg.skew else ""
        waited = _format_after(leg.started - leg.queued_at if leg.queued_at and not leg.skew else None)
        yield "started", f"{format_time(leg.started)} on {leg.builder_fqdn or '-'}{clock}{waited}"
    if leg.finished:
        yield "finished", format_time(leg.finished) + _format_after(leg.duration)
    if leg.published:
        took = leg.published - leg.finished if leg.finished and not leg.skew else None
        yield "published", format_time(leg.published) + _format_after(took)


def _format_after(seconds: float | None) -> str:
    return "" if seconds is None else f", after {format_duration(seconds)}"


def _format_attempt(attempt: RecordedAttempt) -> str:
    took = f" {format_time(attempt.started)}" if attempt.started else ""
    if attempt.started and not attempt.skew:
        took += f", {format_duration((attempt.finished or attempt.at or attempt.started) - attempt.started)}"
    why = f": {attempt.reason}" if attempt.reason else ""
    where = describe_files(attempt)
    return f"{attempt.attempt} on {attempt.builder_fqdn}{took}: {attempt.status}{why}{'; ' * bool(where)}{where}"


def _format_files(manifest: ManifestOrReason) -> Iterator[str]:
    if isinstance(manifest, str):
        yield from _format_facts(("files", f"not known: {manifest}"))
        return
    total = format_size(sum(file.size for file in manifest.files))
    yield from _format_facts(("config", manifest.config or "-"), ("files", f"{len(manifest.files)}, {total}"))
    for file in manifest.files:
        yield f"    {file.sha256}  {file.size:>12,}  {file.name}"


# --- reimzul override


_OVERRIDE_CHECKS: dict[str, Callable[[Any], str]] = {
    "srpm": validators.srpm,
    "target": validators.target,
    "arch": validators.arch,
    "comment": validators.line(1000),
}


@click.command("override", epilog=EXIT_CODES)
@click.option("-s", "--srpm", required=True, metavar="SRPM", help="The full file name.")
@click.option("-t", "--target", required=True, metavar="TARGET", help="With its arch, as c7.1810.00.armhfp.")
@click.option("-a", "--arch", required=True, metavar="ARCH")
@click.option("-c", "--comment", required=True, metavar="COMMENT", help="Why.")
@json_option("the build as the history has it now")
@pass_settings
def override(settings: Settings, as_json: bool, **given: str) -> None:
    """Set the status of the latest build of a source rpm to Override, in the history, with a comment.

    No later event of that build changes the status again.

    \b
    Example:
      reimzul override -s time-1.7-45.el7.src.rpm -t c7.1810.00.armhfp -a armhfp -c "built against devtoolset-7"
    """
    for name, check in _OVERRIDE_CHECKS.items():
        given[name] = check_input(check, given[name], f"--{name}: ")
    if not given["comment"]:
        raise InputError("--comment: is empty; give a reason")
    open_history(settings.history.url, reading=True).close()  # opening it to write would create a missing history
    with contextlib.closing(open_history(settings.history.url)) as history:
        record = history.override(given["srpm"], given["target"], given["arch"], given["comment"])
    if record is None:
        raise InputError(
            f"no finished build of {given['srpm']} on {given['arch']} for {given['target']} is recorded; "
            f"`reimzul builds --srpm {given['srpm']}` lists those that are"
        )
    text = f"{record.srpm} ({record.timestamp}) on {record.arch}: {record.status}"
    print_result(lookup.add_links(settings, [record])[0].to_document(), [text], as_json)
