# SPDX-License-Identifier: Apache-2.0
"""The messages in the tubes. Every field is checked when a message is created.

A message is a JSON object with the original farm's keys and ours (docs/wire.md). A message with the original's keys
alone is accepted everywhere.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from typing import Any, Union

import attr

from reimzul.core import validators
from reimzul.core.batch_event import BatchEvent, BatchStatus
from reimzul.core.json_message import MAX_BYTES, Message, _limit_extra, encode, field, nested, parse_json
from reimzul.core.package_change import ComparedResult

#: The namespace of derived build ids (uuid5); another one would duplicate known builds.
NAMESPACE = uuid.UUID("6b0f2c5e-54d1-4b53-9d6e-0d4d3f1b7a10")


class Status:
    """The statuses of a leg, and those of other messages in `notify`."""

    QUEUED = "Queued"  #: waits in the arch's tube
    BUILDING = "Building"  #: a worker has reserved it
    SUCCESS = "Success"  #: built and uploaded
    FAILED = "Failed"  #: the package does not build, or no builder could build it
    CANCELLED = "Cancelled"  #: cancelled by a person
    PUBLISHED = "Published"  #: the repodata lists it
    REJECTED = "Rejected"  #: its uploads were damaged, its packages cannot be listed, or the target holds other ones
    OVERRIDE = "Override"  #: set by a person, in the history only
    REFUSED = "Refused"  #: not a build: a message that failed its checks
    QUARANTINED = "Quarantined"  #: not a build: a builder may take no jobs, for its faults
    RELEASED = "Released"  #: not a build: that builder may take jobs again
    PRESENCE = "Presence"  #: not a build: a worker's heartbeat
    UNFIT = "Unfit"  #: of an attempt: its builder's fault; it decides nothing
    RETRIED = "Retried"  #: of an attempt: nobody's fault; it does not count
    WAITING = "Waiting"  #: of an attempt: nobody provided a requirement; it does not count

    BUILD = (QUEUED, BUILDING, SUCCESS, FAILED, CANCELLED, PUBLISHED, REJECTED, OVERRIDE)
    FINAL = (SUCCESS, FAILED, CANCELLED, REJECTED)


#: The prefix of a failed attempt's text if its upload arrived damaged: not a builder's fault.
UPLOAD = "upload: "
#: The prefix of the reason of a `Queued` whose attempt was nobody's fault: it counts neither as try nor as fault.
NOBODY = "nobody's fault: "
#: The prefix of the reason of a `Failed` leg that used up its tries.
NO_BUILDER = "no builder could build it: "


@attr.frozen(kw_only=True)
class FailedAttempt:
    """An attempt that failed through its builder's fault."""

    builder: str = field(validators.host)
    when: float = field(validators.unix_time)
    words: str = field(validators.line(300))
    first_error: str = field(validators.text(2_000), "")  #: of its logs; kept only for the last attempt
    error_line: str = field(validators.line(400), "")  #: the line of it that is the cause


#: The submitter of a request that names none.
UNKNOWN = "unknown"


def _parse_submitter(value: Any) -> str:
    """Check a submitter's name; a client whose user has no name sends an empty one."""
    return validators.submitter(UNKNOWN if value == "" else value)


