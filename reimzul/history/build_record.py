# SPDX-License-Identifier: Apache-2.0
"""What the history says of a build on an arch, and how an event changes it. Pure.

The original's fields: srpm, arch, target, disttag, scratch, submitter, status, builder_fqdn, evr, pkgname, timestamp,
latest_build, comment; every document has them all. Ours come in addition. The statuses are the original's words too:
what is published stays `Success`, and `published` says since when.

Where it waits, or waited: `queued_at` (first put), `put_at` (last put); of the last put `tube`, `job`, `priority`,
`due` (nobody gets it before) and `waits_for` (what has to change before it can be built). `attempts` has each worker's
try that is known of, the first one first: `attempt`, `builder_fqdn`, `status` (Building, Success, Published, Failed,
Cancelled, Rejected; Unfit: it was its builder's fault; Retried: it was nobody's fault), `started`, `finished`,
`exit_code`, `reason`, `url` (where its logs are), `error_log` (the log that has the cause), `skew` (see wire.md), `at`,
and `heard`: the `at` of what was said of it first. Times are seconds since 1970, 0 where they are not known. `started`,
`finished` and `phases` are by the builder's clock, all others by the controller's.

`latest_build` is not decided here: it depends on the other builds of the same srpm, arch and target, and each home
sets it in the same step. It is true on the newest of them (by timestamp) that is over, whatever came of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attr

from reimzul.core.message import NOBODY, UPLOAD, BuildEvent, Refusal, Status
from reimzul.history.result_rules import is_news

Document = dict[str, Any]

#: What names a build and its package: true of every attempt at it.
_IDENTITY = (
    "srpm", "arch", "target", "disttag", "scratch", "submitter", "timestamp", "build_id", "pkgname", "evr", "parent",
)  # fmt: skip
#: What one attempt is known by and came to.
_ATTEMPT = (
    "builder_fqdn", "attempt", "reason", "exit_code", "started", "finished", "place", "url", "rpm_count", "rpms",
    "first_error", "error_line", "error_log", "skipped", "phases", "skew", "at",
)  # fmt: skip
#: What is known of the last put of its job.
_PUT = ("tube", "job", "priority", "due", "waits_for")
#: What is kept of each attempt, and how many attempts at the most.
_TRY = ("attempt", "builder_fqdn", "started", "finished", "exit_code", "reason", "url", "error_log", "skew", "at")
_TRIES = 50
_FIELDS = {a.name: a.default for a in attr.fields(BuildEvent) if a.name in _IDENTITY + _ATTEMPT}
_PROGRESS = {Status.QUEUED: 0, Status.BUILDING: 1}
_PERSON = 9
_STRENGTH = {
    **_PROGRESS, Status.SUCCESS: 2, Status.FAILED: 2, Status.CANCELLED: 3, Status.REJECTED: 3, Status.PUBLISHED: 4,
    Status.OVERRIDE: _PERSON,
}  # fmt: skip
#: The statuses of a build that is over, which `latest_build` chooses among.
OVER = tuple(status for status, strength in _STRENGTH.items() if strength > 1 and status != Status.PUBLISHED)


def apply_event(before: Mapping[str, Any] | None, event: BuildEvent) -> Document:
    """What is known after an event, whatever order it came in."""
    if before is None:
        return _document(_said(event), {}, event, None)
    holds = _holds(before)
    if not is_news(holds, event.status):
        return dict(before)
    told = _said(event)
    known = {name: before[name] for name in _FIELDS if before.get(name, _blank(name)) != _blank(name)}
    if _overturns(event, holds) or not _same_attempt(told, known):
        weaker = known if _leads(event, before) else told
        for name in _ATTEMPT:
            weaker.pop(name, None)
    return _document(told, known, event, before)


def apply_events(before: Mapping[str, Document], events: Iterable[BuildEvent]) -> dict[str, Document]:
    """What the documents become by these events, by key: those alone that differ from `before`."""
    after = dict(before)
    for event in events:
        after[event.key] = apply_event(after.get(event.key), event)
    return {key: document for key, document in after.items() if document != before.get(key)}


def with_override(document: Mapping[str, Any], comment: str) -> Document:
    """What a build is by a person's word; nothing a worker says of it later takes that back."""
    return {**document, "status": Status.OVERRIDE, "comment": comment}


def group(document: Mapping[str, Any]) -> tuple[str, str, str]:
    """The builds among which one is the latest."""
    return (document["srpm"], document["arch"], document["target"])


def is_over(document: Mapping[str, Any] | None) -> bool:
    """Whether the build came to an end."""
    return document is not None and document["status"] in OVER


def of_refusal(event: Refusal) -> Document:
    """What the history keeps of a message that was none."""
    return {name: getattr(event, name) for name in ("key", "tube", "job", "reason", "begins", "host", "at")}


