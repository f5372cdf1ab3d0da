# SPDX-License-Identifier: Apache-2.0
"""`reimzul builds` lists builds and their results, `reimzul show` shows everything about one build.

`reimzul override` sets a status by hand.
"""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, Union

import click

from reimzul.admin import lookup
from reimzul.admin.causes import FailureContext, find_contexts
from reimzul.admin.lookup import BuildLegs
from reimzul.admin.output import (
    Table,
    build_timestamp,
    check_input,
    format_facts,
    format_skew,
    json_option,
    pass_settings,
    period_filter,
    period_options,
    print_json,
    print_none_found,
    print_note,
    print_result,
    print_table,
    table_options,
)
from reimzul.admin.target_option import complete_target, expand_option, refuse_unknown, target_option
from reimzul.core import validators
from reimzul.core.arch import read_arches
from reimzul.core.cli import EXIT_CODES
from reimzul.core.errors import InputError, ReimzulError
from reimzul.core.formatting import format_duration, format_size, format_time, format_timestamp, suggest_nearest
from reimzul.core.json_message import parse_json
from reimzul.core.links import describe_files, name_store
from reimzul.core.manifest import MAX_BYTES, Manifest
from reimzul.core.message import Status
from reimzul.core.mock_exit_codes import describe_code
from reimzul.core.option_types import WholeNumber
from reimzul.core.settings import Settings
from reimzul.core.store_paths import MANIFEST, StoreUrls
from reimzul.core.targets import find_one_target
from reimzul.history import BuildFilter, BuildRecord, History, NoHistory, open_history
from reimzul.history.build_record import BuildState, RecordedAttempt
from reimzul.plan.document import FOLDER

if TYPE_CHECKING:  # `reimzul builds` needs no HTTP, and starts a tenth sooner without
    from reimzul.core.http_client import HttpSession

#: A leg's manifest, or why there is none.
ManifestOrReason = Union[Manifest, str]
_TABLE = Table(
    ("ID", "STATE", "SRPM", "ARCH", "TARGET", "SUBMITTED", "SUBMITTER", "BUILDER"),
    dispensable=("SUBMITTER", "BUILDER", "SUBMITTED", "TARGET"),
)
#: Builds of one source rpm on one arch that are read to find the latest.
_MAX_OVERRIDE_CANDIDATES = 1_000
#: Hex digits of a checksum that are shown where it is not printed in full.
_SHORT_CHECKSUM = 12
#: The statuses of a leg that has its place in the store, or had.
_PLACED = (Status.SUCCESS, Status.FAILED, Status.OVERRIDE)


# --- reimzul builds


def _parse_states(_: click.Context, __: click.Parameter, given: Sequence[str]) -> list[str] | None:
    """Callback of --state; takes the original's words of --status too, of which `Success` is two states."""
    states: list[str] = []
    for word in (each.strip().lower() for text in given for each in text.split(",")):
        if word not in (*BuildState.ALL, "success"):
            hint = suggest_nearest(word, BuildState.ALL) or f"; there are {', '.join(BuildState.ALL)}"
            raise click.BadParameter(f"{validators.quoted(word)} is no state of a build{hint}")
        states += (BuildState.BUILT, BuildState.PUBLISHED) if word == "success" else (word,)
    return states or None


@click.command("builds", epilog=EXIT_CODES)
@click.option(
    "--state",
    "--status",
    "states",
    multiple=True,
    callback=_parse_states,
    metavar="STATE",
    help=f"One of {', '.join(BuildState.ALL)}. Several separated by commas, or by giving it again.",
)
@target_option()
@click.option("--arch", metavar="ARCH", help="Only builds on this arch.")
@click.option("--srpm", metavar="NAME", help="A file's whole name, its beginning, or a pattern, as 'time-*.el9*'.")
@click.option("--submitter", metavar="NAME", help="A name, or a pattern.")
@click.option("--build", "build_id", metavar="ID", help="A build id, or its beginning.")
@click.option("--batch", metavar="BATCH", help="Only builds of this batch: its id, or the beginning of it.")
@period_options("Only builds", default=None)
@click.option(
    "--limit", type=WholeNumber(1, 1_000_000), default=50, show_default=True, metavar="COUNT",
    help="List no more than this; the last line says if there are more.",
)  # fmt: skip
@table_options(_TABLE)
@json_option("a list with all that is known of each")
@pass_settings
def command(
    settings: Settings,
    columns: Sequence[str],
    wide: bool,
    as_json: bool,
    limit: int,
    begin: float | None,
    end: float | None,
    **wanted: Any,
) -> None:
    """List builds and their results, the newest first; only those that match all options.

    On a terminal this is a table of its width; in a pipe one line per build, all columns, separated by tabs. A batch is
    one line, unless other options than --target, --since and --until choose builds; --json always lists all builds.

    \b
    Examples:
      reimzul builds --state failed --target c9s --since 24h
      reimzul builds --batch 5f0c12ab
      reimzul builds --srpm 'time-*.el9*' --json
    """
    found: list[BuildRecord] = []
    target, reason = wanted["target"], ""
    is_folded = not as_json and not any(value for name, value in wanted.items() if name != "target")
    period = period_filter(begin, end)
    try:
        with lookup.reading_history(settings.history.url) as history:
            chosen = {**wanted, "batch": ""} if is_folded else wanted
            found = _find_builds(settings, history, limit + 1, {**chosen, **period})
    except NoHistory as error:
        reason = str(error)
    batches = _fold_batches(settings, target, begin, end, found, limit) if is_folded else []
    if reason or not (found or batches or as_json):
        print_none_found("build", reason, as_json=as_json)
    if as_json:
        print_json([record.to_output() for record in lookup.add_links(settings, found[:limit])])
    elif found or batches:
        dated = [*((each.timestamp, _row(each)) for each in found[:limit]), *batches]
        rows = sorted(dated, key=operator.itemgetter(0), reverse=True)
        print_table(_TABLE, [row for _, row in rows[:limit]], columns=columns, wide=wide)
    if len(found) + len(batches) > limit:
        print_note(f"{limit:,} shown, there are more: --limit", as_json=as_json)


