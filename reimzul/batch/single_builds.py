# SPDX-License-Identifier: Apache-2.0
"""Holds and releases single builds: those with `--after`, and those with `--dep-wait` that miss a requirement.

`.batches/single.log` has a line for each change of a build: all of it as it is then. The last line of a build counts.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Callable

import attr

from reimzul.batch import jobs
from reimzul.batch.job_checks import CHECK_SECONDS, Pipeline, event_of_record
from reimzul.batch.target_provides import TargetWatcher
from reimzul.core import control, fs, validators
from reimzul.core.arch import Arches
from reimzul.core.beanstalk import HELD_SECONDS, Broker, arch_tube
from reimzul.core.errors import InvalidMessage, ReservationLost, RetryLater, describe_os_error
from reimzul.core.formatting import format_duration
from reimzul.core.json_message import Message, encode, field, nested
from reimzul.core.message import BuildEvent, BuildRequest, Status
from reimzul.plan.document import FOLDER
from reimzul.plan.journal import Entry, Journal, read_journal

_KIND = "single"


class SingleState:
    ACCEPTED = "accepted"  #: its job is to be put, or was put and not noted
    HELD = "held"  #: waits for other builds
    RELEASED = "released"
    WAITING = "waiting"  #: its builder found that nobody provides a requirement
    ENDED = "ended"  #: it ends without being built, which is to be announced
    OVER = "over"

    ALL = (ACCEPTED, HELD, RELEASED, WAITING, ENDED, OVER)


#: What a build that others wait for has come to: published, or why not; empty: nothing yet.
PUBLISHED = "published"


@attr.frozen(kw_only=True)
class SingleBuild(Message):
    request: BuildRequest = field(nested(BuildRequest, "a request"))
    tube: str = field(validators.name)
    priority: int = field(validators.integer(0, 2**32 - 1))
    state: str = field(validators.one_of(*SingleState.ALL))
    number: int = field(validators.integer(0, 2**63 - 1), 0)  #: of the job in `batch` that asked for it
    job: int = field(validators.integer(0, 2**63 - 1), 0)
    #: build id -> what that build has come to
    after: dict[str, str] = field(validators.dict_of(validators.build_id, validators.line(300), 50), {})
    #: leg -> what nobody provides to it; once released, what it waited for
    missing: dict[str, tuple[str, ...]] = field(
        validators.dict_of(validators.arch, validators.list_of(validators.line(300), 50), 20), {}
    )
    since: float = field(validators.unix_time, 0.0)  #: when it began to wait for what is missing
    event_at: float = field(validators.unix_time, 0.0)  #: of the last event by which its builder held it
    at: float = field(validators.unix_time, 0.0)
    reason: str = field(validators.line(500), "")  #: why it ended

    @property
    def build_id(self) -> str:
        return self.request.build_id

    @property
    def all_missing(self) -> list[str]:
        return list(dict.fromkeys(each for missing in self.missing.values() for each in missing))

    @property
    def unmet_builds(self) -> list[str]:
        """The builds that have come to nothing yet."""
        return [each for each, outcome in self.after.items() if not outcome]

    @property
    def failed_builds(self) -> list[str]:
        """The builds that will not be published, with the reason."""
        return [f"{each[:8]} {outcome}" for each, outcome in self.after.items() if outcome and outcome != PUBLISHED]


def is_main(event: BuildEvent) -> bool:
    """Whether an event is about the arch that was asked for; others, as i386 with x86_64, hold up nobody."""
    return event.target.endswith(f".{event.arch}")


def outcome_of(event: BuildEvent) -> str:
    """What an event says about the build that others wait for; empty if it decides nothing."""
    if not is_main(event) or event.claimed:
        return ""
    if event.status == Status.PUBLISHED or (event.scratch and event.status == Status.SUCCESS):
        return PUBLISHED
    if event.status in (Status.FAILED, Status.CANCELLED, Status.REJECTED):
        return f"({event.srpm}) {event.status.lower()}"
    return ""


class SingleStore:
    """The file of the builds that are not over. Raises `RetryLater` if the disk does not take a change."""

    def __init__(self, incoming: Path) -> None:
        """Load the builds. Raises `InputError`."""
        path = incoming / FOLDER / "single.log"
        self.builds: dict[str, SingleBuild] = {}
        for entry in read_journal(path) if path.exists() else ():
            self._apply(_parse(entry))
        path.parent.mkdir(parents=True, exist_ok=True)
        fs.write_atomic(path, "".join(encode(_entry_of(each)).decode() + "\n" for each in self.builds.values()))
        self._journal = Journal(path)

    def save(self, builds: Iterable[SingleBuild]) -> None:
        builds = [attr.evolve(each, at=time.time()) for each in builds]
        try:
            self._journal.append(map(_entry_of, builds))
        except OSError as error:
            raise RetryLater(f"{self._journal.path}: {describe_os_error(error)}") from error
        for each in builds:
            self._apply(each)

    def _apply(self, build: SingleBuild) -> None:
        if build.state == SingleState.OVER:
            self.builds.pop(build.build_id, None)
        else:
            self.builds[build.build_id] = build


def _entry_of(build: SingleBuild) -> Entry:
    return {"kind": _KIND, "build": build.to_json()}


def _parse(entry: Entry) -> SingleBuild:
    if entry["kind"] != _KIND or not isinstance(entry.get("build"), dict):
        raise InvalidMessage("an entry of single.log is not a held build")
    return SingleBuild.from_json(entry["build"])


log = logging.getLogger(__name__)


# --- the builds of the daemon


class SingleBuilds:
    def __init__(self, incoming: Path, arches: Arches, pipeline: Pipeline, targets: TargetWatcher) -> None:
        """Load the builds that were held. Raises `InputError`."""
        self._store = SingleStore(incoming)
        self._arches = arches
        self._pipeline = pipeline
        self._targets = targets
        self._pending_kicks: set[str] = set()
        self._looked_up_at = float("-inf")

    @property
    def has_urgent_work(self) -> bool:
        """Whether a job is to be kicked as soon as its builder holds it."""
        return bool(self._pending_kicks)

    def restart(self) -> None:
        """Look up and check everything next: the connection is new."""
        self._looked_up_at = float("-inf")

    # --- what arrives

    def accept(self, request: BuildRequest, number: int, priority: int) -> None:
        """Remember a build that the job asks for; `advance` puts it. Raises `InvalidMessage`, `RetryLater`."""
        if request.arch not in self._arches.known:
            raise InvalidMessage(f"unknown arch {request.arch!r}; known arches: {', '.join(self._arches.known)}")
        if request.build_id not in self._store.builds:
            build = SingleBuild(
                request=attr.evolve(request, after=()),
                tube=self._arches.tube_of(request.arch),
                priority=priority,
                state=SingleState.ACCEPTED,
                number=number,
                after=dict.fromkeys(request.after, ""),
            )
            self._store.save([build])
            self._looked_up_at = float("-inf")

    def take_event(self, broker: Broker, event: BuildEvent) -> None:
        """Note what an event changes. Raises `RetryLater`."""
        changed: dict[str, SingleBuild] = {}
        if outcome := outcome_of(event):
            for build in self._store.builds.values():
                if build.after.get(event.build_id) == "":
                    changed[build.build_id] = _with_outcomes(build, {event.build_id: outcome})
        own = changed.get(event.build_id) or self._store.builds.get(event.build_id) or self._adopt(broker, event)
        if own is not None and (after := apply_own_event(own, event)) is not None:
            changed[event.build_id] = after
        self._store.save(changed.values())

    def _adopt(self, broker: Broker, event: BuildEvent) -> SingleBuild | None:
        """A build that its builder holds, and that came here by no request."""
        if not (event.held and event.missing) or event.batch:
            return None
        found = jobs.find_job(broker, event.job, event.build_id)
        if found is None or not found.request.dep_wait:
            return None
        return SingleBuild(
            request=found.request,
            tube=found.stats.tube,
            priority=found.stats.priority,
            state=SingleState.RELEASED,
            job=event.job,
        )

    # --- what is done

    def advance(self, broker: Broker, ping: Callable[[], None]) -> None:
        """Do what can be done now for each build."""
        is_check_due = time.monotonic() - self._looked_up_at > CHECK_SECONDS
        if is_check_due:
            self._looked_up_at = time.monotonic()
            self._look_up_outcomes()
        for accepted in list(self._store.builds.values()):
            ping()
            build = self._put(broker, accepted, ping) if accepted.state == SingleState.ACCEPTED else accepted
            if build.state == SingleState.HELD:
                self._advance_held(broker, build)
            elif build.state == SingleState.WAITING:
                self._advance_waiting(broker, build)
            elif build.state == SingleState.ENDED:
                self._complete_end(broker, build)
            elif build.state == SingleState.RELEASED and (is_check_due or build.build_id in self._pending_kicks):
                self._kick_if_held(broker, build)

    def _look_up_outcomes(self) -> None:
        """Look up in the history what builds have come to: some were over before anybody waited for them."""
        wanted = {each for build in self._store.builds.values() for each in build.unmet_builds}
        outcomes = {}
        for build_id in wanted:
            for record in self._pipeline.find_results(build_id) or ():
                if outcome := outcome_of(event_of_record(record)):
                    outcomes[build_id] = outcome
        changed = [each for each in self._store.builds.values() if set(each.unmet_builds) & outcomes.keys()]
        self._store.save(_with_outcomes(each, outcomes) for each in changed)

    def _put(self, broker: Broker, build: SingleBuild, ping: Callable[[], None]) -> SingleBuild:
        """Put a build held, unless it was put before a kill, or is cancelled."""
        now = jobs.next_job_number(broker)
        known = jobs.find_jobs(broker, range(min(build.number, now), now), [build.build_id], ping)
        job, flag = next(iter(known), 0), None
        if not job:
            job, flag = control.requeue_unless_cancelled(
                broker, arch_tube(build.tube), build.request, priority=build.priority, delay=HELD_SECONDS
            )
        if flag is not None:
            return self._change(build, state=SingleState.ENDED, reason=flag.cancel_text)
        names = ", ".join(each[:8] for each in build.after)
        jobs.announce_queued(
            broker, build.request, build.request.announced_arches, job, build.priority, build.tube, held=True,
            reason=f"held: job {job} of tube {build.tube}", waits_for=f"waits for {names}",
        )  # fmt: skip
        return self._change(build, state=SingleState.HELD, job=job)

    def _change(self, build: SingleBuild, **values: object) -> SingleBuild:
        changed = attr.evolve(build, **values)  # type: ignore[arg-type]
        self._store.save([changed])
        return changed

    def _advance_held(self, broker: Broker, build: SingleBuild) -> None:
        if build.failed_builds:
            self._end(broker, build, f"it was to be built after {', '.join(build.failed_builds)}")
        elif not build.unmet_builds:
            self._release(broker, build)

    def _advance_waiting(self, broker: Broker, build: SingleBuild) -> None:
        reading = self._targets.read(build.request.target, build.all_missing)
        if reading is not None and reading.provides_to_legs(build.missing, [build.request.arch], self._arches):
            self._release(broker, build)
        elif time.time() - build.since > build.request.dep_wait:
            limit = format_duration(build.request.dep_wait)
            self._end(broker, build, f"nobody provides {', '.join(build.all_missing)}; nor did anybody within {limit}")

    def _release(self, broker: Broker, build: SingleBuild) -> None:
        self._kick_if_held(broker, self._change(build, state=SingleState.RELEASED))

    def _kick_if_held(self, broker: Broker, build: SingleBuild) -> None:
        """Make a released build's job ready, now or as soon as its builder holds it."""
        self._pending_kicks.discard(build.build_id)
        found = jobs.find_job(broker, build.job, build.build_id)
        if found is None:  # cancelled, or built, or lost with beanstalkd's binlog
            self._finish_if_over(build)
        elif found.stats.state == "reserved":
            self._pending_kicks.add(build.build_id)
        elif found.stats.is_held:
            reason = f"released: job {build.job} of tube {build.tube}"
            jobs.announce_queued(
                broker, found.request, list_legs(build), build.job, found.stats.priority, build.tube, held=False,
                reason=reason, at=jobs.next_event_time(build.event_at),
            )  # fmt: skip
            with contextlib.suppress(ReservationLost):
                broker.kick(build.job)

    def _finish_if_over(self, build: SingleBuild) -> None:
        if self._pipeline.find_results(build.build_id):
            self._change(build, state=SingleState.OVER)

    def _end(self, broker: Broker, build: SingleBuild, reason: str) -> None:
        log.info("build %s failed: %s", build.build_id, reason)
        self._complete_end(broker, self._change(build, state=SingleState.ENDED, reason=reason))

    def _complete_end(self, broker: Broker, build: SingleBuild) -> None:
        """Announce the end of a build that was not built, delete its job, and forget it."""
        status = Status.FAILED if build.job else Status.CANCELLED
        jobs.announce_end(broker, build.request, list_legs(build), status, build.reason, build.at)
        with contextlib.suppress(ReservationLost):
            if build.job and jobs.find_job(broker, build.job, build.build_id) is not None:
                broker.delete(build.job)
        self._change(build, state=SingleState.OVER)


