# SPDX-License-Identifier: Apache-2.0
"""`reimzul explain`: explain why a build is waiting, running or failed, and when it is expected to go on.

`build_facts.collect_facts` asks the history, beanstalkd and the heartbeats; `explain` turns these facts into sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Optional

import attr
import click

from reimzul.admin import lookup
from reimzul.admin.batch_lookup import describe_membership
from reimzul.admin.build_facts import BuildFacts, collect_facts, estimate_start_and_end
from reimzul.admin.output import join_parts, json_option, pass_settings, print_result
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import EXIT_CODES
from reimzul.core.formatting import format_duration, format_time, join_words, pluralize
from reimzul.core.links import describe_files, log_command
from reimzul.core.message import Role, Status, WorkerState
from reimzul.core.settings import Settings
from reimzul.history import BuildRecord, estimates
from reimzul.history.build_record import CLAIMED, RecordedAttempt
from reimzul.history.workers import FULL, WorkerRecord, describe_error, describe_short_disk, find_leg_errors

#: The figures of a package's past durations in JSON.
_PAST_DURATIONS = ("count", "low", "median", "high", "mean")
#: How the message of an error of repogen begins if its hook failed.
_HOOK_PREFIX = "[repogen] after_createrepo"
#: Workers that are described one by one.
_MAX_DESCRIBED = 8
#: Events waiting for the notifier above which the history counts as out of date.
_MAX_BACKLOG = 20


@attr.frozen(kw_only=True)
class Explanation:
    sentences: Sequence[str]
    start: Optional[estimates.Forecast] = None  #: of a build that waits
    end: Optional[estimates.Forecast] = None  #: of a build that waits or runs


@click.command("explain", epilog=EXIT_CODES)
@lookup.build_ids_argument(many=False)
@json_option("an object: build_id, arches")
@pass_settings
def command(settings: Settings, given: str, as_json: bool) -> None:
    """Explain why a build is waiting, running or failed: what is ahead of it, who can build it, when it should start.

    ID is a build id, or a prefix that no other build has.

    \b
    Examples:
      reimzul explain 72b893f8
      reimzul explain 72b893f8 --json
    """
    with lookup.reading_history(settings.history.url) as history:
        build = lookup.BuildLegs(lookup.add_links(settings, lookup.find_build(history, given).legs))
        unfinished = history.find_unfinished() if any(leg.is_queued for leg in build.legs) else []
        with Broker.from_settings(settings.beanstalkd) as broker:
            collected = [collect_facts(settings, history, broker, leg, unfinished) for leg in build.legs]
    explained = [(facts, explain(facts)) for facts in collected]
    lines = [build.label]
    for facts, each in explained:
        lines += [f"{facts.leg.arch}: {facts.leg.state}", *(f"  {sentence}" for sentence in each.sentences)]
    result = {"build_id": build.build_id, "arches": [to_dict(each, facts) for facts, each in explained]}
    print_result(result, lines, as_json)


def to_dict(explanation: Explanation, facts: BuildFacts) -> dict[str, Any]:
    return {
        **{name: getattr(facts.leg, name) for name in ("build_id", "arch", "status", "state", "job")},
        "message": "\n".join(explanation.sentences),
        "tube": facts.tube.name,
        "job_state": None if facts.job == lookup.UNKNOWN else facts.job,
        "ahead": len(facts.ahead),
        "ahead_elsewhere": len(facts.ahead_elsewhere),
        "watchers": facts.tube.watchers,
        "backoffs": dict(facts.backoffs),
        "workers": None if facts.workers is None else [worker.to_output(facts.now) for worker in facts.workers],
        "starts_in": attr.asdict(explanation.start) if explanation.start else None,
        "ends_in": attr.asdict(explanation.end) if explanation.end else None,
        "past_durations": facts.own_stats and {name: getattr(facts.own_stats, name) for name in _PAST_DURATIONS},
    }


# --- sentences


def explain(facts: BuildFacts) -> Explanation:
    if facts.is_held:
        explanation = Explanation(sentences=[*_failed_attempts(facts), *_describe_hold(facts)])
    elif facts.leg.is_queued:
        explanation = _explain_queued(facts)
    elif facts.leg.is_unfinished:
        explanation = _explain_building(facts)
    else:
        describe = _describe_success if facts.leg.status == Status.SUCCESS else _describe_end
        explanation = Explanation(sentences=[*describe(facts)])
    more = [*describe_membership(facts.batch, facts.leg, facts.now)]
    more += [f"Announced as {facts.leg.claim_text}: reimzul doctor says more."] if facts.leg.claimed else []
    if facts.cancel is not None and facts.leg.is_unfinished:
        more.append(f"{facts.cancel.by or 'Somebody'} has cancelled it; it has not ended yet.")
    if facts.backlog > _MAX_BACKLOG:
        more.append(f"The notifier has {pluralize(facts.backlog, 'event')} still to read: this may be out of date.")
    return attr.evolve(explanation, sentences=[*explanation.sentences, *more])


def _explain_queued(facts: BuildFacts) -> Explanation:
    if facts.job in (lookup.GONE, "buried"):
        return _explain_missing_job(facts)
    if facts.job == "reserved":
        return _explain_taken(facts)
    start, end = (None, None) if facts.leg.waits_for else estimate_start_and_end(facts)
    sentences = [
        *_failed_attempts(facts),
        *_describe_place(facts),
        *_ahead_text(facts),
        *_describe_workers(facts),
        *_expected_text(facts, start, end),
    ]
    return Explanation(sentences=sentences, start=start, end=end)


def _describe_hold(facts: BuildFacts) -> Iterator[str]:
    leg = facts.leg
    since = _ago(facts, ", held", leg.put_at) if leg.held else ""
    yield f"No worker gets job {leg.job} of tube {facts.tube.name} before it is released{since}."
    if leg.waits_for and facts.batch is None:  # else `describe_membership` says so
        yield f"It waits for {leg.waits_for}."
    if facts.batch is None:
        yield f"To have it built all the same: reimzul kick --held {leg.job}"


def _explain_missing_job(facts: BuildFacts) -> Explanation:
    leg = facts.leg
    texts = {
        "buried": f"Its job {leg.job} was refused and buried: `reimzul buried --tube {facts.tube.name}` shows why, "
        f"`reimzul kick {leg.job}` requeues it.",
        lookup.GONE: f"Its job {leg.job} is not in beanstalkd any more, and no worker is known to build it: it was "
        f"deleted, or its result is not recorded yet. If nothing changes: reimzul retry {leg.build_id[:8]}",
    }
    return Explanation(sentences=[*_failed_attempts(facts), texts[facts.job]])


def _explain_taken(facts: BuildFacts) -> Explanation:  # the worker has not announced the build yet
    worker, spent = _worker_building(facts), 0.0
    text = f"A worker has just taken it from tube {facts.tube.name}; which one is not known yet."
    if worker is not None and worker.heartbeat.build is not None:
        spent = worker.seconds_since(worker.heartbeat.build.started, facts.now)
        text = f"{_worker_label(worker, facts.workers or ())} {_activity(worker, facts)}."
    sentences, takes, end = [*_failed_attempts(facts), text], facts.duration, None
    if takes is not None:
        end = estimates.estimate_rest(takes, spent)
        sentences.append(_end_text(takes, end, facts.now))
    return Explanation(sentences=sentences, end=end)


def _ago(facts: BuildFacts, before: str, moment: float | None) -> str:
    """Part of a sentence; empty where the moment is not known."""
    return f"{before} {format_duration(facts.now - moment)} ago" if moment else ""


def _describe_place(facts: BuildFacts) -> Iterator[str]:
    leg = facts.leg
    yield join_parts(
        f"It waits in tube {facts.tube.name}",
        f" as job {leg.job}" if leg.job else "",
        f", priority {leg.priority}" if leg.priority is not None else "",
        _ago(facts, ", queued", leg.queued_at),
        ".",
    )
    if facts.pause > 0:
        yield f"No worker gets it before {format_time(leg.due)}, in {format_duration(facts.pause)}."
    if leg.waits_for:
        yield f"It waits for {leg.waits_for}."
    if facts.source_problem:
        yield f"The web server cannot read its source rpm: {facts.source_problem}"


def _ahead_text(facts: BuildFacts) -> Iterator[str]:
    if not facts.ahead and not facts.ahead_elsewhere:
        yield "No build is ahead of it."
        return
    known = [own.mean for each in facts.ahead if (own := facts.arch_stats.stats_for(each.pkgname))]
    yield join_parts(
        f"{pluralize(len(facts.ahead), 'build')} {'is' if len(facts.ahead) == 1 else 'are'} ahead of it in that tube",
        f": about {format_duration(sum(known))} of work for one worker" if known else "",
        ".",
    )
    if facts.ahead_elsewhere:
        tubes = join_words(sorted({each.tube for each in facts.ahead_elsewhere}))
        yield f"The same builders take {pluralize(len(facts.ahead_elsewhere), 'build')} from {tubes} before it."


def _describe_workers(facts: BuildFacts) -> Iterator[str]:
    if facts.tube.watchers == 0:
        yield f"Nobody watches tube {facts.tube.name}: no builder that could build it is connected."
        yield from _describe_vanished(facts)
    if facts.workers is None:
        yield f"{pluralize(facts.tube.watchers, 'worker')} watch that tube; this host cannot see which."
        return
    if facts.able_workers:
        yield f"{pluralize(len(facts.able_workers), 'worker')} could take it."
    elif facts.workers and facts.tube.watchers:
        yield "No worker takes it now."
    for worker in facts.workers[:_MAX_DESCRIBED]:
        yield f"{_worker_label(worker, facts.workers)} {_activity(worker, facts)}."
    states = [worker.state_at(facts.now) for worker in facts.workers[_MAX_DESCRIBED:]]
    if states:
        counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
        yield f"And {pluralize(len(states), 'worker')} more: {join_words(counts)}."


def _describe_vanished(facts: BuildFacts) -> Iterator[str]:
    """Name the builders that watched the tube, and whose connection ended without their notice."""
    known = [each for each in facts.processes.vanished if facts.tube.name in each.heartbeat.arches]
    last = {each.heartbeat.host: each.last_seen for each in sorted(known, key=lambda each: each.last_seen)}
    for host, seen in list(last.items())[-_MAX_DESCRIBED:]:
        yield f"{host} vanished: it was last heard of {format_duration(facts.now - seen)} ago."


def _worker_label(worker: WorkerRecord, among: Sequence[WorkerRecord]) -> str:
    host = worker.heartbeat.host
    is_alone = [other.heartbeat.host for other in among].count(host) == 1
    return host if is_alone else f"{host} ({worker.heartbeat.instance})"


def _activity(worker: WorkerRecord, facts: BuildFacts) -> str:
    sent, now = worker.heartbeat, facts.now
    if worker.is_silent(now):
        return f"has sent no heartbeat for {format_duration(now - worker.last_seen)}"
    if sent.state in (WorkerState.DRAINED, WorkerState.UNFIT, WorkerState.QUARANTINED):
        why = sent.why if sent.why.startswith(sent.state) else f"{sent.state}: {sent.why}".rstrip(": ")
        return f"takes no jobs ({why})"
    if sent.build is None:
        return _idle_activity(worker, facts)
    takes = facts.arch_stats.stats_for(BuildRecord(srpm=sent.build.srpm).package)
    is_draining = sent.state == WorkerState.DRAINING or sent.host in facts.drained
    return join_parts(
        f"builds {sent.build.srpm} for {sent.build.target}",
        f" ({sent.build.phase})" if sent.build.phase else "",
        f", started {format_duration(worker.seconds_since(sent.build.started, now))} ago",
        f", usually takes {format_duration(takes.median)}" if takes and takes.own else "",
        _backoff_text(worker, facts),
        ", and takes no more jobs after that" if is_draining else "",
    )


def _idle_activity(worker: WorkerRecord, facts: BuildFacts) -> str:
    host, age = worker.heartbeat.host, format_duration(facts.now - worker.last_seen)
    if host in facts.drained:
        return f"takes no jobs ({facts.drained[host]})"
    if worker.is_overdue(facts.now):
        due = worker.heartbeat.interval
        return f"may be gone: its last heartbeat came {age} ago, and one is due every {due} s"
    return f"is free{_backoff_text(worker, facts)}, heard of {age} ago"


def _backoff_text(worker: WorkerRecord, facts: BuildFacts) -> str:
    left = facts.backoffs.get(worker.heartbeat.host)
    return f", but could not build it, and leaves it to others for {format_duration(left)} more" if left else ""


def _expected_text(
    facts: BuildFacts, start: estimates.Forecast | None, end: estimates.Forecast | None
) -> Iterator[str]:
    if facts.leg.waits_for:
        yield "It starts after that."
    elif start is None:
        yield "Its start cannot be estimated."
    elif start.high < 1:
        yield "Expected start: at once."
    else:
        yield f"Expected start: in {format_duration(start.likely)} ({estimates.range_text(start.low, start.high)})."
    if facts.duration is not None and end is not None:
        yield _end_text(facts.duration, end, facts.now)
    elif start is not None:
        yield "Its duration cannot be estimated: nothing was built on that arch before."


def _end_text(takes: estimates.DurationStats, end: estimates.Forecast, now: float) -> str:
    when = f"{format_time(now + end.likely)}, in {format_duration(end.likely)}"
    return f"{estimates.duration_text(takes)} Expected end: {when}."


def _failed_attempts(facts: BuildFacts) -> Iterator[str]:
    """Describe the attempts before this one; the last attempt of a rejected leg is described with its result."""
    known = list(enumerate(facts.leg.attempts, 1))
    texts = {Status.UNFIT: "failed on", Status.REJECTED: "was rejected, built on"}  # the store rejects, not the builder
    for number, attempt in known[:-1] if facts.leg.status == Status.REJECTED else known:
        if attempt.status in texts:
            yield f"Attempt {number} {texts[attempt.status]} {_attempt_end(attempt, facts)}"
    retried = [(number, attempt) for number, attempt in known if attempt.status in (Status.RETRIED, Status.WAITING)]
    if retried:
        number, last = retried[-1]
        many = f"; {pluralize(len(retried), 'attempt')} ended so" if retried[1:] else ""
        yield f"Attempt {number} does not count{many}: on {_attempt_end(last, facts)}"


def _attempt_end(attempt: RecordedAttempt, facts: BuildFacts) -> str:
    logs = f" Its logs: {where}" if (where := describe_files(attempt)) else ""
    return f"{attempt.builder_fqdn}{_ago(facts, '', attempt.at)}: {attempt.reason or '-'}.{logs}"


def _worker_building(facts: BuildFacts, host: str = "") -> WorkerRecord | None:
    for worker in facts.workers or ():
        build = worker.heartbeat.build
        if build and build.build_id == facts.leg.build_id and host in ("", worker.heartbeat.host):
            return worker
    return None


def _explain_building(facts: BuildFacts) -> Explanation:
    leg, takes = facts.leg, facts.duration
    worker = _worker_building(facts, leg.builder_fqdn) if leg.builder_fqdn else None
    if facts.job == "buried" or (facts.job == lookup.GONE and (worker is None or worker.is_silent(facts.now))):
        return _explain_missing_job(facts)
    sentences = [*_failed_attempts(facts), *_describe_builder(facts, worker)]
    if facts.job in ("ready", "delayed"):
        sentences.append(
            f"Its job is in tube {facts.tube.name} again: that worker or its connection is gone, and the next worker "
            f"starts over."
        )
        return Explanation(sentences=[*sentences, *_describe_workers(facts)])
    if takes is None:
        return Explanation(sentences=[*sentences, "Nothing was built on that arch before."])
    spent = facts.now - leg.attempt_start if leg.attempt_start else 0.0
    end = estimates.estimate_rest(takes, spent)
    left = f"About {format_duration(end.likely)} are left (90 %: at most {format_duration(end.high)})."
    left = "It has taken longer than 90 % of them." if spent >= takes.high else left
    return Explanation(sentences=[*sentences, f"{estimates.duration_text(takes)} {left}"], end=end)


def _describe_builder(facts: BuildFacts, worker: WorkerRecord | None) -> Iterator[str]:
    leg, started = facts.leg, _ago(facts, ", started", facts.leg.attempt_start)
    yield f"{leg.builder_fqdn or 'A worker'} builds it{started} (attempt {leg.attempt or '-'})."
    if worker is None or worker.heartbeat.build is None:
        return
    build = worker.heartbeat.build
    yield f"Its log so far: {log_command(leg.build_id, leg.arch)} -f"
    if worker.is_silent(facts.now):
        yield f"That worker has sent no heartbeat for {format_duration(facts.now - worker.last_seen)}."
        yield "If its connection is dead, that is found within half a minute, and another worker gets the job."
    elif build.phase and build.arch == leg.arch:
        yield f"It has been in phase {build.phase} for {format_duration(worker.seconds_since(build.since, facts.now))}."
    yield from _describe_errors(facts, [worker])


def _describe_errors(facts: BuildFacts, processes: Sequence[WorkerRecord]) -> Iterator[str]:
    """Say what fails for this leg at these processes; a failing hook is described by its flag."""
    leg = facts.leg
    for process, error in find_leg_errors(processes, leg.build_id, leg.arch, leg.target):
        if facts.stuck is None or not error.message.startswith(_HOOK_PREFIX):
            about = describe_error(process, error, facts.now)
            yield f"{process.role} on {process.heartbeat.host}: {about.rstrip('.')}. It is retried."


def _describe_success(facts: BuildFacts) -> Iterator[str]:
    leg = facts.leg
    if leg.published:
        yield f"It was published in {leg.target} at {format_time(leg.published)}: {describe_files(leg)}"
        if unsigned := facts.tosign.ready + facts.tosign.reserved:
            yield f"{pluralize(unsigned, 'build')} in tube tosign still to be prepared for signing."
        yield from _describe_errors(facts, [each for each in facts.processes.services if each.role == Role.TOSIGN])
    elif leg.scratch:
        yield f"It was built; scratch builds are not published. Its files: {describe_files(leg)}"
    else:
        yield from _unpublished_text(facts)


def _unpublished_text(facts: BuildFacts) -> Iterator[str]:
    leg, tube = facts.leg, facts.createrepo
    yield f"It was built{_ago(facts, '', None if leg.skew else leg.finished)} and uploaded, and is not published yet."
    if facts.stuck is not None:
        where = (f" on {facts.stuck.by}" if facts.stuck.by else "") + _ago(facts, "", facts.stuck.at)
        yield f"The repodata of {leg.target} is unchanged: [repogen] after_createrepo failed{where}."
        yield f"Its message: {facts.stuck.why or '-'}. It will be retried."
    repogens = [each for each in facts.processes.services if each.role == Role.REPOGEN]
    yield from _describe_errors(facts, repogens)
    for host, problem in {each.heartbeat.host: describe_short_disk(each, FULL) for each in repogens}.items():
        if problem:
            yield f"{host}: {problem}."
    if not tube.watchers:
        yield "Nobody watches tube createrepo: no repogen is connected."
        yield "On bstore: systemctl status 'reimzul-repogen-worker@*'"
    elif tube.ready + tube.reserved:
        yield (
            f"Tube createrepo has {tube.ready} waiting and {tube.reserved} running requests; one run serves all "
            "requests of a target."
        )
    elif tube.delayed:
        yield f"{pluralize(tube.delayed, 'request')} in tube createrepo will be retried: see the journal of bstore."
    if tube.buried:
        yield f"{pluralize(tube.buried, 'request')} in it were refused: reimzul buried --tube createrepo"


def _describe_end(facts: BuildFacts) -> Iterator[str]:
    leg = facts.leg
    if leg.status == CLAIMED:
        return  # nothing else is known
    yield from _failed_attempts(facts)
    if leg.status == Status.OVERRIDE:
        yield f"Somebody has set its state to override: {leg.comment or '-'}"
        return
    verb = {Status.FAILED: "It failed", Status.CANCELLED: "It was cancelled", Status.REJECTED: "It was rejected"}
    yield join_parts(
        verb.get(leg.status, leg.state),
        # the store rejects: it is not the builder's fault
        f" on {leg.builder_fqdn}" if leg.builder_fqdn and leg.status != Status.REJECTED else "",
        f" at {format_time(leg.finished)}" if leg.finished else "",
        f": {leg.reason or '-'}.",
    )
    first_line = next((line.strip() for line in leg.first_error.splitlines() if line.strip()), "")
    if leg.error_line or first_line:  # version 0.1 did not record which line is the cause
        yield f"The first error: {leg.error_line or first_line}"
    has_no_link = leg.scratch and leg.logs_folder and not leg.page
    if where := log_command(leg.build_id, leg.arch) if has_no_link else describe_files(leg):
        yield f"Its logs: {where}"
    yield f"To build it again: reimzul retry {leg.build_id[:8]} --failed"
