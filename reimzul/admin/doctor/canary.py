# SPDX-License-Identifier: Apache-2.0
"""Sends a canary through the farm: a tiny source rpm, submitted as a scratch build, and times each stage.

It is submitted by `reimzul-submit`, and followed by what the history records. At the end its source rpm is removed
from incoming/, and a build that is still under way is cancelled.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attr

from reimzul.admin import lookup
from reimzul.admin.doctor import FAIL, OK, Finding, Result, fail, warn
from reimzul.admin.doctor.host import Host
from reimzul.admin.doctor.services import connect, fetch
from reimzul.admin.output import check_input
from reimzul.core import canary, validators
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, Broker, cancel_tube
from reimzul.core.control import clear_flag, new_flag, set_flag
from reimzul.core.errors import InputError, InvalidMessage, ProgramNotFound, ReimzulError, ReservationLost
from reimzul.core.formatting import suggest_nearest
from reimzul.core.links import log_command
from reimzul.core.message import BuildRequest, Status, event_for
from reimzul.core.process import output_of
from reimzul.core.roles import BSTORE, CONTROLLER
from reimzul.core.store_paths import StorePaths, StoreUrls, leg_key
from reimzul.history import BuildFilter, BuildRecord, NoHistory
from reimzul.history.build_record import BuildState

#: No canary is sent if one of these checks fails.
NEEDED = ("link.beanstalkd", "folder.incoming", "history")
#: Intervals for reading the history, and for asking beanstalkd what a stage waits for.
HISTORY_POLL_SECONDS, STALL_POLL_SECONDS = 0.25, 2.0
#: A stage fails after this time if nobody is connected who could complete it.
UNRECOVERABLE_SECONDS = 10.0
_SUBMIT = "reimzul-submit"
#: The stages in their order, each named after what completes it.
QUEUE, BUILD, UPLOAD, PLACED, TOTAL = "queue", "build", "upload", "placed", "total"

_NOTIFIER_HINT = "systemctl status reimzul-notifier; journalctl -u reimzul-notifier"


def prepare_canary(host: Host, arches: Sequence[str], target: str, timeout: float) -> Canary:
    """Check the options; the default target is in the settings. Raises `InputError`."""
    if not host.has_role(CONTROLLER):
        raise InputError("a canary has to be sent from the controller, which has incoming/ and the history")
    target = target or host.settings.farm.canary_target
    if not target:
        raise InputError("the canary has no target: give --target (as c9s), or set [farm] canary_target")
    check_input(validators.target, target, "target ")
    known = read_arches(host.settings.farm.arches).known
    if unknown := [arch for arch in arches if arch not in known]:
        hint = suggest_nearest(unknown[0], known) or f"; known arches: {', '.join(known)}"
        raise InputError(f"unknown arch {unknown[0]!r}{hint}")
    name, _, arch = target.rpartition(".")
    if name and arch in known:  # a target as other commands name it
        target, arches = name, arches or [arch]
    return Canary(host, list(dict.fromkeys(arches)), target, timeout)


def list_watched_arches(host: Host) -> tuple[str, ...]:
    """The arches whose tubes builders watch; this machine's if no builder is connected."""
    known = read_arches(host.settings.farm.arches)
    with connect(host.settings) as broker:
        tubes = {tube for tube in known.tubes() if broker.tube_stats(tube).watchers}
    extra = {other for machine in tubes for other in known.serves.get(machine, ())}
    first = {arch.tube: name for name, arch in reversed(list(known.known.items()))}
    machine = host.settings.worker.machine or os.uname().machine
    return tuple(first[tube] for tube in known.tubes() if tube in tubes - extra) or (first.get(machine, machine),)


# --- one arch


