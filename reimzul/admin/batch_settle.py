# SPDX-License-Identifier: Apache-2.0
"""`reimzul batch settle`: builds the members again that were built against an old build of another.

What was in a buildroot is in the build's installed_pkgs.log, in the store; what is published is in the target's
repodata. A package of another member makes a member stale if the target lists a newer one now, by version or, of the
same version, by build time. It does not if both were built since the batch began and are equal but for their versions:
the same provides, requires and files. Without that, members that need each other would be rebuilt in turn for ever.
"""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import attr
import click

from reimzul.admin import batch_lookup, batch_orders, output
from reimzul.core.batch_message import OrderKind
from reimzul.core.cli import EXIT_CODES, print_error
from reimzul.core.errors import EXIT_FAILED, InputError, ReimzulError
from reimzul.core.formatting import pluralize
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.links import name_store
from reimzul.core.listed_packages import PackageContent, iterate_contents
from reimzul.core.option_types import WholeNumber
from reimzul.core.rpm_header import compare_versions
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls
from reimzul.plan import overview
from reimzul.plan.batches import BatchFiles
from reimzul.plan.document import SEED_SUFFIX
from reimzul.plan.overview import BatchPhase
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import BatchState

_LOG = "installed_pkgs.log"
#: The largest log that is read: some 100 bytes are about one package.
_MAX_LOG_BYTES = 16 << 20
_POLL_SECONDS = 1.0
_QUIET = (BatchPhase.OVER, BatchPhase.RESTING)


@attr.define(kw_only=True)
class Settlement:
    """What was found by comparing buildroots with what is published."""

    stale: dict[str, str] = attr.field(factory=dict)  #: member -> why it is to be built again
    unsettled: dict[str, str] = attr.field(factory=dict)  #: member -> why building it again would change nothing yet
    unread: dict[str, str] = attr.field(factory=dict)  #: member -> why its buildroot is not known

    @property
    def is_settled(self) -> bool:
        return not (self.stale or self.unsettled or self.unread)


@click.command("settle", epilog=EXIT_CODES)
@batch_lookup.batch_argument()
@click.option("--passes", type=WholeNumber(1, 99), default=3, show_default=True, metavar="COUNT",
              help="Order no more than this many passes in all.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for each pass, and order the next, until the batch is settled.")
@click.option("--close", is_flag=True, help="Instead, cancel what waits behind failed members: the batch is over then.")
@output.json_option("an object: the stale members, and what was ordered")
@output.pass_settings
def settle(settings: Settings, batch: str | None, passes: int, wait: bool, close: bool, as_json: bool) -> int:
    """Build the members of a batch again that were built against an old build of another, one pass a call.

    A member is stale if its buildroot had a package of another member, and a newer one is published now. The builds of
    pass 2 end their disttag with `.2`. The batch is settled, and the exit code 0, when no member is stale. A package
    that a pass has built again makes no other stale if it equals the one before but for its version: if it has the
    same provides, requires and files.

    \b
    Examples:
      reimzul batch settle 5f0c12ab
      reimzul batch settle 5f0c12ab --wait --passes 5
      reimzul batch settle 5f0c12ab --close
    """
    if close and (wait or output.is_given("passes")):
        raise click.UsageError("--close orders no pass: leave --wait and --passes out")
    files = batch_lookup.find_batch(settings, batch)
    if files.state.plan.scratch:
        raise InputError(f"batch {files.batch} is a scratch batch: nothing of it is published")
    if close:
        return _close(settings, files, as_json)
    while True:
        _wait_until_quiet(files, wait=wait)
        found = examine(settings, files.state)
        number = find_last_pass(files.state) + 1
        if not found.stale or number > passes:
            return _report_end(files, found, number - 1, as_json)
        result = batch_orders.give_order(settings, files, OrderKind.SETTLE, list(found.stale), settle_pass=number)
        message = f"pass {number}: {batch_orders.name_members(files.state, found.stale)}"
        if not wait or not result.is_obeyed:
            return _report_pass(files, found, number, attr.evolve(result, message=message), as_json)
        output.print_note(f"batch {files.batch}: {message}", as_json=True)


