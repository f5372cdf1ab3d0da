# SPDX-License-Identifier: Apache-2.0
"""beanstalkd itself, and its tubes: whether it keeps what it is given, and whether somebody takes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from reimzul.admin.doctor.check import Check, Result, fail, ok, warn, worst
from reimzul.admin.doctor.host import CONTROLLER, Host
from reimzul.admin.doctor.services import PATIENCE
from reimzul.admin.queues import is_unwatched
from reimzul.admin.tubes import all_tubes, farm_tubes
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, TOSIGN, Broker, TubeStats
from reimzul.core.config import Settings
from reimzul.core.errors import RetryLater

#: The tube a job is put into and deleted from at once; nobody watches it.
TUBE = "doctor"
_PRIORITY = 2**32 - 1
#: The farm's own tubes, and who watches each.
_OWN = {
    NOTIFY.name: ("the notifier", "systemctl status reimzul-notifier"),
    CREATEREPO.name: ("a repogen worker", "on bstore: systemctl status 'reimzul-repogen-worker@*', reimzul doctor"),
    TOSIGN.name: ("the signer", "on bstore: systemctl status reimzul-signer, reimzul doctor"),
}
_BUILDERS = "on a builder: systemctl status 'reimzul-worker@*', reimzul doctor"


def checks(host: Host) -> list[Check]:
    """What there is to ask of beanstalkd, on the controller alone."""
    if not host.has(CONTROLLER):
        return []
    settings, needs = host.settings, ("link.beanstalkd",)
    return [
        Check(name="beanstalkd", look=lambda: _server(settings), needs=needs),
        Check(name="tubes.watched", look=lambda: _watched(settings), needs=needs),
        Check(name="tubes.buried", look=lambda: _buried(settings), needs=needs),
    ]


def connect(settings: Settings) -> Broker:
    """beanstalkd, of little patience."""
    return Broker(settings.beanstalkd.host, settings.beanstalkd.port, PATIENCE)


def _server(settings: Settings) -> Result:
    with connect(settings) as broker:
        before = broker.server_stats()
        if too_old(before.version):
            return fail(f"it is {before.version}, without the reserve-job that workers need", "install 1.12 or newer")
        if before.draining:
            return fail("it is draining: it takes no job until it is started anew", "systemctl restart beanstalkd")
        try:
            written = _written(broker) - before.binlog_records
        except RetryLater as error:
            return fail(f"it takes no job: {error}", "is there room under its binlog?")
    if not written:
        return fail(
            "it writes no binlog: a restart loses all that waits",
            "start it with -b (conf/beanstalkd-service.conf); it also gives up a binlog whose disk was full",
        )
    return ok(f"{before.version}, its binlog is written")


def too_old(version: str) -> bool:
    """Whether this beanstalkd lacks `reserve-job`; one whose version is no number is not judged."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) < (1, 12)


def _written(broker: Broker) -> int:
    """How much its binlog has had by the time a job of ours was put and deleted."""
    _sweep(broker)
    broker.delete(broker.put_raw(TUBE, b"", priority=_PRIORITY))
    return broker.server_stats().binlog_records


def _sweep(broker: Broker) -> None:
    """Delete what a doctor that was killed has left."""
    while (left := broker.first_ready(TUBE)) is not None:
        broker.delete(left[0])


def _watched(settings: Settings) -> Result:
    with connect(settings) as broker:
        tubes = [broker.tube_stats(name) for name in farm_tubes(settings)]
    arches = set(read_arches(settings.farm.arches).tubes())
    watched = [f"{tube.name} {tube.watchers}" for tube in tubes if tube.watchers]
    return worst(list(_unwatched(tubes, arches)), f"how many watch each: {', '.join(watched)}")


def _unwatched(tubes: Iterable[TubeStats], arches: set[str]) -> Iterator[Result]:
    builders = 0
    for tube in tubes:
        builders += tube.watchers if tube.name in arches else 0
        who, remedy = _OWN.get(tube.name, ("a builder", _BUILDERS))
        if is_unwatched(tube):
            yield fail(f"{tube.ready + tube.delayed} jobs wait in {tube.name}, and nobody watches it", remedy)
        elif not tube.watchers and tube.name in _OWN:
            yield warn(f"{who} is not connected: nobody watches {tube.name}", remedy)
    if not builders:
        yield warn("no builder is connected", _BUILDERS)


def _buried(settings: Settings) -> Result:
    with connect(settings) as broker:
        found = [broker.tube_stats(name) for name in all_tubes(broker, settings)]
    buried = [f"{tube.buried} in {tube.name}" for tube in found if tube.buried]
    if buried:
        return warn(f"refused jobs: {', '.join(buried)}", "reimzul buried says why; then reimzul kick or discard")
    return ok("no job was refused")
