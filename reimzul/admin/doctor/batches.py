# SPDX-License-Identifier: Apache-2.0
"""Checks batches on the controller: that reimzul-batch works, and that it knows of all that is held."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from reimzul.admin import lookup
from reimzul.admin.doctor import CheckGroup, Result, ok, recommend, require, shorten
from reimzul.admin.doctor.host import Host
from reimzul.admin.doctor.services import connect
from reimzul.core.beanstalk import BATCH, Broker
from reimzul.core.errors import InputError, InvalidMessage, ReservationLost
from reimzul.core.formatting import pluralize
from reimzul.core.message import BuildRequest
from reimzul.history import BuildRecord, NoHistory
from reimzul.plan.batches import list_batch_ids, load_batch, read_announced_end
from reimzul.plan.document import FOLDER, journal_path, plan_path
from reimzul.plan.journal import read_journal

#: Seconds after which a plan that was not accepted is reported.
_ACCEPTED_WITHIN_SECONDS = 600

checks = CheckGroup()


def _is_enabled(host: Host) -> bool:
    return host.settings.batch.enabled


@checks.add("batch", "link.beanstalkd", applies=_is_enabled)
def _check_daemon(host: Host) -> Result:
    with connect(host.settings) as broker:
        tube = broker.tube_stats(BATCH.name)
    waiting = f"; {pluralize(tube.ready, 'job')} wait in tube {BATCH.name}" if tube.ready else ""
    hint = "systemctl restart reimzul-batch; journalctl -u reimzul-batch"
    require(tube.watchers, f"reimzul-batch is not connected: no held build is released{waiting}", hint)
    return ok("reimzul-batch is connected")


@checks.add("batch.plans", applies=_is_enabled)
def _check_plans(host: Host) -> Result:
    """Look for batches that reimzul-batch does not touch: their plan is gone, changed, or was never accepted."""
    incoming = host.settings.incoming.folder
    faults = list(_find_faults(incoming))
    hint = (
        f"give the plan in {incoming / FOLDER} back as it was, then: systemctl restart reimzul-batch; or submit again"
    )
    require(not faults, f"batches that nobody works on: {shorten(faults)}", hint)
    return ok(f"{pluralize(len(list_batch_ids(incoming)), 'batch')} in {incoming / FOLDER}")


def _find_faults(incoming: Path) -> Iterator[str]:
    journals = {path.stem for path in (incoming / FOLDER).glob("*.log") if path.stem != "single"}
    for batch in sorted(journals | set(list_batch_ids(incoming))):
        journal, plan = journal_path(incoming, batch), plan_path(incoming, batch)
        if not journal.exists():
            age = time.time() - plan.stat().st_mtime
            if age > _ACCEPTED_WITHIN_SECONDS:
                yield f"{batch} was never accepted"
        elif read_announced_end(journal) is None:
            try:
                load_batch(incoming, batch)
            except InputError as error:
                yield str(error)


@checks.add("batch.held", "link.beanstalkd", "history", applies=_is_enabled)
def _check_held(host: Host) -> Result:
    """Look for held jobs that reimzul-batch does not know, so that nobody will release them."""
    try:
        with lookup.reading_history(host.settings.history.url) as history:
            unfinished = [each for each in history.find_unfinished() if each.job]
    except NoHistory:
        return ok("nothing is held")
    known = _list_known_builds(host.settings.incoming.folder)
    with connect(host.settings) as broker:
        held = [each for each in unfinished if _is_held(broker, each)]
    lost = [f"job {each.job} ({each.srpm})" for each in held if each.build_id not in known]
    hint = "reimzul kick --held JOB releases one; reimzul cancel ends its build"
    recommend(not lost, f"held, and no batch knows of them: {shorten(lost)}", hint)
    return ok(f"{pluralize(len(held), 'build')} held, each by a batch or for another build")


def _is_held(broker: Broker, record: BuildRecord) -> bool:
    with contextlib.suppress(ReservationLost, InvalidMessage):
        request = BuildRequest.decode(broker.peek(record.job))
        return request.build_id == record.build_id and broker.job_stats(record.job).is_held
    return False


def _list_known_builds(incoming: Path) -> set[str]:
    """The build ids of the unfinished batches' members, and of the single builds that are held."""
    known: set[str] = set()
    for batch in list_batch_ids(incoming):
        if read_announced_end(journal_path(incoming, batch)) is None:
            with contextlib.suppress(InputError):  # the check of plans reports it
                known.update(each.build_id for each in load_batch(incoming, batch).members.values())
    single = journal_path(incoming, "single")
    if single.exists():
        known.update(_read_single_builds(single))
    return known


def _read_single_builds(journal: Path) -> Iterator[str]:
    for entry in read_journal(journal):
        build = entry.get("build")
        request = build.get("request", {}) if isinstance(build, dict) else {}
        yield str(request.get("build_id", ""))
