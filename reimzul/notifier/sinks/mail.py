# SPDX-License-Identifier: Apache-2.0
"""Mail: `Success`, `Failed` and `Rejected`, but not of scratch builds, to an arch's recipients and the submitter.

Builds of a batch are not mailed about one by one: there is a mail for each new cause of failures, and one when the
batch is over, rests or has paused itself.

A mail is delivered when the server has taken it for all its recipients. A recipient that the server puts off is tried
again, and holds up no other mail; one that it refuses for good is logged and not tried again. If a connection breaks
before the server's last reply about a mail, nobody knows whether the server took it: the mail is sent again under the
same Message-ID. That, and a notifier killed at that moment, are the only ways to a duplicate.

The parts: `MailSink` sends, `MailState` remembers who has which mail, `Recipients` and `MailWriter` make a mail.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from email.header import Header
from email.quoprimime import body_encode
from email.utils import formatdate
from pathlib import Path
from typing import Optional, Union

import attr

from reimzul.core import validators
from reimzul.core.batch_event import BatchEvent
from reimzul.core.errors import ConfigError
from reimzul.core.formatting import format_time, format_timestamp
from reimzul.core.links import NO_LINKS, LinkRoots, LinkSource, describe_folder, relink
from reimzul.core.message import NAMESPACE, BuilderEvent, BuildEvent, Event, Refusal, Status
from reimzul.core.package_change import describe_change
from reimzul.core.retry import LogThrottle
from reimzul.core.setting_parsers import parse_address
from reimzul.core.settings import MailRcptsSettings, MailSettings, Settings
from reimzul.core.smtp import SendResult, SmtpSession, SmtpUnavailable
from reimzul.core.sqlite import open_database
from reimzul.history.result_rules import Notification
from reimzul.notifier.delivery import Sink, SinkUnavailable
from reimzul.notifier.outbox import KEEP_SECONDS, translating_errors, write_lock, write_transaction

log = logging.getLogger(__name__)

#: The events that are mailed about.
MailedEvent = Union[BuildEvent, BuilderEvent, BatchEvent]
MAILED_STATUSES = (Status.SUCCESS, Status.FAILED, Status.REJECTED)
#: How many mails in a row may break their connection before the server counts as unavailable: one mail that a server
#: cannot process must not hold up the others.
MAX_BREAKS = 3
#: The longest line that goes as it is: SMTP's limit is 998.
MAX_LINE_LENGTH = 900
#: The longest subject: a reason may have 500 characters.
MAX_SUBJECT_LENGTH = 160
#: How many lines of the logs' ends are shown, as in the original.
ROOT_LOG_LINES, BUILD_LOG_LINES = 30, 80
#: Fields that are headers too, by which a filter can sort.
_OWN_HEADERS = {
    name: f"X-Reimzul-{name.replace('_', '-').title()}"
    for name in ("status", "pkgname", "target", "arch", "submitter", "build_id", "builder", "batch")
}

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
#: Why a mail cannot be sent now.
_FAULT = "the state of mails cannot be recorded"


class MailSink(Sink):
    name = "mail"

    def __init__(self, settings: Settings) -> None:
        self._settings: MailSettings = settings.mail
        self._outbox: Path = settings.notifier.ledger
        self._links = LinkSource(settings)
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
        if isinstance(event, (BuilderEvent, BatchEvent)):
            return True
        if not isinstance(event, BuildEvent) or event.claimed:
            return False
        return event.status in MAILED_STATUSES and not event.scratch and not event.batch

    def deliver(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        """Send one mail after the other; those that broke a connection before come last."""
        breaks = 0
        try:
            for notice in sorted(notices, key=lambda each: each.name in self._broken):
                try:
                    done = self._send(notice)
                except SmtpUnavailable as error:
                    if self._session is not None:
                        breaks += 1
                        self._broken.add(notice.name)
                    if self._session is None or breaks == MAX_BREAKS:
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
        self._disconnect()
        if self._state is not None:
            self._state.close()
            self._state = None

    def _send(self, notice: Notification) -> bool:
        """Send a mail; return whether nothing is left to do for it. Raises `RetryLater`, `SmtpUnavailable`."""
        event = notice.event
        assert not isinstance(event, Refusal), "`accepts` takes none"
        self._state = state = self._state or MailState(self._outbox)
        state.sweep()
        recipients = self._recipients.addresses_for(event)
        if self._settings.only_on_change and recipients and isinstance(event, BuildEvent):
            recipients = recipients if state.is_change(notice, event) else []
        sent_to = state.sent_to(notice) if recipients else set()
        lacking = [each for each in recipients if each not in sent_to]
        if not lacking:
            return True
        writer = MailWriter(sender=self._settings.mail_from, roots=self._links.get())
        content = writer.format_mail(event, recipients)
        self._session = self._session or SmtpSession(self._settings)
        result = self._session.send(self._settings.mail_from, lacking, content)
        self._log_result(notice, result)
        # after each mail: the outbox records deliveries by the batch, and we may be killed in the middle of one
        state.mark_sent(notice, [each for each in lacking if each not in result.deferred])
        return not result.deferred

    def _log_result(self, notice: Notification, result: SendResult) -> None:
        about = (notice.word, notice.event.key)
        for recipient, reply in result.refused.items():
            log.error("%s of %s is not mailed to %s, who is refused: %s", *about, recipient, reply)
        for recipient, reply in result.deferred.items():
            log.info("%s of %s is not mailed to %s yet: %s", *about, recipient, reply)

    def _disconnect(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


class MailState:
    """Remembers, in the outbox's file, who has which mail, and the last result of each package for `only_on_change`.

    What was decided about an event stays decided, however often its mail is tried. A row is dropped as late as those of
    the outbox: a package not built for that time is mailed about as a new one. All methods raise `RetryLater`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sweep_due = LogThrottle(seconds=86400.0)
        with translating_errors(path, _FAULT):
            self._db = open_database(path, _SCHEMA, synchronous="NORMAL")
            # in a table from before results had their build's timestamp, any timestamp is newer
            if "timestamp" not in {row[1] for row in self._db.execute("PRAGMA table_info(outcome)")}:
                self._db.execute("ALTER TABLE outcome ADD COLUMN timestamp TEXT NOT NULL DEFAULT ''")

    def close(self) -> None:
        self._db.close()

    def sent_to(self, notice: Notification) -> set[str]:
        query = "SELECT recipient FROM mailed WHERE key = ? AND word = ?"
        with translating_errors(self._path, _FAULT):
            return {recipient for (recipient,) in self._db.execute(query, notice.name)}

    def mark_sent(self, notice: Notification, recipients: Iterable[str]) -> None:
        rows = [(*notice.name, recipient, time.time()) for recipient in recipients]
        # each row by itself: all of these have the mail, and a transaction would be two statements more for each mail
        with translating_errors(self._path, _FAULT), write_lock:
            self._db.executemany("INSERT OR REPLACE INTO mailed VALUES (?, ?, ?, ?)", rows)

    def is_change(self, notice: Notification, event: BuildEvent) -> bool:
        """Whether this result differs from the package's last; the first result of a package does.

        A late result, of a build that was submitted before that of the last result, changes nothing.
        """
        with self._transaction():
            query = "SELECT changed FROM change WHERE key = ? AND word = ?"
            decided = self._db.execute(query, notice.name).fetchone() or (self._decide(event),)
            self._db.execute("INSERT OR IGNORE INTO change VALUES (?, ?, ?, ?)", (*notice.name, *decided, time.time()))
        return bool(decided[0])

    def _decide(self, event: BuildEvent) -> bool:
        """Compare a result with the package's last, and keep it as the last if it is the newest."""
        good, about = event.status == Status.SUCCESS, package_key(event)
        query = "SELECT good, timestamp FROM outcome WHERE package = ? AND target = ? AND arch = ?"
        last = self._db.execute(query, about).fetchone()
        if last and last[1] > event.timestamp:
            return False
        row = (*about, good, time.time(), event.timestamp)
        self._db.execute("INSERT OR REPLACE INTO outcome VALUES (?, ?, ?, ?, ?, ?)", row)
        return last is None or bool(last[0]) != good

    def sweep(self) -> None:
        if self._sweep_due.is_due():
            with self._transaction():
                for table in ("mailed", "change", "outcome"):
                    self._db.execute(f"DELETE FROM {table} WHERE at < ?", (time.time() - KEEP_SECONDS,))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with translating_errors(self._path, _FAULT), write_transaction(self._db):
            yield


