# SPDX-License-Identifier: Apache-2.0
"""How long it is remembered why a message was refused: for a while, and longer as long as it lies buried."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import attr
import pytest

from reimzul.core.beanstalk import Broker
from reimzul.history import History, open_history
from reimzul.notifier.housekeeping import RefusalCleanup
from tests.conftest import Beanstalkd, free_port
from tests.events import refusal
from tests.waiting import until

DAY = 86400


def jobs(history: History) -> list[int]:
    return sorted(document.job for document in history.iterate_refusals())


def bury(broker: Broker, tube: str) -> int:
    """A job that lies buried."""
    job = broker.put_raw(tube, b"noise", priority=0)
    broker.watch([tube])
    claim = broker.client.reserve(5)
    assert claim.id == job
    broker.client.bury(claim)
    return job


def test_what_is_old_is_forgotten_unless_it_lies_buried(
    tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    url = f"sqlite:///{tmp_path}/history.sqlite"
    history = open_history(url)
    buried, elsewhere = bury(broker, "x86_64"), bury(broker, "aarch64")
    waiting = broker.put_raw("x86_64", b"{}", priority=0)
    now = time.time()
    history.record([
        attr.evolve(refusal(number, at=at), tube="x86_64")
        for number, at in (
            (buried, now - 400 * DAY), (elsewhere, now - 401 * DAY), (waiting, now - 402 * DAY),
            (10**6, now - 403 * DAY), (10**6 + 1, now - DAY),
        )
    ])  # fmt: skip
    assert len(jobs(history)) == 5
    RefusalCleanup(beanstalkd.connect, url, 180).start()
    until(lambda: jobs(history) == [buried, 10**6 + 1], 20, "the others are forgotten")
    until(lambda: "3 refusals of more than 180 days ago are dropped" in caplog.text, 20, "it is said")
    history.close()


def test_zero_days_is_for_ever(tmp_path: Path, beanstalkd: Beanstalkd) -> None:
    RefusalCleanup(beanstalkd.connect, f"sqlite:///{tmp_path}/history.sqlite", 0).start()
    assert not list(tmp_path.iterdir())


def test_a_history_that_is_away_is_one_line(
    beanstalkd: Beanstalkd, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    RefusalCleanup(beanstalkd.connect, f"mongodb://127.0.0.1:{free_port()}/", 180).start()
    until(lambda: "old refusals are not dropped today: MongoDB" in caplog.text, 20, "it is said")
