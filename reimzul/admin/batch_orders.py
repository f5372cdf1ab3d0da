# SPDX-License-Identifier: Apache-2.0
"""The orders by which a person steers a batch: pause, resume, cancel, release, skip, retry, replace.

An order goes into the tube `batch`. It is obeyed once `reimzul-batch` has journaled it, which the command waits for.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable

import attr
import click

from reimzul.admin import batch_lookup
from reimzul.admin.output import confirm, json_option, pass_settings, print_result, yes_option
from reimzul.core.batch_message import BatchOrder, OrderKind
from reimzul.core.beanstalk import BATCH, BATCH_ORDER, Broker
from reimzul.core.cli import EXIT_CODES, current_user, print_error
from reimzul.core.errors import EXIT_FAILED, InputError, ReservationLost
from reimzul.core.formatting import pluralize
from reimzul.core.settings import Settings
from reimzul.plan import overview
from reimzul.plan.batches import BatchFiles, load_batch
from reimzul.plan.overview import BatchPhase, describe_missing, describe_wait
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import BatchState

#: Members that one order names at most, and bytes of their keys: an order has to fit into a job.
_MAX_ORDER_MEMBERS, _MAX_ORDER_BYTES = 2_000, 50_000
#: Seconds that reimzul-batch has to obey, and seconds between two looks at the journal.
OBEY_TIMEOUT_SECONDS, _POLL_SECONDS = 10.0, 0.05
JSON = "an object: the order, its members, whether it was obeyed"
_NOT_OBEYED = (
    "queued, but reimzul-batch has not obeyed it within {:g} s; it will when it runs: "
    "systemctl status reimzul-batch"
)  # fmt: skip
_arch_option = click.option("--arch", metavar="ARCH", help="Only on this arch.")
_why_option = click.option("--why", default="", metavar="TEXT", help="The reason, kept in the batch's journal.")


@attr.frozen(kw_only=True)
class OrderResult:
    batch: str
    order: str
    members: Sequence[str]  #: keys; empty: the whole batch
    ids: Sequence[str]  #: of the orders that were sent
    fault: str  #: why they were not obeyed; empty if they were
    message: str = ""

    @property
    def is_obeyed(self) -> bool:
        return not self.fault

    def to_dict(self) -> dict[str, Any]:
        about = {name: getattr(self, name) for name in ("batch", "order", "message")}
        return {**about, "members": list(self.members), "ids": list(self.ids), "obeyed": self.is_obeyed}


def give_order(
    settings: Settings, files: BatchFiles, kind: str, members: Sequence[str] = (), **more: Any
) -> OrderResult:
    """Send an order, for many members in parts, and wait until it is obeyed. Raises `BrokerUnavailable`."""
    about = {"batch": files.batch, "order": kind, "by": current_user(), "at": round(time.time(), 3), **more}
    parts = [*split_members(members)] if members else [()]
    orders = [BatchOrder(id=secrets.token_hex(8), members=part, **about) for part in parts]
    with Broker.from_settings(settings.beanstalkd) as broker:
        jobs = {order.id: broker.put(BATCH, order, priority=BATCH_ORDER) for order in orders}
        fault = _wait_until_obeyed(broker, files, jobs)
    return OrderResult(batch=files.batch, order=kind, members=members, ids=list(jobs), fault=fault)


def split_members(members: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yield members in parts, each of which one order can name."""
    part: list[str] = []
    size = 0
    for key in members:
        size += len(key) + 3  # quotes and a comma
        if part and (len(part) == _MAX_ORDER_MEMBERS or size > _MAX_ORDER_BYTES):
            yield tuple(part)
            part, size = [], len(key) + 3
        part.append(key)
    if part:
        yield tuple(part)


def _wait_until_obeyed(broker: Broker, files: BatchFiles, jobs: Mapping[str, int]) -> str:
    """Wait until orders are obeyed, given their jobs; return why they are not."""
    deadline = time.monotonic() + OBEY_TIMEOUT_SECONDS
    while not jobs.keys() <= files.refresh().orders:
        if any(_is_refused(broker, job) for job in jobs.values()):
            return _describe_refusal(files)
        if time.monotonic() > deadline:
            return _NOT_OBEYED.format(OBEY_TIMEOUT_SECONDS)
        time.sleep(_POLL_SECONDS)
    return ""


