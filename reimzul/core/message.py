# SPDX-License-Identifier: Apache-2.0
"""What travels through the tubes, as values that are checked where they are born.

A message is a JSON object. Its keys are those of the original farm, with ours in addition; a message that has only
the original's is accepted everywhere (architecture.md, section 3). A key we do not know is kept in `extra` and
travels on untouched. Whatever else the bytes of a job may be, `decode` raises `MessageError` and nothing else.
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

from reimzul.core import fields
from reimzul.core.errors import MessageError

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


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):  # 1e999 is JSON, and would leave us as Infinity, which is none
        raise ValueError(f"{fields.shown(word, 20)} is too large a number")
    return number


def _shallow(raw: Any, depth: int = MAX_DEPTH) -> None:
    if isinstance(raw, (dict, list)):
        if not depth:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        for item in raw.values() if isinstance(raw, dict) else raw:
            _shallow(item, depth - 1)


def parse(body: bytes) -> dict[str, Any]:
    """A job's body as the JSON object it has to be."""
    try:
        raw = json.loads(body.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
        _shallow(raw)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"not JSON: {fields.line(120)(str(error))}") from None
    if not isinstance(raw, dict):
        raise MessageError(f"not a JSON object but {fields.shown(raw, 40)}")
    return raw


@attr.frozen(kw_only=True)
class Message:
    """What all messages share: their keys are their fields, and what is not known travels along."""

    extra: Mapping[str, Any] = attr.field(factory=dict, repr=False)

    @classmethod
    def decode(cls: type[M], body: bytes) -> M:
        """The message in a job's body. Raises `MessageError` that says what is wrong with it."""
        return cls.from_wire(parse(body))

    @classmethod
    def from_wire(cls: type[M], raw: Mapping[str, Any]) -> M:
        """The message in a JSON object."""
        known = {a.name: a for a in attr.fields(cls) if a.name != "extra"}
        missing = [name for name, a in known.items() if a.default is attr.NOTHING and name not in raw]
        if missing:
            raise MessageError(f"no {cls.__name__}: it lacks {', '.join(missing)}")
        extra = _not_too_much(cls, {name: value for name, value in raw.items() if name not in known})
        try:
            return cls(**{name: raw[name] for name in known if name in raw}, extra=extra)
        except ValueError as error:
            raise MessageError(f"no {cls.__name__}: {error}") from None

    def wire(self) -> dict[str, Any]:
        """The message as a JSON object: the fields that say something, and what travelled along."""
        said = attr.asdict(self, recurse=True, filter=lambda a, value: a.name != "extra" and _says(a, value))
        return {**self.extra, **said}

    def encode(self) -> bytes:
        """The message as a job's body. Raises `MessageError` where it would be too large for a tube."""
        body = encode(self.wire())
        if len(body) > MAX_BYTES:
            raise MessageError(f"a {type(self).__name__} of {len(body)} bytes: {MAX_BYTES} is the most")
        return body


def _not_too_much(kind: type[Message], extra: dict[str, Any]) -> dict[str, Any]:
    if extra and len(encode(extra)) > MAX_EXTRA:
        raise MessageError(f"no {kind.__name__}: over {MAX_EXTRA} bytes of keys that are not known")
    return extra


def encode(wire: Mapping[str, Any]) -> bytes:
    """A JSON object as bytes: ASCII, one line."""
    return json.dumps(wire, separators=(",", ":"), sort_keys=True).encode("ascii")


def _says(attribute: Any, value: Any) -> bool:
    default = attribute.default
    return default is attr.NOTHING or bool(value != default) or isinstance(value, bool)


#: How the words of a try begin that was no builder's fault: what arrived on bstore was not what had been sent.
UPLOAD = "upload: "
#: How the reason of a `Queued` begins whose attempt was nobody's fault: it is no try, and no fault of its builder.
NOBODY = "nobody's fault: "


@attr.frozen(kw_only=True)
class Try:
    """One try of a builder whose fault it was that nothing was built."""

    builder: str = field(fields.host)
    when: float = field(fields.moment)
    words: str = field(fields.line(300))
    first_error: str = field(fields.text(2_000), "")  #: of its logs; kept of the last try only
    error_line: str = field(fields.line(400), "")  #: the line of it that is the cause


def _try(raw: Any) -> Try:
    if isinstance(raw, Try):
        return raw
    if not isinstance(raw, dict) or not {"builder", "when", "words"} <= raw.keys():
        raise ValueError(f"{fields.shown(raw)} is not a try (builder, when, words)")
    return Try(**{name: raw[name] for name in attr.fields_dict(Try) if name in raw})


