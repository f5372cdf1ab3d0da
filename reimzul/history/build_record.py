# SPDX-License-Identifier: Apache-2.0
"""The record of a build on an arch as the history keeps it, and how events change it.

A record is stored as a document (JSON in SQLite, BSON in MongoDB) whose keys are the record's attributes. The keys
srpm, arch, target, disttag, scratch, submitter, status, builder_fqdn, evr, pkgname, timestamp, latest_build and
comment, and the statuses, are the original Reimzul's, so that programs written for its MongoDB collection can read
ours. A published build keeps the status `Success`; `published` has the time.

Times are seconds since 1970, 0 if unknown. `started`, `finished` and `phases` are by the builder's clock, all other
times by the controller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional, TypeVar

import attr

from reimzul.core import validators
from reimzul.core.clock import MAX_SKEW_SECONDS
from reimzul.core.failure_cause import cause_fields, cause_of, is_current
from reimzul.core.message import NOBODY, UPLOAD, BuildEvent, Refusal, Status
from reimzul.history.result_rules import CLAIM, is_news

S = TypeVar("S", bound="_Stored")

#: Attributes that are no keys of a document.
_UNSTORED = frozenset({"source", "page"})


class BuildState:
    """The state of a build on an arch, as all commands show it: its status, with `Success` as built or published."""

    QUEUED = "queued"
    HELD = "held"  #: queued, but no worker gets its job until somebody releases it
    BUILDING = "building"
    BUILT = "built"  #: successful, not published (yet)
    PUBLISHED = "published"
    FAILED = "failed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    OVERRIDE = "override"
    CLAIMED = "claimed"  #: nothing is known of it but an event that bstore has not signed

    ALL = (PUBLISHED, BUILT, FAILED, REJECTED, CANCELLED, OVERRIDE, BUILDING, QUEUED, HELD, CLAIMED)

    @classmethod
    def from_status(cls, status: str, *, published: bool = False, held: bool = False) -> str:
        """Return the state of a build with this status; of an attempt's own statuses, the word in small letters."""
        if status == Status.SUCCESS:
            return cls.PUBLISHED if published else cls.BUILT
        return cls.HELD if held and status == Status.QUEUED else status.lower()


@attr.frozen(kw_only=True, slots=False)  # without slots, frozen instances are made twice as fast
class _Stored:
    """A class whose instances are stored as documents, with their attributes as keys.

    A document of another version, or of the original, may lack keys and have keys of its own. It is then kept in
    `source`, also after events, and written back with no other change than those made to the record.
    """

    source: Optional[Mapping[str, Any]] = attr.field(default=None, repr=False)

    @classmethod
    def from_document(cls: type[S], document: Mapping[str, Any]) -> S:
        """Read a document. Values are not checked; a null in the place of another type counts as missing."""
        record = cls()
        values = vars(record)  # filled directly: keyword arguments take twice as long as all the rest
        if document.keys() == _KEYS[cls]:
            values.update(document)
        else:
            known = {name: value for name, value in document.items() if name in values and value is not None}
            values.update(known, source=document)
        for name, convert in _CONVERTERS[cls].items():
            values[name] = convert(values[name])
        return record

    def to_document(self) -> dict[str, Any]:
        """Return the document, ready for JSON."""
        names = [name for name in vars(self) if name not in _UNSTORED]
        if self.source is not None:
            stored = self.from_document(self.source)
            names = [name for name in names if getattr(self, name) != getattr(stored, name)]
        return {**(self.source or {}), **{name: _to_json(getattr(self, name)) for name in names}}

    def to_output(self) -> dict[str, Any]:
        """Return the values as commands print them in JSON: all keys, also those that the stored document lacks."""
        values = {name: _to_json(value) for name, value in vars(self).items() if name != "source"}
        return {**(self.source or {}), **values}


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [each.to_document() if isinstance(each, _Stored) else each for each in value]
    return value


