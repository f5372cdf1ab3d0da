# SPDX-License-Identifier: Apache-2.0
"""One connection to an IRC server, until its first fault. The only module that imports the irc library.

IRC acknowledges nothing, so each message is followed by a PING of its own: the PONG shows that the server has read the
message before it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from typing import Any, Callable

import irc.client

from reimzul.core import validators
from reimzul.core.errors import ReimzulError
from reimzul.core.settings import IrcSettings
from reimzul.core.tls import client_context

log = logging.getLogger(__name__)

#: Seconds that connecting may take.
CONNECT_SECONDS = 10.0
#: Seconds between two pings of the server, and without a word from it before the connection is given up.
PING_SECONDS, SILENCE_SECONDS = 30.0, 90.0
#: Seconds that NickServ has to identify us before we join.
IDENTIFY_SECONDS = 3.0
#: Seconds after a JOIN without an answer before the channel counts as closed.
JOIN_ANSWER_SECONDS = 10.0
#: Seconds until a channel that refused us is first tried again, and until any channel we are not in is.
FIRST_JOIN_RETRY_SECONDS, JOIN_RETRY_SECONDS = 2.5, 30.0
#: Seconds for which a message waits for a channel that refused us.
JOIN_HOPE_SECONDS = 300.0
#: Seconds until the configured nick is tried again.
NICK_RETRY_SECONDS = 60.0
_REFUSALS = (
    "inviteonlychan", "bannedfromchan", "badchannelkey", "channelisfull", "nosuchchannel", "badchanmask",
    "toomanychannels", "unavailresource", "nochanmodes", "needreggednick",
)  # fmt: skip
_KEEPALIVE_TOKEN = "alive"
_one_line = validators.line(200)


class IrcDisconnected(ReimzulError):
    """The IRC server is away, disconnected us, or does not let us log in."""


class _LenientBuffer(irc.client.ServerConnection.buffer_class):  # type: ignore[misc]
    """Accepts any encoding of what others write."""

    errors = "replace"


class _NoData(Exception):
    """Something arrived, but no data of IRC."""


class _Socket:
    """A socket whose reads never block: a TLS record without data makes the plain socket readable."""

    def __init__(self, plain: socket.socket) -> None:
        self._socket = plain
        self.fileno, self.shutdown, self.close = plain.fileno, plain.shutdown, plain.close
        self.send = self.write = plain.sendall

    def read(self, size: int) -> bytes:
        """Raises `_NoData`, `OSError`."""
        self._socket.setblocking(False)
        try:
            return self._socket.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError):
            raise _NoData from None
        finally:
            self._socket.settimeout(CONNECT_SECONDS)

    #: The library checks for these names first, although it uses those above.
    recv = read


class IrcConnection:
    def __init__(self, settings: IrcSettings, channels: Iterable[str], password: str) -> None:
        """Connect. Raises `IrcDisconnected`."""
        self.address = f"the IRC server at {settings.server}:{settings.port}"
        self._settings, self._password = settings, password
        self._channels = {channel.lower(): channel for channel in channels}
        self._joined: set[str] = set()
        self._refused_at: dict[str, float] = {}  #: channels that do not let us in, and since when
        self._tried_at: dict[str, float] = {}  #: channels whose JOIN has no answer, and when it was first sent
        self._acknowledged: list[str] = []
        self._nick_at = 0.0
        self._is_welcome = False
        self._fault = ""
        self._heard_at = self._pinged_at = self._join_at = time.monotonic()
        self._handlers: dict[str, Callable[[Any], None]] = {
            "welcome": self._on_welcome,
            "nicknameinuse": self._on_nicknameinuse,
            "join": self._on_join,
            "kick": self._on_kick,
            "part": self._on_part,
            "pong": self._on_pong,
            "login_failed": self._on_login_failed,
            "error": self._on_error,
            "disconnect": self._on_disconnect,
            **dict.fromkeys(_REFUSALS, self._on_refusal),
        }
        self._reactor = irc.client.Reactor()
        self._reactor.add_global_handler("all_events", self._on_event, -10)
        self._connection = self._reactor.server()
        self._connection.buffer_class = _LenientBuffer
        with self._translating_errors():
            self._connect()

    @property
    def is_ready(self) -> bool:
        """Whether every channel is joined or has refused us."""
        return self._is_welcome and not self._channels.keys() - self._joined - self._refused_at.keys()

    def process(self, seconds: float) -> list[str]:
        """Handle what the server sends, for at most so long; return the tokens of messages that it has read.

        Raises `IrcDisconnected`.
        """
        with self._translating_errors():
            with contextlib.suppress(_NoData):
                self._reactor.process_once(seconds)
            now = time.monotonic()
            if now - self._heard_at > SILENCE_SECONDS:
                self._fault = f"has sent nothing for {SILENCE_SECONDS:g} s"
            if self._is_welcome:
                self._keep_up(now)
        tokens, self._acknowledged = self._acknowledged, []
        return tokens

    def joined_channels(self, channels: Iterable[str]) -> list[str]:
        return [channel for channel in channels if channel.lower() in self._joined]

    def may_still_join(self, channels: Iterable[str]) -> bool:
        """Whether one of the channels refused us not long ago, and may yet let us in."""
        refused = (self._refused_at.get(channel.lower(), float("-inf")) for channel in channels)
        return any(time.monotonic() - at < JOIN_HOPE_SECONDS for at in refused)

    def send(self, token: str, channels: Iterable[str], line: str) -> None:
        """Send a line; `process` returns the token when the server has read it. Raises `IrcDisconnected`."""
        with self._translating_errors():
            for channel in self.joined_channels(channels):
                self._connection.privmsg(channel, line)
            self._connection.ping(token)

    def close(self) -> None:
        self._fault = self._fault or "was left"
        with contextlib.suppress(OSError, irc.client.IRCError):
            self._connection.disconnect("good-bye")

    def _connect(self) -> None:
        settings = self._settings
        sasl = settings.identify == "sasl"
        self._connection.connect(
            settings.server,
            settings.port,
            settings.nick,
            password=self._password if sasl else None,
            username=settings.nick,
            ircname="Reimzul build farm",
            connect_factory=self._open_socket,
            sasl_login=(settings.account or settings.nick) if sasl else None,
        )

    def _open_socket(self, address: tuple[str, int]) -> _Socket:
        plain = socket.create_connection(address, CONNECT_SECONDS)
        if not self._settings.tls:
            return _Socket(plain)
        try:
            context = client_context("irc", ca_cert=self._settings.ca_cert)
            return _Socket(context.wrap_socket(plain, server_hostname=address[0]))
        except BaseException:
            plain.close()
            raise

    def _keep_up(self, now: float) -> None:
        """Ping, join channels, notice unanswered JOINs and take the configured nick, each when it is due."""
        if now - self._pinged_at > PING_SECONDS:
            self._pinged_at = now
            self._connection.ping(_KEEPALIVE_TOKEN)
        if now > self._join_at:
            self._join_at = now + JOIN_RETRY_SECONDS
            for key, channel in self._channels.items():
                if key not in self._joined:
                    self._tried_at.setdefault(key, now)
                    self._connection.join(channel)
        for key, tried_at in self._tried_at.items():
            if now - tried_at > JOIN_ANSWER_SECONDS:
                self._refuse(key, f"no answer for {JOIN_ANSWER_SECONDS:g} s")
        if now > self._nick_at:
            self._nick_at = now + NICK_RETRY_SECONDS
            if not self._is_us(self._settings.nick):
                self._connection.nick(self._settings.nick)

    def _refuse(self, channel: str, reason: str) -> None:
        """Note that a channel does not let us in; the first retry comes soon."""
        if channel in self._refused_at or channel in self._joined or channel not in self._channels:
            return
        now = time.monotonic()
        self._refused_at[channel] = now
        self._join_at = min(self._join_at, now + FIRST_JOIN_RETRY_SECONDS)
        log.error("%s: %s does not let us in: %s", self.address, self._channels[channel], reason)

    # --- what the server sends, by the library's names for it

    def _on_event(self, _connection: Any, event: Any) -> None:
        self._heard_at = time.monotonic()
        handle = self._handlers.get(event.type)
        if handle is not None:
            handle(event)

    def _on_welcome(self, _event: Any) -> None:
        self._is_welcome = True
        if self._settings.identify == "nickserv":
            # with the account's name: if our nick is taken we have another one
            account = self._settings.account or self._settings.nick
            self._connection.privmsg("NickServ", f"IDENTIFY {account} {self._password}")
            self._join_at = time.monotonic() + IDENTIFY_SECONDS
        else:
            self._join_at = 0.0
        self._nick_at = time.monotonic() + NICK_RETRY_SECONDS

    def _on_nicknameinuse(self, _event: Any) -> None:
        if self._is_welcome:
            return
        nick = f"{self._connection.get_nickname()}_"
        if len(nick) > len(self._settings.nick) + 5:
            self._fault = "has our nick in use"
        self._connection.real_nickname = nick
        self._connection.nick(nick)

    def _on_join(self, event: Any) -> None:
        if self._is_us(event.source.nick):
            self._joined.add(event.target.lower())
            self._refused_at.pop(event.target.lower(), None)
            self._tried_at.pop(event.target.lower(), None)
            log.info("%s: in %s", self.address, event.target)

    def _on_kick(self, event: Any) -> None:
        if event.arguments and self._is_us(event.arguments[0]):
            self._leave(event.target, "kicked")

    def _on_part(self, event: Any) -> None:
        if self._is_us(event.source.nick):
            self._leave(event.target, "parted")

    def _on_refusal(self, event: Any) -> None:
        if event.arguments:
            self._refuse(event.arguments[0].lower(), _one_line(" ".join(event.arguments[1:])))

    def _on_pong(self, event: Any) -> None:
        if event.arguments and event.arguments[-1] != _KEEPALIVE_TOKEN:
            self._acknowledged.append(event.arguments[-1])

    def _on_login_failed(self, event: Any) -> None:
        reason = event.arguments or event.target  # the library gives it as the target
        self._fault = f"refused our login: {_one_line(' '.join(reason))}"

    def _on_error(self, event: Any) -> None:
        self._fault = f"reports {_one_line(event.target or '')}"

    def _on_disconnect(self, event: Any) -> None:
        self._fault = self._fault or f"disconnected: {_one_line(' '.join(event.arguments))}"

    def _is_us(self, nick: str) -> bool:
        return bool(nick.lower() == self._connection.get_nickname().lower())

    def _leave(self, channel: str, verb: str) -> None:
        self._joined.discard(channel.lower())
        self._refused_at[channel.lower()] = time.monotonic()
        self._join_at = time.monotonic() + JOIN_RETRY_SECONDS
        log.warning("%s: %s from %s", self.address, verb, channel)

    @contextlib.contextmanager
    def _translating_errors(self) -> Iterator[None]:
        """Raise `IrcDisconnected` for errors of the library and the socket, and for a fault that was noted."""
        try:
            yield
        except (OSError, irc.client.IRCError, ValueError) as error:
            self._fault = self._fault or f"cannot be reached: {_one_line(str(error))}"
        except (LookupError, AttributeError, TypeError) as error:
            # the library fails at a line without the parameters that it expects
            log.exception("%s sent a line that the library cannot parse", self.address)
            self._fault = self._fault or f"cannot be understood: {_one_line(repr(error))}"
        if self._fault:
            fault = self._fault
            self.close()
            raise IrcDisconnected(f"{self.address} {fault}")