def _fold_batches(
    settings: Settings,
    target: str | None,
    begin: float | None,
    end: float | None,
    found: Sequence[BuildRecord],
    limit: int,
) -> list[tuple[str, list[str]]]:
    """Return timestamp and row of each batch that belongs among the builds which are shown."""
    if not (settings.incoming.folder / FOLDER).is_dir():
        return []
    from reimzul.admin import batch_lookup  # most farms have no batches, and `reimzul builds` starts sooner without

    oldest = found[limit - 1].timestamp if len(found) > limit else ""
    rows: list[tuple[str, list[str]]] = []
    last = time.time() + 86400 if end is None else end  # a plan's clock may be ahead
    for each in batch_lookup.iterate_summaries(settings, target, begin or 0.0, last):
        stamp = build_timestamp(each.created)
        if stamp < oldest or len(rows) > limit:
            break
        about = (batch_lookup.describe_summary(each), ",".join(each.arches), each.target, format_timestamp(stamp))
        rows.append((stamp, [each.batch, each.phase, *about, each.submitter, "-"]))
    return rows


def _find_builds(settings: Settings, history: History, limit: int, wanted: dict[str, Any]) -> list[BuildRecord]:
    """Return the builds that match. Raises `InputError` for an arch or a target that no build ever had."""
    target = wanted.pop("target")
    targets = expand_option(settings, target)
    found = history.find_builds(BuildFilter(**wanted, targets=targets), limit)
    if not found:
        refuse_unknown(settings, history, target=target, arch=wanted["arch"])
        # a full id may be of a build that was submitted just now
        if wanted["build_id"] and len(wanted["build_id"]) < lookup.ID_LENGTH:
            lookup.require_build(history, wanted["build_id"])
        if wanted["batch"]:
            from reimzul.admin import batch_lookup

            batch_lookup.find_batch(settings, wanted["batch"])
    return found


def _row(record: BuildRecord) -> list[str]:
    state = f"{record.state}, {record.claim_text}" if record.claimed else record.state
    about = (record.srpm, record.arch, record.target, format_timestamp(record.timestamp))
    return [value or "-" for value in (record.build_id[:8], state, *about, record.submitter, record.builder_fqdn)]


# --- reimzul show


@click.command("show", epilog=EXIT_CODES)
@lookup.build_ids_argument(many=False)
@click.option("--checksums", is_flag=True, help="Print the checksums of files in full.")
@json_option("an object: build_id, arches")
@pass_settings
def show_command(settings: Settings, given: str, checksums: bool, as_json: bool) -> None:
    """Show everything about a build, by arch: its attempts, how long each phase took, why it failed, its files.

    ID is a build id, or a prefix that no other build has. Sizes and checksums of files come from the manifest in the
    store; if that cannot be read, the output shows why.

    \b
    Examples:
      reimzul show 72b893f8
      reimzul show 72b893f8 --json
    """
    with lookup.reading_history(settings.history.url) as history:
        build = lookup.find_build(history, given)
        contexts = find_contexts(history, build)
    build = BuildLegs(lookup.add_links(settings, build.legs))
    manifests = fetch_manifests_by_arch(
        StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url), build
    )
    shown = format_build(build, manifests, contexts, checksums=checksums)
    print_result(to_dict(build, manifests, contexts), shown, as_json)


