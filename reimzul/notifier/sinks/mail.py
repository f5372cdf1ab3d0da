# SPDX-License-Identifier: Apache-2.0
"""Mail: `Success`, `Failed` and `Rejected`, but not of scratch builds, to an arch's recipients and the submitter.

A mail is told when the server has taken it for everybody it can be for. What the server puts off is owed and holds back
no other mail; what it refuses for good is said in the daemon's log and owed no more. Where a connection breaks before
the server's last word on a mail, nobody knows whether it took it: it goes out again, under the same Message-ID. That,
and a notifier killed at that moment, are the only ways to a double.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from reimzul.core.config import MailSettings, Settings
from reimzul.core.errors import ConfigError
from reimzul.core.message import BuilderEvent, BuildEvent, Event, Refusal, Status
from reimzul.core.store_paths import StoreUrls
from reimzul.history.result_rules import Notification
from reimzul.notifier.sinks.base import Sink, SinkAway
from reimzul.notifier.sinks.rcpts import Recipients

if TYPE_CHECKING:  # they bring the standard library's mail and SMTP: 2 MiB for who sends none
    from reimzul.notifier.sinks.mail_book import Book
    from reimzul.notifier.sinks.smtp import Posted, Session

log = logging.getLogger(__name__)

MAILED = (Status.SUCCESS, Status.FAILED, Status.REJECTED)
#: How many mails in a row may break their connection before the server counts as away. One mail that a server cannot
#: bear must not keep the others.
BREAKS = 3


class MailSink(Sink):
    """Sends mails, many on one connection, which is left when there is no more to send."""

    name = "mail"

    def __init__(self, settings: Settings) -> None:
        from reimzul.notifier.sinks.mail_text import Writer

        self._settings: MailSettings = settings.mail
        self._ledger: Path = settings.notifier.ledger
        urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
        self._writer = Writer(sender=settings.mail.mail_from, urls=urls)
        self._recipients = Recipients(settings.mail, settings.mail_rcpts)
        self._session: Optional[Session] = None
        self._book: Optional[Book] = None

    @classmethod
    def of(cls, settings: Settings) -> Optional[MailSink]:
        """Where [mail] notifications is true."""
        if not settings.mail.notifications:
            return None
        for name in ("password_file", "ca_cert"):
            file: Optional[Path] = getattr(settings.mail, name)
            if file is not None and not file.is_file():
                raise ConfigError(f"[mail] {name}: {file} is not there")
        return cls(settings)

    def wants(self, event: Event) -> bool:
        """Results that decide something for a package, and what becomes of a builder."""
        if isinstance(event, BuilderEvent):
            return True
        return isinstance(event, BuildEvent) and event.status in MAILED and not event.scratch

    def tell(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        """One after the other, what was put off before behind what is new."""
        breaks = 0
        try:
            for notice in sorted(notices, key=lambda each: each.event.owed.get(self.name, 0)):
                try:
                    done = self._tell(notice)
                    breaks = 0
                except SinkAway as away:
                    breaks += 1
                    if self._session is None or breaks == BREAKS:
                        raise
                    log.warning("%s of %s is not mailed yet: %s", notice.word, notice.event.key, away)
                    self._leave()
                    continue
                if done:
                    yield notice
        finally:
            self._leave()

    def close(self) -> None:
        """Leave the server, and the book."""
        self._leave()
        if self._book is not None:
            self._book.close()
            self._book = None

    def _tell(self, notice: Notification) -> bool:
        """Whether nothing is left to do for it. Raises `SinkAway`."""
        event = notice.event
        if isinstance(event, Refusal):
            return True
        from reimzul.notifier.sinks.mail_book import Book

        self._book = book = self._book or Book(self._ledger)
        book.sweep()
        recipients = self._recipients.of(event)
        if not recipients or self._is_no_change(notice, book):
            return True
        have = book.have(notice)
        lacking = [each for each in recipients if each not in have]
        if not lacking:
            return True
        posted = self._connected().send(self._settings.mail_from, lacking, self._writer.mail(event, recipients))
        self._say(notice, posted)
        # each by itself: what is told is noted a batch at a time, and we may be ended in the middle of one
        book.given(notice, [each for each in lacking if each not in posted.later])
        return not posted.later

    def _is_no_change(self, notice: Notification, book: Book) -> bool:
        event = notice.event
        return self._settings.only_on_change and isinstance(event, BuildEvent) and not book.changed(notice, event)

    def _say(self, notice: Notification, posted: Posted) -> None:
        about = (notice.word, notice.event.key)
        for recipient, words in posted.never.items():
            log.error("%s of %s is not mailed to %s, who is refused: %s", *about, recipient, words)
        for recipient, words in posted.later.items():
            log.info("%s of %s is not mailed to %s yet: %s", *about, recipient, words)

    def _connected(self) -> Session:
        from reimzul.notifier.sinks.smtp import Session

        self._session = self._session or Session(self._settings)
        return self._session

    def _leave(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