def _is_refused(broker: Broker, job: int) -> bool:
    with contextlib.suppress(ReservationLost):  # it was obeyed meanwhile
        return broker.job_stats(job).state == "buried"
    return False


def _describe_refusal(files: BatchFiles) -> str:
    where = f"`reimzul buried --tube {BATCH.name}` lists the order"
    try:
        load_batch(files.incoming, files.batch)
    except InputError as error:
        return f"refused by reimzul-batch: {error}; {where}"
    return f"refused by reimzul-batch; {where}, and the reason"


def report_order(command: click.Command, result: OrderResult, message: str, as_json: bool) -> int:
    """Print what an order changed, or why it was not obeyed; returns the exit code."""
    message = result.fault or message
    text = f"batch {result.batch}: {message}"
    if as_json or result.is_obeyed:
        print_result(attr.evolve(result, message=message).to_dict(), [text], as_json)
    if not result.is_obeyed:
        print_error(text)
    return 0 if result.is_obeyed else EXIT_FAILED


def name_members(state: BatchState, keys: Iterable[str]) -> str:
    chosen = [state.members[key] for key in keys if key in state.members]
    return f"{pluralize(len(chosen), 'member')} ({overview.list_names(chosen)})"


def refuse_ended(state: BatchState) -> None:
    """Raise `InputError` for a batch that nothing can be ordered of any more."""
    phase = overview.find_phase(state)
    if phase in (BatchPhase.OVER, BatchPhase.CANCELLING):
        raise InputError(f"batch {state.plan.batch} is {phase}")


# --- of the whole batch


@click.command("pause", epilog=EXIT_CODES)
@batch_lookup.batch_argument()
@_why_option
@json_option(JSON)
@pass_settings
def pause(settings: Settings, batch: str | None, why: str, as_json: bool) -> int:
    """Start no more builds of a batch; those that run go on, and builds that no builder has taken are held again.

    \b
    Examples:
      reimzul batch pause 5f0c12ab --why "the mirrors are down"
    """
    files = batch_lookup.find_batch(settings, batch)
    refuse_ended(files.state)
    if files.state.is_paused:
        raise InputError(f"batch {files.batch} is paused already: {files.state.pause_reason}")
    result = give_order(settings, files, OrderKind.PAUSE, why=why)
    building = files.state.counts[MemberState.BUILDING]
    running = f"; {pluralize(building, 'build')} still to end" if building else ""
    return report_order(pause, result, f"paused{running}", as_json)


@click.command("resume", epilog=EXIT_CODES)
@batch_lookup.batch_argument()
@json_option(JSON)
@pass_settings
def resume(settings: Settings, batch: str | None, as_json: bool) -> int:
    """Go on with a batch that is paused.

    \b
    Examples:
      reimzul batch resume 5f0c12ab
    """
    files = batch_lookup.find_batch(settings, batch)
    refuse_ended(files.state)
    if not files.state.is_paused:
        raise InputError(f"batch {files.batch} is not paused: {overview.find_phase(files.state)}")
    result = give_order(settings, files, OrderKind.RESUME)
    return report_order(resume, result, "goes on", as_json)


@click.command("cancel", epilog=EXIT_CODES)
@batch_lookup.batch_argument(required=True)
@_why_option
@yes_option
@json_option(JSON)
@pass_settings
def cancel(settings: Settings, batch: str, why: str, yes: bool, as_json: bool) -> int:
    """End a batch: what waits is cancelled at once, what runs within seconds. What is published stays.

    `reimzul batch skip` leaves single members out, and `reimzul cancel` ends single builds.

    \b
    Examples:
      reimzul batch cancel 5f0c12ab --yes
    """
    files = batch_lookup.find_batch(settings, batch)
    refuse_ended(files.state)
    unfinished = [each for each in files.state.members.values() if not files.state.is_ended(each)]
    confirm(f"batch {files.batch}: cancel {pluralize(len(unfinished), 'member')}?", yes)
    result = give_order(settings, files, OrderKind.CANCEL, why=why)
    return report_order(cancel, result, f"cancelled: {pluralize(len(unfinished), 'member')} end", as_json)


# --- of members


