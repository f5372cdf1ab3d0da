# SPDX-License-Identifier: Apache-2.0
"""`reimzul targets` lists the targets of the farm, and shows one with the .repo file that dnf needs for it.

`reimzul packages` lists the latest published build of each package of a target.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attr
import click

from reimzul.admin import lookup, target_lookup
from reimzul.admin.output import (
    Table,
    json_option,
    pass_settings,
    print_json,
    print_none_found,
    print_note,
    print_result,
    print_table,
    refuse_ignored,
    refuse_others,
    table_options,
)
from reimzul.admin.target_lookup import PublishedBuild
from reimzul.admin.target_option import complete_package, complete_target, target_option
from reimzul.core import control
from reimzul.core.arch import Arches, read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import EXIT_CODES, current_user, print_error
from reimzul.core.errors import EXIT_FAILED
from reimzul.core.formatting import format_size, format_time, pluralize
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.links import LinkRoots, LinkSource
from reimzul.core.listed_packages import iterate_packages
from reimzul.core.option_types import NearestChoice
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls
from reimzul.core.targets import split_arch
from reimzul.history import BuildFilter, History, NoHistory

_TABLE = Table(
    ("TARGET", "ARCHES", "BUILDERS", "PACKAGES", "SIZE", "PUBLISHED"), dispensable=("SIZE", "BUILDERS", "PUBLISHED")
)
#: Builds among which the last publication is looked for.
_NEWEST_BUILDS = 50
_REFRESHED = "idle workers pull their mock configurations within 10 s, and report them; others before their next build"


@click.command("targets", epilog=EXIT_CODES)
@click.argument("action", metavar="[list|show]", type=NearestChoice(("list", "show")), default="list")
@click.argument("target", metavar="[TARGET]", required=False, shell_complete=complete_target)
@click.option("--refresh", is_flag=True, help="Let idle workers pull their mock configurations now, and print no list.")
@table_options(_TABLE)
@json_option("a list of targets")
@pass_settings
def command(
    settings: Settings,
    action: str,
    target: str | None,
    refresh: bool,
    columns: Sequence[str],
    wide: bool,
    as_json: bool,
) -> int:
    """List the targets: their arches, who builds for them, number and size of packages, the last publication.

    The workers report the targets that they have mock configurations for; the store has the packages. `show` takes a
    target with its arch, without, or a pattern, and prints the .repo file with which dnf installs from it. Workers pull
    new configurations every five minutes while they are idle, and before each build.

    \b
    Examples:
      reimzul targets
      reimzul targets show c9s
      reimzul targets show 'c9*'
      reimzul targets --refresh
    """
    if refresh:
        refuse_others("--refresh")
        return _refresh(settings)
    if (action == "show") != bool(target):
        raise click.UsageError("`list` takes no target" if target else "name a target: reimzul targets show TARGET")
    if action == "show":
        refuse_ignored("with show", "columns", "wide")
    arches = read_arches(settings.farm.arches)
    with HttpSession(target_lookup.STORE_TIMEOUT_SECONDS) as session:
        known = target_lookup.read_known_targets(settings, session)
        wanted = target_lookup.match_known(known, target, arches) if target else sorted(known.names)
        roots = LinkSource(settings).get()
        views = [_read_view(settings, session, name, split_arch(name, arches)[1], known, roots) for name in wanted]
    views = _add_last_published(settings, views, known.published)
    groups = _group_by_name(views, arches)
    if as_json:
        print_json([{"name": name, "arches": [view.to_dict() for view in group]} for name, group in groups.items()])
    elif target:
        print_result(None, ["\n\n".join("\n".join(_format_group(*item)) for item in groups.items())], False)
    elif views:
        print_table(_TABLE, [_to_row(*item) for item in groups.items()], columns=columns, wide=wide)
    else:
        print_none_found("target")
    faults = [*known.faults, *(f"{view.target}: {view.message}" for view in views if view.message)]
    for fault in faults:
        print_error(fault)
    return EXIT_FAILED if faults else 0


def _refresh(settings: Settings) -> int:
    with Broker.from_settings(settings.beanstalkd) as broker:
        control.replace_refresh_flag(broker, control.new_flag(current_user()))
    print_note(_REFRESHED)
    return 0


@attr.frozen(kw_only=True)
class _TargetView:
    """A target on one arch."""

    target: str  #: with its arch
    arch: str
    repository: str  #: its URL for people; empty if they cannot reach it
    own_url: str  #: its URL for the farm's own hosts
    builders: Sequence[str]  #: the hosts that have a mock configuration for it
    package_count: int = 0
    package_bytes: int = 0
    last_published: float = 0.0  #: of the build that was submitted last; 0 if unknown
    message: str = ""  #: why the packages are unknown

    def to_dict(self) -> dict[str, Any]:
        unknown = {"package_count": None, "package_bytes": None} if self.message else {}
        known = attr.asdict(self, filter=lambda field, _: field.name != "own_url")
        return {**known, **unknown}


def _read_view(
    settings: Settings,
    session: HttpSession,
    target: str,
    arch: str,
    known: target_lookup.KnownTargets,
    roots: LinkRoots,
) -> _TargetView:
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    view = _TargetView(
        target=target,
        arch=arch,
        repository=roots.make_link(f"repo/{target}"),
        own_url=urls.target(target),
        builders=sorted(known.builders.get(target, ())),
    )
    if target not in known.published:
        return view
    try:
        sizes = [package.size for package in iterate_packages(session, urls.target(target))]
    except NotFound:
        sizes = []  # a folder without repodata: nothing is published yet
    except HttpUnavailable as error:
        return attr.evolve(view, message=str(error))
    return attr.evolve(view, package_count=len(sizes), package_bytes=sum(sizes))


def _add_last_published(settings: Settings, views: Sequence[_TargetView], published: set[str]) -> list[_TargetView]:
    moments: dict[str, float] = {}
    with contextlib.suppress(NoHistory), lookup.reading_history(settings.history.url) as history:
        for view in views:
            if view.target in published and not view.message:
                moments[view.target] = _find_last_published(history, view.target)
    return [attr.evolve(view, last_published=moments.get(view.target, 0.0)) for view in views]


def _find_last_published(history: History, target: str) -> float:
    newest = history.find_builds(BuildFilter(targets=[target], states=target_lookup.PUBLISHED_ONCE), _NEWEST_BUILDS)
    return max((each.published for each in newest), default=0.0)


def _group_by_name(views: Iterable[_TargetView], arches: Arches) -> dict[str, list[_TargetView]]:
    groups: dict[str, list[_TargetView]] = {}
    for view in views:
        groups.setdefault(split_arch(view.target, arches)[0], []).append(view)
    return groups


def _to_row(name: str, views: Sequence[_TargetView]) -> list[str]:
    builders = {host for view in views for host in view.builders}
    is_unknown = any(view.message for view in views)
    return [
        name,
        ", ".join(view.arch for view in views if view.arch) or "-",
        str(len(builders)),
        "?" if is_unknown else str(sum(view.package_count for view in views)),
        "?" if is_unknown else format_size(sum(view.package_bytes for view in views)),
        format_time(max(view.last_published for view in views)),
    ]


def _format_group(name: str, views: Sequence[_TargetView]) -> Iterator[str]:
    for view in views:
        packages = f"{pluralize(view.package_count, 'package')}, {format_size(view.package_bytes)}"
        yield view.target
        yield f"  built by    {', '.join(view.builders) or 'nobody: no live worker has a mock configuration for it'}"
        yield f"  packages    {'unknown' if view.message else packages}"
        yield f"  published   {format_time(view.last_published)}"
        yield f"  repository  {view.repository or f'on bstore: repo/{view.target}'}"
        yield ""
    published = [view for view in views if view.package_count] or views
    yield f"# for dnf: /etc/yum.repos.d/{views[0].target if len(views) == 1 else name}.repo"
    for view in published:
        yield from _format_repo(view)


def _format_repo(view: _TargetView) -> Iterator[str]:
    """Format the section of a .repo file; dnf reads it as it is."""
    yield f"[{view.target}]"
    yield f"name={view.target}"
    if not view.repository:
        yield "# for hosts of the farm alone: [bstore] public_url is not set, and bstore has no public port"
    yield f"baseurl={view.repository or view.own_url}"
    yield "enabled=1"
    yield "gpgcheck=0"


# --- packages

_PACKAGES_TABLE = Table(
    ("ID", "PACKAGE", "VERSION-RELEASE", "ARCH", "TARGET", "PUBLISHED", "SUBMITTER"),
    dispensable=("SUBMITTER", "PUBLISHED", "TARGET"),
)


@click.command("packages", epilog=EXIT_CODES)
@target_option("The target", required=True)
@click.argument("pattern", metavar="[PATTERN]", required=False, default="*", shell_complete=complete_package)
@table_options(_PACKAGES_TABLE)
@json_option("a list of builds")
@pass_settings
def packages_command(
    settings: Settings, target: str, pattern: str, columns: Sequence[str], wide: bool, as_json: bool
) -> None:
    """List the latest published build of each package of a target, as the store lists them now.

    PATTERN is a package's name or name-version-release, and may have the wildcards *, ? and [...]; quote it. The latest
    build is the one that was submitted last. Without a terminal: one line each, all columns, separated by tabs.

    \b
    Examples:
      reimzul packages -t c9s
      reimzul packages -t c9s.x86_64 "python3-*" --json
    """
    with HttpSession(target_lookup.STORE_TIMEOUT_SECONDS) as session:
        targets = target_lookup.find_known_targets(settings, session, target)
        found = target_lookup.find_latest_builds(settings, session, targets, pattern)
    if as_json:
        print_json([build.to_dict() for build in found])
    elif found:
        print_table(_PACKAGES_TABLE, [_package_row(build) for build in found], columns=columns, wide=wide)
    else:
        print_none_found("package")


def _package_row(build: PublishedBuild) -> list[str]:
    listed, record = build.listed, build.record
    about = (record.build_id[:8], format_time(record.published), record.submitter) if record else ("-", "-", "-")
    return [about[0], listed.name, listed.evr, listed.arch, build.target, about[1], about[2]]
