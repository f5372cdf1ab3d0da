# SPDX-License-Identifier: Apache-2.0
"""A canary sent through the farm: a tiny source rpm of our own, built as a scratch build, and the time of each hop.

It is submitted by `reimzul-submit` as anybody's is, and followed by what the history says. The source rpm is taken
out of incoming/ again, whatever comes of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attr

from reimzul.admin import lookup
from reimzul.admin.doctor.check import FAIL, OK, Finding
from reimzul.admin.doctor.flight import PLACED, Flight, finding
from reimzul.admin.doctor.hang import Hang, why
from reimzul.admin.doctor.host import BSTORE, CONTROLLER, Host
from reimzul.admin.doctor.queue import connect
from reimzul.admin.doctor.services import get
from reimzul.core import canary, validators
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import CREATEREPO, Broker, cancel_tube
from reimzul.core.control import clear_flag, new_flag, set_flag
from reimzul.core.errors import InputError, InvalidMessage, ProgramNotFound, ReimzulError, ReservationLost
from reimzul.core.message import BuildRequest, Status, event_for
from reimzul.core.process import output_of
from reimzul.core.store_paths import StorePaths, StoreUrls, leg_key
from reimzul.history import BuildFilter, NoHistory

#: Checks without which none is sent.
NEEDED = ("link.beanstalkd", "folder.incoming", "history")
#: Seconds between two looks at the history, and at what a hop waits for.
LOOK, ASK = 0.25, 2.0
#: Seconds for which nobody has to be there until a hop is given up.
NOBODY = 10.0
_SUBMIT = "reimzul-submit"


@attr.frozen(kw_only=True)
class Order:
    """What is asked for."""

    arches: tuple[str, ...]  #: empty: all that builders are there for
    target: str  #: without an arch
    timeout: float  #: seconds, for all of it


def order(host: Host, arches: Sequence[str], target: str, timeout: float) -> Order:
    """What is asked for, its target from the settings where it is left out. Raises `InputError`."""
    if not host.has(CONTROLLER):
        raise InputError("a canary is sent from the controller: incoming/ and the history are there")
    target = target or host.settings.farm.canary_target
    if not target:
        raise InputError("for which target? say it by --target, as c9s, or set [farm] canary_target")
    try:
        validators.target(target)
    except ValueError as error:
        raise InputError(f"target {error}") from None
    known = read_arches(host.settings.farm.arches)
    if unknown := [arch for arch in arches if arch not in known.known]:
        raise InputError(f"arch {unknown[0]} is not known; {', '.join(known.known)} are")
    return Order(arches=tuple(dict.fromkeys(arches)), target=target, timeout=timeout)


def watched(host: Host) -> tuple[str, ...]:
    """The arches that builders are there for, as their own; this machine's where nobody is."""
    known = read_arches(host.settings.farm.arches)
    with connect(host.settings) as broker:
        tubes = {tube for tube in known.tubes() if broker.tube_stats(tube).watchers}
    besides = {other for machine in tubes for other in known.serves.get(machine, ())}
    first = {arch.tube: name for name, arch in reversed(list(known.known.items()))}
    mine = host.settings.worker.machine or os.uname().machine
    return tuple(first[tube] for tube in known.tubes() if tube in tubes - besides) or (first.get(mine, mine),)


