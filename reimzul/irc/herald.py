# SPDX-License-Identifier: Apache-2.0
"""The loop of reimzul-irc: takes what the broker delivered, says it at a bearable pace, then tells the broker.

IRC away, the broker keeps what it publishes; the broker away, we stay in our channels. What was under way when IRC went
is said again.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Optional

from reimzul.core.config import Settings
from reimzul.core.daemon import Stop, handle_signals
from reimzul.core.errors import ConfigError
from reimzul.core.sdnotify import SdNotify
from reimzul.irc.chat import Chat, ChatGone
from reimzul.irc.inbox import Inbox, Receipt
from reimzul.irc.line import Speaker
from reimzul.irc.pace import Pace
from reimzul.irc.pauses import Pauses
from reimzul.irc.subscription import Subscription

log = logging.getLogger(__name__)

#: Seconds one turn waits for the server at the most; how late a new result is seen.
TURN = 0.2


class Herald:
    """Says results until told to stop."""

    def __init__(self, settings: Settings, stop: Optional[Stop] = None) -> None:
        """Raises `ConfigError`."""
        self.stop = stop or Stop()
        self.service = SdNotify()
        self._irc = settings.irc
        self._speaker = Speaker(settings=settings.irc, rows=settings.irc_channels)
        self._channels = dict.fromkeys(
            [*settings.irc.channels, *(name for row in settings.irc_channels.by_name.values() for name in row)]
        )
        if not self._channels:
            raise ConfigError("[irc] channels: is empty, and so is [irc_channels]: nothing would be said anywhere")
        self._password = _password(settings.irc.password_file)
        self._inbox = Inbox()
        self._subscription = Subscription(settings.mqtt, settings.irc, self._hear)
        self._chat: Optional[Chat] = None
        self._under_way: dict[str, str] = {}  #: what a PING is called -> the name of what was said before it
        self._count = 0
        self._pauses = Pauses()
        self._pace = Pace(settings.irc.seconds_a_line, time.monotonic())

    def run(self) -> None:
        """Until told to stop."""
        with handle_signals(self.stop):
            self._subscription.start()
            self.service.announce_ready("connecting to IRC")
            while not self.stop.requested:
                self.service.ping()
                try:
                    self._turn()
                except ChatGone as gone:
                    self._chat = None
                    self._under_way.clear()
                    pause = self._pauses.failed(time.monotonic())
                    log.warning("%s; again in %g s", gone, pause)
                    self.service.set_status(f"{gone}; tried again")
        self.service.announce_stop()
        self._subscription.close()
        if self._chat is not None:
            self._chat.close()
        log.info("stopped")

    def _turn(self) -> None:
        """One look at everything. Raises `ChatGone`."""
        if self._chat is None:
            if not self._pauses.due(time.monotonic()):
                self.stop.now.wait(TURN)
                return
            self._chat = Chat(self._irc, self._channels, self._password)
        self._chat.turn(TURN)
        for token in self._chat.heard:
            if token in self._under_way:
                self._inbox.done(self._under_way.pop(token))
        self._chat.heard.clear()
        if self._chat.ready:
            self._pauses.worked()
            self.service.set_status(f"in {', '.join(self._channels)}")
            self._say(self._chat)

    def _say(self, chat: Chat) -> None:
        held: set[str] = set()
        while self._pace.ready(time.monotonic()):
            saying = self._inbox.next({*self._under_way.values(), *held})
            if saying is None:
                return
            joined = chat.joined(saying.channels)
            if not joined and chat.hopes(saying.channels):
                held.add(saying.name)
                continue
            if not joined:
                log.error("not said, for no channel of it lets us in: %s", saying.line)
            self._count += 1
            token = f"said-{self._count}"
            self._under_way[token] = saying.name
            self._pace.spend(time.monotonic(), len(joined) + 1)  # the PING is a line too
            chat.say(token, joined, saying.line)

    def _hear(self, payload: bytes, receipt: Receipt) -> None:
        """One message of the broker; in another thread."""
        saying = self._speaker.saying(payload)
        if saying is None or not saying.channels:
            receipt()
            return
        self._inbox.arrive(saying, receipt)


def _password(file: Optional[Path]) -> str:
    try:
        return "" if file is None else file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[irc] password_file: {file} cannot be read: {error}") from error
