# SPDX-License-Identifier: Apache-2.0
"""What travels through the tubes, as values that are checked where they are born.

A message is a JSON object. Its keys are those of the original farm, with ours in addition; a message that has only
the original's is accepted everywhere (architecture.md, section 3). A key we do not know is kept in `extra` and
travels on untouched. Whatever else the bytes of a job may be, `decode` raises `InvalidMessage` and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any, Callable, TypeVar, Union

import attr

from reimzul.core import validators
from reimzul.core.errors import InvalidMessage

M = TypeVar("M", bound="Message")

#: The most bytes we encode a message to; beanstalkd takes 65,535 (its -z).
MAX_BYTES = 60_000
#: The most bytes of keys we do not know: what travels along has to leave room for what is said.
MAX_EXTRA = 16_000
#: How deep a message may be nested. Far below what the interpreter bears: what was read can also be shown and written.
MAX_DEPTH = 30
#: Derived build ids (uuid5) live in this namespace; changing it would make doubles of known builds.
NAMESPACE = uuid.UUID("6b0f2c5e-54d1-4b53-9d6e-0d4d3f1b7a10")


class Status:
    """The statuses of a build on one arch, and of a message that is none (architecture.md, section 3)."""

    QUEUED = "Queued"  #: lies in the arch's tube
    BUILDING = "Building"  #: a worker has it
    SUCCESS = "Success"  #: built and uploaded
    FAILED = "Failed"  #: the package does not build, or nobody could build it
    CANCELLED = "Cancelled"  #: a person ended it
    PUBLISHED = "Published"  #: a Success that the repodata lists
    REJECTED = "Rejected"  #: its uploads were damaged, its packages cannot be listed, or the target holds other ones
    OVERRIDE = "Override"  #: a person's word, in history only
    REFUSED = "Refused"  #: no build: a message that failed its checks
    QUARANTINED = "Quarantined"  #: no build: a builder that is kept from taking jobs, its faults stood out
    RELEASED = "Released"  #: no build: it takes jobs again
    PRESENCE = "Presence"  #: no build: a worker that says it is there
    UNFIT = "Unfit"  #: of an attempt, in its manifest: its builder's fault, and nothing is decided by it
    RETRIED = "Retried"  #: of an attempt: it was nobody's fault, and does not count

    BUILD = (QUEUED, BUILDING, SUCCESS, FAILED, CANCELLED, PUBLISHED, REJECTED, OVERRIDE)
    FINAL = (SUCCESS, FAILED, CANCELLED, REJECTED)


def field(check: Callable[[Any], Any], default: Any = attr.NOTHING) -> Any:
    """A field of a message whose value went through `check`; the error names the field."""

    def validated(instance: Any, attribute: Any, value: Any) -> None:
        if value is attribute.default:
            return
        try:
            object.__setattr__(instance, attribute.name, check(value))
        except ValueError as error:
            raise ValueError(f"{attribute.name}: {error}") from None

    return attr.field(default=default, validator=validated)


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _parse_finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):  # 1e999 is JSON, and would leave us as Infinity, which is none
        raise ValueError(f"{validators.quoted(word, 20)} is too large a number")
    return number


def _check_depth(raw: Any, depth: int = MAX_DEPTH) -> None:
    if isinstance(raw, (dict, list)):
        if not depth:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        for item in raw.values() if isinstance(raw, dict) else raw:
            _check_depth(item, depth - 1)


def parse_json(body: bytes) -> dict[str, Any]:
    """A job's body as the JSON object it has to be."""
    try:
        raw = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_parse_finite)
        _check_depth(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"not JSON: {validators.line(120)(str(error))}") from None
    if not isinstance(raw, dict):
        raise InvalidMessage(f"not a JSON object but {validators.quoted(raw, 40)}")
    return raw