def _with_outcomes(build: SingleBuild, outcomes: dict[str, str]) -> SingleBuild:
    after = {each: outcome or outcomes.get(each, "") for each, outcome in build.after.items()}
    return attr.evolve(build, after=after)


def list_legs(build: SingleBuild) -> Sequence[str]:
    """The legs that a build's job is for: those that waited last, or those that it was announced for."""
    return list(build.missing) or build.request.announced_arches


def _apply_result(build: SingleBuild, event: BuildEvent) -> SingleBuild | None:
    """The build after a leg's result: it is over with its main leg, unless another leg waits, or was released."""
    missing = {leg: names for leg, names in build.missing.items() if leg != event.arch}
    if missing:
        return attr.evolve(build, missing=missing) if missing != build.missing else None
    return attr.evolve(build, state=SingleState.OVER) if is_main(event) or build.missing else None


def apply_own_event(build: SingleBuild, event: BuildEvent) -> SingleBuild | None:
    """The build after an event about itself; None if that changes nothing."""
    if event.status in (*Status.FINAL, Status.PUBLISHED):
        return _apply_result(build, event)
    if event.held and event.missing and build.state in (SingleState.RELEASED, SingleState.WAITING):
        since = build.since or event.at or time.time()
        known = build.missing if build.state == SingleState.WAITING else {}
        missing, latest = {**known, event.arch: event.missing}, max(build.event_at, event.at)
        return attr.evolve(
            build, state=SingleState.WAITING, job=event.job or build.job, missing=missing, since=since, event_at=latest
        )
    if event.status == Status.QUEUED and event.job not in (0, build.job, build.number):
        return attr.evolve(build, job=event.job)  # moved to the front, or put again after a builder's fault
    return None
