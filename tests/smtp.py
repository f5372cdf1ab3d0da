# SPDX-License-Identifier: Apache-2.0
"""A mail server that does as the test says: takes, refuses, puts off, stalls, breaks off in mid-message."""

from __future__ import annotations

import asyncio
import email
import email.policy
import ssl
import threading
from collections import Counter
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Optional

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.conftest import free_port


class Mailbox:
    """What has arrived, and how the server behaves. A behaviour holds until it is changed."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.given: list[tuple[str, str]] = []  #: Message-ID and recipient of all that was delivered
        self.sessions = 0
        self.encrypted = 0  #: how many mails came through TLS
        self.answers: dict[str, str] = {}  #: to a recipient, in place of 250
        self.sender_answer = ""
        self.data_answer = ""
        self.greylist: Optional[Counter[str]] = None  #: recipients seen before, where each is put off once
        self.drops = 0  #: how many mails to come break their connection before they are answered
        self.poison = ""  #: words of a subject whose mail always does
        self.open = threading.Event()  #: closed, nothing is answered
        self.open.set()

    async def handle_EHLO(self, _server: SMTP, session: Session, _e: Envelope, host: str, answers: list[str]) -> Any:
        """A new session."""
        session.host_name = host
        self.sessions += 1
        return answers

    async def handle_MAIL(self, _s: SMTP, _n: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        """Who sends."""
        while not self.open.is_set():
            await asyncio.sleep(0.02)
        if self.sender_answer:
            return self.sender_answer
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(self, _s: SMTP, _n: Session, envelope: Envelope, address: str, _options: list[str]) -> str:
        """Who is to have it."""
        if self.greylist is not None:
            self.greylist[address] += 1
            if self.greylist[address] == 1:
                return "451 4.7.1 greylisted, come again"
        if address in self.answers:
            return self.answers[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """The mail itself."""
        assert isinstance(envelope.content, bytes)
        parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        if self.drops or (self.poison and self.poison in str(parsed["Subject"])):
            self.drops = max(0, self.drops - 1)
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
            return "421 gone"
        if self.data_answer:
            return self.data_answer
        self.encrypted += session.ssl is not None
        self.mails.append(parsed)
        self.given += [(str(parsed["Message-ID"]), recipient) for recipient in envelope.rcpt_tos]
        return "250 taken"


class MailServer:
    """The server on a port of its own; it can be stopped and started again."""

    def __init__(self, mailbox: Mailbox, certificate: Optional[tuple[Path, Path]] = None, password: str = "") -> None:
        self.mailbox = mailbox
        self.port = free_port()
        self._options: dict[str, Any] = {}
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._options.update(tls_context=context, require_starttls=True)
        if password:
            self._options.update(auth_required=True, authenticator=_knows(password))
        self._controller: Optional[_Controller] = None

    def start(self) -> None:
        """Listen."""
        self._controller = _Controller(self.mailbox, "127.0.0.1", self.port, **self._options)
        self._controller.start()

    def stop(self) -> None:
        """Listen no more; what is connected is closed."""
        if self._controller is not None:
            asyncio.run_coroutine_threadsafe(self._controller.disconnect_all(), self._controller.loop).result(10)
            self._controller.stop()
            self._controller = None


class _Controller(Controller):
    """Knows its connections: those that are open when its loop ends would be closed some day, with a warning."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._sessions: list[SMTP] = []

    def factory(self) -> SMTP:
        self._sessions.append(super().factory())  # type: ignore[no-untyped-call]
        return self._sessions[-1]

    async def disconnect_all(self) -> None:
        assert self.server
        self.server.close()
        for transport in (each.transport for each in self._sessions):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
        await asyncio.sleep(0.01)  # they are closed in the loop's next round


def _knows(password: str) -> Any:
    def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, given: LoginPassword) -> AuthResult:
        known = given.login == b"farm" and given.password == password.encode()
        return AuthResult(success=known, handled=False)

    return authenticate