@attr.frozen(kw_only=True, slots=False)
class RecordedAttempt(_Stored):
    attempt: str = ""  #: its token
    builder_fqdn: str = ""
    started: float = 0.0
    finished: float = 0.0
    exit_code: Optional[int] = None  #: mock's
    reason: str = ""
    url: str = ""  #: of its logs, for people
    logs_folder: str = ""  #: the folder of its logs in the store
    error_log: str = ""  #: the log that has the cause of its failure
    skew: float = 0.0  #: seconds that the builder's clock is ahead of the controller's
    at: float = 0.0  #: when the event that decided it was announced
    status: str = (
        ""  #: Building, Success, Published, Failed, Cancelled, Rejected, Unfit, Retried or Waiting (see `Status`)
    )
    heard: float = 0.0  #: `at` of the first event about it

    @property
    def is_over(self) -> bool:
        return self.status not in (Status.QUEUED, Status.BUILDING)

    @property
    def state(self) -> str:
        """The state that the attempt would give its build; `unfit`, `retried` and `waiting` give none."""
        return BuildState.from_status(self.status)

    def to_output(self) -> dict[str, Any]:
        return {**super().to_output(), "state": self.state}

    @property
    def ended_at(self) -> float:
        """When the attempt ended, by the controller's clock as far as possible; 0 if unknown."""
        return (0.0 if self.skew else self.finished) or self.at


def _read_attempts(raw: Iterable[Any] | None) -> tuple[RecordedAttempt, ...]:
    return tuple(
        each if isinstance(each, RecordedAttempt) else RecordedAttempt.from_document(each) for each in raw or ()
    )


@attr.frozen(kw_only=True, slots=False)
class BuildRecord(_Stored):
    """A build on an arch as the history knows it. All attributes have defaults: the original's documents lack many."""

    srpm: str = ""
    arch: str = ""
    target: str = ""
    submitter: str = ""
    disttag: str = ""
    scratch: bool = False
    build_id: str = ""
    timestamp: str = ""  #: when it was submitted, YYYYMMDDHHMMSS in UTC
    builder_fqdn: str = ""
    pkgname: str = ""
    evr: str = ""
    attempt: str = ""  #: the token of the attempt that decided it, or runs
    reason: str = ""
    exit_code: Optional[int] = None
    started: float = 0.0
    finished: float = 0.0
    place: str = ""
    url: str = ""  #: for people; those of version 0.1 are for the farm's programs
    logs_folder: str = ""  #: the folder of its logs in the store
    page: str = ""  #: the URL of its build's page, for people; made when it is shown, never stored
    rpm_count: int = 0
    rpms: tuple[str, ...] = attr.field(default=(), converter=tuple)
    first_error: str = ""
    error_line: str = ""
    error_log: str = ""
    cause: str = ""  #: of a failure: 8 hex digits (core/failure_cause.py)
    cause_text: str = ""
    cause_version: int = 0  #: of the rule that has computed it
    newly_failing: Optional[bool] = None  #: how it differs from the package's previous result (core/package_change.py)
    fixed: Optional[bool] = None
    previous_build: str = ""
    previous_evr: str = ""
    skipped: Mapping[str, str] = attr.field(factory=dict)
    phases: tuple[Mapping[str, Any], ...] = attr.field(default=(), converter=tuple)  #: name, start, end of each
    parent: str = ""
    batch: str = ""  #: the batch that it is a member's build of
    at: float = 0.0  #: when the event that decided it was announced
    skew: float = 0.0
    queued_at: float = 0.0  #: when its job was first put
    released_at: float = 0.0  #: when its job, which was held, was last released
    put_at: float = 0.0  #: when its job was last put, held or released; the next seven are of that time
    tube: str = ""
    job: int = 0
    priority: Optional[int] = None
    due: float = 0.0  #: no worker gets the job before this time
    waits_for: str = ""  #: what must change before it can be built
    held: bool = False  #: no worker gets the job until somebody releases it
    missing: tuple[str, ...] = attr.field(default=(), converter=tuple)  #: what nobody provides (docs/wire.md)
    attempts: tuple[RecordedAttempt, ...] = attr.field(default=(), converter=_read_attempts)  #: the oldest first
    status: str = ""
    published: float = 0.0
    #: Of `Published`: True if it was announced without bstore's signature, False if with it, None if neither is known.
    claimed: Optional[bool] = None
    comment: str = ""
    #: Whether it is the newest, by timestamp, of the builds of its srpm, arch and target that are over. It depends on
    #: other records, so the history sets it when it stores a record.
    latest_build: bool = False

    @property
    def state(self) -> str:
        return BuildState.from_status(self.status, published=bool(self.published), held=self.held)

    def to_output(self) -> dict[str, Any]:
        """Return the values for JSON, with `state` beside the original's `status`."""
        attempts = [each.to_output() for each in self.attempts]
        state = self.state if self.state in BuildState.ALL else None  # the original had more statuses
        skew = self.skew if self.builder_fqdn else None
        return {**super().to_output(), "state": state, "skew": skew, "attempts": attempts}

    @property
    def claim_text(self) -> str:
        return f"published ({CLAIM})" if self.claimed else ""

    @property
    def is_queued(self) -> bool:
        return self.status == Status.QUEUED

    @property
    def is_held(self) -> bool:
        return self.is_queued and self.held

    @property
    def current_reason(self) -> str:
        """The reason; without that of an attempt which waited, once the build is released."""
        is_released = self.is_queued and not self.held and self.attempts and self.attempts[-1].status == Status.WAITING
        return "" if is_released else self.reason

    @property
    def waits_since(self) -> float:
        """Since when a worker could have reserved its job; 0 if unknown."""
        return self.released_at or self.queued_at

    @property
    def is_unfinished(self) -> bool:
        return self.status in (Status.QUEUED, Status.BUILDING)

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    @property
    def group(self) -> tuple[str, str, str]:
        return (self.srpm, self.arch, self.target)

    @property
    def package(self) -> str:
        """The package's name; taken from the file name of the source rpm while no worker has read its header."""
        return self.pkgname or validators.package_of(self.srpm)

    @property
    def attempt_start(self) -> float:
        """When the current attempt began, by the controller's clock; 0 if unknown.

        If the builder's clock is off, this is when the attempt was first heard of.
        """
        if not self.skew:
            return self.started
        return next((each.heard for each in self.attempts if each.attempt == self.attempt), 0.0)

    @property
    def is_failure(self) -> bool:
        """Whether it has a cause."""
        return self.status in FAILURES

    @property
    def duration(self) -> Optional[float]:
        """How long the builder took, in seconds; None if unknown, or if the builder's clock was off."""
        known = not self.skew and 0 < self.started <= self.finished
        return self.finished - self.started if known else None

    @property
    def wait(self) -> Optional[float]:
        """Seconds from submission, or from the last release, to the first attempt after it; None if unknown.

        Never negative: two clocks are involved.
        """
        first = next((each for each in self.attempts if each.started and self._follows_release(each)), None)
        if first is None or first.skew or not self.waits_since:
            return None
        return max(0.0, first.started - self.waits_since)

    def _follows_release(self, attempt: RecordedAttempt) -> bool:
        return attempt.status != Status.WAITING and (attempt.heard or attempt.at) >= self.released_at - MAX_SKEW_SECONDS