@attr.frozen(kw_only=True)
class BuildRequest(Message):
    """A source rpm to build for one arch: submit puts it into the arch's tube, a worker reserves it."""

    srpm: str = field(validators.srpm)  #: a file name in incoming/, never a path
    arch: str = field(validators.arch)
    target: str = field(validators.target)  #: with its arch, as c7.1708.u.x86_64
    disttag: str = field(validators.disttag)
    submitter: str = field(_parse_submitter)
    scratch: bool = field(validators.flag, False)
    build_id: str = field(validators.optional(validators.build_id), "")  #: "" from a client of the original
    timestamp: str = field(validators.optional(validators.timestamp), "")  #: "" from a client of the original
    srpm_sha256: str = field(validators.optional(validators.sha256), "")
    tries: tuple[FailedAttempt, ...] = field(validators.list_of(nested(FailedAttempt, "a failed attempt"), 50), ())
    parent: str = field(validators.optional(validators.build_id), "")  #: the build that this one repeats
    legs: tuple[str, ...] = field(validators.list_of(validators.arch, 20), ())  #: build only these legs; empty: all
    source_rounds: int = field(validators.integer(0, 1_000_000), 0)  #: how often its source could not be downloaded
    #: whether it may replace a listed build of the same NEVRA; an old client's request may
    rebuild: bool = field(validators.flag, True)
    batch: str = field(validators.optional(validators.batch_id), "")  #: the batch that it is a member's build of
    after: tuple[str, ...] = field(validators.list_of(validators.build_id, 50), ())  #: builds to be published before
    #: seconds that it may wait for a requirement that nobody provides yet; 0: it fails at once, unless in a batch
    dep_wait: int = field(validators.integer(0, 10 * 365 * 86_400), 0)
    bconds: tuple[str, ...] = field(validators.list_of(validators.name, 20), ())  #: given to mock as --with

    @property
    def announced_arches(self) -> tuple[str, ...]:
        """The arches that `Queued` is announced for: its legs, or its own arch."""
        return self.legs or (self.arch,)

    @property
    def has_id(self) -> bool:
        """Whether it has a build id and a timestamp; requests of the original's client have none."""
        return bool(self.build_id and self.timestamp)

    def with_id(self, job: int, tube: str, body: bytes, put_at: float) -> BuildRequest:
        """Add the build id and the timestamp that a client of the original did not send.

        They are derived from the job, so that a second worker, after a crash, derives the same. `put_at` is computed
        from beanstalkd's `age`, which has whole seconds, so it is rounded to the minute.
        """
        minute = int(put_at // 60) * 60
        seed = f"{job} {tube} {minute} {body.decode('utf-8', 'replace')}"
        return attr.evolve(
            self,
            build_id=self.build_id or uuid.uuid5(NAMESPACE, seed).hex,
            timestamp=self.timestamp or time.strftime(validators.TIMESTAMP_FORMAT, time.gmtime(minute)),
        )

    @property
    def builder_faults(self) -> tuple[FailedAttempt, ...]:
        """The failed attempts that were a builder's fault, not an upload's."""
        return tuple(one for one in self.tries if not one.words.startswith(UPLOAD.strip()))

    def with_failed_attempt(
        self, builder: str, words: str, first_error: str = "", error_line: str = ""
    ) -> BuildRequest:
        """Add a failed attempt; the earlier ones lose their log excerpts."""
        earlier = (attr.evolve(one, first_error="", error_line="") for one in self.tries)
        last = FailedAttempt(
            builder=builder, when=round(time.time()), words=words, first_error=first_error, error_line=error_line
        )
        return attr.evolve(self, tries=(*earlier, last))


@attr.frozen(kw_only=True)
class Phase:
    """A phase of a build: from mock's state.log, or ours before and after mock."""

    name: str = field(validators.line(80))
    start: float = field(validators.unix_time)
    end: float = field(validators.unix_time, 0.0)  #: 0 if it did not end


#: The phases of a build, as events and manifests carry them.
phases = validators.list_of(nested(Phase, "a phase"), 24)
#: The priority of a job in beanstalkd.
_priority = validators.integer(0, 2**32 - 1)
#: The number of a job in beanstalkd.
_job = validators.integer(0, 2**63 - 1)


#: File names of packages that an event has at most.
MAX_NAMED_RPMS = 50
#: Characters of the line that names the cause.
MAX_ERROR_LINE = 400
#: Missing requirements that an event has at most.
MAX_MISSING = 50

#: The fields that are shortened, in this order, if an event is too large for a tube.
_SHORTENED_FIELDS = ("root_log", "build_log", "rpms", "first_error")


@attr.frozen(kw_only=True)
class BuildEvent(ComparedResult):
    """A change of a leg's status; every program announces its own in `notify`."""

    srpm: str = field(validators.srpm)
    arch: str = field(validators.arch)  #: the leg's, which may follow the request's
    target: str = field(validators.target)
    status: str = field(validators.one_of(*Status.BUILD))
    submitter: str = field(_parse_submitter)
    disttag: str = field(validators.optional(validators.disttag), "")
    scratch: bool = field(validators.flag, False)
    build_id: str = field(validators.optional(validators.build_id), "")
    timestamp: str = field(validators.optional(validators.timestamp), "")
    builder_fqdn: str = field(validators.optional(validators.host), "")
    pkgname: str = field(validators.optional(validators.name), "")
    evr: str = field(validators.optional(validators.name), "")  #: version-release, as the original calls it
    attempt: str = field(validators.optional(validators.attempt), "")
    reason: str = field(validators.line(500), "")
    exit_code: int | None = field(validators.integer(-255, 255), None)
    started: float = field(validators.unix_time, 0.0)
    finished: float = field(validators.unix_time, 0.0)
    place: str = field(validators.optional(validators.place), "")  #: folder on bstore
    url: str = field(validators.line(1000), "")  #: of its logs and packages, for the farm's programs; then for people
    #: folder on bstore with its logs: its place, or that of an attempt without result; set by the notifier
    logs_folder: str = field(validators.optional(validators.logs_folder), "")
    page: str = field(validators.line(1000), "")  #: URL of its build's page for people; set by the notifier
    rpm_count: int = field(validators.integer(0, 1_000_000), 0)
    rpms: tuple[str, ...] = field(
        validators.list_of(validators.line(300), MAX_NAMED_RPMS), ()
    )  #: file names, the first
    root_log: str = field(validators.text(8_000), "")  #: its end
    build_log: str = field(validators.text(24_000), "")  #: its end
    first_error: str = field(validators.text(4_000), "")
    error_line: str = field(validators.line(MAX_ERROR_LINE), "")  #: the line of `first_error` that is the cause
    error_log: str = field(validators.optional(validators.name), "")  #: the log it stands in, as root.log
    skipped: Mapping[str, str] = field(
        validators.dict_of(validators.arch, validators.line(200), 20), {}
    )  #: arch -> why
    phases: tuple[Phase, ...] = field(phases, ())  #: of a result: the duration of each phase
    parent: str = field(validators.optional(validators.build_id), "")  #: the build that this one repeats
    tube: str = field(validators.optional(validators.name), "")  #: of Queued: the tube, number and priority of its job
    job: int = field(_job, 0)
    priority: int | None = field(_priority, None)
    due: float = field(validators.unix_time, 0.0)  #: of Queued: it cannot be reserved before this time
    waits_for: str = field(validators.line(300), "")  #: of Queued: what must change before it can be built
    #: of Queued: whether its job is held until somebody releases it; None: it was neither held nor released
    held: bool | None = field(validators.optional_flag, None)
    #: of Queued: the capabilities that nobody provides, or the packages that stand in the way (core/batch_message.py)
    missing: tuple[str, ...] = field(validators.list_of(validators.line(300), MAX_MISSING), ())
    batch: str = field(validators.optional(validators.batch_id), "")  #: the batch that it is a member's build of
    at: float = field(validators.unix_time, 0.0)  #: when it was announced
    #: seconds that the builder's clock is ahead of the controller's; set by the notifier, 0 if the clock is right
    skew: float = field(validators.number(-1e12, 1e12), 0.0)
    owed: Mapping[str, int] = field(
        validators.dict_of(validators.name, validators.integer(0, 1_000_000), 20), {}
    )  #: sink -> tries
    manifest_sha256: str = field(validators.optional(validators.sha256), "")  #: of build.json, in a signed event
    signature: str = field(validators.optional(validators.signature), "")  #: bstore's (core/event_signature.py)
    #: of Published and Rejected: whether bstore has not signed it; set by the notifier alone, None without a key
    claimed: bool | None = field(validators.optional_flag, None)

    @property
    def package(self) -> str:
        return self.pkgname or validators.package_of(self.srpm)

    @property
    def key(self) -> str:
        """The permanent key of the leg; an event of the original gets one derived from its fields."""
        if self.build_id:
            return f"{self.build_id}.{self.arch}"
        seed = f"{self.srpm} {self.arch} {self.target} {self.timestamp}"
        return f"{uuid.uuid5(NAMESPACE, seed).hex}.{self.arch}"

    def encode(self) -> bytes:
        """The event as a job's body; log excerpts and lists are shortened until it fits."""
        return super().encode() if len(encode(self.to_json())) <= MAX_BYTES else self._encode_shortened()

    def _encode_shortened(self) -> bytes:
        event = self
        for name in _SHORTENED_FIELDS:
            while getattr(event, name) and len(encode(event.to_json())) > MAX_BYTES:
                value = getattr(event, name)
                event = attr.evolve(event, **{name: value[(len(value) + 1) // 2 :]})
        if len(encode(event.to_json())) > MAX_BYTES:
            event = attr.evolve(event, skipped={})
        return super(BuildEvent, event).encode()


def event_for(request: BuildRequest, status: str, **more: Any) -> BuildEvent:
    """Make an event about a request; `more` are the event's own fields.

    The request's unknown keys are passed on, except those that an event knows: nobody checked them.
    """
    given = {a.name: getattr(request, a.name) for a in attr.fields(BuildRequest) if a.name in _EVENT_FIELDS}
    extra = {name: value for name, value in request.extra.items() if name not in _EVENT_FIELDS}
    return BuildEvent(**{**given, "at": round(time.time(), 3), **more, "status": status}, extra=extra)


_EVENT_FIELDS = {a.name for a in attr.fields(BuildEvent)} - {"extra"}


#: How many bytes of a refused body are announced.
_FIRST_BYTES = 1024


def first_bytes(body: bytes) -> str:
    """The first bytes of a refused body, as printable text."""
    return validators.text(_FIRST_BYTES)(body[:_FIRST_BYTES].decode("utf-8", "replace"))


@attr.frozen(kw_only=True)
class Refusal(Message):
    """Announces that a job was refused, since its body is not a valid message."""

    tube: str = field(validators.line(200))
    job: int = field(_job)
    reason: str = field(validators.line(500))
    begins: str = field(validators.text(_FIRST_BYTES), "")  #: how the body begins
    status: str = field(validators.one_of(Status.REFUSED), Status.REFUSED, always=True)  #: marks it for readers
    host: str = field(validators.optional(validators.host), "")  #: the host that refused it
    at: float = field(validators.unix_time, 0.0)
    owed: Mapping[str, int] = field(validators.dict_of(validators.name, validators.integer(0, 1_000_000), 20), {})

    @property
    def key(self) -> str:
        """The permanent key. beanstalkd restarts job numbers when it loses its binlog, so the body counts too."""
        return uuid.uuid5(NAMESPACE, f"{self.tube} {self.job} {self.at} {self.begins}").hex


@attr.frozen(kw_only=True)
class CurrentBuild:
    build_id: str = field(validators.build_id)
    srpm: str = field(validators.srpm)
    target: str = field(validators.target)
    arch: str = field(validators.arch)  #: of the leg that `phase` speaks of
    attempt: str = field(validators.attempt)
    phase: str = field(validators.line(80), "")
    since: float = field(validators.unix_time, 0.0)  #: when that phase began
    started: float = field(validators.unix_time, 0.0)  #: when the attempt did


class WorkerState:
    """The states of a worker in its heartbeat."""

    IDLE = "idle"  #: waits for a job
    BUILDING = "building"
    DRAINING = "draining"  #: builds, and takes no job after that
    DRAINED = "drained"  #: takes no jobs: a person drained it
    UNFIT = "unfit"  #: takes no jobs: too little disk space, too much load, no mock or no configurations
    QUARANTINED = "quarantined"  #: takes only a canary, for its faults

    ALL = (IDLE, BUILDING, DRAINING, DRAINED, UNFIT, QUARANTINED)
    TAKING_JOBS = (IDLE, BUILDING)


class Feature:
    """What a worker can do that one of version 0.1 cannot, in its heartbeat."""

    BATCH = "batch"  #: holds a request whose requirements nobody provides, and gives mock its bconds

    ALL = (BATCH,)


class Role:
    """The roles of the processes that send heartbeats."""

    WORKER = ""  #: the only one that version 0.1 knows
    REPOGEN = "repogen"
    TOSIGN = "tosign"


#: Errors that a heartbeat has at most.
MAX_ERRORS = 5


@attr.frozen(kw_only=True)
class RecentError:
    """Something that failed and has not succeeded since; its times are by the sender's clock."""

    what: str = field(validators.line(40))  #: the step, as upload or createrepo_c
    message: str = field(validators.line(300), "")
    build_id: str = field(validators.optional(validators.build_id), "")  #: of the leg that it holds up
    arch: str = field(validators.optional(validators.arch), "")
    target: str = field(validators.optional(validators.target), "")  #: without a build: holds up all of that target
    since: float = field(validators.unix_time, 0.0)  #: when it failed first
    at: float = field(validators.unix_time, 0.0)  #: and last
    count: int = field(validators.integer(1, 1_000_000), 1)  #: how often in a row


@attr.frozen(kw_only=True)
class WorkerHeartbeat(Message):
    """The state of a worker, of repogen or of tosign. No sink gets it; the notifier keeps the latest of each process.

    repogen and tosign send only states that a notifier of 0.1 knows: `idle`, and `building` while they handle jobs.
    """

    host: str = field(validators.host)
    instance: str = field(validators.name)  #: the worker's systemd instance, or its process number
    state: str = field(validators.one_of(*WorkerState.ALL))
    why: str = field(validators.line(300), "")  #: why it takes no jobs
    arches: tuple[str, ...] = field(validators.list_of(validators.arch, 40), ())  #: the tubes it watches, its own first
    version: str = field(validators.line(60), "")
    features: tuple[str, ...] = field(validators.list_of(validators.name, 20), ())  #: what it can do beyond version 0.1
    load: float = field(validators.number(0, 1e6), 0.0)  #: of the last minute
    free_mib: int = field(validators.integer(0, 2**53), 0)  #: of the fullest disk
    free_inodes: int = field(validators.integer(0, 2**53), 0)
    build: CurrentBuild | None = field(nested(CurrentBuild, "a current build"), None)
    at: float = field(validators.unix_time, 0.0)  #: by the worker's clock
    boot: str = field(validators.optional(validators.token), "")  #: of its host, new at each boot
    session: str = field(
        validators.optional(validators.token), ""
    )  #: of its process, which watches a tube of that name
    leaving: bool = field(validators.flag, False)  #: it is ending
    #: stands for the list of targets that it has mock configurations for; empty: it reports none (core/targets.py)
    targets_fingerprint: str = field(validators.optional(validators.token), "")
    targets: tuple[str, ...] = field(validators.list_of(validators.target, 20_000), ())  #: that list, if it is due
    targets_left_out: int = field(validators.integer(0, 1_000_000), 0)  #: how many more there are
    role: str = field(validators.optional(validators.name), Role.WORKER)
    interval: int = field(validators.integer(0, 86_400), 0)  #: seconds between two heartbeats at most; 0: unknown
    mock: bool | None = field(validators.optional_flag, None)  #: whether the builder has mock; None: unknown
    #: what fails now, the latest first
    errors: tuple[RecentError, ...] = field(validators.list_of(nested(RecentError, "an error"), MAX_ERRORS), ())
    status: str = field(validators.one_of(Status.PRESENCE), Status.PRESENCE, always=True)  #: marks it for readers


@attr.frozen(kw_only=True)
class BuilderEvent(Message):
    """A change of a builder's status, announced by the notifier."""

    builder: str = field(validators.host)
    status: str = field(validators.one_of(Status.QUARANTINED, Status.RELEASED))
    reason: str = field(validators.line(500), "")
    arches: tuple[str, ...] = field(validators.list_of(validators.arch, 40), ())  #: the tubes it watches, its own first
    at: float = field(validators.unix_time, 0.0)
    owed: Mapping[str, int] = field(validators.dict_of(validators.name, validators.integer(0, 1_000_000), 20), {})

    @property
    def key(self) -> str:
        return uuid.uuid5(NAMESPACE, f"{self.builder} {self.status} {self.at}").hex


Event = Union[BuildEvent, Refusal, BuilderEvent, BatchEvent]
#: The messages in `notify`: events, which sinks get, and heartbeats.
NotifyMessage = Union[Event, WorkerHeartbeat]


def decode_event(body: bytes) -> NotifyMessage:
    """Read any message in `notify`. Raises `InvalidMessage`."""
    raw = parse_json(body)
    if raw.get("status") == Status.PRESENCE:
        return WorkerHeartbeat.from_json(raw)
    if raw.get("status") in (Status.QUARANTINED, Status.RELEASED):
        return BuilderEvent.from_json(raw)
    if raw.get("status") in BatchStatus.ALL:
        return BatchEvent.from_json(raw)
    return Refusal.from_json(raw) if raw.get("status") == Status.REFUSED else BuildEvent.from_json(raw)


@attr.frozen(kw_only=True)
class RepogenRequest(Message):
    """Asks repogen to publish an uploaded leg, or, with a target alone, to regenerate its repodata."""

    target: str = field(validators.target)
    build_id: str = field(validators.optional(validators.build_id), "")
    arch: str = field(validators.optional(validators.arch), "")
    attempt: str = field(validators.optional(validators.attempt), "")
    place: str = field(validators.optional(validators.place), "")
    index: bool = field(validators.flag, True)  #: false for a failed or a scratch leg: it only gets its place
    #: what is requeued if the manifest itself is damaged
    request: BuildRequest | None = field(nested(BuildRequest, "a request"), None)
    logs: bool = field(validators.flag, False)  #: an attempt that decided nothing: its logs are kept in attempts/
    tries: int = field(validators.integer(0, 1000), 0)  #: how often createrepo_c left the leg out

    def __attrs_post_init__(self) -> None:
        named = [bool(self.build_id), bool(self.arch), bool(self.attempt), bool(self.place)]
        if any(named) and not all(named):
            raise ValueError("build_id, arch, attempt and place come together or not at all")

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> RepogenRequest:
        """Read a request from a JSON object. Raises `InvalidMessage`.

        The original's worker sends its whole event; of that only the target is a field, and the rest is passed on.
        """
        if "status" not in raw or "target" not in raw or not raw.keys().isdisjoint(("attempt", "place")):
            return super().from_json(raw)
        rest = {name: value for name, value in raw.items() if name != "target"}
        return attr.evolve(super().from_json({"target": raw["target"]}), extra=_limit_extra(cls, rest))

    @property
    def is_bare(self) -> bool:
        return not self.build_id

    def to_json(self) -> dict[str, Any]:
        """The request as a JSON object; one of the original's worker as it was."""
        if self.is_bare and "status" in self.extra:
            return {**self.extra, "target": self.target}
        return super().to_json()


@attr.frozen(kw_only=True)
class SignRequest(Message):
    """Asks tosign to stage the packages of a published leg for signing."""

    pkgname: str = field(validators.name)
    status: str = field(validators.one_of(*Status.BUILD))
    target: str = field(validators.target)
    arch: str = field(validators.arch)
    timestamp: str = field(validators.timestamp)
    build_id: str = field(validators.optional(validators.build_id), "")
    place: str = field(validators.optional(validators.place), "")


def new_build_id() -> str:
    return uuid.uuid4().hex


def new_attempt() -> str:
    """A new attempt id: `<Unix seconds>-<8 random hex digits>`."""
    return f"{max(0, int(time.time()))}-{os.urandom(4).hex()}"
