# SPDX-License-Identifier: Apache-2.0
"""Refuses a misspelt target, and an arch for which no worker has a mock configuration, before anything is queued.

Workers report their targets with their heartbeats, which may be minutes old. So a target is refused only if all live
workers of its arch have reported, none of them has it, the store has not either, and a known target is like it. A
worker is live if it is connected and takes jobs. A target that only drained or quarantined workers have is accepted,
with a warning. Nothing is checked while beanstalkd is unreachable: which workers are connected is then unknown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Callable, Optional

import attr
import click

from reimzul.core.arch import Arches, read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.config import load_file
from reimzul.core.errors import BrokerUnavailable, InputError, ReimzulError
from reimzul.core.formatting import find_nearest
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.listed_packages import fetch_repomd
from reimzul.core.message import WorkerState
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls
from reimzul.core.targets import drop_arches, split_arch
from reimzul.history.workers import (
    WorkerRecord,
    WorkerStore,
    WorkersUnavailable,
    drop_disconnected,
    list_live,
    map_targets,
)

#: Seconds to wait for the store, which is asked only for targets that no worker has reported.
_STORE_TIMEOUT_SECONDS = 5.0


def refuse_unknown_target(
    target: str, arches: Sequence[str], settings: Settings, known: Arches, warn: Callable[[str], None]
) -> None:
    """Raise `InputError` with a line for each arch on which a target is misspelt; `warn` of those that may be."""
    try:
        reported = list_live(WorkerStore(settings.notifier.presence).load_workers())
    except WorkersUnavailable as error:
        warn(f"whether a worker can build for {target} is unknown: {error}")
        return
    workers, watchers = reported, dict.fromkeys(arches, 0)
    try:
        if reported:
            with Broker.from_settings(settings.beanstalkd) as broker:
                workers = drop_disconnected(broker, reported)
                watchers = {arch: broker.tube_stats(known.tube_of(arch)).watchers for arch in arches}
    except BrokerUnavailable:
        return  # queueing fails with the same error, after the sources are checked
    faults = []
    for arch in arches:
        check = _ArchCheck(
            target=target, arch=arch, settings=settings, known=known, workers=workers, watchers=watchers[arch]
        )
        if check.can_be_built():
            continue
        if resting := check.find_resting():
            warn(f"only builders that take no jobs now can build {target}.{arch}: {', '.join(resting)}")
            continue
        is_published, is_complete = check.is_published(), check.have_all_reported()
        near = check.describe_nearest()
        if is_complete and is_published is False and near:
            faults.append(f"{check.describe()}{near} (--new-target if neither)")
        elif is_complete or not is_published:
            warn(f"{check.describe()}{near}")
    if faults:
        raise InputError("\n".join(faults))


def complete_target(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the targets that workers have reported, without their arches; none if that is unreadable."""
    with contextlib.suppress(ReimzulError, OSError):
        settings = load_file(context.params.get("config"))
        names = drop_arches(
            map_targets(WorkerStore(settings.notifier.presence).load_workers()), read_arches(settings.farm.arches)
        )
        return sorted(each for each in names if each.startswith(incomplete))
    return []


@attr.frozen(kw_only=True)
class _ArchCheck:
    """A target on one arch, and the workers that are connected."""

    target: str  #: without an arch
    arch: str
    settings: Settings
    known: Arches
    workers: Sequence[WorkerRecord]
    watchers: int  #: of the arch's tube: a worker that takes no jobs is none

    def can_be_built(self) -> bool:
        return any(map(self._may_have_target, self._serving()))

    def find_resting(self) -> list[str]:
        """Return the hosts that have the target, and whose workers take no jobs now."""
        return sorted({each.heartbeat.host for each in self.workers if self._is_resting(each)})

    def is_published(self) -> Optional[bool]:
        """Whether the store has the target; None if the store does not answer."""
        bstore = self.settings.bstore
        try:
            with HttpSession(timeout=_STORE_TIMEOUT_SECONDS) as session:
                urls = StoreUrls.from_settings(bstore.base_url, bstore.upload_url)
                fetch_repomd(session, urls.target(f"{self.target}.{self.arch}"))
        except NotFound:
            return False
        except HttpUnavailable:
            return None
        return True

    def have_all_reported(self) -> bool:
        """Whether there are live workers of this arch and all have reported.

        A watcher of the tube that sends no heartbeats is a worker that has not.
        """
        serving = self._serving()
        return bool(serving) and all(each.targets for each in serving) and self.watchers <= len(serving)

    def describe(self) -> str:
        if not any(each.targets for each in self._serving()):
            return (
                f"whether {self.target}.{self.arch} can be built is unknown: "
                f"no worker of {self.arch} has reported its targets"
            )
        return f"no worker of {self.arch} has a mock configuration for {self.target}"

    def describe_nearest(self) -> str:
        """Name the arches of this target that can be built, or else the target that is most like it."""
        pairs = [split_arch(name, self.known) for each in self.workers if each.targets for name in each.targets.names]
        arches = sorted({arch for name, arch in pairs if name == self.target})
        if arches:
            return f"; {self.target} is built on {', '.join(arches)}"
        nearest = find_nearest(self.target, {name for name, _ in pairs})
        return f"; is {nearest} meant?" if nearest else ""

    def _serving(self) -> list[WorkerRecord]:
        tube = self.known.tube_of(self.arch)
        return [each for each in self.workers if tube in each.heartbeat.arches and _takes_jobs(each)]

    def _is_resting(self, worker: WorkerRecord) -> bool:
        return not _takes_jobs(worker) and self._may_have_target(worker)

    def _may_have_target(self, worker: WorkerRecord) -> bool:
        return worker.targets is not None and worker.targets.may_have(f"{self.target}.{self.arch}")


def _takes_jobs(worker: WorkerRecord) -> bool:
    return worker.heartbeat.state in WorkerState.TAKING_JOBS