#: What identifies a build and its package: the same for every attempt.
_IDENTITY = (
    "srpm", "arch", "target", "disttag", "scratch", "submitter", "timestamp", "build_id", "pkgname", "evr", "parent",
    "batch",
)  # fmt: skip
#: Why a failure failed: what may be found again in its logs, and what is computed from that.
EXPLANATION = ("first_error", "error_line", "error_log", "cause", "cause_text", "cause_version")
#: What compares a success or a failure with the package's previous result; a rejected build is neither.
_COMPARISON = ("newly_failing", "fixed", "previous_build", "previous_evr")
#: What one attempt is known by and resulted in.
_ATTEMPT = (
    "builder_fqdn", "attempt", "reason", "exit_code", "started", "finished", "place", "url", "logs_folder", "rpm_count",
    "rpms", "first_error", "error_line", "error_log", "cause", "cause_text", "cause_version", "skipped", "phases",
    "skew", "at", *_COMPARISON,
)  # fmt: skip
_BLANK = {name: getattr(BuildRecord(), name) for name in _IDENTITY + _ATTEMPT}
#: What is known of the last put of its job.
_PUT = ("tube", "job", "priority", "due", "waits_for", "missing")
_MAX_ATTEMPTS = 50
_PROGRESS = {Status.QUEUED: 0, Status.BUILDING: 1}
_PRECEDENCE = {
    **_PROGRESS, Status.SUCCESS: 2, Status.FAILED: 2, Status.CANCELLED: 3, Status.REJECTED: 3, Status.PUBLISHED: 4,
    Status.OVERRIDE: 9,
}  # fmt: skip
_ATTEMPT_PRECEDENCE = {**_PRECEDENCE, Status.UNFIT: 2, Status.RETRIED: 2, Status.WAITING: 2, Status.OVERRIDE: 0}
#: The status of a build of which only a claim is known.
CLAIMED = "Claimed"
#: The statuses of a build that has a cause.
FAILURES = (Status.FAILED, Status.REJECTED)
#: The statuses of a build that has a result; `Published` is stored as `Success`.
OVER = tuple(status for status, rank in _PRECEDENCE.items() if rank > 1 and status != Status.PUBLISHED)


