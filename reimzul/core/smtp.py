# SPDX-License-Identifier: Apache-2.0
"""One connection to a mail server, for many mails. The one module that imports smtplib.

If the connection breaks, or the server takes nothing from us now, `SmtpUnavailable` is raised; what the server answers
about one mail or one recipient is in the `SendResult`.
"""

from __future__ import annotations

import smtplib
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import attr

from reimzul.core import validators
from reimzul.core.cli import local_hostname
from reimzul.core.errors import ReimzulError, translate_errors
from reimzul.core.settings import MailSettings
from reimzul.core.tls import client_context

#: Seconds one reply may take: a server may scan a mail before it takes it.
REPLY_TIMEOUT_SECONDS = 60.0
#: Seconds the reply to QUIT may take.
QUIT_SECONDS = 0.3
#: "Service not available, closing": the session is over.
_CLOSING = 421
#: "Exceeded storage allocation", in reply to MAIL: the mail is too large for this server.
_TOO_LARGE = 552


@attr.frozen(kw_only=True)
class SendResult:
    """The server's reply for each recipient who did not get a mail."""

    deferred: dict[str, str] = attr.field(factory=dict)  #: not now: greylisted, a full mailbox
    refused: dict[str, str] = attr.field(factory=dict)  #: not ever: no such mailbox, the mail itself refused


class SmtpUnavailable(ReimzulError):
    """The server takes no mail now."""


class SmtpSession:
    """One connection, until its first fault."""

    def __init__(self, settings: MailSettings) -> None:
        """Connect, and log in where that is set. Raises `SmtpUnavailable`."""
        self.address = f"the mail server at {settings.smtp_host}:{settings.smtp_port}"
        self._open = False
        with self._translating_errors():
            self._smtp = smtplib.SMTP(settings.smtp_host, settings.smtp_port, local_hostname(), REPLY_TIMEOUT_SECONDS)
            self._open = True
            self._socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._smtp.ehlo_or_helo_if_needed()
            if settings.starttls:
                self._smtp.starttls(context=client_context("mail", ca_cert=settings.ca_cert))
                self._smtp.ehlo()
            if settings.login and settings.password_file:
                self._smtp.login(settings.login, read_password(settings.password_file))

    def send(self, sender: str, recipients: Sequence[str], mail: bytes) -> SendResult:
        """Send one mail. If this raises `SmtpUnavailable`, nobody knows whether the server took the mail."""
        with self._translating_errors():
            code, reply = self._smtp.mail(sender, [f"size={len(mail)}"] if self._smtp.has_extn("size") else [])
            if code == _TOO_LARGE:
                self._smtp.rset()
                return SendResult(refused=dict.fromkeys(recipients, _reply_text(code, reply)))
            if code != 250:
                raise smtplib.SMTPResponseException(code, reply)
            result = self._recipients(recipients)
            taken = [each for each in recipients if each not in result.deferred and each not in result.refused]
            if not taken:
                self._smtp.rset()
                return result
            return self._content(taken, mail, result)

    def close(self) -> None:
        """End the session; a server that does not answer is not waited for."""
        if self._open:
            self._open = False
            with suppress(smtplib.SMTPException, OSError):
                self._socket().settimeout(QUIT_SECONDS)
                self._smtp.quit()
            self._smtp.close()

    def _recipients(self, recipients: Sequence[str]) -> SendResult:
        result = SendResult()
        for each in recipients:
            code, reply = self._smtp.rcpt(each)
            if code in (250, 251):
                continue
            if code == _CLOSING:
                raise smtplib.SMTPResponseException(code, reply)
            (result.deferred if code < 500 else result.refused)[each] = _reply_text(code, reply)
        return result

    def _content(self, taken: Sequence[str], mail: bytes, result: SendResult) -> SendResult:
        """Send the mail itself; a reply against it holds for all recipients that were accepted."""
        code, reply = self._data(mail)
        if code == 250:
            return result
        if code == _CLOSING:
            raise smtplib.SMTPResponseException(code, reply)
        self._smtp.rset()
        (result.deferred if code < 500 else result.refused).update(dict.fromkeys(taken, _reply_text(code, reply)))
        return result

    def _data(self, mail: bytes) -> tuple[int, bytes | str]:
        try:
            return self._smtp.data(mail)
        except smtplib.SMTPDataError as error:
            return error.smtp_code, error.smtp_error

    def _socket(self) -> socket.socket:
        if not isinstance(self._smtp.sock, socket.socket):
            raise smtplib.SMTPServerDisconnected("the connection is closed")
        return self._smtp.sock

    def _translating_errors(self) -> AbstractContextManager[None]:
        return translate_errors({(smtplib.SMTPException, OSError): self._fail})

    def _fail(self, error: Exception) -> SmtpUnavailable:
        """End the session."""
        self.close()
        return SmtpUnavailable(f"{self.address}: {_reason(error)}")


def read_password(file: Path) -> str:
    """Read the password from a file. Raises `OSError` that names the setting."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OSError(f"[mail] password_file: {file} cannot be read: {error}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return _reply_text(error.smtp_code, error.smtp_error)
    return validators.line(300)(str(error)) or type(error).__name__


def _reply_text(code: int, reply: bytes | str) -> str:
    text = reply if isinstance(reply, str) else reply.decode("utf-8", "replace")
    return validators.line(300)(f"{code} {text}")