def _wait_until_quiet(files: BatchFiles, *, wait: bool) -> None:
    """Wait until the batch is over or rests; without `wait`, raise `InputError` if it is not."""
    state = files.refresh()
    while (phase := overview.find_phase(state)) not in _QUIET:
        if not wait:
            raise InputError(f"batch {files.batch} is {phase}; settle it when it is over or rests, or give --wait")
        time.sleep(_POLL_SECONDS)
        state = files.refresh()


# --- which members are stale


def examine(settings: Settings, state: BatchState) -> Settlement:
    """Compare the buildroots of all published members with what is published now. Raises `HttpUnavailable`."""
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    found = Settlement()
    with HttpSession() as session:
        published = {
            target: PublishedPackages(_iterate_listed(session, urls.target(target)), _list_sources(state, target))
            for target in {each.member.target for each in state.members.values()}
        }
        for key, progress in state.members.items():
            if progress.state != MemberState.PUBLISHED or progress.member.name.endswith(SEED_SUFFIX):
                continue
            if progress.stale and state.unmet_needs(key):
                found.unsettled[key] = progress.stale
                continue
            try:
                installed = _read_installed(session, urls, progress)
                reason = published[progress.member.target].find_stale_reason(
                    progress.member.name, installed, state.plan.created
                )
            except ReimzulError as error:
                found.unread[key] = name_store(str(error), urls)
                continue
            if reason or progress.stale:
                found.stale[key] = reason or progress.stale
    return found


def _iterate_listed(session: HttpSession, url: str) -> Iterator[PackageContent]:
    try:
        yield from iterate_contents(session, url)
    except NotFound:  # nothing was ever published
        return


def _list_sources(state: BatchState, target: str) -> list[str]:
    return [each.member.name for each in state.members.values() if each.member.target == target]


def _read_installed(session: HttpSession, urls: StoreUrls, progress: MemberProgress) -> list[InstalledPackage]:
    """Read what was in a member's buildroot. Raises `ReimzulError`."""
    if not progress.place:
        raise ReimzulError("the place of its build is not known")
    url = urls.place(progress.place) + _LOG
    try:
        body = session.get(url, _MAX_LOG_BYTES)
    except NotFound:  # mock's compress_logs plugin may have packed it
        body = _unpack(url, session.get(f"{url}.gz", _MAX_LOG_BYTES))
    return list(parse_installed(body.decode("utf-8", "replace")))


def _unpack(url: str, body: bytes) -> bytes:
    try:
        return gzip.decompress(body)
    except (OSError, EOFError, zlib.error) as error:
        raise HttpUnavailable(f"{url}.gz is damaged: {error}") from error


# --- what is printed


def _to_dict(files: BatchFiles, found: Settlement, number: int, **more: Any) -> dict[str, Any]:
    listed = {
        name: [{"member": key, "reason": why} for key, why in getattr(found, name).items()]
        for name in ("stale", "unsettled", "unread")
    }
    return {"batch": files.batch, "pass": number or None, "settled": found.is_settled, **listed, **more}


def _report_pass(
    files: BatchFiles, found: Settlement, number: int, result: batch_orders.OrderResult, as_json: bool
) -> int:
    if as_json:
        message = result.fault or result.message
        output.print_json(_to_dict(files, found, number, obeyed=result.is_obeyed, message=message))
        return 0 if result.is_obeyed else EXIT_FAILED
    output.print_result(None, [f"{key}: {why}" for key, why in found.stale.items()], False)
    return batch_orders.report_order(settle, result, result.message, False)


def _report_end(files: BatchFiles, found: Settlement, number: int, as_json: bool) -> int:
    """Print that nothing more is ordered, and why; returns the exit code."""
    after = f" after pass {number}" if number else ""
    message = f"settled{after}: no member is stale"
    if found.stale:
        message = f"not settled{after}: {pluralize(len(found.stale), 'member')} still stale (--passes allows no more)"
    elif not found.is_settled:
        message = f"nothing to build again{after}, but not all is settled"
    if as_json:
        output.print_json(_to_dict(files, found, number, obeyed=None, message=message))
    else:
        output.print_result(None, [f"batch {files.batch}: {message}"], False)
    for key, why in {**found.stale, **found.unsettled, **found.unread}.items():
        print_error(f"{key}: {why}")
    return 0 if found.is_settled else EXIT_FAILED


