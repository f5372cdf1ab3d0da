# SPDX-License-Identifier: Apache-2.0
"""One connection to a mail server, for many mails. The one place that imports smtplib.

What a server answers is sorted by what to do: a session that broke off, or a server that takes nothing from us now, is
`SinkAway`; what it says of one mail or one recipient is in the `Posted` that `send` gives back.
"""

from __future__ import annotations

import smtplib
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attr

from reimzul.core import validators
from reimzul.core.cli import local_hostname
from reimzul.core.config import MailSettings
from reimzul.core.tls import client_context
from reimzul.notifier.sinks.base import SinkAway

#: Seconds one answer may take. A server that looks into a mail before it takes it needs some of them.
ANSWER = 60.0
#: Seconds a good-bye may take.
LEAVE = 0.3
#: "Service not available, closing": the session is over, whatever was asked.
_CLOSING = 421
#: "Exceeded storage allocation", said of a sender: the mail is too large for this server.
_TOO_LARGE = 552


@attr.frozen(kw_only=True)
class Posted:
    """What became of one mail, an answer of the server's beside each recipient who did not get it."""

    later: dict[str, str] = attr.field(factory=dict)  #: not now: greylisted, a full mailbox
    never: dict[str, str] = attr.field(factory=dict)  #: not ever: no such mailbox, the mail itself refused


class Session:
    """One connection, from its greeting until its first fault."""

    def __init__(self, settings: MailSettings) -> None:
        """Connect, and log in where that is set. Raises `SinkAway`."""
        self.address = f"the mail server at {settings.smtp_host}:{settings.smtp_port}"
        self._open = False
        with self._words():
            self._smtp = smtplib.SMTP(settings.smtp_host, settings.smtp_port, local_hostname(), ANSWER)
            self._open = True
            self._socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._smtp.ehlo_or_helo_if_needed()
            if settings.starttls:
                self._smtp.starttls(context=client_context("mail", ca_cert=settings.ca_cert))
                self._smtp.ehlo()
            if settings.login and settings.password_file:
                self._smtp.login(settings.login, password(settings.password_file))

    def send(self, sender: str, recipients: Sequence[str], mail: bytes) -> Posted:
        """Give it one mail for these. Raises `SinkAway`; then nobody knows whether it took it."""
        with self._words():
            code, words = self._smtp.mail(sender, [f"size={len(mail)}"] if self._smtp.has_extn("size") else [])
            if code == _TOO_LARGE:
                return self._given_up(recipients, code, words)
            if code != 250:
                raise smtplib.SMTPResponseException(code, words)
            posted = self._recipients(recipients)
            taken = [each for each in recipients if each not in posted.later and each not in posted.never]
            if not taken:
                self._smtp.rset()
                return posted
            return self._content(taken, mail, posted)

    def close(self) -> None:
        """Say good-bye if the server hears it; in any case let go."""
        if self._open:
            self._open = False
            with suppress(smtplib.SMTPException, OSError):
                self._socket().settimeout(LEAVE)
                self._smtp.quit()
            self._smtp.close()

    def _recipients(self, recipients: Sequence[str]) -> Posted:
        posted = Posted()
        for each in recipients:
            code, words = self._smtp.rcpt(each)
            if code in (250, 251):
                continue
            if code == _CLOSING:
                raise smtplib.SMTPResponseException(code, words)
            (posted.later if code < 500 else posted.never)[each] = _said(code, words)
        return posted

    def _content(self, taken: Sequence[str], mail: bytes, posted: Posted) -> Posted:
        """Send the mail itself; an answer against it holds for all who would have got it."""
        code, words = self._data(mail)
        if code == 250:
            return posted
        if code == _CLOSING:
            raise smtplib.SMTPResponseException(code, words)
        self._smtp.rset()
        if code < 500:
            return attr.evolve(posted, later={**posted.later, **dict.fromkeys(taken, _said(code, words))})
        return attr.evolve(posted, never={**posted.never, **dict.fromkeys(taken, _said(code, words))})

    def _data(self, mail: bytes) -> tuple[int, bytes | str]:
        try:
            return self._smtp.data(mail)
        except smtplib.SMTPDataError as error:
            return error.smtp_code, error.smtp_error

    def _given_up(self, recipients: Sequence[str], code: int, words: bytes) -> Posted:
        self._smtp.rset()
        return Posted(never=dict.fromkeys(recipients, _said(code, words)))

    def _socket(self) -> socket.socket:
        if not isinstance(self._smtp.sock, socket.socket):
            raise smtplib.SMTPServerDisconnected("the connection is closed")
        return self._smtp.sock

    @contextmanager
    def _words(self) -> Iterator[None]:
        """What smtplib and the socket say, in our own words; the session is over then."""
        try:
            yield
        except (smtplib.SMTPException, OSError) as error:
            self.close()
            raise SinkAway(f"{self.address}: {_reason(error)}") from error


def password(file: Path) -> str:
    """The password in a file. Raises `OSError` that names the setting."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OSError(f"[mail] password_file: {file} cannot be read: {error}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return _said(error.smtp_code, error.smtp_error)
    return validators.line(300)(str(error)) or type(error).__name__


def _said(code: int, words: bytes | str) -> str:
    text = words if isinstance(words, str) else words.decode("utf-8", "replace")
    return validators.line(300)(f"{code} {text}")
