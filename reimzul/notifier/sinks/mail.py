# SPDX-License-Identifier: Apache-2.0
"""Mail: `Success`, `Failed` and `Rejected`, but not of scratch builds, to an arch's recipients and the submitter.

A mail is delivered when the server has taken it for all its recipients. A recipient that the server puts off is tried
again, and holds up no other mail; one that it refuses for good is logged and not tried again. If a connection breaks
before the server's last reply about a mail, nobody knows whether the server took it: the mail is sent again under the
same Message-ID. That, and a notifier killed at that moment, are the only ways to a duplicate.

The parts: `MailSink` sends, `MailState` remembers who has which mail, `Recipients` and `MailWriter` make a mail.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from email.header import Header
from email.quoprimime import body_encode
from email.utils import formatdate
from pathlib import Path
from typing import Optional

import attr

from reimzul.core import validators
from reimzul.core.errors import ConfigError
from reimzul.core.message import NAMESPACE, BuilderEvent, BuildEvent, Event, Refusal, Status
from reimzul.core.retry import LogThrottle
from reimzul.core.setting_parsers import parse_address
from reimzul.core.settings import MailRcptsSettings, MailSettings, Settings
from reimzul.core.smtp import SendResult, SmtpSession, SmtpUnavailable
from reimzul.core.sqlite import open_database
from reimzul.core.store_paths import StoreUrls, package_folder
from reimzul.history.result_rules import Notification
from reimzul.notifier.outbox import KEEP_SECONDS, write_transaction
from reimzul.notifier.sinks.base import Sink, SinkUnavailable

log = logging.getLogger(__name__)

MAILED_STATUSES = (Status.SUCCESS, Status.FAILED, Status.REJECTED)
#: How many mails in a row may break their connection before the server counts as unavailable: one mail that a server
#: cannot process must not hold up the others.
MAX_BREAKS = 3
#: Seconds between two sweeps of the state.
SWEEP_SECONDS = 86400.0
#: The longest line that goes as it is: SMTP's limit is 998.
MAX_LINE_LENGTH = 900
#: How many lines of the logs' ends are shown, as in the original.
ROOT_LOG_LINES, BUILD_LOG_LINES = 30, 80
_NO_LOG = "(its end did not come with the result: look at the logs themselves)"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS mailed (
    key TEXT NOT NULL, word TEXT NOT NULL, recipient TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (key, word, recipient)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS change (
    key TEXT NOT NULL, word TEXT NOT NULL, changed INTEGER NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (key, word)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcome (
    package TEXT NOT NULL, target TEXT NOT NULL, arch TEXT NOT NULL, good INTEGER NOT NULL, at REAL NOT NULL,
    timestamp TEXT NOT NULL DEFAULT '', PRIMARY KEY (package, target, arch)
) WITHOUT ROWID;
"""
_TABLES = ("mailed", "change", "outcome")


