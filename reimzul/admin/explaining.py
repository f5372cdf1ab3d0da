# SPDX-License-Identifier: Apache-2.0
"""Why a build is where it is, in words, from facts that others have gathered. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attr

from reimzul.admin.facts import BuildFacts, Explanation, plain
from reimzul.admin.under_way import building, built, ended
from reimzul.admin.waiting import waiting
from reimzul.admin.words import counted
from reimzul.core.message import Status

#: Events that may wait for the notifier before what it recorded counts as old.
_BEHIND = 20


def explain(facts: BuildFacts) -> Explanation:
    """Why it is where it is."""
    status = facts.leg["status"]
    kind = {Status.QUEUED: waiting, Status.BUILDING: building, Status.SUCCESS: built}.get(status, ended)
    told = kind(facts)
    more = [*_marked(facts), *_behind(facts)]
    return attr.evolve(told, sentences=[*told.sentences, *more])


def _marked(facts: BuildFacts) -> Iterator[str]:
    over = facts.leg["status"] not in (Status.QUEUED, Status.BUILDING)
    if facts.cancel is not None and not over:
        yield f"It is to be cancelled: {facts.cancel.by or 'somebody'} wants it so."


def _behind(facts: BuildFacts) -> Iterator[str]:
    if facts.untold > _BEHIND:
        yield f"The notifier has {counted(facts.untold, 'event')} still to tell: what is said here may be old."


def explanation_to_dict(told: Explanation, facts: BuildFacts) -> dict[str, Any]:
    """The same for a program."""
    return {
        "build_id": facts.leg["build_id"],
        "arch": facts.leg["arch"],
        "status": facts.leg["status"],
        "state": told.state,
        "sentences": list(told.sentences),
        "tube": facts.tube.name,
        "job": facts.leg.get("job") or None,
        "job_state": facts.job,
        "ahead": len(facts.ahead),
        "ahead_elsewhere": len(facts.beside),
        "watchers": facts.tube.watchers,
        "workers": None if facts.workers is None else list(map(plain, facts.workers)),
        "starts_in": attr.asdict(told.start) if told.start else None,
        "ends_in": attr.asdict(told.end) if told.end else None,
        "usual": attr.asdict(facts.own) if facts.own else None,
    }
