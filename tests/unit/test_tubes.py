# SPDX-License-Identifier: Apache-2.0
"""The names of tubes, the priorities in `notify`, and what beanstalkd's statistics mean."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from reimzul.core import beanstalk
from reimzul.core.beanstalk_stats import JobStats, ServerStats, TubeStats
from reimzul.core.message import NotifyMessage, WorkerHeartbeat
from tests.events import build_id, event

NAMED: dict[str, Callable[[str], str]] = {
    "worker.": beanstalk.drain_tube,
    "target.": beanstalk.target_tube,
    "canary.": beanstalk.canary_tube,
    "host.": beanstalk.heartbeat_tube,
}


@pytest.mark.parametrize(("prefix", "name_tube"), NAMED.items())
def test_a_tubes_name_is_never_longer_than_beanstalkd_allows(prefix: str, name_tube: Callable[[str], str]) -> None:
    assert name_tube("b1.example.org") == f"{prefix}b1.example.org"
    assert name_tube("x" * 300) == f"{prefix}{'x' * 300}"[:200]


def test_a_control_tube_leads_back_to_whom_it_is_for() -> None:
    build = build_id(1)
    assert beanstalk.cancel_tube(build) == f"cancel.{build}"
    assert beanstalk.build_of_cancel_tube(f"cancel.{build}") == build
    assert beanstalk.build_of_cancel_tube("cancel.../../etc") == beanstalk.build_of_cancel_tube(build) == ""
    assert beanstalk.builder_of_drain_tube("worker.b1") == "b1"
    assert beanstalk.builder_of_drain_tube("x86_64") == ""


@pytest.mark.parametrize(
    ("tube", "is_control", "is_heartbeat"),
    [
        (beanstalk.cancel_tube("1"), True, False),
        (beanstalk.drain_tube("b1"), True, False),
        (beanstalk.target_tube("c7"), True, False),
        (beanstalk.heartbeat_tube("b1"), True, True),
        (beanstalk.session_tube("5"), True, False),
        ("notify", False, False),
    ],
)
def test_a_control_tube_is_told_from_one_with_work(tube: str, is_control: bool, is_heartbeat: bool) -> None:
    assert (beanstalk.is_control_tube(tube), beanstalk.is_heartbeat_tube(tube)) == (is_control, is_heartbeat)


def test_a_heartbeat_comes_after_all_news_of_builds() -> None:
    heartbeat = WorkerHeartbeat(host="b1", instance="1", state="idle")
    news: list[NotifyMessage] = [heartbeat, event("Success"), event("Building")]
    assert sorted(news, key=beanstalk.notify_priority) == [event("Success"), event("Building"), heartbeat]


def test_a_holder_that_gave_the_job_back_or_was_too_slow_did_not_die() -> None:
    stats = JobStats("x86_64", 1, ttr=120, age=9, reserves=8, releases=2, timeouts=1, buries=0)
    assert stats.deaths == 4, "eight held it, one holds it now"


def test_a_binlog_is_as_large_as_its_files() -> None:
    stats: dict[str, Any] = {
        "binlog-oldest-index": 3,
        "binlog-current-index": 5,
        "binlog-max-size": 10,
        "binlog-records-written": 1,
    }
    stats.update({"version": 1.12, "draining": "false", "max-job-size": 65_535, "binlog-records-written": 1})
    assert ServerStats.from_answer(stats).binlog_bytes == 30
    assert ServerStats.from_answer({**stats, "binlog-oldest-index": 0}).binlog_bytes == 0


def test_a_tube_without_statistics_is_empty() -> None:
    stats = TubeStats("x86_64")
    assert (stats.ready, stats.reserved, stats.delayed, stats.buried, stats.watchers) == (0, 0, 0, 0, 0)
