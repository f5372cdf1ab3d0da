# SPDX-License-Identifier: Apache-2.0
"""A MongoDB for tests: mongoeco, in its own environment, since it needs a newer Python than the system's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.waiting import until

HOME = Path(__file__).parent.parent
PYTHON = HOME / ".venv-mongo" / "bin" / "python"


class Mongo:
    """A server as a process on a free port. What it holds is gone when it is stopped."""

    def __init__(self, address: str = "127.0.0.1", prefix: Sequence[str] = ()) -> None:
        """`prefix` is before its command line, as for another network, where it has the address."""
        self.port = free_port()
        self.url = f"mongodb://{address}:{self.port}/"
        self._argv = [*prefix, str(PYTHON), str(HOME / "tests" / "mongoeco_server.py"), address, str(self.port)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(self._argv)
        until(self.answers, 30, "mongoeco answers")

    def answers(self) -> bool:
        """Whether it is there."""
        import pymongo
        from pymongo.errors import PyMongoError

        client: pymongo.MongoClient[dict[str, object]] = pymongo.MongoClient(self.url, serverSelectionTimeoutMS=500)
        try:
            client.admin.command("ping")
        except PyMongoError:
            return False
        finally:
            client.close()
        return True

    def stop(self) -> None:
        """End it."""
        assert self.process
        self.process.kill()
        self.process.wait()


def mongo_or_say_so(address: str = "127.0.0.1", prefix: Sequence[str] = ()) -> Mongo:
    """A server; where its environment is missing the test is skipped and says so, but in CI it fails."""
    if not PYTHON.exists():
        missing = f"{PYTHON} is missing: tools/setup makes it where there is a Python 3.13"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return Mongo(address, prefix)
