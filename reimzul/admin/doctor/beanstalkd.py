# SPDX-License-Identifier: Apache-2.0
"""Checks beanstalkd and its tubes: that jobs survive a restart, and that somebody takes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from reimzul.admin.doctor.check import Check, Result, combine, fail, ok, warn
from reimzul.admin.doctor.host import Host
from reimzul.admin.doctor.services import ANSWER_TIMEOUT_SECONDS
from reimzul.admin.queues import all_tubes, farm_tubes, is_unwatched
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, TOSIGN, Broker, TubeStats
from reimzul.core.errors import RetryLater
from reimzul.core.settings import Settings

#: Doctor puts a job into this tube and deletes it at once; nobody watches it.
TEST_TUBE = "doctor"
_LOWEST_PRIORITY = 2**32 - 1
#: Who watches the farm's own tubes, and a hint if nobody does.
_DAEMONS = {
    NOTIFY.name: ("the notifier", "systemctl status reimzul-notifier"),
    CREATEREPO.name: ("a repogen worker", "on bstore: systemctl status 'reimzul-repogen-worker@*', reimzul doctor"),
    TOSIGN.name: ("the signer", "on bstore: systemctl status reimzul-signer, reimzul doctor"),
}
_BUILDER_HINT = "on a builder: systemctl status 'reimzul-worker@*', reimzul doctor"


def checks(host: Host) -> list[Check]:
    settings, needs = host.settings, ("link.beanstalkd",)
    return [
        Check(name="beanstalkd", run=lambda: _check_server(settings), needs=needs),
        Check(name="tubes.watched", run=lambda: _check_watchers(settings), needs=needs),
        Check(name="tubes.buried", run=lambda: _check_buried(settings), needs=needs),
    ]


def connect(settings: Settings) -> Broker:
    return Broker(settings.beanstalkd.host, settings.beanstalkd.port, ANSWER_TIMEOUT_SECONDS)


def _check_server(settings: Settings) -> Result:
    with connect(settings) as broker:
        stats = broker.server_stats()
        if is_too_old(stats.version):
            return fail(f"beanstalkd {stats.version} lacks reserve-job, which workers need", "install 1.12 or newer")
        if stats.draining:
            return fail("beanstalkd is draining: it accepts no jobs until a restart", "systemctl restart beanstalkd")
        try:
            records = _write_binlog(broker) - stats.binlog_records
        except RetryLater as error:
            return fail(f"beanstalkd accepts no jobs: {error}", "check for free space under its binlog")
    if not records:
        return fail(
            "beanstalkd writes no binlog: a restart loses all waiting jobs",
            "start it with -b (conf/beanstalkd-service.conf), or restart it: it stops writing when its disk is full",
        )
    return ok(f"beanstalkd {stats.version} writes its binlog")


def is_too_old(version: str) -> bool:
    """Whether beanstalkd lacks `reserve-job`; a version that is not a number is accepted."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) < (1, 12)


def _write_binlog(broker: Broker) -> int:
    """Put and delete a job; return the number of binlog records."""
    while (leftover := broker.first_ready(TEST_TUBE)) is not None:  # of a doctor that was killed
        broker.delete(leftover[0])
    broker.delete(broker.put_raw(TEST_TUBE, b"", priority=_LOWEST_PRIORITY))
    return broker.server_stats().binlog_records


def _check_watchers(settings: Settings) -> Result:
    with connect(settings) as broker:
        tubes = [broker.tube_stats(name) for name in farm_tubes(settings)]
    arch_tubes = set(read_arches(settings.farm.arches).tubes())
    counts = [f"{tube.name} {tube.watchers}" for tube in tubes if tube.watchers]
    return combine(_find_unwatched(tubes, arch_tubes), f"watchers: {', '.join(counts)}")


def _find_unwatched(tubes: Iterable[TubeStats], arch_tubes: set[str]) -> Iterator[Result]:
    builders = 0
    for tube in tubes:
        builders += tube.watchers if tube.name in arch_tubes else 0
        daemon, hint = _DAEMONS.get(tube.name, ("a builder", _BUILDER_HINT))
        if is_unwatched(tube):
            yield fail(f"{tube.ready + tube.delayed} jobs wait in {tube.name}, and nobody watches it", hint)
        elif not tube.watchers and tube.name in _DAEMONS:
            yield warn(f"{daemon} is not connected: nobody watches {tube.name}", hint)
    if not builders:
        yield warn("no builder is connected", _BUILDER_HINT)


def _check_buried(settings: Settings) -> Result:
    with connect(settings) as broker:
        tubes = [broker.tube_stats(name) for name in all_tubes(broker, settings)]
    buried = [f"{tube.buried} in {tube.name}" for tube in tubes if tube.buried]
    if buried:
        return warn(
            f"buried jobs: {', '.join(buried)}", "reimzul buried lists the reasons; then reimzul kick or discard"
        )
    return ok("there are no buried jobs")
