# SPDX-License-Identifier: Apache-2.0
"""Logs that grow, sent to the store while they do, so that they can be read there before the build is over.

rsync's --append sends what has been added and nothing else. One call through stunnel takes some 6 ms of this
host's processor and of bstore's (measured: docs/performance.md), so a leg whose logs grow all the time costs 0.3 % of a
core on each; one whose logs stand still costs nothing. Nothing depends on it: what does not get through is tried again
later, and all of it is uploaded with the results.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attr

from reimzul.core.errors import ReimzulError
from reimzul.core.process import run
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import StoreUrls
from reimzul.worker.model import Leg
from reimzul.worker.upload import NODELAY

log = logging.getLogger(__name__)

STREAMED_LOGS = ("build.log", "root.log", "state.log")
#: Seconds one call may take, and the last one, that the end of a leg waits for.
PATIENCE, LAST = 20, 2
#: Seconds until it is tried again after it failed: once, twice, and so on.
PAUSES = (2, 5, 15, 60)


class _Enough(ReimzulError):
    """The leg is over: what is uploaded next holds all of it."""


@attr.define
class _Log:
    leg: Leg
    sent: int = 0  #: bytes that are there
    failures: int = 0
    rests_until: float = 0.0
    over: bool = False


class LogStreamer:
    """Sends the logs of the legs that are built, in a thread of its own."""

    def __init__(self, rsync: str, arguments: tuple[str, ...], urls: StoreUrls, every: int) -> None:
        """`every`: seconds between two looks at the logs; 0: nothing is sent."""
        self.rsync, self.arguments, self.urls, self.interval = rsync, arguments, urls, every

    @contextlib.contextmanager
    def streaming(self, leg: Leg) -> Iterator[None]:
        """Send a leg's logs while the block runs, and once more what it has left; none is under way after that.

        What is uploaded with the results may come late, or never: who follows the log is to have its end.
        """
        if not self.interval:
            yield
            return
        state, wake = _Log(leg), threading.Event()
        thread = threading.Thread(target=self._serve, args=(state, wake), name="live", daemon=True)
        thread.start()
        try:
            yield
        finally:
            state.over = True
            wake.set()
            thread.join()

    def _serve(self, state: _Log, wake: threading.Event) -> None:
        while not wake.wait(self.interval):
            with contextlib.suppress(_Enough):
                self._look(state, PATIENCE)
        state.over, state.rests_until = False, 0.0  # nothing but its own time ends the last call
        self._look(state, LAST)

    def _look(self, state: _Log, patience: int) -> None:
        logs = [path for path in (state.leg.results / name for name in STREAMED_LOGS) if path.exists()]
        size = sum(path.stat().st_size for path in logs)
        if size == state.sent or time.monotonic() < state.rests_until:
            return

        def heed() -> None:
            if state.over:
                raise _Enough("the leg is over")

        try:
            code = run(
                self.argv(state.leg, logs),
                output=state.leg.folder / "live.log",
                timeout=patience,
                cancel=CancelToken(heed),
            )
        except _Enough:
            raise
        except (ReimzulError, OSError) as error:
            self._failed(state, str(error))
        else:
            if code:
                self._failed(state, f"rsync exited with {code}")
            else:
                state.sent, state.failures = size, 0

    def _failed(self, state: _Log, words: str) -> None:
        pause = PAUSES[min(state.failures, len(PAUSES) - 1)]
        log.debug("the logs of %s cannot be read while they grow: %s", state.leg.package.path.name, words)
        state.failures += 1
        state.rests_until = time.monotonic() + pause

    def argv(self, leg: Leg, logs: list[Path]) -> list[str]:
        """rsync's command line; without --times, so that bstore knows by its own clock when something came last."""
        attempt = leg.attempt
        where = self.urls.live_upload(attempt.request.build_id, leg.arch, attempt.token)
        options = ["--append", "--chmod=D0755,F0644", NODELAY, f"--timeout={PATIENCE}"]
        return [self.rsync, *options, *self.arguments, *map(str, logs), where]