def _document(told: Document, known: Document, event: BuildEvent, before: Mapping[str, Any] | None) -> Document:
    leads = before is None or _leads(event, before)
    weaker, stronger = (known, told) if leads else (told, known)
    before = before or {}
    published = before.get("published") or (event.at if event.status == Status.PUBLISHED else 0.0)
    status = event.status if leads or before["status"] not in _STRENGTH else before["status"]
    return {
        **{name: _blank(name) for name in _FIELDS},
        **weaker,
        **stronger,
        **_put(event, before),
        "attempts": _attempts(event, before.get("attempts", [])),
        "status": Status.SUCCESS if status == Status.PUBLISHED else status,
        "published": published,
        "comment": before.get("comment") or (event.reason if event.status == Status.OVERRIDE else ""),
        "latest_build": before.get("latest_build", False),
    }


def _said(event: BuildEvent) -> Document:
    """The fields in which the event says something, as JSON knows them."""
    values = {name: _plain(getattr(event, name)) for name in _FIELDS}
    return {name: value for name, value in values.items() if value != _blank(name)}


def _put(event: BuildEvent, before: Mapping[str, Any]) -> Document:
    """Where its job is, as the last that put it has said."""
    blank = {"queued_at": 0.0, "put_at": 0.0, "tube": "", "job": 0, "priority": None, "due": 0.0, "waits_for": ""}
    known: Document = {name: before.get(name, nothing) for name, nothing in blank.items()}
    if event.status != Status.QUEUED:
        return known
    known["queued_at"] = min(known["queued_at"] or event.at, event.at)
    if event.job and event.at >= known["put_at"]:
        known.update({name: getattr(event, name) for name in _PUT}, put_at=event.at)
    return known


def _attempts(event: BuildEvent, known: Sequence[Mapping[str, Any]]) -> list[Document]:
    """The attempts, with what an event says of its own."""
    if not event.attempt:
        return [dict(each) for each in known]
    by_token = {each["attempt"]: dict(each) for each in known}
    told = {**{name: getattr(event, name) for name in _TRY}, "status": _came_to(event)}
    there = by_token.get(event.attempt, told)
    weaker, stronger = sorted((told, there), key=lambda each: (_TRY_STRENGTH.get(each["status"], 0), each["at"]))
    said = {name: value for name, value in stronger.items() if name not in _FIELDS or value != _blank(name)}
    heard = min(each.get("heard") or each["at"] for each in (told, there))
    by_token[event.attempt] = {**weaker, **said, "heard": heard}
    return sorted(by_token.values(), key=_began)[-_TRIES:]


def _began(attempt: Mapping[str, Any]) -> tuple[float, str]:
    """By our clock; a token has its builder's, and serves for what an earlier version wrote."""
    token: str = attempt["attempt"]
    return attempt.get("heard") or float(token.partition("-")[0]), token


def _came_to(event: BuildEvent) -> str:
    """What an event says of its attempt: one that was put anew came to nothing."""
    if event.status == Status.QUEUED:
        if event.reason.startswith(NOBODY):
            return Status.RETRIED
        return Status.REJECTED if event.reason.startswith(UPLOAD.strip()) else Status.UNFIT
    return event.status


#: Which word on an attempt goes before which.
_TRY_STRENGTH = {**_STRENGTH, Status.UNFIT: 2, Status.RETRIED: 2, Status.OVERRIDE: 0}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [attr.asdict(each) if attr.has(type(each)) else each for each in value]
    return dict(value) if isinstance(value, Mapping) else value


def _blank(name: str) -> Any:
    default = _FIELDS[name]
    return _plain(default) if isinstance(default, (str, int, float, tuple, Mapping, type(None))) else ""


def _holds(document: Mapping[str, Any]) -> str:
    return Status.PUBLISHED if document.get("published") else str(document["status"])


def _leads(event: BuildEvent, before: Mapping[str, Any]) -> bool:
    """Whether the event's word goes before what is known; of two attempts under way the later one's does."""
    if before["status"] == Status.OVERRIDE:
        return event.status == Status.OVERRIDE and bool(event.at >= before["at"])
    mine, known = _STRENGTH[event.status], _STRENGTH.get(_holds(before), 0)
    if max(mine, known) <= _PROGRESS[Status.BUILDING] and event.attempt and before.get("attempt"):
        if event.attempt == before["attempt"] and mine != known:
            return mine < known  # it had begun, and was put anew: by whom, is in the attempts
        return bool(event.at >= before["at"])
    return mine > known


def _overturns(event: BuildEvent, holds: str) -> bool:
    """Whether what another attempt came to is no longer so: its reason and its error are not this one's."""
    if event.status == Status.CANCELLED:
        return holds == Status.SUCCESS
    return event.status == Status.PUBLISHED and holds in (Status.FAILED, Status.CANCELLED, Status.REJECTED)


def _same_attempt(told: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    mine, theirs = told.get("attempt"), known.get("attempt")
    return mine == theirs or not mine or not theirs
