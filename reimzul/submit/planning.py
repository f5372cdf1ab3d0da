# SPDX-License-Identifier: Apache-2.0
"""Plans what is to be built, before anything is queued: what is known, what makes it impossible, and when builds are
expected to start and end with the builders there are.
"""

from __future__ import annotations

import contextlib
import heapq
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Callable, Optional

import attr

from reimzul.core.arch import Arches
from reimzul.core.beanstalk import PRIORITY
from reimzul.core.errors import InputError
from reimzul.core.http_client import HttpSession
from reimzul.core.message import WorkerState
from reimzul.core.settings import Settings
from reimzul.history import BuildFilter, BuildRecord, History, HistoryUnavailable, NoHistory, open_history
from reimzul.history.build_record import BuildState
from reimzul.history.estimates import (
    ARCH_SAMPLE,
    IDLE,
    ArchStats,
    Forecast,
    UsualSeconds,
    estimate_rest,
    estimate_start,
    find_usual_seconds,
)
from reimzul.history.workers import WorkerRecord, WorkerStore, WorkersUnavailable, list_live
from reimzul.plan.contents import TargetContents
from reimzul.plan.document import Member
from reimzul.plan.edges import CapabilityIndex, PlannedSource
from reimzul.plan.maker import ArchPlan, MemberMaker, plan_arch
from reimzul.submit.batch_options import BatchOptions
from reimzul.submit.batch_sources import Exclusion, find_dependents, read_target, split_by_arch
from reimzul.submit.plan_problems import PlanProblem, ProblemFinder, find_listed
from reimzul.submit.sources import RefusedSource, SourceFile
from reimzul.submit.submission import SubmissionOptions


@attr.frozen(kw_only=True)
class Capacity:
    builders: Sequence[frozenset[str]] = ()  #: the tubes that each worker watches, of those that take jobs
    #: arch -> seconds until its first build starts, behind what waits already; none where that cannot be estimated
    starts: Mapping[str, float] = attr.field(factory=dict)


def measure_capacity(
    history: History | None, workers: Iterable[WorkerRecord], arches: Iterable[str], known: Arches, priority: int
) -> Capacity:
    """Estimate when builds that are submitted now start. Without a history, as if no build waited."""
    able = [each for each in workers if each.heartbeat.state in WorkerState.TAKING_JOBS]
    unfinished = history.find_unfinished() if history else []
    starts: dict[str, float] = {}
    for arch in arches:
        tube = known.tube_of(arch)
        serving = [each for each in able if tube in each.heartbeat.arches]
        ahead = {each.build_id: each for each in unfinished if _is_ahead(each, tube, priority)}
        usual = _read_usual(history, arch)
        busy = [each for each in (_busy_time(worker, usual) for worker in serving) if each is not None]
        start = estimate_start([usual.stats_for(each.package) for each in ahead.values()], busy)
        if start is not None:
            starts[arch] = start.likely
    return Capacity(builders=[frozenset(each.heartbeat.arches) for each in able], starts=starts)


def _is_ahead(record: BuildRecord, tube: str, priority: int) -> bool:
    """Whether a build waits in a tube, and is reserved before one of this priority."""
    put_with = PRIORITY if record.priority is None else record.priority
    return record.is_queued and record.tube == tube and put_with <= priority and record.due <= time.time()


def _read_usual(history: History | None, arch: str) -> ArchStats:
    states = (BuildState.BUILT, BuildState.PUBLISHED)
    return ArchStats(history.find_builds(BuildFilter(arch=arch, states=states), ARCH_SAMPLE) if history else ())


def _busy_time(worker: WorkerRecord, usual: ArchStats) -> Forecast | None:
    """How long a worker is still busy; None if unknown."""
    build = worker.heartbeat.build
    if build is None:
        return IDLE
    takes = usual.stats_for(BuildRecord(srpm=build.srpm).package)
    return None if takes is None else estimate_rest(takes, worker.seconds_since(build.started, time.time()))


@attr.frozen
class Span:
    """Seconds from the batch's start."""

    start: float
    end: float


def forecast_members(members: Sequence[Member], builders: Iterable[Collection[str]]) -> dict[str, Span]:
    """Return when each member is built; none of those that no builder can build, or that need such a member.

    `builders`: the tubes that each one watches.
    """
    return _Schedule(members, Counter(frozenset(each) for each in builders)).run()


class _Schedule:
    def __init__(self, members: Sequence[Member], idle: Counter[frozenset[str]]) -> None:
        self._members = {member.key: member for member in members}
        self._idle = idle
        self._unmet = {member.key: len(member.needs) for member in members}
        self._dependents: dict[str, list[str]] = {}
        for member in members:
            for need in member.needs:
                self._dependents.setdefault(need, []).append(member.key)
        self._ready: dict[str, list[tuple[int, float, str]]] = {}
        self._running: list[tuple[float, str, frozenset[str]]] = []
        self._spans: dict[str, Span] = {}

    def run(self) -> dict[str, Span]:
        for key, count in self._unmet.items():
            if not count:
                self._add_ready(key)
        self._start_builds(0.0)
        while self._running:
            now = self._running[0][0]
            while self._running and self._running[0][0] <= now:
                _, key, tubes = heapq.heappop(self._running)
                self._idle[tubes] += 1
                for dependent in self._dependents.get(key, ()):
                    self._unmet[dependent] -= 1
                    if not self._unmet[dependent]:
                        self._add_ready(dependent)
            self._start_builds(now)
        return self._spans

    def _add_ready(self, key: str) -> None:
        member = self._members[key]
        heapq.heappush(self._ready.setdefault(member.tube, []), (member.rank, -member.chain, key))

    def _start_builds(self, now: float) -> None:
        for tubes in sorted(self._idle, key=lambda each: (len(each), sorted(each))):
            while self._idle[tubes]:
                waiting = [self._ready[tube] for tube in tubes if self._ready.get(tube)]
                if not waiting:
                    break
                _, _, key = heapq.heappop(min(waiting, key=lambda each: each[0]))
                self._idle[tubes] -= 1
                end = now + self._members[key].seconds
                self._spans[key] = Span(now, end)
                heapq.heappush(self._running, (end, key, tubes))


# --- plans


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