class Recipients:
    """The table of [mail_rcpts]. What it lacks is logged once."""

    def __init__(self, mail: MailSettings, rcpts: MailRcptsSettings) -> None:
        self._mail = mail
        self._by_arch = rcpts.arches
        self._logged: set[str] = set()

    def addresses_for(self, event: MailedEvent) -> list[str]:
        """Return the addresses for a result, each once; for a builder or a batch those of all its arches."""
        if not isinstance(event, BuildEvent):
            addresses = [one for arch in event.arches for one in self._by_arch.get(arch, ())]
            submitter = self._submitter_address(event) if isinstance(event, BatchEvent) else ()
            return list(dict.fromkeys([*addresses, *submitter]))
        if event.arch not in self._by_arch and event.arch not in self._logged:
            self._logged.add(event.arch)
            log.warning("[mail_rcpts] has no line for %s: its results are mailed to nobody there", event.arch)
        return list(dict.fromkeys([*self._by_arch.get(event.arch, ()), *self._submitter_address(event)]))

    def _submitter_address(self, event: BuildEvent | BatchEvent) -> list[str]:
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

    The result, the first real error and what to do come first; then the original's text. The headers thread the mails
    of a package on one arch and target, and let a filter sort them.
    """

    sender: str
    roots: LinkRoots = NO_LINKS  #: what links begin with

    def format_mail(self, event: MailedEvent, recipients: Sequence[str]) -> bytes:
        if isinstance(event, BuildEvent):
            text = self._body(event)
        else:
            text = _builder_body(event) if isinstance(event, BuilderEvent) else _batch_body(event)
        lines = text.splitlines()
        is_plain = text.isascii() and max(map(len, lines)) <= MAX_LINE_LENGTH
        headers = [
            *self._headers(event, recipients),
            ("MIME-Version", "1.0"),
            ("Content-Type", 'text/plain; charset="utf-8"'),
            ("Content-Transfer-Encoding", "7bit" if is_plain else "quoted-printable"),
        ]
        if not is_plain:
            lines = body_encode(text.encode().decode("latin-1")).splitlines()
        return "\r\n".join([*(f"{name}: {value}" for name, value in headers), "", *lines, ""]).encode()

    def _headers(self, event: MailedEvent, recipients: Sequence[str]) -> list[tuple[str, str]]:
        """Return the headers. Their fields were checked to be ASCII without line breaks, except for the submitter.

        All mails of a package on an arch and target, of a builder, or of a batch refer to one id, which no mail has.
        """
        if isinstance(event, BuildEvent):
            about = "/".join(package_key(event))
        else:
            about = event.builder if isinstance(event, BuilderEvent) else f"batch {event.batch}"
        thread = self._id(f"thread-{uuid.uuid5(NAMESPACE, about).hex}")
        given = [(header, getattr(event, name, "")) for name, header in _OWN_HEADERS.items()]
        return [
            ("From", self.sender),
            ("To", ",\r\n ".join(recipients)),
            ("Subject", _encode_header(subject(event))),
            ("Date", formatdate(event.at or None)),
            ("Message-ID", self._id(f"{event.key}.{event.status}")),
            ("In-Reply-To", thread),
            ("References", thread),
            ("Auto-Submitted", "auto-generated"),
            *((header, _encode_header(value)) for header, value in given if value),
        ]

    def _body(self, event: BuildEvent) -> str:
        """Its text: the result, why it failed and what to do; then who, what and when; then the logs' ends."""
        lines = [
            *self._summary(event),
            "",
            "#### Reimzul build results #####",
            f" Build        : {event.build_id}".rstrip(),
            f" Builder      : {event.builder_fqdn}",
            f" Package      : {event.pkgname} {event.evr}".rstrip(),
            f" Submitted    : {format_timestamp(event.timestamp)}",
            f" Submitted by : {event.submitter}",
            f" Finished     : {format_time(event.finished or event.at)}",
            f" Status       : {event.status}",
            *(f" Not built    : {arch}, {why}" for arch, why in sorted(event.skipped.items())),
            "",
            "#### Mock output logs ####",
            "    ========== Mock root log ============",
            *_last_lines(event.root_log, ROOT_LOG_LINES),
            "",
            "    ========== Mock build log ==========",
            *_last_lines(event.build_log, BUILD_LOG_LINES),
        ]
        return "\n".join(lines) + "\n"

    def _summary(self, event: BuildEvent) -> Iterator[str]:
        yield f"{_package(event)} on {event.arch} for {event.target}: {event.status}"
        if change := describe_change(event):
            yield f"  {change}"
        if event.status != Status.SUCCESS:
            yield from (f"  {line}" for line in (event.reason, event.error_line) if line)
        yield ""
        yield f"Full logs{self._find_logs(event)}"
        if event.status != Status.SUCCESS:
            if event.build_id:
                yield f"Why it failed:  reimzul explain {event.build_id[:8]}"
                yield f"Build it again: reimzul retry {event.build_id[:8]} --failed"
            if event.first_error:
                yield from ("", *event.first_error.splitlines())

    def _find_logs(self, event: BuildEvent) -> str:
        linked = relink(event, self.roots)
        if link := linked.page or linked.url:
            return f" available at {link}"
        where = describe_folder("", linked.logs_folder) or "nowhere that is known"
        return f" {where}" if where.startswith("on ") else f": {where}"

    def _id(self, left: str) -> str:
        return f"<{left}@{self.sender.partition('@')[2] or 'localhost'}>"


