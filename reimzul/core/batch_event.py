# SPDX-License-Identifier: Apache-2.0
"""What people are notified of about a batch as a whole; its builds have events of their own (`core/message.py`).

`reimzul-batch` announces it in `notify`. `plan/announcements.py` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping

import attr

from reimzul.core import validators
from reimzul.core.json_message import Message, field


class BatchStatus:
    """The statuses of a batch's events, unlike those of all other messages in `notify`."""

    OVER = "Over"
    RESTING = "Resting"  #: nothing runs, and members wait behind failed ones
    PAUSED = "Paused"  #: it paused itself
    NEW_CAUSE = "NewCause"  #: a member failed for a cause that no other member had before

    ALL = (OVER, RESTING, PAUSED, NEW_CAUSE)


#: Lines that an event has at most.
MAX_LINES = 40


@attr.frozen(kw_only=True)
class BatchEvent(Message):
    batch: str = field(validators.batch_id)
    status: str = field(validators.one_of(*BatchStatus.ALL))
    key: str = field(validators.build_id)  #: the same whenever it is announced again
    target: str = field(validators.target)  #: without an arch
    submitter: str = field(validators.submitter)
    arches: tuple[str, ...] = field(validators.list_of(validators.arch, 40), ())
    counts: Mapping[str, int] = field(
        validators.dict_of(validators.name, validators.integer(0, 1_000_000), 20), {}
    )  #: state -> members
    text: str = field(validators.line(400), "")  #: what happened, in one line
    lines: tuple[str, ...] = field(validators.list_of(validators.line(400), MAX_LINES), ())  #: more, for a mail
    scratch: bool = field(validators.flag, False)
    at: float = field(validators.unix_time, 0.0)
    owed: Mapping[str, int] = field(validators.dict_of(validators.name, validators.integer(0, 1_000_000), 20), {})
