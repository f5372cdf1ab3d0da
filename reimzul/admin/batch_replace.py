# SPDX-License-Identifier: Apache-2.0
"""`reimzul batch replace`: builds another source rpm in the place of a member's."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import click

from reimzul.admin import batch_lookup, batch_orders
from reimzul.admin.output import json_option, pass_settings
from reimzul.core.batch_message import OrderKind
from reimzul.core.cli import EXIT_CODES
from reimzul.core.errors import InputError, describe_os_error
from reimzul.core.incoming import copy_source
from reimzul.core.rpm_header import Header, read_source_header
from reimzul.core.settings import Settings
from reimzul.plan.document import Plan, plan_path, write_plan
from reimzul.plan.replacement import replace_source

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