@attr.frozen(kw_only=True, slots=False)
class RefusalRecord(_Stored):
    """A message that was refused, as the history keeps it."""

    key: str = ""
    tube: str = ""
    job: int = 0
    reason: str = ""
    begins: str = ""  #: the first bytes of the body
    host: str = ""  #: that refused it
    at: float = 0.0

    @classmethod
    def from_event(cls, event: Refusal) -> RefusalRecord:
        return cls(**{name: getattr(event, name) for name in _KEYS[cls]})


#: The keys of the documents that this version writes, by class.
_KEYS: dict[Any, frozenset[str]] = {
    cls: frozenset(attr.fields_dict(cls)) - _UNSTORED for cls in (RecordedAttempt, BuildRecord, RefusalRecord)
}
_CONVERTERS = {cls: {each.name: each.converter for each in attr.fields(cls) if each.converter} for cls in _KEYS}


def apply_events(before: Mapping[str, BuildRecord], events: Iterable[BuildEvent]) -> dict[str, BuildRecord]:
    """Return the records, by key, that differ from `before` after these events."""
    after = dict(before)
    for event in events:
        if event.claimed and event.status != Status.PUBLISHED:
            continue  # a claimed `Rejected` is logged alone
        after[event.key] = with_cause(apply_event(after.get(event.key), event))
    return {key: record for key, record in after.items() if record != before.get(key)}


def apply_event(before: BuildRecord | None, event: BuildEvent) -> BuildRecord:
    """Return the record after an event; the result does not depend on the order of events."""
    if event.claimed:
        return _add_claim(before, event)
    if before is None or before.status == CLAIMED:
        first = BuildRecord(claimed=None if before is None else before.claimed)
        return _merge(first, _values_of(event), {}, event, event_wins=True)
    decided = _decided_status(before)
    if not is_news(decided, event.status):
        return before
    news = _values_of(event)
    known = {name: value for name, blank in _BLANK.items() if (value := getattr(before, name)) != blank}
    event_wins = _takes_precedence(event, before)
    is_same_attempt = news.get("attempt", "") in ("", before.attempt) or not before.attempt
    if _overturns(event, decided) or not is_same_attempt:
        loser = known if event_wins else news
        for name in _ATTEMPT:
            loser.pop(name, None)
    if event.status == Status.REJECTED and event_wins:
        known = {name: value for name, value in known.items() if name not in _COMPARISON}
    return _merge(before, news, known, event, event_wins=event_wins)


def _add_claim(before: BuildRecord | None, event: BuildEvent) -> BuildRecord:
    """Note a claim, which changes nothing else of a known build."""
    if before is None:
        return BuildRecord(**_values_of(event), status=CLAIMED, claimed=True)
    return before if before.published else attr.evolve(before, claimed=True)


def with_cause(record: BuildRecord) -> BuildRecord:
    """Return the record of a failure with its cause by this version of the rule; every other record as it is."""
    if not record.is_failure or is_current(record):
        return record
    return attr.evolve(record, **cause_fields(cause_of(record)))


def is_same_result(one: BuildRecord, other: BuildRecord) -> bool:
    return (one.status, one.attempt) == (other.status, other.attempt)


def explain_like(record: BuildRecord, other: BuildRecord) -> BuildRecord:
    """Return the record with the error and the cause of another one of the same result, by this version of the rule."""
    explained = attr.evolve(record, **{name: getattr(other, name) for name in EXPLANATION})
    return with_cause(explained)


def with_override(record: BuildRecord, comment: str) -> BuildRecord:
    """Return the record with the status that a person has set; no event of a worker changes it back."""
    return attr.evolve(record, status=Status.OVERRIDE, comment=comment)