@click.command("release", epilog=EXIT_CODES)
@batch_lookup.batch_argument(required=True)
@batch_lookup.names_argument()
@_arch_option
@click.option("--anyway", is_flag=True, help="Also members that wait for others, or for what nobody provides.")
@json_option(JSON)
@pass_settings
def release(
    settings: Settings, batch: str, names: tuple[str, ...], arch: str | None, anyway: bool, as_json: bool
) -> int:
    """Build members now, before all others, also while the batch is paused.

    A member that waits for others is built against what is published now, if anything is; --anyway is needed for that.

    \b
    Examples:
      reimzul batch release 5f0c12ab gcc
      reimzul batch release 5f0c12ab qt6-qtbase --anyway --arch x86_64
    """
    files = batch_lookup.find_batch(settings, batch)
    state = files.state
    refuse_ended(state)
    keys = batch_lookup.match_members(state, names, arch)
    waiting = (MemberState.HELD, MemberState.WAITING)
    _check_members(state, keys, lambda each: each.state in waiting, "only held and waiting members can be released")
    if not anyway and (faults := [fault for key in keys if (fault := _describe_unmet(state, key))]):
        raise InputError("\n".join(faults))
    result = give_order(settings, files, OrderKind.RELEASE, keys)
    return report_order(release, result, f"released {name_members(files.state, keys)}", as_json)


def _describe_unmet(state: BatchState, key: str) -> str:
    """Say what a member would be built without; empty if it has all that it needs."""
    wait = describe_wait(state, key, time.time())
    wait = wait or describe_missing(state.members[key])
    return f"{key} {wait}; --anyway builds it without" if wait else ""


def _check_members(
    state: BatchState, keys: Iterable[str], is_right: Callable[[MemberProgress], bool], rule: str
) -> None:
    """Raise `InputError` with a line for each member that an order cannot be given for."""
    wrong = [state.members[key] for key in keys if not is_right(state.members[key])]
    if wrong:
        raise InputError("\n".join(f"{each.key} is {each.state}: {rule}" for each in wrong))


@click.command("skip", epilog=EXIT_CODES)
@batch_lookup.batch_argument(required=True)
@batch_lookup.names_argument()
@_arch_option
@json_option(JSON)
@pass_settings
def skip(settings: Settings, batch: str, names: tuple[str, ...], arch: str | None, as_json: bool) -> int:
    """Leave members out, as if the plan did not have them; who waits for them waits no more.

    A build that runs is cancelled. `reimzul batch retry` takes a member in again.

    \b
    Examples:
      reimzul batch skip 5f0c12ab qt6-qtwebengine
    """
    files = batch_lookup.find_batch(settings, batch)
    refuse_ended(files.state)
    keys = batch_lookup.match_members(files.state, names, arch)
    _check_members(
        files.state, keys, lambda each: not overview.is_good(files.state, each), "it cannot be left out any more"
    )
    result = give_order(settings, files, OrderKind.SKIP, keys)
    return report_order(skip, result, f"skipped {name_members(files.state, keys)}", as_json)


@click.command("retry", epilog=EXIT_CODES)
@batch_lookup.batch_argument(required=True)
@batch_lookup.names_argument(required=False)
@click.option("--failed", is_flag=True, help="All members that failed, were rejected or cancelled.")
@_arch_option
@json_option(JSON)
@pass_settings
def retry(settings: Settings, batch: str, names: tuple[str, ...], failed: bool, arch: str | None, as_json: bool) -> int:
    """Build members again that failed, were rejected, cancelled or skipped; who waits for them goes on waiting.

    \b
    Examples:
      reimzul batch retry 5f0c12ab gcc
      reimzul batch retry 5f0c12ab --failed
    """
    if bool(names) == failed:
        raise click.UsageError("say which members: their names, or --failed.")
    files = batch_lookup.find_batch(settings, batch)
    state = files.state
    if overview.find_phase(state) == BatchPhase.CANCELLING:
        refuse_ended(state)
    broken = MemberState.BROKEN
    if failed:
        keys = [key for key, each in state.members.items() if each.state in broken and arch in (None, each.member.arch)]
        if not keys:
            raise InputError(f"batch {files.batch} has no failed member")
    else:
        keys = batch_lookup.match_members(state, names, arch)
        rule = "only failed, rejected, cancelled and skipped members can be retried"
        _check_members(state, keys, lambda each: each.state in (*broken, MemberState.SKIPPED), rule)
    result = give_order(settings, files, OrderKind.RETRY, keys)
    return report_order(retry, result, f"retrying {name_members(files.state, keys)}", as_json)
