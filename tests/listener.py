# SPDX-License-Identifier: Apache-2.0
"""Listens to a farm's events by MQTT, to which anybody may subscribe."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
from collections.abc import Iterator
from typing import IO

from devfarm import subreaper
from devfarm.farm import Farm
from devfarm.plan import TOPIC
from reimzul.core.errors import InvalidMessage, ReimzulError
from reimzul.core.message import Event, WorkerHeartbeat, decode_event
from reimzul.core.process import PIPE, output_of, spawn


class EventListener:
    """Every event of a farm since the listener started, apart from heartbeats."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._rest = b""

    def read(self, seconds: float) -> list[Event]:
        """Wait that long for events; return as soon as there are some."""
        if not select.select([self._stream], [], [], seconds)[0]:
            return []
        data = os.read(self._stream.fileno(), 1024 * 1024)
        if not data:
            raise ReimzulError("the connection to the MQTT broker has ended")
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = []
        for line in lines:
            with contextlib.suppress(InvalidMessage):
                events.append(decode_event(line))
        return [event for event in events if not isinstance(event, WorkerHeartbeat)]


@contextlib.contextmanager
def listen(farm: Farm) -> Iterator[EventListener]:
    """Listen to a farm's events; none that comes after this is entered is missed."""
    session = ("-i", f"listener-{secrets.token_hex(4)}", "-c")
    # Subscribe and leave (-E), then listen: the broker keeps what comes meanwhile for the session.
    output_of(farm.listen_command(f"{TOPIC}/builds/events", *session, "-E"), timeout=20)
    command = farm.listen_command(f"{TOPIC}/builds/events", *session)
    with spawn(subreaper.wrap_command(command, grace=1, parent=os.getpid()), output=PIPE) as process:
        assert process.stdout
        with process.stdout as stream:
            yield EventListener(stream)
