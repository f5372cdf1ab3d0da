# SPDX-License-Identifier: Apache-2.0
"""What is to be said of a build that a worker has or had: under way, built, published, failed. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from reimzul.admin.facts import (
    GONE,
    BuildFacts,
    Explanation,
    attempt_start,
    describe_failed_attempts,
    is_silent,
    typical_duration_text,
    worker_building,
)
from reimzul.admin.table import when
from reimzul.admin.usual import estimate_end
from reimzul.admin.waiting import describe_workers, explain_missing_job
from reimzul.admin.words import counted, span
from reimzul.core.message import Status
from reimzul.history.workers import WorkerRecord


def building(facts: BuildFacts) -> Explanation:
    """Who builds it, at what, and how long it is likely to take still."""
    leg = facts.leg
    seen = worker_building(facts, leg["builder_fqdn"]) if leg["builder_fqdn"] else None
    if facts.job == "buried" or (facts.job == GONE and (seen is None or is_silent(seen, facts.now))):
        return explain_missing_job(facts)
    words = [*describe_failed_attempts(facts), *_builder(facts, seen)]
    if facts.job in ("ready", "delayed"):
        tube = facts.tube.name
        gone = f"Its job is in tube {tube} again: that worker, or its link, is gone; the next begins anew."
        words.append(gone)
        return Explanation(state="given back", sentences=[*words, *describe_workers(facts)])
    begun = attempt_start(leg)
    spent = facts.now - begun if begun else 0.0
    takes = facts.own or facts.arch.stats_for("")
    if takes is None:
        return Explanation(state="building", sentences=[*words, "Nothing was built on that arch before."])
    end = estimate_end(takes, spent)
    late = "It takes longer than nine in ten did." if spent >= takes.high else ""
    until = late or f"So about {span(end.likely)} are left, at most {span(end.high)} nine times in ten."
    return Explanation(state="building", sentences=[*words, f"{typical_duration_text(facts)} {until}"], end=end)


def _builder(facts: BuildFacts, seen: WorkerRecord | None) -> Iterator[str]:
    leg = facts.leg
    since = f" for {span(facts.now - attempt_start(leg))} now" if attempt_start(leg) else ""
    yield f"{leg['builder_fqdn'] or 'A worker'} builds it{since} (attempt {leg['attempt'] or '-'})."
    if seen is None or seen.heartbeat.build is None:
        return
    if is_silent(seen, facts.now):
        yield f"That worker has said nothing for {span(facts.now - seen.last_seen)}."
        yield "When its link is found dead, which takes half a minute, its job is given to another."
    elif seen.heartbeat.build.phase and seen.heartbeat.build.arch == leg["arch"]:
        build = seen.heartbeat.build
        yield f"It is at {build.phase}, for {span(seen.seconds_since(build.since, facts.now))}."


def built(facts: BuildFacts) -> Explanation:
    """Whether it is published, and what that waits for."""
    leg = facts.leg
    if leg.get("published"):
        words = [f"It is published in {leg['target']} since {when(leg['published'])}: {leg['url']}"]
        unsigned = facts.tosign.ready + facts.tosign.reserved
        if unsigned:
            words.append(f"{counted(unsigned, 'build')} in tube tosign still to be laid out for the signer.")
        return Explanation(state="published", sentences=words)
    if leg.get("scratch"):
        words = [f"It was built; a scratch build is not published. It is at {leg['url']}"]
        return Explanation(state="built", sentences=words)
    return Explanation(state="built", sentences=list(_unpublished(facts)))


def _unpublished(facts: BuildFacts) -> Iterator[str]:
    finished = facts.leg.get("finished") if not facts.leg.get("skew") else 0.0
    since = f" {span(facts.now - finished)} ago" if finished else ""
    yield f"It was built{since} and uploaded, and is not published yet."
    tube = facts.createrepo
    if facts.stuck is not None:
        ago = f" {span(facts.now - facts.stuck.at)} ago" if facts.stuck.at else ""
        on = f" on {facts.stuck.by}" if facts.stuck.by else ""
        yield f"The repodata of {facts.leg['target']} stays as it was: [repogen] after_createrepo failed{on}{ago}."
        yield f"It said: {facts.stuck.why or '-'}. It is tried again."
    if not tube.watchers:
        yield "Nobody watches tube createrepo: no repogen is connected."
        yield "On bstore: systemctl status 'reimzul-repogen-worker@*'"
    elif tube.ready + tube.reserved:
        held = f"{tube.ready} that wait and {tube.reserved} in hand"
        yield f"Tube createrepo has {held}; a target is indexed once for all of them."
    elif tube.delayed:
        again = f"{counted(tube.delayed, 'request')} in tube createrepo will be tried again"
        yield f"{again}: bstore's journal says what failed."
    if tube.buried:
        yield f"{counted(tube.buried, 'request')} in it were refused: reimzul buried --tube createrepo"


def ended(facts: BuildFacts) -> Explanation:
    """How it ended, and what a person can do."""
    leg = facts.leg
    status: str = leg["status"]
    words = [*describe_failed_attempts(facts)]
    if status == Status.OVERRIDE:
        return Explanation(state="override", sentences=[*words, f"A person has decided it: {leg['comment'] or '-'}"])
    rejected = status == Status.REJECTED  # by the store, whichever builder had built it
    where = f" on {leg['builder_fqdn']}" if leg.get("builder_fqdn") and not rejected else ""
    when_ended = f" {when(leg['finished'])}" if leg.get("finished") else ""
    verb = {Status.FAILED: "It failed", Status.CANCELLED: "It was cancelled", Status.REJECTED: "It was rejected"}
    words.append(f"{verb.get(status, status)}{where}{when_ended}: {leg['reason'] or '-'}.")
    first = leg.get("error_line") or _first_line(leg.get("first_error") or "")
    if first:
        words.append(f"The first error: {first}")
    if leg.get("url"):
        words.append(f"Its logs: {leg['url']}")
    words.append(f"To build it again: reimzul retry {leg['build_id'][:8]}")
    return Explanation(state=status.lower(), sentences=words)


def _first_line(text: str) -> str:
    """What stands in for the cause where an old worker does not say which line it is."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
