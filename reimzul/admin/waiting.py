# SPDX-License-Identifier: Apache-2.0
"""Why a build still waits: what is ahead of it, who could take it, and when that is likely. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from reimzul.admin.facts import (
    GONE,
    UNKNOWN,
    BuildFacts,
    Explanation,
    describe_failed_attempts,
    is_silent,
    package_of,
    range_text,
    typical_duration_text,
    worker_building,
    worker_label,
)
from reimzul.admin.table import when
from reimzul.admin.usual import IDLE, DurationStats, Forecast, estimate_end, estimate_start, remaining
from reimzul.admin.words import counted, listed, span
from reimzul.core.message import WorkerState
from reimzul.history.workers import WorkerRecord

#: Workers that are named one by one.
_NAMED = 8


def waiting(facts: BuildFacts) -> Explanation:
    """Why a queued build still waits, who could take it, and when."""
    if facts.job in (GONE, "buried"):
        return explain_missing_job(facts)
    if facts.job == "reserved":
        return _taken(facts)
    start, end = (None, None) if facts.leg.get("waits_for") else _forecasts(facts)
    words = [
        *describe_failed_attempts(facts),
        *_place(facts),
        *_obstacle(facts),
        *_ahead(facts),
        *describe_workers(facts),
    ]
    words += _expected(facts, start, end)
    return Explanation(state="delayed" if _pause(facts) > 0 else "waiting", sentences=words, start=start, end=end)


def explain_missing_job(facts: BuildFacts) -> Explanation:
    """Where its job is, that no worker can have."""
    return Explanation(state=facts.job, sentences=[*describe_failed_attempts(facts), *_lost(facts)])


def _taken(facts: BuildFacts) -> Explanation:
    """Who has it in hand, and fetches it or looks at it before he announces that he builds it."""
    holder = worker_building(facts)
    takes = facts.own or facts.arch.stats_for("")
    words, spent = f"A worker has just taken it from tube {facts.tube.name}, and has not said yet which.", 0.0
    if holder is not None and holder.heartbeat.build is not None:
        spent = holder.seconds_since(holder.heartbeat.build.started, facts.now)
        words = f"{worker_label(holder, facts.workers or ())} {_does(holder, facts)}."
    if takes is None:
        return Explanation(state="taken", sentences=[*describe_failed_attempts(facts), words])
    end = estimate_end(takes, spent)
    so = f"{typical_duration_text(facts)} {_built_by(facts, end)}"
    return Explanation(state="taken", sentences=[*describe_failed_attempts(facts), words, so], end=end)


def _place(facts: BuildFacts) -> Iterator[str]:
    leg = facts.leg
    since = f", for {span(facts.now - leg['queued_at'])} now" if leg.get("queued_at") else ""
    urgency = f", priority {leg['priority']}" if leg.get("priority") is not None else ""
    number = f" as job {leg['job']}" if leg.get("job") else ""
    yield f"It waits in tube {facts.tube.name}{number}{urgency}{since}."
    if _pause(facts) > 0:
        yield f"Nobody gets it before {when(leg['due'])}, in {span(_pause(facts))}."


def _obstacle(facts: BuildFacts) -> Iterator[str]:
    """What has to change before it can be built, and what a person can do."""
    if facts.leg.get("waits_for"):
        yield f"It waits for {facts.leg['waits_for']}."
    if facts.source_bar:
        yield f"The web server may not read its source: {facts.source_bar}"


def _pause(facts: BuildFacts) -> float:
    """Seconds until it may be given out at all."""
    return max(0.0, (facts.leg.get("due") or 0.0) - facts.now) if facts.job in ("delayed", UNKNOWN) else 0.0


def _ahead(facts: BuildFacts) -> Iterator[str]:
    if not facts.ahead and not facts.beside:
        yield "No build is ahead of it."
        return
    usual = [facts.arch.stats_for(each.get("pkgname") or "") for each in facts.ahead]
    known = [each.mean for each in usual if each]
    takes = f"; by what such builds took before, {span(sum(known))} of one worker's time" if known else ""
    verb = "is" if len(facts.ahead) == 1 else "are"
    yield f"{counted(len(facts.ahead), 'build')} {verb} ahead of it in that tube{takes}."
    if facts.beside:
        tubes = sorted({each["tube"] for each in facts.beside})
        yield f"The same builders take {counted(len(facts.beside), 'build')} from {listed(tubes)} before it."


def _lost(facts: BuildFacts) -> Iterator[str]:
    leg = facts.leg
    if facts.job == "buried":
        yield (
            f"Its job {leg['job']} was refused and put aside: `reimzul buried --tube {facts.tube.name}` says why, "
            f"`reimzul kick {leg['job']}` has it tried again."
        )
        return
    yield (
        f"Its job {leg['job']} is not in beanstalkd any more, and no worker is known to be at it: it was deleted, "
        f"or what became of it is still to be told. If nothing changes: reimzul retry {leg['build_id'][:8]}"
    )


def describe_workers(facts: BuildFacts) -> Iterator[str]:
    """Who could build it, and what each of them does."""
    if facts.tube.watchers == 0:
        yield f"Nobody watches tube {facts.tube.name}: no builder that could build it is connected."
    if facts.workers is None:
        yield f"{counted(facts.tube.watchers, 'worker')} watch that tube; which, cannot be known here."
        return
    able = _able(facts)
    if able:
        yield f"{counted(len(able), 'worker')} could take it."
    for seen in list(facts.workers)[:_NAMED]:
        yield f"{worker_label(seen, facts.workers)} {_does(seen, facts)}."
    rest = list(facts.workers)[_NAMED:]
    if rest:
        states = [_state(seen, facts.now) for seen in rest]
        each = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        yield f"And {counted(len(rest), 'worker')} more: {listed(each)}."


def _able(facts: BuildFacts) -> list[WorkerRecord]:
    """The workers that take jobs now, or will when they have ended what they do."""
    if not facts.tube.watchers:
        return []  # whoever spoke a moment ago has left since
    takes = (WorkerState.IDLE, WorkerState.BUILDING)
    return [seen for seen in facts.workers or () if _state(seen, facts.now) in takes]


def _state(seen: WorkerRecord, now: float) -> str:
    return "silent" if is_silent(seen, now) else seen.heartbeat.state


def _does(seen: WorkerRecord, facts: BuildFacts) -> str:
    there, now = seen.heartbeat, facts.now
    if is_silent(seen, now):
        return f"has said nothing for {span(now - seen.last_seen)}"
    if there.state in (WorkerState.DRAINED, WorkerState.UNFIT, WorkerState.QUARANTINED):
        why = there.why if there.why.startswith(there.state) else f"{there.state}: {there.why}".rstrip(": ")
        return f"takes nothing ({why})"
    if there.build is None:
        return "is free"
    build = there.build
    takes = facts.arch.stats_for(package_of(build.srpm))
    usually = f", of usually {span(takes.median)}" if takes and takes.own else ""
    after = ", and takes nothing after that" if there.state == WorkerState.DRAINING else ""
    phase = f" ({build.phase})" if build.phase else ""
    spent = span(seen.seconds_since(build.started, now))
    return f"builds {build.srpm} for {build.target}{phase}, for {spent} now{usually}{after}"


def _busy(seen: WorkerRecord, facts: BuildFacts) -> DurationStats | None:
    """How long a worker will still be busy; None where nobody knows."""
    build = seen.heartbeat.build
    if build is None:
        return IDLE
    takes = facts.arch.stats_for(package_of(build.srpm))
    return remaining(takes, seen.seconds_since(build.started, facts.now)) if takes else None


def _forecasts(facts: BuildFacts) -> tuple[Forecast | None, Forecast | None]:
    """When it is likely to start and to end."""
    others = [facts.arch.stats_for(each.get("pkgname") or "") for each in (*facts.ahead, *facts.beside)]
    free_in = [_busy(seen, facts) for seen in _able(facts)]
    start = estimate_start(others, [each for each in free_in if each is not None])
    if start is None:
        return None, None
    pause = _pause(facts)
    start = Forecast(low=max(start.low, pause), likely=max(start.likely, pause), high=max(start.high, pause))
    takes = facts.own or facts.arch.stats_for("")
    if takes is None:
        return start, None
    end = (start.low + takes.low, start.likely + takes.median, start.high + takes.high)
    return start, Forecast(low=end[0], likely=end[1], high=end[2])


def _expected(facts: BuildFacts, start: Forecast | None, end: Forecast | None) -> Iterator[str]:
    if facts.leg.get("waits_for"):
        yield "It starts when that is there."
    elif start is None:
        yield "When it starts cannot be said."
    elif start.high < 1:
        yield "It should start at once."
    else:
        yield f"It should start in about {span(start.likely)}, {range_text(start.low, start.high)}."
    if end is not None:
        yield f"{typical_duration_text(facts)} {_built_by(facts, end)}"
    elif start is not None:
        yield "How long it takes cannot be said: nothing was built on that arch before."


def _built_by(facts: BuildFacts, end: Forecast) -> str:
    return f"So it should be built by {when(facts.now + end.likely)}, in {span(end.likely)}."
