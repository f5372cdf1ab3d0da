# SPDX-License-Identifier: Apache-2.0
"""Figures of many builds, and the same as OpenMetrics text."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reimzul.admin.metrics import Gauge, MetricsInput, build_gauges, format_openmetrics
from reimzul.admin.stats import BuildStats, compute_stats, failure_reason, time_stats
from reimzul.core.beanstalk_stats import TubeStats
from reimzul.core.message import CurrentBuild, WorkerHeartbeat
from reimzul.core.pending import PendingDeliveries
from reimzul.history import BuildRecord
from reimzul.history.build_record import apply_events
from reimzul.history.workers import WorkerRecord
from tests.events import ATTEMPT, BEGINNING, OTHER_ATTEMPT, build_id, event

#: A line of figures, by the format's grammar as far as we use it.
_SAMPLE = re.compile(r'[a-z_]+(\{([a-z]+="([^"\\\n]|\\["\\n])*",?)+\})? -?[0-9][0-9.e+-]*\Z')


def legs(*told: Any) -> list[BuildRecord]:
    """The history's documents after events."""
    return list(apply_events({}, told).values())


def make_built(
    number: int, status: str = "Published", wait: float = 10, took: float = 60, **more: Any
) -> list[BuildRecord]:
    """A build that waited and was built for so long."""
    begins = BEGINNING + wait
    return legs(
        event("Queued", number, at=BEGINNING, tube="x86_64", job=number, priority=8192),
        event("Building", number, at=begins, started=begins, **more),
        event(status, number, at=begins + took, started=begins, finished=begins + took, **more),
    )


def stats_of(*builds: list[BuildRecord]) -> BuildStats:
    return compute_stats([leg for build in builds for leg in build])


def test_results_and_times_are_counted_by_arch_package_and_builder() -> None:
    other = {"builder_fqdn": "builder2.example.org", "arch": "i386"}
    failed = make_built(3, "Failed", reason="%build failed")
    found = stats_of(make_built(1), make_built(2, took=120), failed, legs(event("Published", 4, **other)))
    assert dict(found.every.results) == {"published": 3, "failed": 1}
    assert found.arches["x86_64"].to_dict()["build"] == {"count": 3, "median": 60.0, "p95": 114.0, "total": 240.0}
    assert found.arches["x86_64"].to_dict()["wait"]["median"] == 10.0
    assert found.arches["i386"].to_dict() == {"results": {"published": 1}, "wait": None, "build": None}
    assert set(found.packages) == {"time"}
    assert found.packages["time"].failure_count == 1
    assert set(found.builders) == {"builder1.example.org", "builder2.example.org"}


def test_a_build_that_waits_has_no_builder_yet() -> None:
    found = stats_of(legs(event("Queued", 1)))
    assert found.builders == {}
    assert found.attempts == {}
    assert dict(found.every.results) == {"queued": 1}


def test_reasons_of_failure_are_told_apart_without_what_is_one_builds_alone() -> None:
    missing = [make_built(n, "Failed", reason=f"BuildRequires that nobody provides: lib{n}") for n in (1, 2)]
    found = stats_of(*missing, make_built(3, "Failed", reason="%build failed"), make_built(4, "Failed"))
    assert dict(found.reasons) == {
        "BuildRequires that nobody provides": 2, "%build failed": 1, "no reason was given": 1,
    }  # fmt: skip
    assert failure_reason(BuildRecord()) == "no reason was given"


def test_a_wait_ends_with_the_first_attempt_and_is_never_negative() -> None:
    (late,) = make_built(1, wait=-5)
    assert late.wait == 0
    (document,) = legs(
        event("Queued", 1, at=BEGINNING),
        event("Building", 1, started=BEGINNING + 10, attempt=ATTEMPT),
        event("Queued", 1, at=BEGINNING + 20, attempt=ATTEMPT, reason="full", builder_fqdn="builder1.example.org"),
        event("Building", 1, started=BEGINNING + 500, attempt=OTHER_ATTEMPT, at=BEGINNING + 500),
    )
    assert document.wait == 10
    assert BuildRecord().wait is None


def test_every_result_has_its_word() -> None:
    assert [leg.state for leg in make_built(1, "Success")] == ["built"]
    assert [leg.state for leg in make_built(1, "Cancelled")] == ["cancelled"]
    assert time_stats([]) is None


