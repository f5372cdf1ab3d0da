# SPDX-License-Identifier: Apache-2.0
"""A server that speaks MongoDB's wire protocol, in memory, on the port given. Run by .venv-mongo's Python."""

from __future__ import annotations

import asyncio
import sys

from mongoeco.wire import AsyncMongoEcoProxyServer


async def serve(port: int) -> None:
    """Until killed."""
    async with AsyncMongoEcoProxyServer(port=port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
