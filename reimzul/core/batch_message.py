# SPDX-License-Identifier: Apache-2.0
"""The messages in the tube `batch`, which `reimzul-batch` alone reserves from (docs/wire.md, "Tubes").

- `BatchRequest`: `reimzul-submit --batch` has written a plan, and asks for its builds.
- `BatchOrder`: a person steers a batch.
- `BuildRequest` with `after` or `dep_wait`: a single build that is to be held.
- `BuildEvent`: what the notifier's sink passes on, with the fields that decide something alone.
"""

from __future__ import annotations

from typing import Union

import attr

from reimzul.core import validators
from reimzul.core.errors import InvalidMessage
from reimzul.core.json_message import Message, field, parse_json
from reimzul.core.message import BuildEvent, BuildRequest, Refusal, Status

#: How an entry of a `Queued` event's `missing` begins that is no requirement of the build which nobody provides, but a
#: package that cannot be installed, or what that package lacks. A new build of one of them may be enough.
CONFLICT_PREFIX = "conflict: "


def is_conflict(missing: str) -> bool:
    """Whether what a build waits for is a package that conflicts with others, not a capability."""
    return missing.startswith(CONFLICT_PREFIX)


@attr.frozen(kw_only=True)
class BatchRequest(Message):
    batch: str = field(validators.batch_id)
    plan_sha256: str = field(validators.sha256)  #: of the file `.batches/<batch>.json` in incoming/
    target: str = field(validators.target)  #: without an arch
    submitter: str = field(validators.submitter)


class OrderKind:
    PAUSE = "pause"
    RESUME = "resume"
    RELEASE = "release"  #: of members: build them now, whatever they wait for
    SKIP = "skip"  #: of members: as if the plan did not have them
    REPLACE = "replace"  #: of one member: build another source rpm instead
    RETRY = "retry"  #: of members: build them again
    SETTLE = "settle"  #: of members: build them again against what is published now
    CANCEL = "cancel"  #: of members, or without any of the batch

    ALL = (PAUSE, RESUME, RELEASE, SKIP, REPLACE, RETRY, SETTLE, CANCEL)


@attr.frozen(kw_only=True)
class BatchOrder(Message):
    """A person's order. It has an id, so that one that comes twice is obeyed once."""

    batch: str = field(validators.batch_id)
    order: str = field(validators.one_of(*OrderKind.ALL))
    id: str = field(validators.token)
    by: str = field(validators.submitter)
    at: float = field(validators.unix_time)
    members: tuple[str, ...] = field(validators.list_of(validators.name, 2_000), ())  #: `<name>.<arch>` of each
    settle_pass: int = field(validators.integer(0, 99), 0)  #: of settle: the number that ends the disttag
    plan_sha256: str = field(validators.optional(validators.sha256), "")  #: of replace: of the plan with the new member
    why: str = field(validators.line(300), "")


BatchMessage = Union[BatchRequest, BatchOrder, BuildRequest, BuildEvent, Refusal]


def decode_batch_message(body: bytes) -> BatchMessage:
    """Read any message in `batch`. Raises `InvalidMessage`."""
    raw = parse_json(body)
    if "order" in raw:
        return BatchOrder.from_json(raw)
    if "plan_sha256" in raw:
        return BatchRequest.from_json(raw)
    if raw.get("status") == Status.REFUSED:
        return Refusal.from_json(raw)
    if "status" in raw:
        return BuildEvent.from_json(raw)
    request = BuildRequest.from_json(raw)
    if not request.has_id:
        raise InvalidMessage("not a BuildRequest of this farm's submit: it has no build_id or timestamp")
    return request