#: Who submitted a build whose client does not say.
UNKNOWN = "unknown"


def _submitter(value: Any) -> str:
    """A submitter's name; a client whose user has no name sends an empty one."""
    return fields.submitter(UNKNOWN if value == "" else value)


@attr.frozen(kw_only=True)
class BuildRequest(Message):
    """One source rpm to be built for one arch: submit puts it into the arch's tube, a worker claims it."""

    srpm: str = field(fields.srpm)  #: a file name in incoming/, never a path
    arch: str = field(fields.arch)
    target: str = field(fields.target)  #: with its arch, as c7.1708.u.x86_64
    disttag: str = field(fields.disttag)
    submitter: str = field(_submitter)
    scratch: bool = field(fields.flag, False)
    build_id: str = field(fields.absent_or(fields.build_id), "")  #: "" from a client of the original
    timestamp: str = field(fields.absent_or(fields.timestamp), "")  #: "" from a client of the original
    srpm_sha256: str = field(fields.absent_or(fields.sha256), "")
    tries: tuple[Try, ...] = field(fields.many(_try, 50), ())
    parent: str = field(fields.absent_or(fields.build_id), "")  #: the build that this one repeats
    legs: tuple[str, ...] = field(fields.many(fields.arch, 20), ())  #: only these of its legs; none said: all
    source_rounds: int = field(fields.whole(0, 1_000_000), 0)  #: how often its source could not be downloaded
    #: whether it may replace a build that the target lists; an old client's request, which does not say, may
    rebuild: bool = field(fields.flag, True)

    @property
    def told_for(self) -> tuple[str, ...]:
        """The arches that its waiting is told of: the one asked for, or those of its legs that are wanted."""
        return self.legs or (self.arch,)

    @property
    def complete(self) -> bool:
        """Whether it carries all that a worker needs to build it."""
        return bool(self.build_id and self.timestamp)

    def completed(self, job: int, tube: str, body: bytes, put_at: float) -> BuildRequest:
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
            timestamp=self.timestamp or time.strftime(fields.TIMESTAMP_FORMAT, time.gmtime(minute)),
        )

    @property
    def faults(self) -> tuple[Try, ...]:
        """The tries that were a builder's fault, and not an upload's."""
        return tuple(one for one in self.tries if not one.words.startswith(UPLOAD.strip()))

    def tried(self, builder: str, words: str, first_error: str = "", error_line: str = "") -> BuildRequest:
        """The same, with one more try that was that builder's fault; of the earlier ones only the words are kept."""
        earlier = (attr.evolve(one, first_error="", error_line="") for one in self.tries)
        last = Try(
            builder=builder, when=round(time.time()), words=words, first_error=first_error, error_line=error_line
        )
        return attr.evolve(self, tries=(*earlier, last))


@attr.frozen(kw_only=True)
class Phase:
    """A part of a build, as mock's state.log has it, and ours before and after mock."""

    name: str = field(fields.line(80))
    start: float = field(fields.moment)
    end: float = field(fields.moment, 0.0)  #: 0 where it did not come to its end


def _phase(raw: Any) -> Phase:
    if isinstance(raw, Phase):
        return raw
    if not isinstance(raw, dict) or not {"name", "start"} <= raw.keys():
        raise ValueError(f"{fields.shown(raw)} is not a phase (name, start, end)")
    return Phase(name=raw["name"], start=raw["start"], end=raw.get("end", 0.0))


#: The phases of a build, as events and manifests carry them.
phases = fields.many(_phase, 24)
#: The priority of a job in beanstalkd.
_priority = fields.whole(0, 2**32 - 1)
#: The number of a job in beanstalkd.
_job = fields.whole(0, 2**63 - 1)


#: What a worker of the original announces.
_WORKERS_WORDS = (Status.BUILDING, Status.SUCCESS, Status.FAILED)
#: How the attempts end that repogen makes up for legs of the original's workers: by chance none of ours ever does.
ORIGINALS_ATTEMPT = "-00000000"

#: What `cut` shortens first to last, when an event would be too large for a tube.
_CUT = ("root_log", "build_log", "rpms", "first_error")