def fetch_manifests_by_arch(urls: StoreUrls, build: BuildLegs) -> dict[str, ManifestOrReason]:
    from reimzul.core.http_client import HttpSession, NotFound

    found: dict[str, ManifestOrReason] = {}
    with HttpSession(timeout=5) as session:
        for leg in build.legs:
            found[leg.arch] = "no attempt at it has sent anything"
            for url in list_manifest_urls(urls, leg):
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


def list_manifest_urls(urls: StoreUrls, leg: BuildRecord) -> Iterator[str]:
    """Yield where a leg's manifest may be: in its place, or with the logs of an attempt without a result."""
    if leg.status in _PLACED:
        yield urls.manifest(leg.build_id, leg.arch)
    if leg.attempt:
        yield urls.attempt(leg.build_id, leg.arch, leg.attempt) + MANIFEST


def to_dict(
    build: BuildLegs, manifests: Mapping[str, ManifestOrReason], contexts: Mapping[str, FailureContext]
) -> dict[str, Any]:
    arches = [_arch_to_dict(leg, manifests[leg.arch], contexts.get(leg.arch)) for leg in build.legs]
    return {"build_id": build.build_id, "arches": arches}


def _arch_to_dict(leg: BuildRecord, manifest: ManifestOrReason, context: FailureContext | None) -> dict[str, Any]:
    files: dict[str, Any] = {"config": None, "files": None, "no_files_reason": manifest}
    if isinstance(manifest, Manifest):
        listed = [
            {"name": file.name, "bytes": file.size, "sha256": file.sha256, "nevra": file.nevra}
            for file in manifest.files
        ]
        files = {"config": manifest.config, "files": listed, "no_files_reason": None}
    meaning = None if leg.exit_code is None else describe_code(leg.exit_code)
    failure = None if context is None else context.to_dict()
    return {**leg.to_output(), "exit_code_meaning": meaning, "failure": failure, **files}


def format_build(
    build: BuildLegs,
    manifests: Mapping[str, ManifestOrReason],
    contexts: Mapping[str, FailureContext],
    *,
    checksums: bool = False,
) -> Iterator[str]:
    main = build.main
    yield f"build {build.build_id}"
    yield from format_facts(
        ("source", main.srpm),
        ("target", f"{main.target}, disttag {main.disttag or '-'}{', scratch' * bool(main.scratch)}"),
        ("submitted", f"{format_timestamp(main.timestamp)} by {main.submitter}"),
        ("repeats", f"build {main.parent}" if main.parent else None),
        ("batch", f"{main.batch}: reimzul batch show {main.batch}" if main.batch else None),
        *(("not built", f"for {arch}: {why}") for arch, why in main.skipped.items()),
    )
    for leg in build.legs:
        yield ""
        yield f"{leg.arch}: {_state_text(leg)}"
        if leg.arch in contexts:
            yield from format_facts(*contexts[leg.arch].describe())
        yield from _format_leg(leg)
        if not leg.is_unfinished:
            yield from _format_files(manifests[leg.arch], checksums=checksums)


def _state_text(leg: BuildRecord) -> str:
    if leg.state == BuildState.PUBLISHED:
        return f"{leg.state} {format_time(leg.published)}"
    claim = f", {leg.claim_text}" if leg.claimed else ""
    return leg.state + claim + (f": {leg.current_reason}" if leg.current_reason else "")