def _encode_header(value: str) -> str:
    """Encode a header's value that is not ASCII, or only looks encoded, as RFC 2047 has it."""
    plain = value.isascii() and "=?" not in value and value == value.strip()
    return value if plain else Header(value, "utf-8").encode(linesep="\r\n")


def _builder_body(event: BuilderEvent) -> str:
    facts = [f"{event.builder}: {event.status}, {format_time(event.at)}", "", event.reason, ""]
    if event.status == Status.QUARANTINED:
        facts += [f"It takes no more jobs. `reimzul resume {event.builder}` on the controller lets it back at once."]
    return "\n".join(facts) + "\n"


def _batch_body(event: BatchEvent) -> str:
    facts = (
        f" Batch        : {event.batch}{', scratch' * event.scratch}",
        f" Target       : {event.target} on {', '.join(event.arches)}",
        f" Submitted by : {event.submitter}",
        f" At           : {format_time(event.at)}",
        f" Members      : {', '.join(f'{count} {state}' for state, count in event.counts.items())}",
    )
    more = f"More: reimzul batch show {event.batch}"
    return "\n".join([event.text, "", *event.lines, *[""] * bool(event.lines), *facts, "", more]) + "\n"


def subject(event: MailedEvent) -> str:
    if isinstance(event, BuilderEvent):
        return f"[reimzul] Builder {event.builder} : {event.status}"
    if isinstance(event, BatchEvent):
        text = f"[reimzul] {event.text}"
    else:
        reason = f": {event.reason}" if event.reason and event.status != Status.SUCCESS else ""
        change = ", newly failing" if event.newly_failing else ", fixed" if event.fixed else ""
        text = f"[reimzul] {event.status}{change}: {_package(event)} on {event.arch} for {event.target}{reason}"
    return text if len(text) <= MAX_SUBJECT_LENGTH else f"{text[: MAX_SUBJECT_LENGTH - 3]}..."


def _package(event: BuildEvent) -> str:
    """The package with its version, or its source rpm where no worker has read the header."""
    return f"{event.pkgname}-{event.evr}" if event.pkgname and event.evr else event.srpm


def package_key(event: BuildEvent) -> tuple[str, str, str]:
    """Return what names a package on one arch and target, whose results are compared with each other."""
    return (event.pkgname or event.srpm, event.target, event.arch)


def _last_lines(log: str, lines: int) -> list[str]:
    return log.splitlines()[-lines:] or ["(its end did not come with the result: look at the logs themselves)"]
