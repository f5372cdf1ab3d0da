# SPDX-License-Identifier: Apache-2.0
"""One connection to an IRC server, from its greeting until its first fault. The one place that imports the irc library.

IRC acknowledges nothing. So each line is followed by a PING of its own: when the PONG is back, the server has read the
line before it.
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
from reimzul.core.config import IrcSettings
from reimzul.core.errors import ReimzulError
from reimzul.core.tls import client_context

log = logging.getLogger(__name__)

#: Seconds a connection may take to be made, and how often the server is asked whether it is there.
CONNECTED, ASK = 10.0, 30.0
#: Seconds without a word from the server after which it is gone.
SILENCE = 90.0
#: Seconds until a channel we were not let into, or thrown out of, is tried again.
JOIN_AGAIN = 30.0
#: Seconds that NickServ gets to let us in before we join, and after which a channel that says no is first tried again.
IDENTIFIED, SOON = 3.0, 2.5
#: Seconds after a JOIN in which a channel has to have let us in, whatever else was said.
ANSWERED = 10.0
#: Seconds for which it is hoped that a channel that said no lets us in after all; what is for it waits so long.
HOPE = 300.0
#: Seconds until the nick that we want is tried again.
NICK_AGAIN = 60.0
_CLOSED = (
    "inviteonlychan", "bannedfromchan", "badchannelkey", "channelisfull", "nosuchchannel", "badchanmask",
    "toomanychannels", "unavailresource", "nochanmodes", "needreggednick",
)  # fmt: skip
_ALIVE = "alive"


class ChatGone(ReimzulError):
    """The IRC server is away, threw us out, or does not let us in."""


class _Lenient(irc.client.ServerConnection.buffer_class):  # type: ignore[misc]
    """What others say may be in any encoding."""

    errors = "replace"


class _NothingYet(Exception):
    """Something arrived, and nothing of it was IRC's."""


class _Socket:
    """A socket that does not wait for what has not come: a TLS record may hold nothing for us, and looks like data."""

    def __init__(self, plain: socket.socket) -> None:
        self._socket = plain
        self.fileno, self.shutdown, self.close = plain.fileno, plain.shutdown, plain.close
        self.write = self.send

    def read(self, size: int) -> bytes:
        """What is there. Raises `_NothingYet`, `OSError`."""
        self._socket.setblocking(False)
        try:
            return self._socket.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError):
            raise _NothingYet from None
        finally:
            self._socket.settimeout(CONNECTED)

    #: The library looks for these names first, although it uses those above.
    recv = read

    def send(self, block: bytes) -> None:
        """All of it."""
        self._socket.sendall(block)