def _format_leg(leg: BuildRecord) -> Iterator[str]:
    phases = [
        f"{each['name']} {format_duration(each['end'] - each['start']) if each.get('end') else 'did not end'}"
        for each in leg.phases
    ]
    has_exit_code = leg.status in Status.FINAL and leg.exit_code is not None
    attempts = leg.attempts if len(leg.attempts) > 1 else ()
    yield from format_facts(
        ("comment", leg.comment or None),
        ("fixed", f"{leg.previous_evr or 'it'} failed before: {leg.previous_build[:8]}" if leg.fixed else None),
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
    return "page" if leg.page else "URL" if leg.url else "log" if leg.logs_folder.startswith("attempts/") else "folder"


def _describe_times(leg: BuildRecord) -> Iterator[tuple[str, str]]:
    """Yield the label and the text of each time; a span between two clocks is left out where one of them is off."""
    if leg.queued_at:
        where = f" as job {leg.job} of tube {leg.tube}" if leg.job else ""
        yield "queued", format_time(leg.queued_at) + where
    if leg.is_held:
        waits = f", waits for {leg.waits_for}" if leg.waits_for else ""
        yield "held", f"since {format_time(leg.put_at)}{waits}"
    elif leg.released_at:
        yield "released", format_time(leg.released_at)
    if leg.started:
        clock = f" (its clock is {format_skew(leg.skew)})" if leg.skew else ""
        is_before = leg.started >= leg.released_at and leg.waits_since and not leg.skew
        waited = _format_after(leg.started - leg.waits_since if is_before else None)
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
    return f"{attempt.attempt} on {attempt.builder_fqdn}{took}: {attempt.state}{why}{'; ' * bool(where)}{where}"


def _format_files(manifest: ManifestOrReason, *, checksums: bool) -> Iterator[str]:
    if isinstance(manifest, str):
        yield from format_facts(("files", f"not known: {manifest}"))
        return
    total = format_size(sum(file.size for file in manifest.files))
    yield from format_facts(("config", manifest.config or "-"), ("files", f"{len(manifest.files)}, {total}"))
    width = max((len(file.name) for file in manifest.files), default=0)
    for file in manifest.files:
        sha256 = file.sha256 if checksums else file.sha256[:_SHORT_CHECKSUM]
        yield f"    {file.name:{width}}  {format_size(file.size):>10}  {sha256}"


# --- reimzul override


_OVERRIDE_CHECKS: dict[str, Callable[[Any], str]] = {
    "srpm": validators.srpm,
    "target": validators.target,
    "arch": validators.arch,
    "why": validators.line(1000),
}


@click.command("override", epilog=EXIT_CODES)
@lookup.build_ids_argument(required=False, many=False)
@click.option("--why", metavar="TEXT", help="The reason, shown with the build. Required.")
@click.option("-a", "--arch", metavar="ARCH", help="Only this arch of the build.")
@click.option("-s", "--srpm", metavar="SRPM", help="Instead of an ID, with -t and -a: the latest build of this file.")
@click.option(
    "-t",
    "--target",
    metavar="TARGET",
    shell_complete=complete_target,
    help="With -s and -a: as c9s or c9s.x86_64.",
)
@click.option("-c", "--comment", hidden=True)  # the original's name of --why
@json_option("a list: the build on each arch, as the history has it now")
@pass_settings
def override(settings: Settings, given: str | None, comment: str | None, as_json: bool, **options: str | None) -> None:
    """Set the state of a finished build to override, in the history, and record why.

    No later event of that build changes the state again.

    \b
    Examples:
      reimzul override 72b893f8 --why "built against devtoolset-7"
      reimzul override -s time-1.7-45.el7.src.rpm -t c7.1810.00.armhfp -a armhfp --why "fails in %check alone"
    """
    options["why"] = options["why"] or comment
    named = {name: options[name] for name in ("srpm", "target")}
    if bool(given) == any(named.values()) or (not given and not all((*named.values(), options["arch"]))):
        raise click.UsageError("say which build: its ID, or all of -s, -t and -a.")
    for name, check in _OVERRIDE_CHECKS.items():
        if (value := options[name]) is not None:
            options[name] = check_input(check, value, f"--{name}: ")
    if not options["why"]:
        raise click.UsageError("give a reason: --why TEXT.")
    with lookup.reading_history(settings.history.url) as history:  # to write would create a missing history
        if given:
            found = _find_given(history, given, options["arch"])
        else:
            srpm, target, arch = (options[name] or "" for name in ("srpm", "target", "arch"))
            found = _find_latest(settings, history, srpm, target, arch)
    done = []
    with contextlib.closing(open_history(settings.history.url)) as history:
        for leg in found:
            key = (leg.srpm, leg.target, leg.arch)
            if record := history.override(*key, options["why"], leg.build_id if given else ""):
                done.append(record)
    lines = [f"{each.build_id[:8] or '-'}  {each.srpm} for {each.target} on {each.arch}: {each.state}" for each in done]
    print_result([each.to_output() for each in lookup.add_links(settings, done)], lines, as_json)


def _find_given(history: History, given: str, arch: str | None) -> list[BuildRecord]:
    """Return the legs of a build to override. Raises `InputError`."""
    build = lookup.find_build(history, given)
    arches = ", ".join(leg.arch for leg in build.legs)
    legs = [leg for leg in build.legs if arch in (None, leg.arch)]
    if not legs:
        raise InputError(f"{build.label} was not built for {arch}; it was for {arches}")
    if unfinished := [leg.arch for leg in legs if not leg.is_over]:
        raise InputError(
            f"{build.label} has not ended yet on {', '.join(unfinished)}; cancel it, or name another --arch"
        )
    return legs


def _find_latest(settings: Settings, history: History, srpm: str, target: str, arch: str) -> list[BuildRecord]:
    """Return the latest finished build of a source rpm on an arch. Raises `InputError`."""
    wanted = BuildFilter(srpm=srpm, arch=arch, targets=expand_option(settings, target))
    found = [record for record in history.find_builds(wanted, _MAX_OVERRIDE_CANDIDATES) if record.latest_build]
    if not found:
        refuse_unknown(settings, history, target=target, arch=arch)
        raise InputError(
            f"no finished build of {srpm} on {arch} for {target} is recorded; "
            f"`reimzul builds --srpm {srpm}` lists those that are"
        )
    find_one_target(target, {record.target for record in found}, read_arches(settings.farm.arches))
    return found[:1]
