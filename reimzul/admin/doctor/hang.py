# SPDX-License-Identifier: Apache-2.0
"""Why a canary does not go on: what beanstalkd knows of its job, and of the tubes it has to pass."""

from __future__ import annotations

import attr

from reimzul.admin.doctor.flight import BUILD, PLACED, Flight
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, Broker
from reimzul.core.errors import ReservationLost

_NOTIFIER = "systemctl status reimzul-notifier; journalctl -u reimzul-notifier"
_WORKERS = "on a builder of that arch: systemctl status 'reimzul-worker@*', reimzul doctor"
_JOURNAL = "on that builder: journalctl -u 'reimzul-worker@*'"


@attr.frozen
class Hang:
    """What a hop waits for."""

    words: str
    remedy: str
    hopeless: bool = False  #: nobody is there who could end it


def why(broker: Broker, flight: Flight) -> Hang:
    """What the hop under way waits for. Raises `BrokerUnavailable`."""
    if flight.hop == PLACED:
        return _of_place(broker)
    if not broker.tube_stats(NOTIFY.name).watchers:
        return Hang("nobody watches notify: the notifier does not run, and the history hears nothing", _NOTIFIER, True)
    if flight.hop == BUILD:
        builder = flight.document.get("builder_fqdn")
        words = f"{builder} has it and has not said how it ended"
        return Hang(words, f"on {builder}: journalctl -u 'reimzul-worker@*'")
    return _of_queue(broker, flight)


def _of_place(broker: Broker) -> Hang:
    tube = broker.tube_stats(CREATEREPO.name)
    if not tube.watchers:
        words = "nobody watches createrepo: no repogen worker is connected"
        return Hang(words, "on bstore: systemctl status 'reimzul-repogen-worker@*', reimzul doctor", True)
    words = f"repogen has not brought it to its place; {tube.ready + tube.delayed} requests wait in createrepo"
    return Hang(words, "on bstore: journalctl -u 'reimzul-repogen-worker@*'")


def _of_queue(broker: Broker, flight: Flight) -> Hang:
    tube = broker.tube_stats(flight.tube)
    try:
        state = broker.job_stats(flight.job).state
    except ReservationLost:
        return Hang("its job is done, and the history does not say so", _NOTIFIER)
    if state == "buried":
        return Hang("its job was refused", "reimzul buried says why", True)
    if state == "reserved":
        return Hang("a builder has its job, and has not said that it builds it", _JOURNAL)
    if not tube.watchers:
        return Hang(f"nobody watches {flight.tube}: no builder for it is connected", _WORKERS, True)
    if state == "delayed":
        return Hang("a builder gave its job back, to be tried later", _JOURNAL)
    words = f"{tube.watchers} watch {flight.tube}, and none has taken it: they build, or take nothing"
    return Hang(words, "on a builder: reimzul doctor (disk, load, drained)")
