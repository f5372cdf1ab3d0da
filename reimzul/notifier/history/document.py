# SPDX-License-Identifier: Apache-2.0
"""What the history says of a build on an arch, and how an event changes it. Pure.

The original's fields: srpm, arch, target, disttag, scratch, submitter, status, builder_fqdn, evr, pkgname, timestamp,
latest_build, comment; every document has them all. Ours come in addition. The statuses are the original's words too:
what is published stays `Success`, and `published` says since when.

`latest_build` is not decided here: it depends on the other builds of the same srpm, arch and target, and each home
sets it in the same step. It is true on the newest of them (by timestamp) that is over, whatever came of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attr

from reimzul.core.message import BuildEvent, Refusal, Status
from reimzul.notifier.verdict import admitted

Document = dict[str, Any]

#: What names a build and its package: true of every attempt at it.
_IDENTITY = ("srpm", "arch", "target", "disttag", "scratch", "submitter", "timestamp", "build_id", "pkgname", "evr")
#: What one attempt is known by and came to.
_ATTEMPT = (
    "builder_fqdn", "attempt", "reason", "exit_code", "started", "finished", "place", "url", "rpm_count", "rpms",
    "first_error", "skipped", "at",
)  # fmt: skip
_FIELDS = {a.name: a.default for a in attr.fields(BuildEvent) if a.name in _IDENTITY + _ATTEMPT}
_PROGRESS = {Status.QUEUED: 0, Status.BUILDING: 1}
_PERSON = 9
_STRENGTH = {
    **_PROGRESS, Status.SUCCESS: 2, Status.FAILED: 2, Status.CANCELLED: 2, Status.REJECTED: 3, Status.PUBLISHED: 4,
    Status.OVERRIDE: _PERSON,
}  # fmt: skip
#: The statuses of a build that is over, which `latest_build` chooses among.
OVER = tuple(status for status, strength in _STRENGTH.items() if strength > 1 and status != Status.PUBLISHED)


def merge(before: Mapping[str, Any] | None, event: BuildEvent) -> Document:
    """What is known after an event, whatever order it came in."""
    if before is None:
        return _document(_said(event), {}, event, None)
    holds = _holds(before)
    if not admitted(holds, event.status):
        return dict(before)
    told, known = _said(event), {name: before[name] for name in _FIELDS if before.get(name) != _blank(name)}
    if _overturns(event, holds) or not _same_attempt(told, known):
        weaker = known if _leads(event, before) else told
        for name in _ATTEMPT:
            weaker.pop(name, None)
    return _document(told, known, event, before)


def fold(before: Mapping[str, Document], events: Iterable[BuildEvent]) -> dict[str, Document]:
    """What the documents become by these events, by key: those alone that differ from `before`."""
    after = dict(before)
    for event in events:
        after[event.key] = merge(after.get(event.key), event)
    return {key: document for key, document in after.items() if document != before.get(key)}


def overridden(document: Mapping[str, Any], comment: str) -> Document:
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
        "status": Status.SUCCESS if status == Status.PUBLISHED else status,
        "published": published,
        "comment": before.get("comment") or (event.reason if event.status == Status.OVERRIDE else ""),
        "latest_build": before.get("latest_build", False),
    }


def _said(event: BuildEvent) -> Document:
    """The fields in which the event says something, as JSON knows them."""
    values = {name: _plain(getattr(event, name)) for name in _FIELDS}
    return {name: value for name, value in values.items() if value != _blank(name)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
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
    if mine == known == _PROGRESS[Status.BUILDING]:
        return bool(event.at >= before["at"])
    return mine > known


def _overturns(event: BuildEvent, holds: str) -> bool:
    """Whether what another attempt came to is no longer so: its reason and its error are not this one's."""
    return event.status == Status.PUBLISHED and holds in (Status.FAILED, Status.CANCELLED, Status.REJECTED)


def _same_attempt(told: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    mine, theirs = told.get("attempt"), known.get("attempt")
    return mine == theirs or not mine or not theirs
