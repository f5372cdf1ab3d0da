# SPDX-License-Identifier: Apache-2.0
"""A build and its job session: what goes wrong in one does not end the other silently."""

from __future__ import annotations

import queue
import threading
from typing import Any, Callable

import attr
import pytest

from reimzul.core.daemon import SdNotify, Stop
from reimzul.core.errors import BrokerUnavailable, InvalidMessage, ReservationLost
from reimzul.worker.job_session import JobSession


class Build:
    """It lasts until it is stopped."""

    def __init__(self) -> None:
        self.outbox: queue.Queue[Any] = queue.Queue()
        self.over = threading.Event()

    def run(self) -> None:
        assert self.over.wait(20), "nobody ended it"

    def stop(self) -> None:
        self.over.set()


@attr.define
class Claim:
    """A claim that meets something, and is its own broker."""

    touch_if_due: Callable[[], None]
    re_reserve: Callable[[Any], None] = lambda claim: None

    @property
    def broker(self) -> Claim:
        return self


def raising(error: Exception) -> Callable[..., None]:
    def meet(*_: object) -> None:
        raise error

    return meet


def session_of(claim: Claim) -> JobSession:
    given: Any = claim
    service = SdNotify()
    return JobSession(lambda: given, given, Stop(), "t", service, service.ping)


def test_a_connection_that_breaks_while_the_job_is_taken_back_is_only_away() -> None:
    session = session_of(Claim(raising(ReservationLost("its time ran out")), raising(BrokerUnavailable("reset"))))
    assert not session._keep_reserved()
    assert not session.reservation_lost


def test_what_nobody_expected_ends_the_build_too() -> None:
    build, poller = Build(), object()
    with pytest.raises(InvalidMessage, match="too long"):
        session_of(Claim(raising(InvalidMessage("too long")))).run_build(build, poller)  # type: ignore[arg-type]
    assert build.over.is_set()
