# SPDX-License-Identifier: Apache-2.0
"""`reimzul batch replace`: builds another source rpm in the place of a member's.

The needs of that member are computed again. A new requirement makes an edge to the members that provide it. A need that
the first plan left out, to break a cycle, stays left out; another one that would close a cycle is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import attr
import click

from reimzul.admin import batch_lookup, batch_orders
from reimzul.admin.output import json_option, pass_settings
from reimzul.core.batch_message import OrderKind
from reimzul.core.cli import EXIT_CODES
from reimzul.core.errors import InputError, describe_os_error
from reimzul.core.rpm_header import Header, read_source_header
from reimzul.core.settings import Settings
from reimzul.history.incoming import copy_source
from reimzul.plan.contents import list_required_names
from reimzul.plan.document import SEED_SUFFIX, Member, OrderRule, Plan, plan_path, write_plan

#: Stands for a sha256 while a plan is only checked.
_NO_SHA256 = "0" * 64


@click.command("replace", epilog=EXIT_CODES)
@batch_lookup.batch_argument(required=True)
@click.argument("srpm", metavar="SRPM", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option(batch_orders.JSON)
@pass_settings
def replace(settings: Settings, batch: str, srpm: Path, as_json: bool) -> int:
    """Build another source rpm of a member's package, which has to have another release.

    Its build that waits or runs is cancelled first. If it is published already, the new build follows. What the new
    source rpm needs of the batch is computed again, and refused if it closes a cycle; who waits for the member goes on
    waiting.

    \b
    Examples:
      reimzul batch replace 5f0c12ab qt6-qtbase-6.7.2-3.src.rpm
    """
    files = batch_lookup.find_batch(settings, batch)
    batch_orders.refuse_ended(files.state)
    header = read_source_header(srpm)
    before = _read_replaced(settings, files.state.plan, header.name)
    replace_source(files.state.plan, before, header, srpm.name, _NO_SHA256)  # refused before anything is changed
    checksum, _copied = copy_source(srpm, settings.incoming.folder)
    plan = replace_source(files.state.plan, before, header, srpm.name, checksum)
    keys = [each.key for each in plan.members if each.srpm_sha256 == checksum]
    plan_sha256 = _write_plan(settings, plan)
    result = batch_orders.give_order(settings, files, OrderKind.REPLACE, keys, plan_sha256=plan_sha256)
    return batch_orders.report_order(
        replace, result, f"replaced {batch_orders.name_members(files.state, keys)} by {srpm.name}", as_json
    )


def _read_replaced(settings: Settings, plan: Plan, name: str) -> Header | None:
    """Read the header of the source rpm that is replaced; None if it is no member, or gone."""
    old = next((each.srpm for each in plan.members if each.name == name), "")
    path = settings.incoming.folder / old
    return read_source_header(path) if old and path.is_file() else None


def _write_plan(settings: Settings, plan: Plan) -> str:
    """Write the changed plan beside the first one, named by its sha256; return that."""
    folder = settings.incoming.folder
    try:
        return write_plan(plan_path(folder, plan.batch, sha256(plan.to_bytes()).hexdigest()), plan)
    except OSError as error:
        raise InputError(f"{folder}: the new plan cannot be written: {describe_os_error(error)}") from None


# --- the new plan


def replace_source(plan: Plan, before: Header | None, after: Header, srpm: str, srpm_sha256: str) -> Plan:
    """Return the plan with a member's new source rpm on all its arches.

    `before`: the header of the replaced source rpm, None if it is gone. Raises `InputError` if the package is no
    member, has the same release, or closes a cycle.
    """
    old = [each for each in plan.members if each.name.removesuffix(SEED_SUFFIX) == after.name]
    if not old:
        raise InputError(f"batch {plan.batch} has no member {after.name}")
    if any(each.evr == after.evr for each in old):
        raise InputError(f"{srpm} has the same release as the member that it is to replace: {after.evr}")
    members = {each.key: each for each in plan.members}
    for member in old:
        needs = _find_needs(plan, members, member, before, after)
        provides = sorted({*after.provides, *(set(member.provides) - set(before.provides if before else ()))})
        members[member.key] = attr.evolve(
            member, srpm=srpm, srpm_sha256=srpm_sha256, evr=after.evr, needs=tuple(needs), provides=tuple(provides)
        )
    return attr.evolve(plan, members=tuple(members.values()))


def _find_needs(
    plan: Plan, members: Mapping[str, Member], member: Member, before: Header | None, after: Header
) -> list[str]:
    if plan.order in (OrderRule.NONE, OrderRule.LISTED):
        return list(member.needs)
    known = _find_providers(members, member, before.requires) if before else {}
    wanted = _find_providers(members, member, after.requires)
    kept = [need for need in member.needs if need in wanted or need not in known]
    for need, requirement in wanted.items():
        if need in kept or need in known:
            continue
        choices = [need, f"{members[need].name}{SEED_SUFFIX}.{member.arch}"]
        open_ones = [each for each in choices if each in members and not _find_chain(members, each, member.key)]
        if not open_ones:
            chain = " needs ".join([member.key, *_find_chain(members, need, member.key)])
            raise InputError(f"its BuildRequires {requirement} closes a cycle: {chain}")
        kept.append(open_ones[0])
    return sorted(kept)


def _find_providers(members: Mapping[str, Member], member: Member, requires: Sequence[str]) -> dict[str, str]:
    """Return the plain members of the same arch that provide a requirement, with the requirement."""
    plain = member.name.removesuffix(SEED_SUFFIX)
    offers: dict[str, list[str]] = {}
    for each in members.values():
        if each.arch == member.arch and not each.name.endswith(SEED_SUFFIX) and each.name != plain:
            for name in {*each.provides, *each.packages}:
                offers.setdefault(name, []).append(each.key)
    found: dict[str, str] = {}
    for requirement in requires:
        for name in list_required_names(requirement):
            for key in offers.get(name, ()):
                found.setdefault(key, requirement)
    return found


def _find_chain(members: Mapping[str, Member], start: str, goal: str) -> list[str]:
    """Return a chain of needs from one member to another, both included; empty if there is none."""
    before: dict[str, str] = {start: ""}
    pending = [start]
    while pending:
        key = pending.pop()
        if key == goal:
            chain = [key]
            while before[chain[-1]]:
                chain.append(before[chain[-1]])
            return chain[::-1]
        for need in members[key].needs if key in members else ():
            if need not in before:
                before[need] = key
                pending.append(need)
    return []
