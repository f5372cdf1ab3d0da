# SPDX-License-Identifier: Apache-2.0
"""What is to be said of a build that a worker has or had: under way, built, published, failed. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from reimzul.admin.facts import GONE, Explanation, Facts, at_it, began, failures, is_silent, usually
from reimzul.admin.output import format_duration, format_time, pluralize
from reimzul.admin.usual import ends
from reimzul.admin.waiting import lost, who
from reimzul.core.message import Status
from reimzul.history.presence import Seen


def building(facts: Facts) -> Explanation:
    """Who builds it, at what, and how long it is likely to take still."""
    leg = facts.leg
    seen = at_it(facts, leg["builder_fqdn"]) if leg["builder_fqdn"] else None
    if facts.job == "buried" or (facts.job == GONE and (seen is None or is_silent(seen, facts.now))):
        return lost(facts)
    words = [*failures(facts), *_builder(facts, seen)]
    if facts.job in ("ready", "delayed"):
        tube = facts.tube.name
        gone = f"Its job is in tube {tube} again: that worker, or its link, is gone; the next begins anew."
        words.append(gone)
        return Explanation(state="given back", sentences=[*words, *who(facts)])
    begun = began(leg)
    spent = facts.now - begun if begun else 0.0
    takes = facts.own or facts.arch.of("")
    if takes is None:
        return Explanation(state="building", sentences=[*words, "Nothing was built on that arch before."])
    end = ends(takes, spent)
    late = "It takes longer than nine in ten did." if spent >= takes.high else ""
    until = (
        late
        or f"So about {format_duration(end.likely)} are left, at most {format_duration(end.high)} nine times in ten."
    )
    return Explanation(state="building", sentences=[*words, f"{usually(facts)} {until}"], end=end)


def _builder(facts: Facts, seen: Seen | None) -> Iterator[str]:
    leg = facts.leg
    since = f" for {format_duration(facts.now - began(leg))} now" if began(leg) else ""
    yield f"{leg['builder_fqdn'] or 'A worker'} builds it{since} (attempt {leg['attempt'] or '-'})."
    if seen is None or seen.presence.build is None:
        return
    if is_silent(seen, facts.now):
        yield f"That worker has said nothing for {format_duration(facts.now - seen.heard)}."
        yield "When its link is found dead, which takes half a minute, its job is given to another."
    elif seen.presence.build.phase and seen.presence.build.arch == leg["arch"]:
        build = seen.presence.build
        yield f"It is at {build.phase}, for {format_duration(seen.since(build.since, facts.now))}."


def built(facts: Facts) -> Explanation:
    """Whether it is published, and what that waits for."""
    leg = facts.leg
    if leg.get("published"):
        words = [f"It is published in {leg['target']} since {format_time(leg['published'])}: {leg['url']}"]
        unsigned = facts.tosign.ready + facts.tosign.reserved
        if unsigned:
            words.append(f"{pluralize(unsigned, 'build')} in tube tosign still to be laid out for the signer.")
        return Explanation(state="published", sentences=words)
    if leg.get("scratch"):
        words = [f"It was built; a scratch build is not published. It is at {leg['url']}"]
        return Explanation(state="built", sentences=words)
    return Explanation(state="built", sentences=list(_unpublished(facts)))


def _unpublished(facts: Facts) -> Iterator[str]:
    finished = facts.leg.get("finished") if not facts.leg.get("skew") else 0.0
    since = f" {format_duration(facts.now - finished)} ago" if finished else ""
    yield f"It was built{since} and uploaded, and is not published yet."
    tube = facts.createrepo
    if facts.stuck is not None:
        ago = f" {format_duration(facts.now - facts.stuck.at)} ago" if facts.stuck.at else ""
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
        again = f"{pluralize(tube.delayed, 'request')} in tube createrepo will be tried again"
        yield f"{again}: bstore's journal says what failed."
    if tube.buried:
        yield f"{pluralize(tube.buried, 'request')} in it were refused: reimzul buried --tube createrepo"


def ended(facts: Facts) -> Explanation:
    """How it ended, and what a person can do."""
    leg = facts.leg
    status: str = leg["status"]
    words = [*failures(facts)]
    if status == Status.OVERRIDE:
        return Explanation(state="override", sentences=[*words, f"A person has decided it: {leg['comment'] or '-'}"])
    rejected = status == Status.REJECTED  # by the store, whichever builder had built it
    where = f" on {leg['builder_fqdn']}" if leg.get("builder_fqdn") and not rejected else ""
    when_ended = f" {format_time(leg['finished'])}" if leg.get("finished") else ""
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