class MailSink(Sink):
    name = "mail"

    def __init__(self, settings: Settings) -> None:
        self._settings: MailSettings = settings.mail
        self._outbox: Path = settings.notifier.ledger
        urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
        self._writer = MailWriter(sender=settings.mail.mail_from, urls=urls)
        self._recipients = Recipients(settings.mail, settings.mail_rcpts)
        self._session: Optional[SmtpSession] = None
        self._state: Optional[MailState] = None
        self._broken: set[tuple[str, str]] = set()  #: mails that broke their connection

    @classmethod
    def from_settings(cls, settings: Settings) -> Optional[MailSink]:
        if not settings.mail.notifications:
            return None
        for name in ("password_file", "ca_cert"):
            file: Optional[Path] = getattr(settings.mail, name)
            if file is not None and not file.is_file():
                raise ConfigError(f"[mail] {name}: {file} does not exist")
        return cls(settings)

    def accepts(self, event: Event) -> bool:
        if isinstance(event, BuilderEvent):
            return True
        return isinstance(event, BuildEvent) and event.status in MAILED_STATUSES and not event.scratch

    def deliver(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        """Send one mail after the other; those that broke a connection before come last."""
        breaks = 0
        try:
            for notice in sorted(notices, key=lambda each: each.name in self._broken):
                try:
                    done = self._send(notice)
                except SmtpUnavailable as error:
                    if self._session is None:
                        raise SinkUnavailable(str(error)) from error
                    breaks += 1
                    self._broken.add(notice.name)
                    if breaks == MAX_BREAKS:
                        raise SinkUnavailable(str(error)) from error
                    log.warning("%s of %s is not mailed yet: %s", notice.word, notice.event.key, error)
                    self._disconnect()
                    continue
                breaks = 0
                if done:
                    self._broken.discard(notice.name)
                    yield notice
        finally:
            self._disconnect()

    def close(self) -> None:
        """End the session, and close the state's file."""
        self._disconnect()
        if self._state is not None:
            self._state.close()
            self._state = None

    def _send(self, notice: Notification) -> bool:
        """Send a mail; return whether nothing is left to do for it. Raises `SinkUnavailable`, `SmtpUnavailable`."""
        event = notice.event
        if isinstance(event, Refusal):
            return True
        self._state = state = self._state or MailState(self._outbox)
        state.sweep()
        recipients = self._recipients.addresses_for(event)
        if not recipients or self._is_no_change(notice, state):
            return True
        sent_to = state.sent_to(notice)
        lacking = [each for each in recipients if each not in sent_to]
        if not lacking:
            return True
        content = self._writer.format_mail(event, recipients)
        result = self._connect().send(self._settings.mail_from, lacking, content)
        self._log_result(notice, result)
        # after each mail: the outbox records deliveries by the batch, and we may be killed in the middle of one
        state.mark_sent(notice, [each for each in lacking if each not in result.deferred])
        return not result.deferred

    def _is_no_change(self, notice: Notification, state: MailState) -> bool:
        event = notice.event
        return self._settings.only_on_change and isinstance(event, BuildEvent) and not state.is_change(notice, event)

    def _log_result(self, notice: Notification, result: SendResult) -> None:
        about = (notice.word, notice.event.key)
        for recipient, reply in result.refused.items():
            log.error("%s of %s is not mailed to %s, who is refused: %s", *about, recipient, reply)
        for recipient, reply in result.deferred.items():
            log.info("%s of %s is not mailed to %s yet: %s", *about, recipient, reply)

    def _connect(self) -> SmtpSession:
        self._session = self._session or SmtpSession(self._settings)
        return self._session

    def _disconnect(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


class MailState:
    """Remembers, in the outbox's file, who has which mail, and the last result of each package for `only_on_change`.

    What was decided about an event stays decided, however often its mail is tried. A row is dropped as late as those of
    the outbox: a package not built for that time is mailed about as a new one. All methods raise `SinkUnavailable`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sweep_due = LogThrottle(SWEEP_SECONDS)
        with self._translating_errors():
            self._db = open_database(path, _SCHEMA, synchronous="NORMAL")
            # in a table from before results had their build's timestamp, any timestamp is newer
            if "timestamp" not in {row[1] for row in self._db.execute("PRAGMA table_info(outcome)")}:
                self._db.execute("ALTER TABLE outcome ADD COLUMN timestamp TEXT NOT NULL DEFAULT ''")

    def close(self) -> None:
        self._db.close()

    def sent_to(self, notice: Notification) -> set[str]:
        """Return the recipients who have this mail already."""
        with self._translating_errors():
            found = self._db.execute("SELECT recipient FROM mailed WHERE key = ? AND word = ?", notice.name)
            return {recipient for (recipient,) in found}

    def mark_sent(self, notice: Notification, recipients: Iterable[str]) -> None:
        rows = [(*notice.name, recipient, time.time()) for recipient in recipients]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO mailed VALUES (?, ?, ?, ?)", rows)

    def is_change(self, notice: Notification, event: BuildEvent) -> bool:
        """Whether this result differs from the package's last; the first result of a package does.

        A late result, of a build that was submitted before that of the last result, changes nothing.
        """
        with self._transaction():
            decided = self._fetch_number("SELECT changed FROM change WHERE key = ? AND word = ?", *notice.name)
            if decided is None:
                decided = self._decide(event)
                self._db.execute("INSERT INTO change VALUES (?, ?, ?, ?)", (*notice.name, decided, time.time()))
        return bool(decided)

    def _decide(self, event: BuildEvent) -> int:
        """Compare a result with the package's last, and keep it as the last if it is the newest."""
        good, about = event.status == Status.SUCCESS, package_key(event)
        of = "package = ? AND target = ? AND arch = ?"
        if self._fetch_number(f"SELECT COUNT(*) FROM outcome WHERE {of} AND timestamp > ?", *about, event.timestamp):
            return 0
        before = self._fetch_number(f"SELECT good FROM outcome WHERE {of}", *about)
        row = (*about, good, time.time(), event.timestamp)
        self._db.execute("INSERT OR REPLACE INTO outcome VALUES (?, ?, ?, ?, ?, ?)", row)
        return int(before is None or bool(before) != good)

    def sweep(self) -> None:
        if self._sweep_due.is_due():
            with self._transaction():
                for table in _TABLES:
                    self._db.execute(f"DELETE FROM {table} WHERE at < ?", (time.time() - KEEP_SECONDS,))

    def _fetch_number(self, query: str, *values: str) -> int | None:
        row = self._db.execute(query, values).fetchone()
        return None if row is None else int(row[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translating_errors(), write_transaction(self._db):
            yield

    @contextlib.contextmanager
    def _translating_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise SinkUnavailable(f"{self._path}: the state of mails cannot be recorded: {error}") from error


class Recipients:
    """The table of [mail_rcpts]. What it lacks is logged once."""

    def __init__(self, mail: MailSettings, rcpts: MailRcptsSettings) -> None:
        self._mail = mail
        self._by_arch = rcpts.arches
        self._logged: set[str] = set()

    def addresses_for(self, event: BuildEvent | BuilderEvent) -> list[str]:
        """Return the addresses for a result, each once; for a builder those of all its arches."""
        if isinstance(event, BuilderEvent):
            return list(dict.fromkeys(one for arch in event.arches for one in self._by_arch.get(arch, ())))
        if event.arch not in self._by_arch and event.arch not in self._logged:
            self._logged.add(event.arch)
            log.warning("[mail_rcpts] has no line for %s: its results are mailed to nobody there", event.arch)
        return list(dict.fromkeys([*self._by_arch.get(event.arch, ()), *self._submitter_address(event)]))

    def _submitter_address(self, event: BuildEvent) -> list[str]:
        if not self._mail.to_submitter:
            return []
        name = event.submitter if "@" in event.submitter else f"{event.submitter}@{self._mail.submitter_domain}"
        try:
            return [parse_address(name)]
        except ValueError:
            if event.submitter not in self._logged:
                self._logged.add(event.submitter)
                log.warning("%s is no mail address: the submitter is not mailed", validators.quoted(name))
            return []


@attr.frozen(kw_only=True)
class MailWriter:
    """Formats mails. The same event always makes the same mail, so that a duplicate can be recognised.

    The text is the original's, after the first real error. The headers thread the mails of a package on one arch and
    target, and let a filter sort them.
    """

    sender: str
    urls: StoreUrls

    def format_mail(self, event: BuildEvent | BuilderEvent, recipients: Sequence[str]) -> bytes:
        """Return the mail about a result, or about a builder, as it goes over the wire."""
        text = builder_body(event) if isinstance(event, BuilderEvent) else self.body(event)
        plain = text.isascii() and max(map(len, text.splitlines())) <= MAX_LINE_LENGTH
        headers = [
            *self._headers(event, recipients),
            ("MIME-Version", "1.0"),
            ("Content-Type", 'text/plain; charset="utf-8"'),
            ("Content-Transfer-Encoding", "7bit" if plain else "quoted-printable"),
        ]
        content = text if plain else body_encode(text.encode().decode("latin-1"))
        return "\r\n".join([*(f"{name}: {value}" for name, value in headers), "", *content.splitlines(), ""]).encode()

    def _headers(self, event: BuildEvent | BuilderEvent, recipients: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield the headers. Their fields were checked to be ASCII without line breaks, except for the submitter."""
        yield "From", self.sender
        yield "To", ",\r\n ".join(recipients)
        yield "Subject", subject(event)
        yield "Date", formatdate(event.at or None)
        yield "Message-ID", self._id(f"{event.key}.{event.status}")
        yield "In-Reply-To", self._id(thread_id(event))
        yield "References", self._id(thread_id(event))
        yield "Auto-Submitted", "auto-generated"
        for name in ("status", "pkgname", "target", "arch", "submitter", "build_id", "builder"):
            if getattr(event, name, ""):
                yield f"X-Reimzul-{name.replace('_', '-').title()}", _encode_header(getattr(event, name))

    def body(self, event: BuildEvent) -> str:
        """Its text: for a failure what went wrong first, then who, what and where, then the logs' ends."""
        failed = event.status != Status.SUCCESS
        parts = [*(_failure_lines(event) if failed else ()), *self._facts(event), *_log_lines(event)]
        return "\n".join(parts) + "\n"

    def _facts(self, event: BuildEvent) -> list[str]:
        facts = [
            "#### Reimzul build results #####",
            f" Builder      : {event.builder_fqdn}",
            f" Package      : {event.pkgname} {event.evr}".rstrip(),
            f" Timestamp    : {event.timestamp}",
            f" Submitted by : {event.submitter}",
            f" Status       : {event.status}",
        ]
        skipped = [f" Not built    : {arch}, {why}" for arch, why in sorted(event.skipped.items())]
        return [*facts, *skipped, f" Full logs available at {self._logs_url(event)}", ""]

    def _logs_url(self, event: BuildEvent) -> str:
        """Return where the logs are; a worker of the original does not say it, but uploads to a known folder."""
        if event.url or not (event.pkgname and event.evr and event.timestamp):
            return event.url or "(nowhere that is known)"
        place = f"repo/{event.target}/{event.pkgname}/{event.timestamp}/{package_folder(event.evr, event.arch)}"
        return self.urls.place(place)

    def _id(self, left: str) -> str:
        _, _, domain = self.sender.partition("@")
        return f"<{left}@{domain or 'localhost'}>"


def _encode_header(value: str) -> str:
    """Encode a header's value that is not ASCII, or only looks encoded, as RFC 2047 has it."""
    plain = value.isascii() and "=?" not in value and value == value.strip()
    return value if plain else Header(value, "utf-8").encode(linesep="\r\n")


def builder_body(event: BuilderEvent) -> str:
    facts = [f"{event.builder}: {event.status}", "", event.reason, ""]
    if event.status == Status.QUARANTINED:
        facts += [f"It takes no more jobs. `reimzul resume {event.builder}` on the controller lets it back at once."]
    return "\n".join(facts) + "\n"


def subject(event: BuildEvent | BuilderEvent) -> str:
    if isinstance(event, BuilderEvent):
        return f"[reimzul] Builder {event.builder} : {event.status}"
    return (
        f"[reimzul] Build task {event.timestamp} {event.srpm} (arch: {event.arch}) target {event.target} "
        f": {event.status}"
    )


def thread_id(event: BuildEvent | BuilderEvent) -> str:
    """Return the id that all mails of a package on an arch and target, or of a builder, refer to; no mail has it."""
    if isinstance(event, BuilderEvent):
        return f"thread-{uuid.uuid5(NAMESPACE, event.builder).hex}"
    return f"thread-{uuid.uuid5(NAMESPACE, '/'.join(package_key(event))).hex}"


def package_key(event: BuildEvent) -> tuple[str, str, str]:
    """Return what names a package on one arch and target, whose results are compared with each other."""
    return (event.pkgname or event.srpm, event.target, event.arch)


def _failure_lines(event: BuildEvent) -> list[str]:
    why = [f"{event.srpm} for {event.arch}: {event.reason or event.status}", ""]
    return [*why, *event.first_error.splitlines(), ""] if event.first_error else why


def _log_lines(event: BuildEvent) -> list[str]:
    return [
        "#### Mock output logs ####",
        "    ========== Mock root log ============",
        *_last_lines(event.root_log, ROOT_LOG_LINES),
        "",
        "    ========== Mock build log ==========",
        *_last_lines(event.build_log, BUILD_LOG_LINES),
    ]


def _last_lines(log: str, lines: int) -> list[str]:
    return log.splitlines()[-lines:] or [_NO_LOG]
