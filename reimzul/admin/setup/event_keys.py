# SPDX-License-Identifier: Apache-2.0
"""The key of events: made on the controller, brought to bstore by a line `events:number:hex` of its --psk-file.

The controller has a new key first, beside the old one, which ends a week later; bstore has one key at a time, and signs
with it. Builders never get it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

import attr

from reimzul.admin.setup import ini
from reimzul.core.errors import InputError
from reimzul.core.event_signature import EventKey, add_new_key, parse_event_keys

PATH = "/etc/reimzul/event-keys"
#: Whose the line is among those of hosts' keys.
OWNER = "events"
#: The group of the units that may read the file.
GROUP = "reimzul-store"
#: Days that an old key stays valid on the controller.
OVERLAP_DAYS = 7
SETTINGS: ini.Settings = {("farm", "event_keys"): PATH}

_LINE = re.compile(rf"\s*{OWNER}:(\d.*)")


@attr.frozen(kw_only=True)
class EventKeyChange:
    """The key file after a change, and the line for bstore if a key was made."""

    text: str = ""  #: "" if nothing changes
    made: str = ""  #: number:hex


def split_event_key(text: str, source: str) -> tuple[str, EventKey | None]:
    """Take the line of the key of events out of the lines of keys. Raises `InputError`, which names `source`."""
    lines = text.splitlines()
    found = [match[1].strip() for match in map(_LINE.match, lines) if match]
    try:
        keys = parse_event_keys(found)
    except ValueError:
        keys = []
    if len(keys) != bool(found):
        raise InputError(f"{source}: the line of {OWNER} is not one of the form {OWNER}:number:hex, with 64 hex digits")
    rest = "".join("\n" if _LINE.match(line) else f"{line}\n" for line in lines)  # other errors name their line
    return rest, keys[0] if keys else None


def change_on_controller(present: str, given: EventKey | None, wanted: bool) -> EventKeyChange:
    """Make a key if it is wanted, or take one that was made elsewhere. Raises `InputError`."""
    keys, now = _parse_present(present), time.time()
    if given is not None:
        others = [key for key in add_new_key(keys, now, OVERLAP_DAYS)[:-1] if key.number != given.number]
        return EventKeyChange(text=_format(sorted((*others, given), key=lambda key: key.number)))
    if not wanted:
        return EventKeyChange()
    keys = add_new_key(keys, now, OVERLAP_DAYS)
    return EventKeyChange(text=_format(keys), made=keys[-1].to_line())


def change_on_bstore(given: EventKey | None) -> EventKeyChange:
    return EventKeyChange(text=_format([given]) if given else "")


def _parse_present(text: str) -> list[EventKey]:
    try:
        return parse_event_keys(text.splitlines())
    except ValueError as error:
        raise InputError(f"{PATH}: {error}") from None


def _format(keys: Iterable[EventKey]) -> str:
    return "".join(f"{key.to_line()}\n" for key in keys)
