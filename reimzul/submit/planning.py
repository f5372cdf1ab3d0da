# SPDX-License-Identifier: Apache-2.0
"""Plans what is to be built, before anything is queued: what is known, what makes it impossible, what is expected."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Callable, Optional

import attr

from reimzul.core.arch import Arches
from reimzul.core.errors import InputError
from reimzul.core.http_client import HttpSession
from reimzul.core.settings import Settings
from reimzul.history import History, HistoryUnavailable, NoHistory, open_history
from reimzul.history.estimates import UsualSeconds, find_usual_seconds
from reimzul.history.workers import WorkerRecord, WorkerStore, WorkersUnavailable, list_live
from reimzul.plan.contents import TargetContents
from reimzul.plan.document import Member
from reimzul.plan.edges import CapabilityIndex, PlannedSource
from reimzul.plan.forecast import Span, forecast_members
from reimzul.plan.maker import ArchPlan, MemberMaker, plan_arch
from reimzul.submit.batch_options import BatchOptions
from reimzul.submit.batch_sources import Exclusion, find_dependents, read_target, split_by_arch
from reimzul.submit.capacity import Capacity, measure_capacity
from reimzul.submit.plan_problems import PlanProblem, ProblemFinder, find_listed
from reimzul.submit.sources import RefusedSource, SourceFile
from reimzul.submit.submission import SubmissionOptions


@attr.frozen(kw_only=True)
class PlanDraft:
    """A plan before its source rpms are in incoming/."""

    files: Sequence[SourceFile]
    plans: Sequence[ArchPlan]
    problems: Sequence[PlanProblem]
    exclusions: Sequence[Exclusion]
    workers: Sequence[WorkerRecord]
    capacity: Capacity
    members: Sequence[Member]  #: without the sha256s of their source rpms

    @property
    def contents(self) -> dict[str, TargetContents]:
        return {each.arch: each.index.target for each in self.plans}

    @property
    def sources(self) -> set[str]:
        """The names of all source packages that are built on an arch."""
        return {name for each in self.plans for name in each.sources}

    def forecast(self) -> dict[str, Span]:
        """Return when each member is expected to be built, in seconds from now."""
        starts = self.capacity.starts
        spans = forecast_members(self.members, self.capacity.builders)
        moved = {each.key: starts.get(each.arch, 0.0) for each in self.members}
        return {key: Span(span.start + moved[key], span.end + moved[key]) for key, span in spans.items()}


@attr.frozen(kw_only=True)
class Planner:
    options: SubmissionOptions
    batch: BatchOptions
    settings: Settings
    known: Arches
    warn: Callable[[str], None]

    def make_draft(self, files: Sequence[SourceFile], refused: Sequence[RefusedSource]) -> PlanDraft:
        """Plan the builds of source rpms, or of a package's dependents. Raises `InputError`, `HttpUnavailable`."""
        contents = self._read_targets()
        exclusions: list[Exclusion] = []
        if self.batch.dependents_of:
            sources = find_dependents(self.batch.dependents_of, contents)
        else:
            sources, exclusions = split_by_arch(files, self.options.arches, self.known)
        if self.batch.skip_built:
            sources = self._drop_built(sources, files, contents)
        if not any(sources.values()):
            raise InputError("\n".join(_describe_nothing(refused, exclusions)))
        workers = self._list_workers()
        with self._opened_history() as history:
            plans = [self._plan_arch(arch, sources[arch], contents[arch], history) for arch in self.options.arches]
            priority = self.batch.priority(now=self.options.now)
            capacity = measure_capacity(history, workers, self.options.arches, self.known, priority)
        finder = ProblemFinder(options=self.options, batch=self.batch, settings=self.settings, known=self.known)
        disttag, seeds = self.options.disttag, self.batch.seeds
        maker = MemberMaker(plans=plans, known=self.known, disttag=disttag, seeds=seeds)
        return PlanDraft(
            files=files,
            plans=plans,
            problems=[*finder.find_refused(refused), *finder.find_problems(plans, files, workers)],
            exclusions=exclusions,
            workers=workers,
            capacity=capacity,
            members=maker.make_members(),
        )

    def _read_targets(self) -> dict[str, TargetContents]:
        with HttpSession() as session:
            base_url = self.settings.bstore.base_url
            return {arch: read_target(session, base_url, target) for arch, target in self.options.targets.items()}

    def _drop_built(
        self,
        sources: Mapping[str, Mapping[str, PlannedSource]],
        files: Sequence[SourceFile],
        contents: Mapping[str, TargetContents],
    ) -> dict[str, dict[str, PlannedSource]]:
        built = {arch: set(find_listed(files, self.options.disttag, target)) for arch, target in contents.items()}
        return {
            arch: {name: each for name, each in found.items() if name not in built[arch]}
            for arch, found in sources.items()
        }

    def _plan_arch(
        self, arch: str, sources: Mapping[str, PlannedSource], contents: TargetContents, history: Optional[History]
    ) -> ArchPlan:
        usual = find_usual_seconds(history, sources, arch) if history else UsualSeconds.guess(sources)
        index = CapabilityIndex(sources, contents)
        target = self.options.targets[arch]
        return plan_arch(arch, target, index, usual.seconds, self.batch.order, self.batch.seeds, usual.measured)

    def _list_workers(self) -> list[WorkerRecord]:
        try:
            return list_live(WorkerStore(self.settings.notifier.presence).load_workers())
        except WorkersUnavailable as error:
            self.warn(f"which builders there are is unknown: {error}")
            return []

    @contextlib.contextmanager
    def _opened_history(self) -> Iterator[Optional[History]]:
        """The history; None if there is none yet, or if it cannot be read, which only makes estimates worse."""
        with contextlib.ExitStack() as stack:
            history = None
            try:
                history = open_history(self.settings.history.url, reading=True)
                stack.callback(history.close)
            except NoHistory:
                pass
            except HistoryUnavailable as error:
                self.warn(f"how long builds take is unknown: {error}")
            yield history


def _describe_nothing(refused: Sequence[RefusedSource], exclusions: Sequence[Exclusion]) -> Iterator[str]:
    """Say why there is nothing to build."""
    yield from (each.message for each in refused)
    yield from (f"{each.name} is not built for {each.arch}: {each.reason}" for each in exclusions)
    if not refused and not exclusions:
        yield "nothing is left to build: the target lists all of it already"