def _merge(
    before: BuildRecord, news: Mapping[str, Any], known: Mapping[str, Any], event: BuildEvent, *, event_wins: bool
) -> BuildRecord:
    status = event.status if event_wins or before.status not in _PRECEDENCE else before.status
    return BuildRecord(
        **{**_BLANK, **known, **news} if event_wins else {**_BLANK, **news, **known},
        **_put_values(event, before),
        attempts=_merge_attempts(event, before.attempts),
        status=Status.SUCCESS if status == Status.PUBLISHED else status,
        published=before.published or (event.at if event.status == Status.PUBLISHED else 0.0),
        claimed=event.claimed if event.status == Status.PUBLISHED else before.claimed,
        comment=before.comment or (event.reason if event.status == Status.OVERRIDE else ""),
        latest_build=before.latest_build,
        source=before.source,
    )


def _values_of(event: BuildEvent) -> dict[str, Any]:
    values = {name: getattr(event, name) for name in _BLANK}
    values.update(phases=tuple(map(attr.asdict, event.phases)), skipped=dict(event.skipped))
    return {name: value for name, value in values.items() if value != _BLANK[name]}


def _put_values(event: BuildEvent, before: BuildRecord) -> dict[str, Any]:
    """Return where the job is, from the event that put it last."""
    known: dict[str, Any] = {
        name: getattr(before, name) for name in ("queued_at", "released_at", "put_at", "held", *_PUT)
    }
    if event.status != Status.QUEUED:
        return known
    known["queued_at"] = min(known["queued_at"] or event.at, event.at)
    if event.held is False:
        known["released_at"] = max(known["released_at"], event.at)
    if event.job and event.at >= known["put_at"]:
        known.update({name: getattr(event, name) for name in _PUT}, held=bool(event.held), put_at=event.at)
    return known


def _merge_attempts(event: BuildEvent, known: Sequence[RecordedAttempt]) -> Sequence[RecordedAttempt]:
    if not event.attempt:
        return known
    by_token = {each.attempt: each for each in known}
    names = _BLANK.keys() & _KEYS[RecordedAttempt]
    news = RecordedAttempt(status=_attempt_status(event), **{name: getattr(event, name) for name in names})
    old = by_token.get(event.attempt, news)
    weaker, stronger = sorted((news, old), key=lambda each: (_ATTEMPT_PRECEDENCE.get(each.status, 0), each.at))
    changes = {name: value for name in names if (value := getattr(stronger, name)) != _BLANK[name]}
    heard = min(each.heard or each.at for each in (news, old))
    by_token[event.attempt] = attr.evolve(weaker, **changes, status=stronger.status, heard=heard)
    return sorted(by_token.values(), key=_attempt_order)[-_MAX_ATTEMPTS:]


def _attempt_order(attempt: RecordedAttempt) -> tuple[float, str]:
    """Order by the controller's clock; version 0.1 did not record that, and its tokens begin with the builder's."""
    return attempt.heard or float(attempt.attempt.partition("-")[0]), attempt.attempt


def _attempt_status(event: BuildEvent) -> str:
    """Return the status of the event's attempt; one whose job was requeued or held has ended without a result."""
    if event.status != Status.QUEUED:
        return event.status
    if event.missing:
        return Status.WAITING
    if event.reason.startswith(NOBODY):
        return Status.RETRIED
    return Status.REJECTED if event.reason.startswith(UPLOAD.strip()) else Status.UNFIT


def _decided_status(record: BuildRecord) -> str:
    return Status.PUBLISHED if record.published else record.status


def _takes_precedence(event: BuildEvent, before: BuildRecord) -> bool:
    """Whether the event's values replace the known ones; of two attempts that run, the later one counts."""
    if before.status == Status.OVERRIDE:
        return event.status == Status.OVERRIDE and event.at >= before.at
    rank, known = _PRECEDENCE[event.status], _PRECEDENCE.get(_decided_status(before), 0)
    if max(rank, known) <= _PROGRESS[Status.BUILDING] and event.attempt and before.attempt:
        if event.attempt == before.attempt and rank != known:
            return rank < known  # the attempt had begun and its job was requeued; `attempts` names the builder
        return event.at >= before.at
    return rank > known


def _overturns(event: BuildEvent, decided: str) -> bool:
    """Whether the event voids another attempt's result, whose reason and error are then not this build's."""
    if event.status == Status.CANCELLED:
        return decided == Status.SUCCESS
    return event.status == Status.PUBLISHED and decided in (Status.FAILED, Status.CANCELLED, Status.REJECTED)