@attr.frozen(kw_only=True)
class Message:
    """What all messages share: their keys are their fields, and what is not known travels along."""

    extra: Mapping[str, Any] = attr.field(factory=dict, repr=False)

    @classmethod
    def decode(cls: type[M], body: bytes) -> M:
        """The message in a job's body. Raises `InvalidMessage` that says what is wrong with it."""
        return cls.from_json(parse_json(body))

    @classmethod
    def from_json(cls: type[M], raw: Mapping[str, Any]) -> M:
        """The message in a JSON object."""
        known = {a.name: a for a in attr.fields(cls) if a.name != "extra"}
        missing = [name for name, a in known.items() if a.default is attr.NOTHING and name not in raw]
        if missing:
            raise InvalidMessage(f"no {cls.__name__}: it lacks {', '.join(missing)}")
        extra = _limit_extra(cls, {name: value for name, value in raw.items() if name not in known})
        try:
            return cls(**{name: raw[name] for name in known if name in raw}, extra=extra)
        except ValueError as error:
            raise InvalidMessage(f"no {cls.__name__}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The message as a JSON object: the fields that say something, and what travelled along."""
        said = attr.asdict(self, recurse=True, filter=lambda a, value: a.name != "extra" and _is_set(a, value))
        return {**self.extra, **said}

    def encode(self) -> bytes:
        """The message as a job's body. Raises `InvalidMessage` where it would be too large for a tube."""
        body = encode(self.to_json())
        if len(body) > MAX_BYTES:
            raise InvalidMessage(f"a {type(self).__name__} of {len(body)} bytes: {MAX_BYTES} is the most")
        return body


def _limit_extra(kind: type[Message], extra: dict[str, Any]) -> dict[str, Any]:
    if extra and len(encode(extra)) > MAX_EXTRA:
        raise InvalidMessage(f"no {kind.__name__}: over {MAX_EXTRA} bytes of keys that are not known")
    return extra


def encode(wire: Mapping[str, Any]) -> bytes:
    """A JSON object as bytes: ASCII, one line."""
    return json.dumps(wire, separators=(",", ":"), sort_keys=True).encode("ascii")


def _is_set(attribute: Any, value: Any) -> bool:
    default = attribute.default
    return default is attr.NOTHING or bool(value != default) or isinstance(value, bool)


#: How the words of a try begin that was no builder's fault: what arrived on bstore was not what had been sent.
UPLOAD = "upload: "
#: How the reason of a `Queued` begins whose attempt was nobody's fault: it is no try, and no fault of its builder.
NOBODY = "nobody's fault: "


@attr.frozen(kw_only=True)
class FailedAttempt:
    """One try of a builder whose fault it was that nothing was built."""

    builder: str = field(validators.host)
    when: float = field(validators.unix_time)
    words: str = field(validators.line(300))
    first_error: str = field(validators.text(2_000), "")  #: of its logs; kept of the last try only
    error_line: str = field(validators.line(400), "")  #: the line of it that is the cause


def _parse_failed_attempt(raw: Any) -> FailedAttempt:
    if isinstance(raw, FailedAttempt):
        return raw
    if not isinstance(raw, dict) or not {"builder", "when", "words"} <= raw.keys():
        raise ValueError(f"{validators.quoted(raw)} is not a try (builder, when, words)")
    return FailedAttempt(**{name: raw[name] for name in attr.fields_dict(FailedAttempt) if name in raw})


#: Who submitted a build whose client does not say.
UNKNOWN = "unknown"


def _parse_submitter(value: Any) -> str:
    """A submitter's name; a client whose user has no name sends an empty one."""
    return validators.submitter(UNKNOWN if value == "" else value)


@attr.frozen(kw_only=True)
class BuildRequest(Message):
    """One source rpm to be built for one arch: submit puts it into the arch's tube, a worker claims it."""

    srpm: str = field(validators.srpm)  #: a file name in incoming/, never a path
    arch: str = field(validators.arch)
    target: str = field(validators.target)  #: with its arch, as c7.1708.u.x86_64
    disttag: str = field(validators.disttag)
    submitter: str = field(_parse_submitter)
    scratch: bool = field(validators.flag, False)
    build_id: str = field(validators.optional(validators.build_id), "")  #: "" from a client of the original
    timestamp: str = field(validators.optional(validators.timestamp), "")  #: "" from a client of the original
    srpm_sha256: str = field(validators.optional(validators.sha256), "")
    tries: tuple[FailedAttempt, ...] = field(validators.list_of(_parse_failed_attempt, 50), ())
    parent: str = field(validators.optional(validators.build_id), "")  #: the build that this one repeats
    legs: tuple[str, ...] = field(
        validators.list_of(validators.arch, 20), ()
    )  #: only these of its legs; none said: all
    source_rounds: int = field(validators.integer(0, 1_000_000), 0)  #: how often its source could not be downloaded
    #: whether it may replace a build that the target lists; an old client's request, which does not say, may
    rebuild: bool = field(validators.flag, True)

    @property
    def announced_arches(self) -> tuple[str, ...]:
        """The arches that its waiting is told of: the one asked for, or those of its legs that are wanted."""
        return self.legs or (self.arch,)

    @property
    def has_id(self) -> bool:
        """Whether it carries all that a worker needs to build it."""
        return bool(self.build_id and self.timestamp)

    def with_id(self, job: int, tube: str, body: bytes, put_at: float) -> BuildRequest:
        """The same with the build id and timestamp an old client did not give.

        Derived from the job as it lies in its tube, so that two workers that complete one job (a crash lies
        between) come to the same build; the time is rounded to the minute since it is reckoned from beanstalkd's
        `age`, which has whole seconds.
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
        """The tries that were a builder's fault, and not an upload's."""
        return tuple(one for one in self.tries if not one.words.startswith(UPLOAD.strip()))

    def with_failed_attempt(
        self, builder: str, words: str, first_error: str = "", error_line: str = ""
    ) -> BuildRequest:
        """The same, with one more try that was that builder's fault; of the earlier ones only the words are kept."""
        earlier = (attr.evolve(one, first_error="", error_line="") for one in self.tries)
        last = FailedAttempt(
            builder=builder, when=round(time.time()), words=words, first_error=first_error, error_line=error_line
        )
        return attr.evolve(self, tries=(*earlier, last))


@attr.frozen(kw_only=True)
class Phase:
    """A part of a build, as mock's state.log has it, and ours before and after mock."""

    name: str = field(validators.line(80))
    start: float = field(validators.unix_time)
    end: float = field(validators.unix_time, 0.0)  #: 0 where it did not come to its end


def _parse_phase(raw: Any) -> Phase:
    if isinstance(raw, Phase):
        return raw
    if not isinstance(raw, dict) or not {"name", "start"} <= raw.keys():
        raise ValueError(f"{validators.quoted(raw)} is not a phase (name, start, end)")
    return Phase(name=raw["name"], start=raw["start"], end=raw.get("end", 0.0))


#: The phases of a build, as events and manifests carry them.
phases = validators.list_of(_parse_phase, 24)
#: The priority of a job in beanstalkd.
_priority = validators.integer(0, 2**32 - 1)
#: The number of a job in beanstalkd.
_job = validators.integer(0, 2**63 - 1)


#: What a worker of the original announces.
_WORKER_STATUSES = (Status.BUILDING, Status.SUCCESS, Status.FAILED)
#: How the attempts end that repogen makes up for legs of the original's workers: by chance none of ours ever does.
ORIGINAL_ATTEMPT_SUFFIX = "-00000000"

#: What `cut` shortens first to last, when an event would be too large for a tube.
_SHORTENED_FIELDS = ("root_log", "build_log", "rpms", "first_error")


@attr.frozen(kw_only=True)
class BuildEvent(Message):
    """What became of a build on one arch: everything puts it into `notify`."""

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
    url: str = field(validators.line(1000), "")  #: where its logs and packages are
    rpm_count: int = field(validators.integer(0, 1_000_000), 0)
    rpms: tuple[str, ...] = field(validators.list_of(validators.line(300), 50), ())  #: file names, the first 50
    root_log: str = field(validators.text(8_000), "")  #: its end
    build_log: str = field(validators.text(24_000), "")  #: its end
    first_error: str = field(validators.text(4_000), "")
    error_line: str = field(validators.line(400), "")  #: the line of `first_error` that is the cause
    error_log: str = field(validators.optional(validators.name), "")  #: the log it stands in, as root.log
    skipped: Mapping[str, str] = field(
        validators.dict_of(validators.arch, validators.line(200), 20), {}
    )  #: arch -> why
    phases: tuple[Phase, ...] = field(phases, ())  #: of a result: what took how long
    parent: str = field(validators.optional(validators.build_id), "")  #: the build that this one repeats
    tube: str = field(validators.optional(validators.name), "")  #: of Queued: where it waits, as which job, how urgent
    job: int = field(_job, 0)
    priority: int | None = field(_priority, None)
    due: float = field(validators.unix_time, 0.0)  #: of Queued: nobody gets it before this
    waits_for: str = field(validators.line(300), "")  #: of Queued: what has to change before it can be built
    at: float = field(validators.unix_time, 0.0)  #: when it was announced
    #: seconds that the builder's clock is ahead of the controller's; said by the notifier, 0 where the clock is right
    skew: float = field(validators.number(-1e12, 1e12), 0.0)
    owed: Mapping[str, int] = field(
        validators.dict_of(validators.name, validators.integer(0, 1_000_000), 20), {}
    )  #: sink -> tries

    @property
    def by_original(self) -> bool:
        """Whether a worker of the original says it: it knows no attempts, and passes our other keys on."""
        return self.status in _WORKER_STATUSES and not self.attempt

    @property
    def key(self) -> str:
        """What names this build on this arch, for ever; an event of the original is known by its own words."""
        if self.build_id:
            return f"{self.build_id}.{self.arch}"
        seed = f"{self.srpm} {self.arch} {self.target} {self.timestamp}"
        return f"{uuid.uuid5(NAMESPACE, seed).hex}.{self.arch}"

    def encode(self) -> bytes:
        """The event as a job's body; logs' ends and lists are cut until it fits."""
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
    """An event about a request, its unknown keys along; `more` are the event's own fields.

    What a request does not know and an event does is left behind: nobody checked it, and it would be read as ours.
    """
    given = {a.name: getattr(request, a.name) for a in attr.fields(BuildRequest) if a.name in _EVENT_FIELDS}
    extra = {name: value for name, value in request.extra.items() if name not in _EVENT_FIELDS}
    return BuildEvent(**{**given, "at": round(time.time(), 3), **more, "status": status}, extra=extra)


_EVENT_FIELDS = {a.name for a in attr.fields(BuildEvent)} - {"extra"}


#: How much of a refused body is told, in bytes.
_FIRST_BYTES = 1024


def first_bytes(body: bytes) -> str:
    """How a refused body begins, as its `Refusal` says it, whatever bytes they are."""
    return validators.text(_FIRST_BYTES)(body[:_FIRST_BYTES].decode("utf-8", "replace"))


@attr.frozen(kw_only=True)
class Refusal(Message):
    """A message that is none, announced in `notify`: which job of which tube, why, and how it begins."""

    tube: str = field(validators.line(200))
    job: int = field(_job)
    reason: str = field(validators.line(500))
    begins: str = field(validators.text(_FIRST_BYTES), "")  #: how the body begins
    status: str = field(validators.one_of(Status.REFUSED), Status.REFUSED)
    host: str = field(validators.optional(validators.host), "")  #: who refused it
    at: float = field(validators.unix_time, 0.0)
    owed: Mapping[str, int] = field(validators.dict_of(validators.name, validators.integer(0, 1_000_000), 20), {})

    @property
    def key(self) -> str:
        """What names this refusal: beanstalkd numbers jobs anew when it loses its binlog, so the body counts too."""
        return uuid.uuid5(NAMESPACE, f"{self.tube} {self.job} {self.at} {self.begins}").hex

    def to_json(self) -> dict[str, Any]:
        """Its status always said: that is how a reader knows it from an event."""
        return {**super().to_json(), "status": self.status}


@attr.frozen(kw_only=True)
class CurrentBuild:
    """The build a worker is at."""

    build_id: str = field(validators.build_id)
    srpm: str = field(validators.srpm)
    target: str = field(validators.target)
    arch: str = field(validators.arch)  #: of the leg that `phase` speaks of
    attempt: str = field(validators.attempt)
    phase: str = field(validators.line(80), "")
    since: float = field(validators.unix_time, 0.0)  #: when that phase began
    started: float = field(validators.unix_time, 0.0)  #: when the attempt did


def _parse_current_build(raw: Any) -> CurrentBuild | None:
    if raw is None or isinstance(raw, CurrentBuild):
        return raw
    needed = {a.name for a in attr.fields(CurrentBuild) if a.default is attr.NOTHING}
    if not isinstance(raw, dict) or not needed <= raw.keys():
        raise ValueError(f"{validators.quoted(raw)} is no build in hand ({', '.join(sorted(needed))})")
    return CurrentBuild(**{a.name: raw[a.name] for a in attr.fields(CurrentBuild) if a.name in raw})


class WorkerState:
    """What a worker is doing, as its `Presence` says."""

    IDLE = "idle"  #: waits for a job
    BUILDING = "building"
    DRAINING = "draining"  #: builds, and takes nothing after that
    DRAINED = "drained"  #: takes nothing: a person wants it so
    UNFIT = "unfit"  #: takes nothing: too little disk, too much load
    QUARANTINED = "quarantined"  #: takes nothing but a canary: its faults stood out

    ALL = (IDLE, BUILDING, DRAINING, DRAINED, UNFIT, QUARANTINED)


class Feature:
    """What a worker can that one of version 0.1 cannot, as its `Presence` says."""

    ANY_SUBMITTER = "any_submitter"  #: takes requests of submitters with any name that can be shown

    ALL = (ANY_SUBMITTER,)


@attr.frozen(kw_only=True)
class WorkerHeartbeat(Message):
    """A worker says that it is there and what it does. Told to nobody: the notifier keeps the latest of each."""

    host: str = field(validators.host)
    instance: str = field(validators.name)  #: of the host's workers: its unit's, else the process's number
    state: str = field(validators.one_of(*WorkerState.ALL))
    why: str = field(validators.line(300), "")  #: it takes nothing
    arches: tuple[str, ...] = field(validators.list_of(validators.arch, 40), ())  #: the tubes it watches, its own first
    version: str = field(validators.line(60), "")
    features: tuple[str, ...] = field(validators.list_of(validators.name, 20), ())  #: what it can beyond version 0.1
    load: float = field(validators.number(0, 1e6), 0.0)  #: of the last minute
    free_mib: int = field(validators.integer(0, 2**53), 0)  #: of the disk that has least of it
    free_inodes: int = field(validators.integer(0, 2**53), 0)
    build: CurrentBuild | None = field(_parse_current_build, None)
    at: float = field(validators.unix_time, 0.0)  #: by the worker's clock
    boot: str = field(validators.optional(validators.token), "")  #: of its host, anew each time that starts
    session: str = field(
        validators.optional(validators.token), ""
    )  #: of its process, which watches a tube of that name
    leaving: bool = field(validators.flag, False)  #: it ends now, as it was told to
    status: str = field(validators.one_of(Status.PRESENCE), Status.PRESENCE)

    def to_json(self) -> dict[str, Any]:
        """Its status always said: that is how a reader knows it from an event."""
        return {**super().to_json(), "status": self.status}


@attr.frozen(kw_only=True)
class BuilderEvent(Message):
    """What became of a builder: the notifier announces it, and tells it to all."""

    builder: str = field(validators.host)
    status: str = field(validators.one_of(Status.QUARANTINED, Status.RELEASED))
    reason: str = field(validators.line(500), "")
    arches: tuple[str, ...] = field(validators.list_of(validators.arch, 40), ())  #: the tubes it watches, its own first
    at: float = field(validators.unix_time, 0.0)
    owed: Mapping[str, int] = field(validators.dict_of(validators.name, validators.integer(0, 1_000_000), 20), {})

    @property
    def key(self) -> str:
        """What names this piece of news."""
        return uuid.uuid5(NAMESPACE, f"{self.builder} {self.status} {self.at}").hex


Event = Union[BuildEvent, Refusal, BuilderEvent]
#: What lies in `notify`: what is told, and who is there.
NotifyMessage = Union[Event, WorkerHeartbeat]


def decode_event(body: bytes) -> NotifyMessage:
    """Whichever kind of news lies in `notify`."""
    raw = parse_json(body)
    if raw.get("status") == Status.PRESENCE:
        return WorkerHeartbeat.from_json(raw)
    if raw.get("status") in (Status.QUARANTINED, Status.RELEASED):
        return BuilderEvent.from_json(raw)
    return Refusal.from_json(raw) if raw.get("status") == Status.REFUSED else BuildEvent.from_json(raw)


def _parse_request(raw: Any) -> BuildRequest:
    if isinstance(raw, BuildRequest):
        return raw
    if not isinstance(raw, dict):
        raise ValueError(f"{validators.quoted(raw)} is no request")
    try:
        return BuildRequest.from_json(raw)
    except InvalidMessage as error:
        raise ValueError(str(error)) from None


@attr.frozen(kw_only=True)
class RepogenRequest(Message):
    """Something for a target's repodata: one uploaded leg, or, with nothing but a target, a regeneration."""

    target: str = field(validators.target)
    build_id: str = field(validators.optional(validators.build_id), "")
    arch: str = field(validators.optional(validators.arch), "")
    attempt: str = field(validators.optional(validators.attempt), "")
    place: str = field(validators.optional(validators.place), "")
    index: bool = field(validators.flag, True)  #: false for a failed or a scratch leg: it is only put in its place
    request: BuildRequest | None = field(_parse_request, None)  #: what is put again where even the manifest is damaged
    logs: bool = field(validators.flag, False)  #: of an attempt that decided nothing: only to be kept, in attempts/
    tries: int = field(validators.integer(0, 1000), 0)  #: how often createrepo_c left the leg out

    def __attrs_post_init__(self) -> None:
        named = [bool(self.build_id), bool(self.arch), bool(self.attempt), bool(self.place)]
        if any(named) and not all(named):
            raise ValueError("build_id, arch, attempt and place come together or not at all")

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> RepogenRequest:
        """The request in a JSON object.

        The original's worker puts its whole event here, in which `arch` and others stand alone: of it only the target
        is a field, and all else travels along.
        """
        if "status" not in raw or "target" not in raw or not raw.keys().isdisjoint(("attempt", "place")):
            return super().from_json(raw)
        rest = {name: value for name, value in raw.items() if name != "target"}
        return attr.evolve(super().from_json({"target": raw["target"]}), extra=_limit_extra(cls, rest))

    @property
    def original_event(self) -> BuildEvent | None:
        """The event that a worker of the original put in its place; None in any other. Raises `InvalidMessage`."""
        return BuildEvent.from_json(self.to_json()) if self._is_event else None

    @property
    def is_bare(self) -> bool:
        """Whether it only asks for the target to be indexed."""
        return not self.build_id

    def to_json(self) -> dict[str, Any]:
        """As JSON, the build's request as it travels through tubes; one of the original's worker as it was."""
        if self._is_event:
            return {**self.extra, "target": self.target}
        return {**super().to_json(), **({"request": self.request.to_json()} if self.request else {})}

    @property
    def _is_event(self) -> bool:
        return self.is_bare and "status" in self.extra


@attr.frozen(kw_only=True)
class SignRequest(Message):
    """A published leg whose packages are to be staged for signing."""

    pkgname: str = field(validators.name)
    status: str = field(validators.one_of(*Status.BUILD))
    target: str = field(validators.target)
    arch: str = field(validators.arch)
    timestamp: str = field(validators.timestamp)
    build_id: str = field(validators.optional(validators.build_id), "")
    place: str = field(validators.optional(validators.place), "")


def new_build_id() -> str:
    """A build id nobody had before."""
    return uuid.uuid4().hex


def new_attempt() -> str:
    """A token for one worker's try at one build: `<UTC seconds>-<8 random hex>`."""
    return f"{max(0, int(time.time()))}-{os.urandom(4).hex()}"