def test_a_fault_of_a_builder_counts_once_however_many_legs_it_had() -> None:
    words = {"attempt": ATTEMPT, "builder_fqdn": "builder1.example.org"}
    told = []
    for arch in ("x86_64", "i386"):
        told += [
            event("Building", 1, arch=arch, **words),
            event("Queued", 1, arch=arch, at=BEGINNING + 5, reason="the disk was full", **words),
            event("Building", 1, arch=arch, at=BEGINNING + 9, attempt=OTHER_ATTEMPT, builder_fqdn="builder2.x"),
        ]
    tallies = compute_stats([*legs(*told), *make_built(2), *make_built(3)]).attempts
    one = tallies["builder1.example.org"]
    assert (one.attempts, one.faults) == (3, 1)
    assert one.last
    assert one.last.status == "Published"
    assert "builder2.x" not in tallies, "it is still at it"


# --- as OpenMetrics text


def sight(**more: Any) -> MetricsInput:
    there = WorkerHeartbeat(
        host="b1", instance="1", state="building", free_mib=7, load=0.5, arches=("x86_64",), build=_hand()
    )
    given: dict[str, Any] = {
        "now": BEGINNING + 3600,
        "tubes": [TubeStats("x86_64", ready=5, watchers=2)],
        "workers": [WorkerRecord(heartbeat=there, last_seen=BEGINNING + 3590)],
        "day": stats_of(make_built(1), make_built(2, "Failed", reason='no "such" file\\')),
        "waiting": legs(event("Queued", 9, at=BEGINNING, tube="x86_64", job=1)),
        "pending": [PendingDeliveries(sink="mqtt", count=3, oldest=BEGINNING)],
    }
    return MetricsInput(**{**given, **more})


def _hand() -> CurrentBuild:
    return CurrentBuild(
        build_id=build_id(1), srpm="time-1.7-45.el7.src.rpm", target="c7.1708.u.x86_64", arch="x86_64", attempt=ATTEMPT
    )


def lines(told: MetricsInput) -> list[str]:
    return format_openmetrics(build_gauges(told)).splitlines()


def test_the_text_is_of_the_formats_grammar_and_ends_as_it_should() -> None:
    told = lines(sight())
    assert told[-1] == "# EOF"
    kinds = [line.split()[2] for line in told if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds)), "a family is told in one piece"
    assert all(line.startswith("#") or _SAMPLE.match(line) for line in told)
    assert all(name.endswith(unit) for name, unit in (line.split()[2:4] for line in told if line.startswith("# UNIT")))


def test_each_part_of_the_farm_is_in_it() -> None:
    told = lines(sight())
    for line in (
        'reimzul_part_up{part="beanstalkd"} 1',
        'reimzul_tube_jobs{tube="x86_64",state="ready"} 5',
        'reimzul_tube_oldest_wait_seconds{tube="x86_64"} 3600',
        'reimzul_workers{builder="b1",state="building"} 1',
        'reimzul_workers{builder="b1",state="idle"} 0',
        'reimzul_builder_free_bytes{builder="b1"} 7340032',
        'reimzul_day_builds{arch="x86_64",result="published"} 1',
        'reimzul_day_failures{reason="no \\"such\\" file\\\\"} 1',
        'reimzul_day_wait_seconds{arch="x86_64",quantile="0.5"} 10',
        'reimzul_day_build_seconds{arch="x86_64",quantile="0.95"} 60',
        'reimzul_day_builder_wait_seconds{builder="builder1.example.org",quantile="0.5"} 10',
        'reimzul_day_builder_build_seconds{builder="builder1.example.org",quantile="0.95"} 60',
        'reimzul_day_package_wait_seconds{package="time",quantile="0.95"} 10',
        'reimzul_day_package_build_seconds{package="time",quantile="0.5"} 60',
        'reimzul_owed_events{sink="mqtt"} 3',
        'reimzul_owed_oldest_seconds{sink="mqtt"} 3600',
    ):
        assert line in told


def test_of_many_packages_those_built_most_often_are_told() -> None:
    builds = [make_built(number, pkgname=f"p{number}") for number in range(1, 70)]
    told = lines(sight(day=stats_of(*builds, make_built(70, pkgname="p69"))))
    named = {line.split('"')[1] for line in told if line.startswith("reimzul_day_package_build_seconds{")}
    assert len(named) == 50
    assert "p69" in named


def test_a_part_that_did_not_answer_is_told_as_down_and_left_out() -> None:
    told = lines(sight(tubes=None, workers=None, day=None, waiting=(), pending=()))
    assert [line for line in told if not line.startswith("#")] == [
        'reimzul_part_up{part="beanstalkd"} 0',
        'reimzul_part_up{part="workers"} 0',
        'reimzul_part_up{part="history"} 0',
        f"reimzul_made_timestamp_seconds {int(BEGINNING) + 3600}",
    ]


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_whatever_a_label_says_the_line_is_one_line(label: str, value: float) -> None:
    gauge = Gauge("x", "about", [(value, {"label": label.replace("\r", " ")})])
    told = format_openmetrics([gauge]).split("\n")
    assert len(told) == 5
    assert told[2].startswith('x{label="')
