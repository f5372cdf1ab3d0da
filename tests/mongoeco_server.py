# SPDX-License-Identifier: Apache-2.0
"""A server that speaks MongoDB's wire protocol, in memory, at an address and port. Run by .venv-mongo's Python."""

from __future__ import annotations

import asyncio
import sys

from mongoeco.wire import AsyncMongoEcoProxyServer


async def serve(address: str, port: int) -> None:
    """Until killed."""
    async with AsyncMongoEcoProxyServer(host=address, port=port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