@attr.define(kw_only=True)
class CanaryRun:
    """The canary's build on one arch, and the stage it is in. Times are of the monotonic clock."""

    arch: str
    tube: str
    build_id: str
    job: int  #: beanstalkd's number
    began: float  #: when the canary was submitted
    since: float  #: when the current stage began
    served: float  #: when somebody was last connected who could complete it
    stage: str = QUEUE  #: empty after the last one
    document: Mapping[str, Any] = attr.field(factory=dict)  #: the build in the history

    def update(self, document: Mapping[str, Any], now: float) -> Iterator[Finding]:
        """Yield a finding for each stage that is over according to the history."""
        self.document, status = document, document.get("status", "")
        if status in ("", Status.QUEUED) or self.stage not in (QUEUE, BUILD):
            return
        if self.stage == QUEUE and document.get("builder_fqdn"):
            yield self._complete(QUEUE, now, f"building on {document['builder_fqdn']}")
            self.stage = BUILD
        if status == Status.SUCCESS:
            # Both by the builder's clock: when mock ended, and when the build was announced after the upload.
            finished, announced = (float(document.get(name) or 0.0) for name in ("finished", "at"))
            upload = min(max(0.0, announced - finished), now - self.since) if finished else 0.0
            yield self._complete(BUILD, now - upload, f"built by mock: {', '.join(document.get('rpms') or ())}")
            yield self._complete(UPLOAD, now, "uploaded, announced, and in the history")
            self.stage = PLACED
        elif status in Status.FINAL:
            message = f"{BuildState.from_status(status)}: {document.get('reason') or 'no reason was given'}"
            has_logs = document.get("logs_folder") or document.get("url")
            hint = log_command(self.build_id, self.arch) if has_logs else f"reimzul show {self.build_id[:8]}"
            yield self.fail(now, message, hint)

    def complete_last(self, now: float, message: str) -> Iterator[Finding]:
        yield self._complete(PLACED, now, message)
        self.stage = ""
        yield make_finding(f"{self.arch}.{TOTAL}", OK, f"build {self.build_id}", now - self.began)

    def fail(self, now: float, message: str, hint: str) -> Finding:
        stage, self.stage = self.stage, ""
        return make_finding(f"{self.arch}.{stage}", FAIL, message, now - self.since, hint)

    def _complete(self, stage: str, now: float, message: str) -> Finding:
        seconds, self.since = now - self.since, now
        return make_finding(f"{self.arch}.{stage}", OK, message, seconds)


def make_finding(stage: str, level: str, message: str, seconds: float, hint: str = "") -> Finding:
    return Finding(level, f"{seconds:.1f} s: {message}", hint, name=f"canary.{stage}", seconds=seconds)


# --- why a stage does not end


def diagnose_stall(broker: Broker, run: CanaryRun) -> Result:
    """Find out what the current stage waits for: FAIL if nobody is connected who could complete it.

    Raises `BrokerUnavailable`.
    """
    placing = broker.tube_stats(CREATEREPO.name)
    if run.stage == PLACED and not placing.watchers:
        return fail(
            "nobody watches createrepo: no repogen worker is connected",
            "on bstore: systemctl status 'reimzul-repogen-worker@*', reimzul doctor",
        )
    if run.stage == PLACED:
        return warn(
            f"repogen has not stored it yet; {placing.ready + placing.delayed} requests wait in createrepo",
            "on bstore: journalctl -u 'reimzul-repogen-worker@*'",
        )
    if not broker.tube_stats(NOTIFY.name).watchers:
        return fail("nobody watches notify: the notifier does not run, so the history records nothing", _NOTIFIER_HINT)
    if run.stage == BUILD:
        builder = run.document.get("builder_fqdn")
        return warn(f"{builder} has not reported a result yet", f"on {builder}: journalctl -u 'reimzul-worker@*'")
    return _diagnose_queue(broker, run)


def _diagnose_queue(broker: Broker, run: CanaryRun) -> Result:
    tube, journal = broker.tube_stats(run.tube), "on that builder: journalctl -u 'reimzul-worker@*'"
    try:
        state = broker.job_stats(run.job).state
    except ReservationLost:
        return warn("its job is done, but the history does not have the result", _NOTIFIER_HINT)
    if state == "buried":
        return fail("its job is buried", "reimzul buried lists the reason")
    if state == "reserved":
        return warn("a builder has reserved its job, but has not reported a build", journal)
    if not tube.watchers:
        return fail(
            f"nobody watches {run.tube}: no builder for it is connected",
            "on a builder of that arch: systemctl status 'reimzul-worker@*', reimzul doctor",
        )
    if state == "delayed":
        return warn("a builder has released its job for a later retry", journal)
    return warn(
        f"{tube.watchers} workers watch {run.tube}, but none has taken it: they are busy, or take no jobs",
        "on a builder: reimzul doctor (disk, load, drained)",
    )


# --- all arches


