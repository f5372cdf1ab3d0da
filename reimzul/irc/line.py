# SPDX-License-Identifier: Apache-2.0
"""What is said of a result, and where. Pure.

A payload is data from outside: nothing of it can end a line, begin a command, colour it or ring a bell.
"""

from __future__ import annotations

import json
from typing import Any, Optional

import attr

from reimzul.core import validators
from reimzul.core.config import IrcChannelsSettings, IrcSettings

#: The most bytes of what is said: a line of IRC has 512, its sender's name and the channel's among them.
LONGEST = 380
#: mIRC's colours: green, red, and back to what it was.
_GREEN, _RED, _PLAIN = "\x0303", "\x0304", "\x0f"
_KEYS = ("status", "srpm", "arch", "target", "submitter", "reason", "url")


@attr.frozen(kw_only=True)
class Saying:
    """A line and where it is to be said; `name` is the same where the same news comes twice."""

    name: str
    line: str
    channels: tuple[str, ...]


@attr.frozen(kw_only=True)
class Speaker:
    """How results are said, as the settings have it."""

    settings: IrcSettings
    rows: IrcChannelsSettings

    def saying(self, payload: bytes) -> Optional[Saying]:
        """What a payload has to say; None where it is no result."""
        try:
            raw = json.loads(payload.decode("utf-8"))
        except (ValueError, RecursionError):
            return None
        if not isinstance(raw, dict) or not all(isinstance(raw.get(key), str) for key in ("status", "srpm", "arch")):
            return None
        said = {key: _clean(raw.get(key)) for key in _KEYS}
        name = raw.get("id")
        return Saying(
            name=name if isinstance(name, str) else "/".join(said.values()),
            line=self._line(said),
            channels=self._channels(said["target"], said["arch"]),
        )

    def _line(self, said: dict[str, str]) -> str:
        status = said["status"]
        if self.settings.colours:
            status = f"{_GREEN if status == 'Success' else _RED}{status}{_PLAIN}"
        reason = f", {said['reason']}" if said["reason"] else ""
        by = f" ({said['submitter']})" if said["submitter"] else ""
        url = f" {said['url']}" if said["url"] else ""
        # half a URL leads nowhere: what is too long is cut before it
        words = f"{status}: {said['srpm']} on {said['arch']} for {said['target']}{by}{reason}"
        return _cut(_cut(words, LONGEST - len(url.encode("utf-8"))) + url, LONGEST)

    def _channels(self, target: str, arch: str) -> tuple[str, ...]:
        """Those of the lines that are about it; where there are none, those for all the rest."""
        target, arch = target.lower(), arch.lower()
        whole = target[: -len(arch) - 1] if target.endswith(f".{arch}") else target
        named = [channel for name in (target, whole, arch) for channel in self.rows.by_name.get(name, ())]
        return tuple(dict.fromkeys(named)) or self.settings.channels


def _clean(value: Any) -> str:
    return validators.line(250)(value) if isinstance(value, str) else ""


def _cut(line: str, longest: int) -> str:
    encoded = line.encode("utf-8")
    return line if len(encoded) <= longest else encoded[: max(0, longest - 3)].decode("utf-8", "ignore") + "…"
