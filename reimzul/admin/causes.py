# SPDX-License-Identifier: Apache-2.0
"""`reimzul causes`: groups the builds that failed by their cause, so that a hundred failures read as three.

`reimzul show` and `reimzul retry --cause` use the same groups.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

import attr
import click

from reimzul.admin import lookup, output
from reimzul.admin.batch_lookup import find_plan
from reimzul.admin.lookup import BuildLegs
from reimzul.admin.target_option import expand_option, refuse_unknown, target_option
from reimzul.core import validators
from reimzul.core.cli import EXIT_CODES
from reimzul.core.errors import InputError
from reimzul.core.failure_cause import FailureCause, find_cause
from reimzul.core.formatting import format_rfc3339, format_time, pluralize
from reimzul.core.message import Status
from reimzul.core.settings import Settings
from reimzul.history import BuildFilter, BuildRecord, History
from reimzul.history.build_record import BuildState

#: Days of the history in which `reimzul show` looks for builds that failed alike.
_ALIKE_DAYS = 30
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

    cause: FailureCause  #: of the newest
    builds: list[BuildRecord] = attr.field(factory=list)
    roots: Sequence[BuildRecord] = ()  #: failed builds of packages that seem to provide what is missing

    @property
    def packages(self) -> set[str]:
        return {each.package for each in self.builds}

    @property
    def text(self) -> str:
        roots = ", ".join(f"{each.package} failed: {each.build_id[:8]}" for each in self.roots)
        return f"{self.cause.text} ({roots})" if roots else self.cause.text

    def to_dict(self) -> dict[str, Any]:
        newest, oldest = self.builds[0], self.builds[-1]
        return {
            "cause": self.cause.id,
            "message": self.cause.text,
            "builds": [{"build_id": each.build_id, "arch": each.arch} for each in self.builds],
            "packages": sorted(self.packages),
            "first": {"build_id": oldest.build_id, "at": oldest.at},
            "last": {"build_id": newest.build_id, "at": newest.at},
            "roots": [{"package": each.package, "build_id": each.build_id} for each in self.roots],
        }


def cause_of(record: BuildRecord) -> FailureCause:
    return find_cause(record.reason, record.error_line, record.package)


def find_failures(history: History, wanted: BuildFilter) -> list[BuildRecord]:
    """Return the failed builds that match, the newest first."""
    found = history.iterate_builds(attr.evolve(wanted, states=[BuildState.FAILED]))
    return sorted(found, key=lambda each: (each.timestamp, each.build_id, each.arch), reverse=True)


def group_failures(failures: Iterable[BuildRecord]) -> list[FailureGroup]:
    """Group failed builds, the newest first, by cause; the largest group comes first."""
    groups: dict[str, FailureGroup] = {}
    failed: dict[tuple[str, str], BuildRecord] = {}
    for each in failures:
        cause = cause_of(each)
        groups.setdefault(cause.id, FailureGroup(cause)).builds.append(each)
        failed.setdefault((each.package, each.target), each)
    for group in groups.values():
        group.roots = list(_find_roots(group, failed))
    return sorted(groups.values(), key=lambda group: len(group.builds), reverse=True)


def _find_roots(group: FailureGroup, failed: Mapping[tuple[str, str], BuildRecord]) -> Iterator[BuildRecord]:
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
@click.option("--arch", metavar="ARCH")
@click.option("--batch", metavar="BATCH", help="Only builds of this batch; by default, since it was submitted.")
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
    columns: Sequence[str],
    wide: bool,
    as_json: bool,
) -> None:
    """Group failed builds by cause, the most frequent first.

    Builds have one cause if nobody provides the same package, or if the same step failed with the same error, apart
    from places, numbers and the package's own name. `reimzul retry --cause` builds all of a group again.

    \b
    Examples:
      reimzul causes
      reimzul causes --since 24h --target c9s.x86_64
      reimzul causes --batch 5f0c12ab
      reimzul retry --cause 5f0c12ab
    """
    targets = expand_option(settings, target)
    if batch is not None:
        plan = find_plan(settings, batch)
        batch, begin = plan.batch, begin if output.is_given("begin") else plan.created
    wanted = BuildFilter(**output.period_filter(begin, end), targets=targets, arch=arch, batch=batch)
    with lookup.reading_history(settings.history.url) as history:
        groups = group_failures(find_failures(history, wanted))
        if not groups:
            refuse_unknown(settings, history, target=target, arch=arch)
    failed = sum(len(group.builds) for group in groups)
    if as_json:
        since = format_rfc3339(max(0.0, begin))  # 0 is a time here, and not an unknown one
        output.print_json(
            {
                "since": since,
                "until": end or time.time(),
                "failed": failed,
                "causes": [group.to_dict() for group in groups],
            }
        )
        return
    if groups and sys.stdout.isatty():
        until = f" until {format_time(end)}" if end else ""
        click.echo(f"{failed:,} failed since {format_time(begin)}{until}, {pluralize(len(groups), 'cause')}")
    if groups:
        output.print_table(_TABLE, map(_row_cells, groups), columns=columns, wide=wide)
    else:
        output.print_none_found("failed build")


def _row_cells(group: FailureGroup) -> list[str]:
    newest, oldest = group.builds[0], group.builds[-1]
    counts = (str(len(group.builds)), str(len(group.packages)))
    return [group.cause.id, *counts, format_time(newest.at), format_time(oldest.at), newest.build_id[:8], group.text]


def find_builds_of_cause(history: History, given: str, begin: float, end: float | None) -> list[BuildLegs]:
    """Return the builds that failed for a cause and that no later build of their package has replaced.

    Raises `InputError` if the cause is unknown.
    """
    wanted = BuildFilter(**output.period_filter(begin, end))
    prefix = given.lower()
    groups = group_failures(find_failures(history, wanted)) if _ID.fullmatch(prefix) else []
    groups = [group for group in groups if group.cause.id.startswith(prefix)]
    if len(groups) != 1:
        what = "more than one cause begins" if groups else "no cause begins"
        since = format_time(begin)
        raise InputError(f"{what} with {validators.quoted(given)} since {since}: `reimzul causes` lists them")
    newest: dict[tuple[str, str, str, bool], str] = {}
    for each in history.iterate_builds(attr.evolve(wanted, until=None)):
        newest[_retry_key(each)] = max(newest.get(_retry_key(each), ""), each.timestamp)
    last = [each for each in groups[0].builds if newest[_retry_key(each)] == each.timestamp]
    if not last:
        raise InputError(f"nothing to retry: all builds of cause {groups[0].cause.id} have later builds")
    return lookup.find_recorded_builds(history, dict.fromkeys(each.build_id for each in last))


def _retry_key(build: BuildRecord) -> tuple[str, str, str, bool]:
    return (build.package, build.target, build.arch, build.scratch)


# --- for `reimzul show`


@attr.frozen(kw_only=True)
class FailureContext:
    """What is known beside a failed build itself: who failed alike, and whether it built before."""

    cause: FailureCause
    alike: Sequence[BuildRecord]  #: other builds that failed for the same cause, the newest first
    before: Optional[BuildRecord]  #: the package's last finished build before it, on its arch and target

    @property
    def is_new(self) -> bool:
        return self.before is not None and self.before.status == Status.SUCCESS

    def to_dict(self) -> dict[str, Any]:
        return {
            "cause": self.cause.id,
            "message": self.cause.text,
            "alike": len(self.alike),
            "newly_failing": self.is_new,
            "built_before": self.before.build_id if self.before is not None else None,
        }

    def describe(self) -> Iterator[tuple[str, str]]:
        """Yield label and text for a person."""
        same = ""
        if self.alike:
            oldest = self.alike[-1]
            same = f"; same as {pluralize(len(self.alike), 'other')}, first seen {format_time(oldest.at)}"
        yield "cause", f"{self.cause.id}{same}"
        if self.is_new and self.before is not None:
            yield "newly failing", f"{self.before.evr or self.before.srpm} was built before: {self.before.build_id[:8]}"


def find_contexts(history: History, build: BuildLegs) -> dict[str, FailureContext]:
    """Return the context of each leg that failed, by its arch."""
    failed = [leg for leg in build.legs if leg.status == Status.FAILED]
    if not failed:
        return {}
    since = output.build_timestamp(time.time() - _ALIKE_DAYS * 86400)
    others = [each for each in find_failures(history, BuildFilter(since=since)) if each.build_id != build.build_id]
    by_cause: dict[str, list[BuildRecord]] = {}
    for each in others:
        by_cause.setdefault(cause_of(each).id, []).append(each)
    contexts = {}
    for leg in failed:
        cause = cause_of(leg)
        alike, before = by_cause.get(cause.id, []), find_build_before(history, leg)
        contexts[leg.arch] = FailureContext(cause=cause, alike=alike, before=before)
    return contexts


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