@attr.define
class Canary:
    host: Host
    arches: Sequence[str]  #: empty: all that builders are connected for
    target: str
    timeout: float  #: seconds for all stages together
    srpm: str = ""
    runs: list[CanaryRun] = attr.field(factory=list)
    _last_stall_poll: float = 0.0

    @property
    def active_runs(self) -> list[CanaryRun]:
        return [run for run in self.runs if run.stage]

    def send(self) -> Iterator[Finding]:
        began = time.monotonic()
        with TemporaryDirectory(prefix="reimzul-doctor-") as folder, contextlib.ExitStack() as stack:
            try:
                arches = self.arches or list_watched_arches(self.host)
                srpm = canary.make_canary_srpm(Path(folder))
                stack.callback(self._clean_up, srpm.name)
                self._submit(srpm, arches, began)
            except ReimzulError as error:
                yield make_finding("submit", FAIL, str(error), time.monotonic() - began)
                return
            yield make_finding(
                "submit",
                OK,
                f"{self.srpm} for {self.target}: {', '.join(run.tube for run in self.runs)}",
                time.monotonic() - began,
            )
            try:
                yield from self._follow(began + self.timeout)
            except ReimzulError as error:
                for run in self.active_runs:
                    yield run.fail(time.monotonic(), f"cannot follow the build: {error}", "reimzul doctor")

    def to_dict(self) -> dict[str, Any]:
        names = ("status", "builder_fqdn", "place", "logs_folder", "reason")
        builds = [
            {
                "arch": run.arch,
                "build_id": run.build_id,
                "state": BuildRecord.from_document(run.document).state,
                **{name: run.document.get(name, "") for name in names},
            }
            for run in self.runs
        ]
        return {"srpm": self.srpm, "target": self.target, "builds": builds}

    def _submit(self, srpm: Path, arches: Sequence[str], began: float) -> None:
        file = ["--config", str(self.host.file)] if self.host.file else []
        options = ["-s", str(srpm), "-a", ",".join(arches), "-t", self.target, "-d", canary.DISTTAG]
        argv = [_find_submit_program(), *file, *options, "--scratch", "--rebuild", "--new-target", "--now", "--json"]
        # We have to know what was queued to cancel it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            answer, now = json.loads(output_of(argv)), time.monotonic()
            self.srpm = answer["builds"][0]["srpm"]
            self.runs = [
                CanaryRun(
                    arch=build["arch"], tube=build["tube"], build_id=build["build_id"], job=build["job"],
                    began=began, since=now, served=now,
                )
                for build in answer["builds"]
            ]  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _follow(self, deadline: float) -> Iterator[Finding]:
        while runs := self.active_runs:
            for run in runs:
                yield from run.update(self._read_document(run), time.monotonic())
                if run.stage == PLACED and (message := self._describe_place(run)):
                    yield from run.complete_last(time.monotonic(), message)
            yield from self._fail_stalled(time.monotonic() > deadline)
            time.sleep(HISTORY_POLL_SECONDS)

    def _read_document(self, run: CanaryRun) -> dict[str, Any]:
        """The build in the history; the last known state while there is no history."""
        with contextlib.suppress(NoHistory), lookup.reading_history(self.host.settings.history.url) as history:
            for document in history.find_builds(BuildFilter(build_id=run.build_id), 10):
                if document.arch == run.arch:
                    return document.to_output()
        return dict(run.document)

    def _describe_place(self, run: CanaryRun) -> str:
        """Where the build is stored; empty while it is not."""
        settings = self.host.settings
        stored = f"stored in {run.document.get('place')}"
        urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
        with contextlib.suppress(OSError):  # a controller need not reach the store
            return stored if fetch(urls.manifest(run.build_id, run.arch))[0].status == 200 else ""
        if self.host.has_role(BSTORE):
            leg = StorePaths(settings.bstore.root).index / leg_key(run.build_id, run.arch)
            return stored if leg.exists() else ""
        with connect(settings) as broker:
            tube = broker.tube_stats(CREATEREPO.name)
        is_requested = tube.ready + tube.reserved + tube.delayed
        return "" if is_requested else "repogen has taken it; this host cannot read the store"

    def _fail_stalled(self, is_late: bool) -> Iterator[Finding]:
        now = time.monotonic()
        if not is_late and now - self._last_stall_poll < STALL_POLL_SECONDS:
            return
        self._last_stall_poll = now
        with connect(self.host.settings) as broker:
            for run in self.active_runs:
                stall = diagnose_stall(broker, run)
                if stall.level != FAIL:
                    run.served = now
                if is_late or now - run.served > UNRECOVERABLE_SECONDS:
                    yield run.fail(now, stall.message, stall.hint)
                    self._cancel(broker, run)

    def _clean_up(self, name: str) -> None:
        if self.active_runs:
            with contextlib.suppress(ReimzulError), connect(self.host.settings) as broker:
                for run in self.active_runs:
                    self._cancel(broker, run)
        with contextlib.suppress(OSError):
            (self.host.settings.incoming.folder / name).unlink()

    def _cancel(self, broker: Broker, run: CanaryRun) -> None:
        """Delete the job; if a builder has it, set a flag that the builder polls."""
        if run.document.get("status") in Status.FINAL:
            return
        tube = cancel_tube(run.build_id)
        set_flag(broker, tube, new_flag(by="reimzul doctor", why="the canary was given up"))
        with contextlib.suppress(ReservationLost, InvalidMessage):  # it is done, or was just reserved
            if broker.job_stats(run.job).state == "reserved":
                return
            request = BuildRequest.decode(broker.peek(run.job))
            broker.delete(run.job)
            broker.announce(event_for(request, Status.CANCELLED, reason="given up by reimzul doctor"))
        clear_flag(broker, tube)


def _find_submit_program() -> str:
    """Find reimzul-submit beside the running Python, else in PATH. Raises `ProgramNotFound`."""
    folders = (os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath))
    if found := shutil.which(_SUBMIT, path=os.pathsep.join(folders)):
        return found
    raise ProgramNotFound(f"{_SUBMIT} is not installed beside this program, nor in PATH")