class Canary:
    """One canary, from its making to its end."""

    def __init__(self, host: Host, wanted: Order) -> None:
        self.host, self.wanted = host, wanted
        self.srpm = ""
        self.flights: list[Flight] = []
        self._hopeless: dict[str, float] = {}  #: since when, by arch
        self._asked = 0.0

    def send(self) -> Iterator[Finding]:
        """Each hop, when it is over or given up."""
        began = time.monotonic()
        with contextlib.ExitStack() as at_the_end:
            folder = Path(at_the_end.enter_context(TemporaryDirectory(prefix="reimzul-doctor-")))
            try:
                arches = self.wanted.arches or watched(self.host)
                srpm = canary.make_canary_srpm(folder)
                at_the_end.callback(self._clean_up, srpm.name)
                self._submit(srpm, arches, began)
            except ReimzulError as error:
                yield finding("", "submit", FAIL, str(error), "", time.monotonic() - began)
                return
            words = f"{self.srpm} for {self.wanted.target}: {', '.join(flight.tube for flight in self.flights)}"
            yield finding("", "submit", OK, words, "", time.monotonic() - began)
            try:
                yield from self._follow(began + self.wanted.timeout)
            except ReimzulError as error:
                for flight in self.flights:
                    if flight.hop:
                        yield flight.failed(time.monotonic(), f"it cannot be followed: {error}", "reimzul doctor")

    def names(self) -> list[str]:
        """How the hops are called, as far as that is known before it is sent."""
        return [f"canary.{arch}.{PLACED}" for arch in self.wanted.arches or (os.uname().machine,)]

    def told(self) -> dict[str, Any]:
        """What is known of it, for a program."""
        names = ("status", "builder_fqdn", "place", "url", "reason")
        builds = [
            {"arch": flight.arch, "build_id": flight.build_id, **{n: flight.document.get(n, "") for n in names}}
            for flight in self.flights
        ]
        return {"srpm": self.srpm, "target": self.wanted.target, "builds": builds}

    def _submit(self, srpm: Path, arches: Sequence[str], began: float) -> None:
        file = ["--config", str(self.host.file)] if self.host.file else []
        words = ["-s", str(srpm), "-a", ",".join(arches), "-t", self.wanted.target, "-d", canary.DISTTAG]
        with _uninterrupted():  # what is queued has to be known, so that it can be taken back
            answer = json.loads(output_of([program(), *file, *words, "--scratch", "--rebuild", "--now", "--json"]))
            now = time.monotonic()
            self.srpm = answer["srpm"]
            self.flights = [
                Flight(
                    arch=row["arch"], tube=row["tube"], build_id=row["build_id"], job=row["job"], began=began, since=now
                )
                for row in answer["builds"]
            ]  # fmt: skip

    def _follow(self, deadline: float) -> Iterator[Finding]:
        while under_way := [flight for flight in self.flights if flight.hop]:
            for flight in under_way:
                yield from self._news(flight)
            yield from self._given_up(time.monotonic() > deadline)
            time.sleep(LOOK)

    def _news(self, flight: Flight) -> Iterator[Finding]:
        yield from flight.heed(self._document(flight), time.monotonic())
        if flight.hop == PLACED and (words := self._place(flight)):
            yield from flight.placed(time.monotonic(), words)

    def _document(self, flight: Flight) -> dict[str, Any]:
        """What the history says; as long as it cannot be read, what it said last."""
        with contextlib.suppress(NoHistory), lookup.reading_history(self.host.settings.history.url) as history:
            for document in history.find_builds(BuildFilter(build_id=flight.build_id), 10):
                if document.arch == flight.arch:
                    return document.to_document()
        return dict(flight.document)

    def _place(self, flight: Flight) -> str:
        """Where it lies, in words; empty while it does not."""
        settings = self.host.settings
        urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
        try:
            status = get(urls.manifest(flight.build_id, flight.arch)).status
            return f"it lies in {flight.document.get('place')}" if status == 200 else ""
        except OSError:  # a controller need not reach the store
            pass
        if self.host.has(BSTORE):
            entry = StorePaths(settings.bstore.root).index / leg_key(flight.build_id, flight.arch)
            return f"it lies in {flight.document.get('place')}" if entry.exists() else ""
        with connect(settings) as broker:
            tube = broker.tube_stats(CREATEREPO.name)
        waits = tube.ready + tube.reserved + tube.delayed
        return "" if waits else "repogen has taken it; the store cannot be read from this host"

    def _given_up(self, late: bool) -> Iterator[Finding]:
        now = time.monotonic()
        if not late and now - self._asked < ASK:
            return
        self._asked = now
        with connect(self.host.settings) as broker:
            for flight in self.flights:
                if flight.hop:
                    hang = why(broker, flight)
                    if late or self._is_over(flight, hang, now):
                        yield flight.failed(now, hang.words, hang.remedy)
                        self._withdraw(broker, flight)

    def _is_over(self, flight: Flight, hang: Hang, now: float) -> bool:
        if not hang.hopeless:
            self._hopeless.pop(flight.arch, None)
            return False
        return now - self._hopeless.setdefault(flight.arch, now) > NOBODY

    def _clean_up(self, name: str) -> None:
        """Take back what is still under way, then the source rpm."""
        left = [flight for flight in self.flights if flight.hop]
        if left:
            with contextlib.suppress(ReimzulError), connect(self.host.settings) as broker:
                for flight in left:
                    self._withdraw(broker, flight)
        with contextlib.suppress(OSError):
            (self.host.settings.incoming.folder / name).unlink()

    def _withdraw(self, broker: Broker, flight: Flight) -> None:
        """Have nobody build it any more; a builder that does already is told by a mark."""
        if flight.status in Status.FINAL:
            return
        tube = cancel_tube(flight.build_id)
        set_flag(broker, tube, new_flag(by="reimzul doctor", why="the canary was given up"))
        try:
            if broker.job_stats(flight.job).state == "reserved":
                return
            request = BuildRequest.decode(broker.peek(flight.job))
            broker.delete(flight.job)
            broker.announce(event_for(request, Status.CANCELLED, reason="given up by reimzul doctor"))
        except (ReservationLost, InvalidMessage):  # it is over, or was taken just now
            pass
        clear_flag(broker, tube)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A Ctrl-C within the block is heeded at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def program() -> str:
    """Our own reimzul-submit: beside the Python that runs us, else on PATH. Raises `ProgramNotFound`."""
    beside = Path(sys.executable).with_name(_SUBMIT)
    found = str(beside) if beside.exists() else shutil.which(_SUBMIT)
    if not found:
        raise ProgramNotFound(f"{_SUBMIT} is not installed beside this program")
    return found
