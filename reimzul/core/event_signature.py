# SPDX-License-Identifier: Apache-2.0
"""Signatures of the events that only bstore may announce: an HMAC by a key that no builder has.

beanstalkd has no users: whoever has a builder's key can put any event into `notify`. repogen signs what outranks other
results, and the notifier verifies it. The key file (`[farm] event_keys`) has a line `number:hex` for each key, and
`number:hex:YYYY-MM-DD` for one that is valid until the end of that day (UTC). Without a key file nothing is signed, and
nothing is verified.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import attr

from reimzul.core.errors import ConfigError, describe_os_error, translate_errors
from reimzul.core.json_message import encode
from reimzul.core.manifest import sha256_of
from reimzul.core.message import BuildEvent, Event, Status
from reimzul.core.store_paths import MANIFEST

#: What repogen alone announces, and what outranks other results. `Cancelled` outranks some too, but workers announce it
#: as well, and a builder's key can set the cancel flag of any build.
SIGNED = (Status.PUBLISHED, Status.REJECTED)
#: A signature covers these fields of an event; no later version may leave one out.
_COVERED = ("status", "build_id", "arch", "attempt", "target", "place", "manifest_sha256")
#: A line of the key file.
EVENT_KEY = re.compile(r"([1-9][0-9]{0,8}):((?:[0-9a-fA-F]{2}){32})(?::([0-9]{4}-[0-9]{2}-[0-9]{2}))?\Z")
_DAY = "%Y-%m-%d"


@attr.frozen(kw_only=True)
class EventKey:
    number: int
    secret: bytes = attr.field(repr=False)
    until: str = ""  #: the last day that it is valid on, YYYY-MM-DD in UTC; "" if it has no end

    def is_valid_at(self, now: float) -> bool:
        return not self.until or time.strftime(_DAY, time.gmtime(now)) <= self.until

    def sign(self, event: BuildEvent) -> str:
        """The event's signature, `number:hex`."""
        text = encode({name: getattr(event, name) for name in _COVERED})
        return f"{self.number}:{hmac.new(self.secret, text, hashlib.sha256).hexdigest()}"

    def to_line(self) -> str:
        return f"{self.number}:{self.secret.hex()}{f':{self.until}' if self.until else ''}"


@attr.frozen
class EventKeys:
    """The keys of a host; none: signing is off."""

    keys: Sequence[EventKey] = ()

    @classmethod
    def load(cls, path: Path | None) -> EventKeys:
        """Read a key file; None is no file. Raises `ConfigError`."""
        if path is None:
            return cls()
        about = f"[farm] event_keys: {path}"
        with translate_errors({
            OSError: lambda error: ConfigError(f"{about}: {describe_os_error(error)}"),
            ValueError: lambda error: ConfigError(f"{about}: {error}"),
        }):  # fmt: skip
            keys = parse_event_keys(path.read_text(encoding="ascii", errors="replace").splitlines())
        if not keys:
            raise ConfigError(f"{about}: has no key; `reimzul setup controller` makes one")
        return cls(keys)

    def sign(self, event: BuildEvent, folder: Path | None = None) -> BuildEvent:
        """Sign an event by the newest key, with the manifest in its folder. Raises `OSError`."""
        if not self.keys:
            return event
        checksum = sha256_of(folder / MANIFEST) if folder else ""
        covered = attr.evolve(event, manifest_sha256=checksum)
        return attr.evolve(covered, signature=max(self.keys, key=lambda key: key.number).sign(covered))

    def verify(self, event: Event, now: float) -> Event:
        """Return the event with `claimed` set by what its signature is worth, whatever its sender has set."""
        if not isinstance(event, BuildEvent):
            return event
        claimed = not self._is_signed(event, now) if self.keys and event.status in SIGNED else None
        return event if event.claimed is claimed else attr.evolve(event, claimed=claimed)

    def _is_signed(self, event: BuildEvent, now: float) -> bool:
        return any(hmac.compare_digest(key.sign(event), event.signature) for key in self.keys if key.is_valid_at(now))


#: Signing is off.
NO_KEYS = EventKeys()


def parse_event_keys(lines: Iterable[str]) -> list[EventKey]:
    """Read the lines of a key file; empty ones are skipped. Raises `ValueError`, which never has a part of a key."""
    keys: dict[int, EventKey] = {}
    for count, line in enumerate(lines, 1):
        found = EVENT_KEY.match(line.strip())
        if not line.strip():
            continue
        if not found:
            raise ValueError(f"line {count} is not of the form number:hex or number:hex:YYYY-MM-DD, with 64 hex digits")
        number, until = int(found[1]), found[3] or ""
        if number in keys:
            raise ValueError(f"line {count} is a second key of number {number}")
        keys[number] = EventKey(number=number, secret=bytes.fromhex(found[2]), until=until)
    return list(keys.values())


def add_new_key(keys: Sequence[EventKey], now: float, days: int) -> list[EventKey]:
    """Make a key of the next number; those there are end after some days, and those that have ended are dropped."""
    end = time.strftime(_DAY, time.gmtime(now + days * 86400))
    valid = [attr.evolve(key, until=key.until or end) for key in keys if key.is_valid_at(now)]
    number = max((key.number for key in keys), default=0) + 1
    return [*valid, EventKey(number=number, secret=secrets.token_bytes(32))]