class Chat:
    """One connection and the channels joined on it."""

    def __init__(self, settings: IrcSettings, channels: Iterable[str], password: str) -> None:
        """Connect. Raises `ChatGone`."""
        self.address = f"the IRC server at {settings.server}:{settings.port}"
        self.heard: list[str] = []  #: names of what the server has read, for the caller to take away
        self._settings, self._password = settings, password
        self._channels = {channel.lower(): channel for channel in channels}
        self._joined: set[str] = set()
        self._refused: dict[str, float] = {}  #: channels that do not let us in, and since when
        self._tried: dict[str, float] = {}  #: when a JOIN was first sent that had no answer
        self._nick_at = 0.0
        self._welcome = False
        self._fault = ""
        self._heard_at = self._asked_at = self._join_at = time.monotonic()
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
            **dict.fromkeys(_CLOSED, self._on_closed),
        }
        self._reactor = irc.client.Reactor()
        self._reactor.add_global_handler("all_events", self._on_event, -10)
        self._connection = self._reactor.server()
        self._connection.buffer_class = _Lenient
        with self._words():
            self._connect()

    @property
    def ready(self) -> bool:
        """Whether every channel is joined, or has said that it does not let us in."""
        return self._welcome and not self._channels.keys() - self._joined - self._refused.keys()

    def turn(self, seconds: float) -> None:
        """Hear and do what is to be done, at most for so long. Raises `ChatGone`."""
        with self._words():
            with contextlib.suppress(_NothingYet):
                self._reactor.process_once(seconds)
            now = time.monotonic()
            if now - self._heard_at > SILENCE:
                self._fault = f"has said nothing for {SILENCE:g} s"
            if self._welcome and now - self._asked_at > ASK:
                self._asked_at = now
                self._connection.ping(_ALIVE)
            if self._welcome and now > self._join_at:
                self._join()
            if self._welcome:
                self._look(now)

    def joined(self, channels: Iterable[str]) -> list[str]:
        """Those of them that we are in."""
        return [channel for channel in channels if channel.lower() in self._joined]

    def hopes(self, channels: Iterable[str]) -> bool:
        """Whether one of them may yet let us in: it said no not long ago."""
        now = time.monotonic()
        return any(now - self._refused.get(channel.lower(), float("-inf")) < HOPE for channel in channels)

    def say(self, name: str, channels: Iterable[str], line: str) -> None:
        """Say a line; `name` is in `heard` when the server has read it. Raises `ChatGone`."""
        with self._words():
            for channel in self.joined(channels):
                self._connection.privmsg(channel, line)
            self._connection.ping(name)

    def close(self) -> None:
        """Take leave."""
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
            connect_factory=self._open,
            sasl_login=(settings.account or settings.nick) if sasl else None,
        )

    def _open(self, address: tuple[str, int]) -> _Socket:
        """A socket to it. Raises `OSError`."""
        plain = socket.create_connection(address, CONNECTED)
        if not self._settings.tls:
            return _Socket(plain)
        try:
            context = client_context("irc", ca_cert=self._settings.ca_cert)
            return _Socket(context.wrap_socket(plain, server_hostname=address[0]))
        except BaseException:
            plain.close()
            raise

    def _join(self) -> None:
        self._join_at = time.monotonic() + JOIN_AGAIN
        for key, channel in self._channels.items():
            if key not in self._joined:
                self._tried.setdefault(key, time.monotonic())
                self._connection.join(channel)

    def _look(self, now: float) -> None:
        """What has had no answer, and the nick that we want."""
        for key, tried in self._tried.items():
            if now - tried > ANSWERED:
                self._refuse(key, f"no answer for {ANSWERED:g} s")
        if now > self._nick_at:
            self._nick_at = now + NICK_AGAIN
            if not self._is_us(self._settings.nick):
                self._connection.nick(self._settings.nick)

    def _refuse(self, channel: str, words: str) -> None:
        """A channel does not let us in; the first time it is soon tried again."""
        if channel in self._refused or channel in self._joined or channel not in self._channels:
            return
        self._refused[channel] = time.monotonic()
        self._join_at = min(self._join_at, time.monotonic() + SOON)
        log.error("%s: %s does not let us in: %s", self.address, self._channels[channel], words)

    # --- what the server says, by the library's names for it

    def _on_event(self, _connection: Any, event: Any) -> None:
        self._heard_at = time.monotonic()
        handle = self._handlers.get(event.type)
        if handle is not None:
            handle(event)

    def _on_welcome(self, _event: Any) -> None:
        self._welcome = True
        if self._settings.identify == "nickserv":
            # with the name: where our nick was taken we are here by another
            account = self._settings.account or self._settings.nick
            self._connection.privmsg("NickServ", f"IDENTIFY {account} {self._password}")
            self._join_at = time.monotonic() + IDENTIFIED
        else:
            self._join_at = 0.0
        self._nick_at = time.monotonic() + NICK_AGAIN

    def _on_nicknameinuse(self, _event: Any) -> None:
        if self._welcome:
            return
        nick = f"{self._connection.get_nickname()}_"
        if len(nick) > len(self._settings.nick) + 5:
            self._fault = "has our nick in use"
        self._connection.real_nickname = nick
        self._connection.nick(nick)

    def _on_join(self, event: Any) -> None:
        if self._is_us(event.source.nick):
            self._joined.add(event.target.lower())
            self._refused.pop(event.target.lower(), None)
            self._tried.pop(event.target.lower(), None)
            log.info("%s: in %s", self.address, event.target)

    def _on_kick(self, event: Any) -> None:
        if event.arguments and self._is_us(event.arguments[0]):
            self._out(event.target, "kicked")

    def _on_part(self, event: Any) -> None:
        if self._is_us(event.source.nick):
            self._out(event.target, "parted")

    def _on_closed(self, event: Any) -> None:
        if not event.arguments:
            return
        self._refuse(event.arguments[0].lower(), validators.line(200)(" ".join(event.arguments[1:])))

    def _on_pong(self, event: Any) -> None:
        if event.arguments and event.arguments[-1] != _ALIVE:
            self.heard.append(event.arguments[-1])

    def _on_login_failed(self, event: Any) -> None:
        words = event.arguments or event.target  # the library gives them as the target
        self._fault = f"does not know us: {validators.line(200)(' '.join(words))}"

    def _on_error(self, event: Any) -> None:
        self._fault = f"says {validators.line(200)(event.target or '')}"

    def _on_disconnect(self, event: Any) -> None:
        self._fault = self._fault or f"is gone: {validators.line(200)(' '.join(event.arguments))}"

    def _is_us(self, nick: str) -> bool:
        return bool(nick.lower() == self._connection.get_nickname().lower())

    def _out(self, channel: str, how: str) -> None:
        self._joined.discard(channel.lower())
        self._refused[channel.lower()] = time.monotonic()
        self._join_at = time.monotonic() + JOIN_AGAIN
        log.warning("%s: %s from %s", self.address, how, channel)

    @contextlib.contextmanager
    def _words(self) -> Iterator[None]:
        """What the library and the socket say, in our own words."""
        try:
            yield
        except (OSError, irc.client.IRCError, ValueError) as error:
            self._fault = self._fault or f"cannot be spoken to: {validators.line(200)(str(error))}"
        except (LookupError, AttributeError, TypeError) as error:
            # the library trips over a line without the words it looks for
            log.exception("%s: said what the library does not know", self.address)
            self._fault = self._fault or f"cannot be understood: {validators.line(200)(repr(error))}"
        if self._fault:
            fault = self._fault
            self.close()
            raise ChatGone(f"{self.address} {fault}")
