# SPDX-License-Identifier: Apache-2.0
"""`reimzul causes`: groups the builds that failed by their cause, so that a hundred failures read as three.

`reimzul show` and `reimzul retry --cause` use the same groups.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attr
import click

from reimzul.admin import lookup, output
from reimzul.admin.lookup import BuildLegs
from reimzul.admin.target_option import expand_option, refuse_unknown, target_option
from reimzul.core import validators
from reimzul.core.cli import EXIT_CODES
from reimzul.core.errors import InputError
from reimzul.core.failure_cause import FailureCause, cause_of
from reimzul.core.formatting import format_rfc3339, format_time, format_timestamp, pluralize
from reimzul.core.message import Status
from reimzul.core.settings import Settings
from reimzul.history import BuildFilter, BuildRecord, FailedBuild, History, NoHistory
from reimzul.history.build_record import BuildState

#: Days of the history in which `reimzul show` looks for builds that failed alike.
_ALIKE_DAYS = 30
#: Parameters that have no effect with --relabel.
_GROUPING_OPTIONS = ("begin", "end", "target", "arch", "batch", "columns", "wide", "as_json")
_ID = re.compile(r"[0-9a-f]{1,8}")
_TABLE = output.Table(
    ("CAUSE", "BUILDS", "PACKAGES", "LAST", "FIRST", "EXAMPLE", "WHY"), dispensable=("FIRST", "LAST", "EXAMPLE")
)
#: Of a capability as `python3.12dist(six)` or `pkgconfig(zlib) >= 1.2`: what is in the brackets, or the plain name.
_NAME_IN_CAPABILITY = re.compile(r"(?:[^\s(]*\()?([^\s()]+)")
_SUBPACKAGE = re.compile(r"-(?:devel|libs|static|tools|doc|headers)\Z")


@attr.define
class FailureGroup:
    """The builds of a period that failed for one cause, the newest first."""

    builds: list[FailedBuild] = attr.field(factory=list)
    #: failed builds of packages that seem to provide what is missing
    roots: Sequence[FailedBuild] = ()
    newest: BuildRecord = BuildRecord()
    oldest: BuildRecord = BuildRecord()

    @property
    def cause(self) -> FailureCause:
        return cause_of(self.newest)

    @property
    def packages(self) -> set[str]:
        return {each.package for each in self.builds}

    @property
    def text(self) -> str:
        roots = ", ".join(f"{each.package} failed: {each.build_id[:8]}" for each in self.roots)
        return f"{self.cause.text} ({roots})" if roots else self.cause.text

    def to_dict(self) -> dict[str, Any]:
        return {
            "cause": self.cause.id,
            "message": self.cause.text,
            "builds": [{"build_id": each.build_id, "arch": each.arch} for each in self.builds],
            "packages": sorted(self.packages),
            "first": {"build_id": self.builds[-1].build_id, "at": self.oldest.at},
            "last": {"build_id": self.builds[0].build_id, "at": self.newest.at},
            "roots": [{"package": each.package, "build_id": each.build_id} for each in self.roots],
        }


def find_failures(history: History, wanted: BuildFilter, cause: str = "") -> list[FailedBuild]:
    """Return the failed builds that match and whose cause begins with `cause`, the newest first."""
    found = history.iterate_failures(wanted, cause)
    return sorted(found, key=lambda each: (each.timestamp, each.build_id, each.arch), reverse=True)


def group_failures(history: History, failures: Iterable[FailedBuild]) -> list[FailureGroup]:
    """Group failed builds, the newest first, by cause; the largest group comes first."""
    groups: dict[str, FailureGroup] = {}
    failed: dict[tuple[str, str], FailedBuild] = {}
    for each in failures:
        groups.setdefault(each.cause, FailureGroup()).builds.append(each)
        failed.setdefault((each.package, each.target), each)
    for group in groups.values():
        group.newest, group.oldest = (_read_record(history, group.builds[index]) for index in (0, -1))
        group.roots = list(_find_roots(group, failed))
    return sorted(groups.values(), key=lambda group: len(group.builds), reverse=True)


def _read_record(history: History, failed: FailedBuild) -> BuildRecord:
    about: dict[str, Any] = {"arch": failed.arch, "targets": [failed.target], "since": failed.timestamp}
    about["build_id"] = failed.build_id or None  # builds of the original have no id
    found = history.iterate_builds(BuildFilter(**about, states=[BuildState.FAILED]))
    same = (each for each in found if attr.evolve(FailedBuild.from_record(each), build_id=failed.build_id) == failed)
    return next(same, BuildRecord())


def _find_roots(group: FailureGroup, failed: Mapping[tuple[str, str], FailedBuild]) -> Iterator[FailedBuild]:
    """Yield failed builds of the packages whose names say that they provide what is missing. A guess, by name alone."""
    targets = {each.target for each in group.builds}
    for capability in group.cause.missing:
        match = _NAME_IN_CAPABILITY.match(capability)
        name = _SUBPACKAGE.sub("", match[1].replace("::", "-")) if match else ""
        likely = (name, f"python-{name}", f"perl-{name}", f"rubygem-{name}", f"lib{name}", f"golang-{name}")
        found = (failed.get((package, target)) for package in likely for target in targets)
        root = next((each for each in found if each is not None and each not in group.builds), None)
        if root is not None:
            yield root


@click.command("causes", epilog=EXIT_CODES)
@output.period_options("Group builds")
@target_option()
@click.option("--arch", metavar="ARCH", help="Only builds on this arch.")
@click.option("--batch", metavar="BATCH", help="Only builds of this batch; by default, since it was submitted.")
@click.option("--relabel", "is_relabel", is_flag=True, help="Store causes by the present rule instead; see below.")
@click.option("--logs", "with_logs", is_flag=True, help="With --relabel: read the stored logs of all failures again.")
@output.table_options(_TABLE)
@output.json_option("an object: failed, causes")
@output.pass_settings
def command(
    settings: Settings,
    begin: float,
    end: float | None,
    target: str | None,
    arch: str | None,
    batch: str | None,
    is_relabel: bool,
    with_logs: bool,
    columns: Sequence[str],
    wide: bool,
    as_json: bool,
) -> None:
    """Group failed builds by cause, the most frequent first.

    Builds have one cause if nobody provides the same package, or if the same step failed with the same error, apart
    from places, numbers and the package's own name. `reimzul retry --cause` builds all of a group again.

    Causes are stored with the builds. After an update with another rule, --relabel on the controller stores those of
    earlier builds again; until then each command computes them. Where the line of the log that names the cause is
    missing, it is looked for in the store's logs. It can be interrupted and run again.

    \b
    Examples:
      reimzul causes
      reimzul causes --since 24h --target c9s.x86_64
      reimzul causes --batch 5f0c12ab
      reimzul retry --cause 5f0c12ab
      reimzul causes --relabel
    """
    if is_relabel:
        output.refuse_ignored("with --relabel", *_GROUPING_OPTIONS)
        from reimzul.admin.relabel import relabel  # needs HTTP; `reimzul builds` starts sooner without

        relabel(settings, with_logs=with_logs)
        return
    output.refuse_ignored("without --relabel", "with_logs")
    targets = expand_option(settings, target)
    if batch is not None:
        from reimzul.admin.batch_lookup import find_plan  # every command that looks for causes starts without

        plan = find_plan(settings, batch)
        batch, begin = plan.batch, begin if output.is_given("begin") else plan.created
    wanted = BuildFilter(**output.period_filter(begin, end), targets=targets, arch=arch, batch=batch)
    groups, reason = [], ""
    try:
        with lookup.reading_history(settings.history.url) as history:
            groups = group_failures(history, find_failures(history, wanted))
            if not groups:
                refuse_unknown(settings, history, target=target, arch=arch)
    except NoHistory as error:
        reason = str(error)
    if reason or not (groups or as_json):
        output.print_none_found("failed build", reason, as_json=as_json)
    if as_json:
        _print_json(groups, begin, end)
        return
    if groups and sys.stdout.isatty():
        until = f" until {format_time(end)}" if end else ""
        click.echo(
            f"{_count_failed(groups):,} failed since {format_time(begin)}{until}, {pluralize(len(groups), 'cause')}"
        )
    if groups:
        output.print_table(_TABLE, map(_row_cells, groups), columns=columns, wide=wide)


def _count_failed(groups: Iterable[FailureGroup]) -> int:
    return sum(len(group.builds) for group in groups)


def _print_json(groups: Sequence[FailureGroup], begin: float, end: float | None) -> None:
    since = format_rfc3339(max(0.0, begin))  # 0 is a time here, and not an unknown one
    about = {"since": since, "until": end or time.time(), "failed": _count_failed(groups)}
    output.print_json({**about, "causes": [group.to_dict() for group in groups]})


def _row_cells(group: FailureGroup) -> list[str]:
    counts = (str(len(group.builds)), str(len(group.packages)))
    times = (format_time(group.newest.at), format_time(group.oldest.at))
    return [group.cause.id, *counts, *times, group.builds[0].build_id[:8], group.text]


def find_builds_of_cause(history: History, given: str, begin: float, end: float | None) -> list[BuildLegs]:
    """Return the builds that failed for a cause and that no later build of their package has replaced.

    Raises `InputError` if the cause is unknown.
    """
    wanted = BuildFilter(**output.period_filter(begin, end))
    prefix = given.lower()
    found = find_failures(history, wanted, prefix) if _ID.fullmatch(prefix) else []
    causes = {each.cause for each in found}
    if len(causes) != 1:
        what = "more than one cause begins" if causes else "no cause begins"
        since = format_time(begin)
        raise InputError(f"{what} with {validators.quoted(given)} since {since}: `reimzul causes` lists them")
    newest: dict[tuple[str, str, str, bool], str] = {}
    for each in history.iterate_builds(attr.evolve(wanted, until=None)):
        newest[_retry_key(each)] = max(newest.get(_retry_key(each), ""), each.timestamp)
    failed = {(each.build_id, each.arch) for each in found}
    builds = lookup.find_recorded_builds(history, dict.fromkeys(each.build_id for each in found))
    last = [
        build
        for build in builds
        if any((leg.build_id, leg.arch) in failed and newest[_retry_key(leg)] == leg.timestamp for leg in build.legs)
    ]
    if not last:
        raise InputError(f"nothing to retry: all builds of cause {causes.pop()} have later builds")
    return last


def _retry_key(build: BuildRecord) -> tuple[str, str, str, bool]:
    return (build.package, build.target, build.arch, build.scratch)


# --- for `reimzul show`


@attr.frozen(kw_only=True)
class FailureContext:
    """What is known beside a failed build itself: who failed alike, and whether it built before."""

    cause: FailureCause
    alike: int  #: how many other builds failed for the same cause
    first_seen: str  #: the timestamp of the first of them
    is_new: bool  #: whether the package's previous build succeeded, on its arch and target
    previous_build: str  #: the id of that build; empty: unknown
    previous_evr: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "cause": self.cause.id,
            "message": self.cause.text,
            "alike": self.alike,
            "newly_failing": self.is_new,
            "built_before": self.previous_build,
        }

    def describe(self) -> Iterator[tuple[str, str]]:
        """Yield label and text for a person."""
        same = ""
        if self.alike:
            same = f"; same as {pluralize(self.alike, 'other')}, first seen {format_timestamp(self.first_seen)}"
        yield "cause", f"{self.cause.id}{same}"
        if self.is_new:
            yield "newly failing", f"{self.previous_evr or 'it'} was built before: {self.previous_build[:8]}"


def find_contexts(history: History, build: BuildLegs) -> dict[str, FailureContext]:
    """Return the context of each leg that failed, by its arch."""
    since = output.build_timestamp(time.time() - _ALIKE_DAYS * 86400)
    contexts = {}
    for leg in build.legs:
        if leg.status == Status.FAILED:
            cause = cause_of(leg)
            found = find_failures(history, BuildFilter(since=since), cause.id)
            alike = [each for each in found if each.build_id != build.build_id]
            contexts[leg.arch] = FailureContext(
                cause=cause,
                alike=len(alike),
                first_seen=alike[-1].timestamp if alike else "",
                **_compare_with_previous(history, leg),
            )
    return contexts


def _compare_with_previous(history: History, failed: BuildRecord) -> dict[str, Any]:
    """Return what the notifier has found, or, of a scratch build or one of an earlier version, what the history has."""
    if failed.newly_failing is not None:
        values = (failed.newly_failing, failed.previous_build, failed.previous_evr)
    else:
        before = find_build_before(history, failed) or BuildRecord()
        values = (before.status == Status.SUCCESS, before.build_id, before.evr or before.srpm)
    return dict(zip(("is_new", "previous_build", "previous_evr"), values))


def find_build_before(history: History, failed: BuildRecord) -> BuildRecord | None:
    wanted = BuildFilter(targets=[failed.target], arch=failed.arch, srpm=f"{failed.package}-")
    earlier = (
        each
        for each in history.find_builds(wanted, 50)
        if each.package == failed.package
        and each.timestamp < failed.timestamp
        and not each.scratch
        and each.status in (Status.SUCCESS, Status.FAILED)
    )
    return next(earlier, None)
