# SPDX-License-Identifier: Apache-2.0
"""What makes a plan impossible: source rpms that are damaged, built already or in another batch, cycles, seeds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attr

from reimzul.core.arch import Arches
from reimzul.core.errors import InputError
from reimzul.core.formatting import pluralize, suggest_nearest
from reimzul.core.message import Feature
from reimzul.core.rpm_header import compare_versions
from reimzul.core.settings import Settings
from reimzul.history.workers import WorkerRecord
from reimzul.plan.arrangement import Cycle
from reimzul.plan.batches import list_batch_ids, load_batch
from reimzul.plan.contents import TargetContents
from reimzul.plan.maker import ArchPlan
from reimzul.plan.state import BatchState
from reimzul.submit.batch_options import BOOTSTRAP, BatchOptions
from reimzul.submit.sources import RefusedSource, SourceFile
from reimzul.submit.submission import SubmissionOptions, estimate_releases

#: Seconds within which reimzul-batch takes up a plan; one without a journal that is older is left over.
_PENDING_SECONDS = 86_400
#: How many members of a cycle are named.
_MAX_NAMED = 12


class ProblemKind:
    SOURCE = "source"  #: a source rpm that cannot be used
    LISTED = "listed"  #: the target lists that version and release already
    NEWER = "newer"  #: the target lists a newer build
    BATCH = "batch"  #: another batch builds it
    CYCLE = "cycle"  #: members need each other, and the target satisfies none of that
    WORKER = "worker"  #: a worker cannot build it

    ALL = (SOURCE, LISTED, NEWER, BATCH, CYCLE, WORKER)


@attr.frozen(kw_only=True)
class PlanProblem:
    kind: str
    name: str  #: of the source package; of a source rpm that cannot be read, as it was given
    arch: str = ""
    message: str  #: in one line


def find_listed(files: Iterable[SourceFile], disttag: str, target: TargetContents) -> dict[str, str]:
    """Return the source packages whose version and release a target lists already, with these."""
    found = {}
    for file in files:
        for release in estimate_releases(file.header.release, disttag):
            if f"{file.header.version}-{release}" in target.releases.get(file.header.name, ()):
                found[file.header.name] = f"{file.header.version}-{release}"
    return found


@attr.frozen(kw_only=True)
class ProblemFinder:
    options: SubmissionOptions
    batch: BatchOptions
    settings: Settings
    known: Arches

    def find_refused(self, refused: Iterable[RefusedSource]) -> Iterator[PlanProblem]:
        for each in refused:
            yield PlanProblem(kind=ProblemKind.SOURCE, name=each.srpm, message=each.message)

    def find_problems(
        self, plans: Sequence[ArchPlan], files: Sequence[SourceFile], workers: Sequence[WorkerRecord]
    ) -> Iterator[PlanProblem]:
        """Yield what makes the builds impossible. Raises `InputError` for seeds that are none."""
        self._check_seeds(plans)
        for plan in plans:
            here = [file for file in files if file.header.name in plan.sources]
            if not (self.options.rebuild or self.options.scratch):
                yield from self._find_listed(plan, here)
            if self.batch.is_batch and not (self.batch.anyway or self.options.scratch):
                yield from self._find_newer(plan, here)
            yield from self._find_cycles(plan)
            if self.batch.seeds:
                yield from self._find_old_workers(plan, workers)
        if self.batch.is_batch and not (self.batch.anyway or self.options.scratch):
            yield from self._find_other_batches(plans)

    def _check_seeds(self, plans: Sequence[ArchPlan]) -> None:
        names = {name for plan in plans for name in plan.sources}
        in_cycles = {name for plan in plans for cycle in plan.arrangement.cycles for name in cycle.seeds}
        for seed in self.batch.seeds:
            if seed not in names:
                near = suggest_nearest(seed, names)
                raise InputError(f"seed {seed}: the batch has no source package of that name{near}")
            if seed not in in_cycles:
                raise InputError(f"seed {seed}: it is in no cycle of the batch; leave it out")

    def _find_listed(self, plan: ArchPlan, files: Sequence[SourceFile]) -> Iterator[PlanProblem]:
        advice = "--skip-built leaves it out, --rebuild replaces it" if self.batch.is_batch else "give --rebuild"
        for name, evr in find_listed(files, self.options.disttag, plan.index.target).items():
            message = f"{plan.target} lists {name}-{evr} already (an estimate: the disttag was exchanged); {advice}"
            yield PlanProblem(kind=ProblemKind.LISTED, name=name, arch=plan.arch, message=message)

    def _find_newer(self, plan: ArchPlan, files: Sequence[SourceFile]) -> Iterator[PlanProblem]:
        for file in files:
            header, listed = file.header, plan.index.target.sources.get(file.header.name)
            releases = estimate_releases(header.release, self.options.disttag)
            own = [f"{header.epoch or 0}:{header.version}-{release}" for release in releases]
            if listed and all(compare_versions(listed.version, each) > 0 for each in own):
                newer = f"{plan.target} lists a newer {header.name}, {listed.evr}"
                message = f"{newer}; --anyway builds {header.version}-{releases[-1]} all the same"
                yield PlanProblem(kind=ProblemKind.NEWER, name=header.name, arch=plan.arch, message=message)

    def _find_cycles(self, plan: ArchPlan) -> Iterator[PlanProblem]:
        for cycle in plan.arrangement.cycles:
            if cycle.blocking and not self.batch.anyway:
                message = describe_blocking(cycle, plan.target)
                yield PlanProblem(kind=ProblemKind.CYCLE, name=cycle.blocking[0][0], arch=plan.arch, message=message)

    def _find_old_workers(self, plan: ArchPlan, workers: Sequence[WorkerRecord]) -> Iterator[PlanProblem]:
        tube = self.known.tube_of(plan.arch)
        serving = [each.heartbeat for each in workers if tube in each.heartbeat.arches]
        for host in sorted({each.host for each in serving if Feature.BATCH not in each.features}):
            message = f"the worker of {host} is older than 0.2 and ignores bconds: update it before seeds are built"
            yield PlanProblem(kind=ProblemKind.WORKER, name=host, arch=plan.arch, message=message)

    def _find_other_batches(self, plans: Sequence[ArchPlan]) -> Iterator[PlanProblem]:
        for other in _list_unfinished(self.settings.incoming.folder, self.options.target):
            for plan in plans:
                for name in plan.sources:
                    progress = other.members.get(f"{name}.{plan.arch}")
                    if progress is not None and not other.is_ended(progress):
                        found = f"batch {other.plan.batch} is to build {name} for {plan.target} too"
                        message = f"{found}; --anyway builds it twice"
                        yield PlanProblem(kind=ProblemKind.BATCH, name=name, arch=plan.arch, message=message)


def describe_blocking(cycle: Cycle, target: str) -> str:
    """Say which BuildRequires make a cycle impossible, and what would make it possible."""
    shown = cycle.blocking[:_MAX_NAMED]
    chain = ", ".join(f"{name} requires {requirement}" for name, requirement in shown)
    more = f", and so on through {len(cycle.blocking)}" if len(cycle.blocking) > len(shown) else ""
    size = pluralize(len(cycle.names), "source package")
    return (
        f"a cycle that {target} does not satisfy, of {size}; the shortest in it: {chain}{more}; "
        f"build one of them first with --seed NAME (--with {BOOTSTRAP}) or --bcond OTHER=NAME, or give --anyway "
        "if another repository of the mock configuration provides these"
    )


def _list_unfinished(incoming: Path, target: str) -> Iterator[BatchState]:
    """Yield the batches for a target that are not over, with those that reimzul-batch has not taken up yet."""
    for batch in list_batch_ids(incoming):
        try:
            state = load_batch(incoming, batch)
        except InputError:
            continue  # no plan of ours; reimzul-batch reports it
        is_left_over = not state.is_accepted and state.plan.created < time.time() - _PENDING_SECONDS
        if not (state.is_over or is_left_over or state.plan.scratch) and state.plan.target == target:
            yield state
