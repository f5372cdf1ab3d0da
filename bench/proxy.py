# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy that puts a delay between two ends, as a network does."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Proxy:
    """Listens on a port of its own, and hands every byte on after a while, in both directions."""

    def __init__(self, port: int, delay: float) -> None:
        """`port` is the other end's, on this host; `delay` seconds each way."""
        self.port = 0
        self._other, self._delay = port, delay
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        self._listening.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connect, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._other)
        await asyncio.gather(self._carry(reader, their_writer), self._carry(their_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(65536):
                self._loop.call_later(self._delay, writer.write, block)
        self._loop.call_later(self._delay, writer.close)
