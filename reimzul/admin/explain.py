# SPDX-License-Identifier: Apache-2.0
"""`reimzul explain`: why a build is where it is, and when it is likely to go on."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import click

from reimzul.admin import finding, reading
from reimzul.admin.explaining import explain, explanation_to_dict
from reimzul.admin.facts import BuildFacts, is_silent
from reimzul.admin.jobs import job_state, queue_order
from reimzul.admin.table import show_json
from reimzul.admin.usual import ARCH_SAMPLE, PACKAGE_SAMPLE, ArchStats, duration_stats, durations
from reimzul.core import control
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, TOSIGN, Broker
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.config import Settings
from reimzul.core.message import Status
from reimzul.core.readable import find_unreadable
from reimzul.history import BuildFilter, Document, History
from reimzul.history.workers import WorkerRecord, WorkersUnavailable, drop_disconnected


@click.command("explain", epilog=EXIT_CODES)
@finding.build_ids_argument(many=False)
@click.option("--json", "as_json", is_flag=True, help="An object: build_id, legs. docs/json.md has its keys.")
@shared_options
def command(config: Path | None, verbose: bool, given: str, as_json: bool) -> None:
    """Say in words why a build is where it is: what is ahead of it, who could build it, when it is likely to start.

    ID is a build id, or as much of its beginning as no other build has.

    \b
    Examples:
      reimzul explain 72b893f8
      reimzul explain 72b893f8 --json
    """
    settings = load_settings(config, verbose)
    with reading.reading_history(settings.history.url) as history:
        build = finding.find_build(history, given)
        with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
            known = Gatherer(settings, history, broker)
            gathered = [known.facts(leg) for leg in build.legs]
    told = [(facts, explain(facts)) for facts in gathered]
    if as_json:
        show_json({"build_id": build.build_id, "legs": [explanation_to_dict(each, facts) for facts, each in told]})
        return
    click.echo(f"build {build.build_id}: {build.main['srpm']} for {build.main['target']}")
    for facts, each in told:
        click.echo(f"{facts.leg['arch']}: {each.state}")
        for sentence in each.sentences:
            click.echo(f"  {sentence}")


class Gatherer:
    """Asks history, beanstalkd and the list of workers; what several legs need it asks once."""

    def __init__(self, settings: Settings, history: History, broker: Broker) -> None:
        self._settings, self._history, self._broker = settings, history, broker
        self._known = read_arches(settings.farm.arches)
        self._unfinished: list[Document] | None = None

    def facts(self, leg: Document) -> BuildFacts:
        """All that is known of one leg."""
        now = time.time()
        tube = leg.get("tube") or self._tube(leg)
        workers = self._workers(tube, now)
        waits = leg["status"] == Status.QUEUED
        ahead, beside = self._before(leg, tube, workers or (), now) if waits else ([], [])
        stats = {name: self._broker.tube_stats(name) for name in (tube, CREATEREPO.name, TOSIGN.name, NOTIFY.name)}
        name = leg.get("pkgname") or ""
        past = self._history.recent_successes(name, leg["arch"], PACKAGE_SAMPLE) if name else []
        arch = self._history.find_builds(BuildFilter(arch=leg["arch"], status=Status.SUCCESS), ARCH_SAMPLE)
        return BuildFacts(
            now=now,
            leg=leg,
            job=job_state(self._broker, leg),
            tube=stats[tube],
            createrepo=stats[CREATEREPO.name],
            tosign=stats[TOSIGN.name],
            untold=stats[NOTIFY.name].ready + stats[NOTIFY.name].delayed,
            ahead=ahead,
            beside=beside,
            workers=workers,
            own=duration_stats(durations(past)),
            arch=ArchStats([*arch, *past]),
            cancel=control.cancel_flag(self._broker, leg["build_id"]),
            source_bar=self._source_bar(leg) if waits and leg.get("waits_for") else "",
            stuck=control.stuck_flag(self._broker, leg["target"]) if leg["status"] == Status.SUCCESS else None,
        )

    def _source_bar(self, leg: Document) -> str:
        incoming = self._settings.incoming.folder
        path = incoming / leg["srpm"]
        return find_unreadable(path, incoming) if path.exists() else ""  # on another host nothing is known of it

    def _tube(self, leg: Document) -> str:
        """The tube a leg's request went by, where the history does not say; of a follower, its target's arch's."""
        asked = leg["target"].rpartition(".")[2]
        known = self._known.known
        arch = known.get(asked) or known.get(leg["arch"])
        return arch.tube if arch else str(leg["arch"])

    def _workers(self, tube: str, now: float) -> list[WorkerRecord] | None:
        """Those that watch a tube, who is free first, who is silent last; None where that cannot be known."""
        try:
            known = [each for each in reading.load_workers(self._settings) if tube in each.heartbeat.arches]
        except WorkersUnavailable:
            return None
        seen = drop_disconnected(self._broker, known)
        return sorted(seen, key=lambda each: (is_silent(each, now), each.heartbeat.build is not None))

    def _before(
        self, leg: Document, tube: str, workers: Iterable[WorkerRecord], now: float
    ) -> tuple[list[Document], list[Document]]:
        if self._unfinished is None:
            self._unfinished = self._history.find_unfinished()
        shared = {name for seen in workers for name in seen.heartbeat.arches}
        return builds_ahead(leg, self._unfinished, tube, shared, now)


def builds_ahead(
    leg: Document, unfinished: Iterable[Document], tube: str, shared: Iterable[str], now: float
) -> tuple[list[Document], list[Document]]:
    """The builds that beanstalkd gives out before a leg's job: of its own tube, and of those its builders share.

    Of ready jobs the smallest priority goes first, and of equal ones the smallest number, over all tubes that a
    worker watches (beanstalkd's doc/protocol.txt, "reserve").
    """
    mine, others = queue_order(leg), set(shared) - {tube}
    first = {
        (each["tube"], each["job"]): each  # legs that were put again together are one job
        for each in unfinished
        if each["status"] == Status.QUEUED
        and each.get("job")
        and (each.get("due") or 0.0) <= now
        and each["build_id"] != leg["build_id"]
        and queue_order(each) < mine
    }.values()
    return [each for each in first if each["tube"] == tube], [each for each in first if each["tube"] in others]