def _close(settings: Settings, files: BatchFiles, as_json: bool) -> int:
    """End the members that wait behind failed ones."""
    state = files.state
    if overview.find_phase(state) != BatchPhase.RESTING:
        raise InputError(f"batch {files.batch} is {overview.find_phase(state)}: only one that rests is closed")
    waiting = [key for key, each in state.members.items() if not state.is_ended(each)]
    result = batch_orders.give_order(settings, files, OrderKind.CANCEL, waiting, why="closed")
    message = f"closed: {batch_orders.name_members(state, waiting)} cancelled"
    if as_json:
        output.print_json(_to_dict(files, Settlement(), 0, obeyed=result.is_obeyed, message=result.fault or message))
        return 0 if result.is_obeyed else EXIT_FAILED
    return batch_orders.report_order(settle, result, message, False)


# --- which members are stale


@attr.frozen
class InstalledPackage:
    """A package that was in a buildroot."""

    nevra: str
    name: str
    version: str  #: [epoch:]version-release
    arch: str
    built: int  #: seconds since 1970


def parse_installed(log: str) -> Iterator[InstalledPackage]:
    """Read mock's installed_pkgs.log: a line for each package, with NEVRA and build time first."""
    for line in log.splitlines():
        nevra, _, rest = line.partition(" ")
        built = rest.partition(" ")[0]
        package, dot, arch = nevra.rpartition(".")
        parts = package.rsplit("-", 2)
        if dot and len(parts) == 3 and built.isdigit():
            yield InstalledPackage(nevra, parts[0], f"{parts[1]}-{parts[2]}", arch, int(built))


class PublishedPackages:
    """The packages of a batch's members that a target lists on one arch."""

    def __init__(self, packages: Iterable[PackageContent], sources: Iterable[str]) -> None:
        """`sources`: the names of the members."""
        self._newest: dict[tuple[str, str], PackageContent] = {}
        self._listed: dict[tuple[str, int], PackageContent] = {}
        wanted = frozenset(sources)
        for each in packages:
            if each.source in wanted and not each.is_source:
                self._listed[each.nevra, each.built] = each
                key = (each.name, each.arch)
                if key not in self._newest or _is_newer(each, self._newest[key]):
                    self._newest[key] = each

    def find_stale_reason(self, source: str, installed: Iterable[InstalledPackage], since: float) -> str:
        """Say why a build of a source is stale; empty if it is not. `since`: when the batch began."""
        for package in installed:
            newest = self._newest.get((package.name, package.arch))
            if newest is None or newest.source == source or not _is_newer(newest, package):
                continue
            old = self._listed.get((package.nevra, package.built))
            if old is not None and package.built >= since and _describe_interface(old) == _describe_interface(newest):
                continue
            when = "" if newest.nevra != package.nevra else ", built later,"
            return f"built against {package.nevra}, and {newest.nevra}{when} is published now"
        return ""


def _is_newer(one: PackageContent, other: PackageContent | InstalledPackage) -> bool:
    order = 0 if one.version == other.version else compare_versions(one.version, other.version)
    return order > 0 or (order == 0 and one.built > other.built)


def _describe_interface(package: PackageContent) -> tuple[frozenset[str], ...]:
    """What others can see of a package, without its own version."""

    def normalize(texts: Iterable[str]) -> frozenset[str]:
        return frozenset(text.replace(package.evr, "OWN") for text in texts)

    provides = (f"{each.name} {each.flags} {each.version}" for each in package.provides)
    return normalize(provides), normalize(package.requires), frozenset(package.files)


def find_last_pass(state: BatchState) -> int:
    """Return the number of the last pass of settle, which ends the disttags of its builds; 0 if there was none."""
    suffixes = (
        progress.disttag[len(progress.member.disttag) + 1 :]
        for progress in state.members.values()
        if progress.disttag.startswith(f"{progress.member.disttag}.")
    )
    return max((int(each) for each in suffixes if each.isdigit()), default=0)
