# SPDX-License-Identifier: Apache-2.0
"""What a worker looks for in beanstalkd while it builds: whether the build is cancelled, and whether it is to go on
afterwards. It also says what it does. All of it on the one thread that owns the connection.
"""

from __future__ import annotations

import time

from reimzul.core import control
from reimzul.core.beanstalk import Broker
from reimzul.core.message import CurrentBuild, WorkerState
from reimzul.worker.build import BuildAttempt
from reimzul.worker.heartbeat import HeartbeatSender

#: Seconds between two looks for a mark that cancels, and for one that drains.
CANCEL, DRAIN = 1.0, 10.0


class ControlPoller:
    """The look-out of one build."""

    def __init__(self, build: BuildAttempt, host: str, voice: HeartbeatSender) -> None:
        self.build, self.host, self.voice = build, host, voice
        self._cancel_at = self._drain_at = float("-inf")
        self._drained: control.ControlFlag | None = None
        self._heeded = False

    def poll(self, broker: Broker, *, last: bool) -> None:
        """Look for what is due; `last`: the worker ends after this build anyway. Raises `BrokerUnavailable`."""
        now = time.monotonic()
        if now - self._cancel_at < CANCEL:
            return
        self._cancel_at = now
        if not self._heeded:
            self._look_for_cancel(broker)
        if now - self._drain_at >= DRAIN:
            self._drain_at = now
            self._drained = control.drain_flag(broker, self.host)
        self.voice.send(broker, self._state(last), self._drained.drain_text if self._drained else "", self._in_hand())

    def _state(self, last: bool) -> str:
        if self._drained is not None and self._drained.is_quarantine:
            return WorkerState.QUARANTINED
        return WorkerState.DRAINING if last or self._drained is not None else WorkerState.BUILDING

    def _look_for_cancel(self, broker: Broker) -> None:
        found = control.cancel_flag(broker, self.build.attempt.request.build_id)
        if found:
            self._heeded = True
            self.build.cancel(found.cancel_text)

    def _in_hand(self) -> CurrentBuild:
        attempt = self.build.attempt
        arch, now = self.build.progress.current_phase(attempt.request.arch)
        return CurrentBuild(
            build_id=attempt.request.build_id,
            srpm=attempt.request.srpm,
            target=attempt.request.target,
            arch=arch,
            attempt=attempt.token,
            phase=now.name,
            since=now.since,
            started=round(attempt.started, 3),
        )