@attr.frozen(kw_only=True)
class BuildEvent(Message):
    """What became of a build on one arch: everything puts it into `notify`."""

    srpm: str = field(fields.srpm)
    arch: str = field(fields.arch)  #: the leg's, which may follow the request's
    target: str = field(fields.target)
    status: str = field(fields.one_of(*Status.BUILD))
    submitter: str = field(_submitter)
    disttag: str = field(fields.absent_or(fields.disttag), "")
    scratch: bool = field(fields.flag, False)
    build_id: str = field(fields.absent_or(fields.build_id), "")
    timestamp: str = field(fields.absent_or(fields.timestamp), "")
    builder_fqdn: str = field(fields.absent_or(fields.host), "")
    pkgname: str = field(fields.absent_or(fields.name), "")
    evr: str = field(fields.absent_or(fields.name), "")  #: version-release, as the original calls it
    attempt: str = field(fields.absent_or(fields.attempt), "")
    reason: str = field(fields.line(500), "")
    exit_code: int | None = field(fields.whole(-255, 255), None)
    started: float = field(fields.moment, 0.0)
    finished: float = field(fields.moment, 0.0)
    place: str = field(fields.absent_or(fields.place), "")  #: folder on bstore
    url: str = field(fields.line(1000), "")  #: where its logs and packages are
    rpm_count: int = field(fields.whole(0, 1_000_000), 0)
    rpms: tuple[str, ...] = field(fields.many(fields.line(300), 50), ())  #: file names, the first 50
    root_log: str = field(fields.text(8_000), "")  #: its end
    build_log: str = field(fields.text(24_000), "")  #: its end
    first_error: str = field(fields.text(4_000), "")
    error_line: str = field(fields.line(400), "")  #: the line of `first_error` that is the cause
    error_log: str = field(fields.absent_or(fields.name), "")  #: the log it stands in, as root.log
    skipped: Mapping[str, str] = field(fields.table(fields.arch, fields.line(200), 20), {})  #: arch -> why
    phases: tuple[Phase, ...] = field(phases, ())  #: of a result: what took how long
    parent: str = field(fields.absent_or(fields.build_id), "")  #: the build that this one repeats
    tube: str = field(fields.absent_or(fields.name), "")  #: of Queued: where it waits, as which job, how urgent
    job: int = field(_job, 0)
    priority: int | None = field(_priority, None)
    due: float = field(fields.moment, 0.0)  #: of Queued: nobody gets it before this
    waits_for: str = field(fields.line(300), "")  #: of Queued: what has to change before it can be built
    at: float = field(fields.moment, 0.0)  #: when it was announced
    #: seconds that the builder's clock is ahead of the controller's; said by the notifier, 0 where the clock is right
    skew: float = field(fields.number(-1e12, 1e12), 0.0)
    owed: Mapping[str, int] = field(fields.table(fields.name, fields.whole(0, 1_000_000), 20), {})  #: sink -> tries

    @property
    def by_original(self) -> bool:
        """Whether a worker of the original says it: it knows no attempts, and passes our other keys on."""
        return self.status in _WORKERS_WORDS and not self.attempt

    @property
    def key(self) -> str:
        """What names this build on this arch, for ever; an event of the original is known by its own words."""
        if self.build_id:
            return f"{self.build_id}.{self.arch}"
        seed = f"{self.srpm} {self.arch} {self.target} {self.timestamp}"
        return f"{uuid.uuid5(NAMESPACE, seed).hex}.{self.arch}"

    def encode(self) -> bytes:
        """The event as a job's body; logs' ends and lists are cut until it fits."""
        return super().encode() if len(encode(self.wire())) <= MAX_BYTES else self._fitted()

    def _fitted(self) -> bytes:
        event = self
        for name in _CUT:
            while getattr(event, name) and len(encode(event.wire())) > MAX_BYTES:
                value = getattr(event, name)
                event = attr.evolve(event, **{name: value[(len(value) + 1) // 2 :]})
        if len(encode(event.wire())) > MAX_BYTES:
            event = attr.evolve(event, skipped={})
        return super(BuildEvent, event).encode()


def event_of(request: BuildRequest, status: str, **more: Any) -> BuildEvent:
    """An event about a request, its unknown keys along; `more` are the event's own fields.

    What a request does not know and an event does is left behind: nobody checked it, and it would be read as ours.
    """
    given = {a.name: getattr(request, a.name) for a in attr.fields(BuildRequest) if a.name in _EVENT_FIELDS}
    extra = {name: value for name, value in request.extra.items() if name not in _EVENT_FIELDS}
    return BuildEvent(**{**given, "at": round(time.time(), 3), **more, "status": status}, extra=extra)


_EVENT_FIELDS = {a.name for a in attr.fields(BuildEvent)} - {"extra"}


#: How much of a refused body is told, in bytes.
_BEGINNING = 1024


def beginning(body: bytes) -> str:
    """How a refused body begins, as its `Refusal` says it, whatever bytes they are."""
    return fields.text(_BEGINNING)(body[:_BEGINNING].decode("utf-8", "replace"))


@attr.frozen(kw_only=True)
class Refusal(Message):
    """A message that is none, announced in `notify`: which job of which tube, why, and how it begins."""

    tube: str = field(fields.line(200))
    job: int = field(_job)
    reason: str = field(fields.line(500))
    begins: str = field(fields.text(_BEGINNING), "")  #: how the body begins
    status: str = field(fields.one_of(Status.REFUSED), Status.REFUSED)
    host: str = field(fields.absent_or(fields.host), "")  #: who refused it
    at: float = field(fields.moment, 0.0)
    owed: Mapping[str, int] = field(fields.table(fields.name, fields.whole(0, 1_000_000), 20), {})

    @property
    def key(self) -> str:
        """What names this refusal: beanstalkd numbers jobs anew when it loses its binlog, so the body counts too."""
        return uuid.uuid5(NAMESPACE, f"{self.tube} {self.job} {self.at} {self.begins}").hex

    def wire(self) -> dict[str, Any]:
        """Its status always said: that is how a reader knows it from an event."""
        return {**super().wire(), "status": self.status}


@attr.frozen(kw_only=True)
class InHand:
    """The build a worker is at."""

    build_id: str = field(fields.build_id)
    srpm: str = field(fields.srpm)
    target: str = field(fields.target)
    arch: str = field(fields.arch)  #: of the leg that `phase` speaks of
    attempt: str = field(fields.attempt)
    phase: str = field(fields.line(80), "")
    since: float = field(fields.moment, 0.0)  #: when that phase began
    started: float = field(fields.moment, 0.0)  #: when the attempt did


def _in_hand(raw: Any) -> InHand | None:
    if raw is None or isinstance(raw, InHand):
        return raw
    needed = {a.name for a in attr.fields(InHand) if a.default is attr.NOTHING}
    if not isinstance(raw, dict) or not needed <= raw.keys():
        raise ValueError(f"{fields.shown(raw)} is no build in hand ({', '.join(sorted(needed))})")
    return InHand(**{a.name: raw[a.name] for a in attr.fields(InHand) if a.name in raw})


class State:
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
class Presence(Message):
    """A worker says that it is there and what it does. Told to nobody: the notifier keeps the latest of each."""

    host: str = field(fields.host)
    instance: str = field(fields.name)  #: of the host's workers: its unit's, else the process's number
    state: str = field(fields.one_of(*State.ALL))
    why: str = field(fields.line(300), "")  #: it takes nothing
    arches: tuple[str, ...] = field(fields.many(fields.arch, 40), ())  #: the tubes it watches, its own first
    version: str = field(fields.line(60), "")
    features: tuple[str, ...] = field(fields.many(fields.name, 20), ())  #: what it can beyond version 0.1
    load: float = field(fields.number(0, 1e6), 0.0)  #: of the last minute
    free_mib: int = field(fields.whole(0, 2**53), 0)  #: of the disk that has least of it
    free_inodes: int = field(fields.whole(0, 2**53), 0)
    build: InHand | None = field(_in_hand, None)
    at: float = field(fields.moment, 0.0)  #: by the worker's clock
    boot: str = field(fields.absent_or(fields.token), "")  #: of its host, anew each time that starts
    session: str = field(fields.absent_or(fields.token), "")  #: of its process, which watches a tube of that name
    leaving: bool = field(fields.flag, False)  #: it ends now, as it was told to
    status: str = field(fields.one_of(Status.PRESENCE), Status.PRESENCE)

    def wire(self) -> dict[str, Any]:
        """Its status always said: that is how a reader knows it from an event."""
        return {**super().wire(), "status": self.status}


@attr.frozen(kw_only=True)
class BuilderEvent(Message):
    """What became of a builder: the notifier announces it, and tells it to all."""

    builder: str = field(fields.host)
    status: str = field(fields.one_of(Status.QUARANTINED, Status.RELEASED))
    reason: str = field(fields.line(500), "")
    arches: tuple[str, ...] = field(fields.many(fields.arch, 40), ())  #: the tubes it watches, its own first
    at: float = field(fields.moment, 0.0)
    owed: Mapping[str, int] = field(fields.table(fields.name, fields.whole(0, 1_000_000), 20), {})

    @property
    def key(self) -> str:
        """What names this piece of news."""
        return uuid.uuid5(NAMESPACE, f"{self.builder} {self.status} {self.at}").hex


Event = Union[BuildEvent, Refusal, BuilderEvent]
#: What lies in `notify`: what is told, and who is there.
News = Union[Event, Presence]


def decode_event(body: bytes) -> News:
    """Whichever kind of news lies in `notify`."""
    raw = parse(body)
    if raw.get("status") == Status.PRESENCE:
        return Presence.from_wire(raw)
    if raw.get("status") in (Status.QUARANTINED, Status.RELEASED):
        return BuilderEvent.from_wire(raw)
    return Refusal.from_wire(raw) if raw.get("status") == Status.REFUSED else BuildEvent.from_wire(raw)


def _request(raw: Any) -> BuildRequest:
    if isinstance(raw, BuildRequest):
        return raw
    if not isinstance(raw, dict):
        raise ValueError(f"{fields.shown(raw)} is no request")
    try:
        return BuildRequest.from_wire(raw)
    except MessageError as error:
        raise ValueError(str(error)) from None


@attr.frozen(kw_only=True)
class RepogenRequest(Message):
    """Something for a target's repodata: one uploaded leg, or, with nothing but a target, a regeneration."""

    target: str = field(fields.target)
    build_id: str = field(fields.absent_or(fields.build_id), "")
    arch: str = field(fields.absent_or(fields.arch), "")
    attempt: str = field(fields.absent_or(fields.attempt), "")
    place: str = field(fields.absent_or(fields.place), "")
    index: bool = field(fields.flag, True)  #: false for a failed or a scratch leg: it is only put in its place
    request: BuildRequest | None = field(_request, None)  #: what is put again where even the manifest is damaged
    logs: bool = field(fields.flag, False)  #: of an attempt that decided nothing: only to be kept, in attempts/
    tries: int = field(fields.whole(0, 1000), 0)  #: how often createrepo_c left the leg out

    def __attrs_post_init__(self) -> None:
        named = [bool(self.build_id), bool(self.arch), bool(self.attempt), bool(self.place)]
        if any(named) and not all(named):
            raise ValueError("build_id, arch, attempt and place come together or not at all")

    @classmethod
    def from_wire(cls, raw: Mapping[str, Any]) -> RepogenRequest:
        """The request in a JSON object.

        The original's worker puts its whole event here, in which `arch` and others stand alone: of it only the target
        is a field, and all else travels along.
        """
        if "status" not in raw or "target" not in raw or not raw.keys().isdisjoint(("attempt", "place")):
            return super().from_wire(raw)
        rest = {name: value for name, value in raw.items() if name != "target"}
        return attr.evolve(super().from_wire({"target": raw["target"]}), extra=_not_too_much(cls, rest))

    @property
    def event(self) -> BuildEvent | None:
        """The event that a worker of the original put in its place; None in any other. Raises `MessageError`."""
        return BuildEvent.from_wire(self.wire()) if self._is_event else None

    @property
    def bare(self) -> bool:
        """Whether it only asks for the target to be indexed."""
        return not self.build_id

    def wire(self) -> dict[str, Any]:
        """As JSON, the build's request as it travels through tubes; one of the original's worker as it was."""
        if self._is_event:
            return {**self.extra, "target": self.target}
        return {**super().wire(), **({"request": self.request.wire()} if self.request else {})}

    @property
    def _is_event(self) -> bool:
        return self.bare and "status" in self.extra


@attr.frozen(kw_only=True)
class SignRequest(Message):
    """A published leg whose packages are to be staged for signing."""

    pkgname: str = field(fields.name)
    status: str = field(fields.one_of(*Status.BUILD))
    target: str = field(fields.target)
    arch: str = field(fields.arch)
    timestamp: str = field(fields.timestamp)
    build_id: str = field(fields.absent_or(fields.build_id), "")
    place: str = field(fields.absent_or(fields.place), "")


def new_build_id() -> str:
    """A build id nobody had before."""
    return uuid.uuid4().hex


def new_attempt() -> str:
    """A token for one worker's try at one build: `<UTC seconds>-<8 random hex>`."""
    return f"{max(0, int(time.time()))}-{os.urandom(4).hex()}"
