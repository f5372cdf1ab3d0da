# SPDX-License-Identifier: Apache-2.0
"""One attempt at a build, from its request to its uploaded legs.

It runs beside the thread that owns beanstalkd's connection: it puts its messages into a queue in memory, in order, and
that thread sends them (`job_session.py`). An attempt knows nothing of the job's reservation: it ends by returning, or
by raising how it ended.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Callable, TypeVar, Union

import attr

from reimzul.core.arch import Arches
from reimzul.core.error_extractor import FirstError, find_first_error
from reimzul.core.errors import (
    InputError,
    InvalidMessage,
    ProgramFailed,
    ProgramNotFound,
    ReimzulError,
    RetryLater,
    ShutdownRequested,
)
from reimzul.core.failure_cause import is_in_logs
from reimzul.core.formatting import format_time
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.json_message import parse_json
from reimzul.core.manifest import MAX_BYTES, Manifest
from reimzul.core.message import MAX_NAMED_RPMS, NO_BUILDER, BuildEvent, Phase, RepogenRequest, Status, event_for
from reimzul.core.retry import CancelToken
from reimzul.core.rpm_header import Header, read_source_header
from reimzul.core.store_paths import StoreUrls
from reimzul.worker.download import Downloader
from reimzul.worker.mock import Mock, complete_logs, read_state_log
from reimzul.worker.mock_config import CheckoutState, MockConfigRepo
from reimzul.worker.mock_result import Fault, MockResult
from reimzul.worker.model import AttemptSpec, BuilderFault, Leg, order_legs, skip_reason
from reimzul.worker.unmet import describe_missing
from reimzul.worker.upload import LogStreamer, Uploader, make_manifest, prune_results, read_tail

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds between two checks whether the build is to end.
POLL_SECONDS = 0.25
#: Our own phases, before and after mock's.
_SOURCE, _UPLOAD = "source", "upload"

Outgoing = Union[BuildEvent, RepogenRequest]


class TransientFailure(RetryLater):
    """The attempt failed for a reason that passes: the job is released with a pause, and the attempt does not count."""


class RequirementsMissing(ReimzulError):
    """The request has to wait for requirements that nobody provides yet: its job is held, and no try is counted."""

    def __init__(self, missing: Mapping[str, Sequence[str]]) -> None:
        """`missing` has what each leg lacks, by arch."""
        everything = list(dict.fromkeys(each for lacking in missing.values() for each in lacking))
        super().__init__(f"waits for {describe_missing(everything)}")
        self.missing = {arch: tuple(lacking) for arch, lacking in missing.items()}


class _LegWaits(RequirementsMissing):
    """A leg lacks requirements. What becomes of it depends on the other legs."""

    def __init__(self, missing: Sequence[str], leg: Leg, result: MockResult, code: int | None) -> None:
        super().__init__({leg.arch: missing})
        self.leg, self.result, self.code = leg, result, code


class BuildCancelled(ReimzulError):
    """A person cancelled the build."""


@attr.frozen(kw_only=True)
class BuildEnvironment:
    arches: Arches
    incoming: Downloader
    urls: StoreUrls
    configs: MockConfigRepo
    mock: Mock
    uploader: Uploader
    log_streamer: LogStreamer


class BuildAttempt:
    def __init__(self, attempt: AttemptSpec, environment: BuildEnvironment, final_failure_reason: str = "") -> None:
        self.attempt = attempt
        self.environment = environment
        self.final_failure_reason = final_failure_reason  #: why not to build it any more, but to end it as Failed
        self.outbox: queue.Queue[Outgoing | None] = queue.Queue()  #: None is no message, and wakes the reader
        self.progress = BuildProgress(attempt.started)
        self.legs: list[Leg] = []  #: as soon as they are known
        self.announced: set[str] = set()  #: the arches whose result was announced
        self._failed: set[str] = set()  #: those of them that failed
        self.kept_logs: dict[str, str] = {}  #: arch -> URL of the logs of a leg without result
        self._first_errors: dict[str, FirstError] = {}  #: arch -> the first error of a leg that failed
        self.error_logs: dict[str, str] = {}  #: arch -> which log of such a leg has the cause
        self._end = threading.Event()
        self._is_stopping = False
        self._cancel_reason = ""
        self._cancel = CancelToken(self.raise_if_ended, self._end.wait)
        self._stop = CancelToken(self._raise_if_stopping)  #: for the logs of a cancelled build, which are uploaded too
        self._checkout = CheckoutState("")

    def stop(self) -> None:
        """End what runs; `run` raises `ShutdownRequested` soon after."""
        self._is_stopping = True
        self._end.set()

    def cancel(self, why: str) -> None:
        """End what runs: `run` announces each leg without result as cancelled, and raises `BuildCancelled`."""
        self._cancel_reason = why
        self._end.set()

    def raise_if_ended(self) -> None:
        self._raise_if_stopping()
        if self._cancel_reason:
            raise BuildCancelled(self._cancel_reason)

    def _raise_if_stopping(self) -> None:
        if self._is_stopping:
            raise ShutdownRequested("the daemon is stopping")

    def run(self) -> None:
        """Fetch what the build needs, then build its legs.

        Raises `BuilderFault`, `TransientFailure`, `RequirementsMissing`, `BuildCancelled`, `ShutdownRequested` and
        `RetryLater`.
        """
        self.attempt.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.legs = self._prepare_legs()
            self._build_legs()
        except BuildCancelled as error:
            self._announce_cancelled(str(error))
            raise

    def _prepare_legs(self) -> list[Leg]:
        request, folder = self.attempt.request, self.attempt.folder
        wanted = (request.srpm, request.srpm_sha256, folder, self._cancel, request.source_rounds)
        pool = ThreadPoolExecutor(2, "fetch")
        try:
            config_update = pool.submit(self.environment.configs.pull)  # beside the download: both wait for the network
            path = self._wait_interruptibly(pool.submit(self.environment.incoming.fetch, *wanted))
            header = read_source_header(path)
            self._checkout = self._wait_interruptibly(config_update)
            self.environment.configs.check_required_files()
            return self._choose_legs(path, header)
        except InputError as error:  # of the source: it is named without our folder
            return [self._fail_unbuildable_source(str(error).replace(f"{folder}/", ""))]
        finally:
            pool.shutdown(wait=False)  # both end by themselves; a cancelled build waits for no dead link

    def _wait_interruptibly(self, future: Future[T]) -> T:
        while not wait([future], timeout=POLL_SECONDS).done:
            self.raise_if_ended()
        return future.result()

    def _choose_legs(self, source: Path, header: Header) -> list[Leg]:
        """The legs to build, the main one first, which records why others are skipped."""
        request, arches = self.attempt.request, self.environment.arches
        configs: dict[str, Path] = {}
        skipped: dict[str, str] = {}
        all_legs = arches.legs_of(request.arch, header.name)
        requested = [arch for arch in all_legs if arch in request.legs] or all_legs
        for arch in requested:
            config = self.environment.configs.find_config(header.name, header.evr, request.target, request.arch, arch)
            if arch == requested[0]:  # never skipped: it ends as Failed instead
                configs[arch] = config or Path()
            elif why := skip_reason(header, arch, request.arch, arches):
                skipped[arch] = why
            elif config is None:
                skipped[arch] = "mock has no configuration for it"
            else:
                configs[arch] = config
        legs = [
            Leg(attempt=self.attempt, source=source, header=header, arch=arch, config=config)
            for arch, config in configs.items()
        ]
        return [attr.evolve(legs[0], skipped=skipped), *legs[1:]]

    def _fail_unbuildable_source(self, why: str) -> Leg:
        """A leg that ends as Failed for its source, with a log that has the reason, in a place of its own."""
        request = self.attempt.request
        self.final_failure_reason = self.final_failure_reason or why
        name, version, release = parse_srpm_name(request.srpm)
        header = Header(name=name, epoch=None, version=version, release=release, arch="", is_source=True)
        source, arch = self.attempt.folder / request.srpm, request.announced_arches[0]
        return Leg(attempt=self.attempt, source=source, header=header, arch=arch, config=Path())

    def _build_legs(self) -> None:
        """Build legs side by side where they can be; a leg that fails does not affect the others.

        A fault is raised when all have ended: the legs that were built are uploaded by then, and will be found
        in the store by the next attempt.
        """
        legs = {leg.arch: leg for leg in self.legs}
        faults: list[BaseException] = []
        for group in order_legs(list(legs)):
            with ThreadPoolExecutor(max(1, len(group)), "leg") as pool:
                futures: list[Future[None]] = [pool.submit(self._build_leg, legs[arch]) for arch in group]
                ended = [future.exception() for future in wait(futures, return_when=FIRST_EXCEPTION).done]
                if any(isinstance(error, Exception) and not isinstance(error, ReimzulError) for error in ended):
                    self.stop()  # a bug in one leg: the others would be built for nothing
            faults += [error for error in (future.exception() for future in futures) if error is not None]
        waiting = [error for error in faults if isinstance(error, _LegWaits)]
        others = [error for error in faults if error not in waiting]
        for kind in (BuildCancelled, ShutdownRequested, BuilderFault, BaseException):
            for error in others:
                if isinstance(error, kind):
                    raise error
        self._settle_waiting(waiting)

    def _settle_waiting(self, waiting: Sequence[_LegWaits]) -> None:
        """Raise `RequirementsMissing` for legs that lack requirements; if the main leg has failed, they fail too."""
        if any(leg.is_main and leg.arch in self._failed for leg in self.legs):
            for error in waiting:
                with self._blaming_builder(error.leg):
                    self._finish_leg(error.leg, error.result, error.code)
            return
        for error in waiting:
            self._keep_logs(error.leg, Status.UNFIT, str(error), error.code)
            self.error_logs[error.leg.arch] = "root.log"
        if waiting:
            raise RequirementsMissing({arch: missing for error in waiting for arch, missing in error.missing.items()})

    def _build_leg(self, leg: Leg) -> None:
        stored = self._find_stored(leg)
        if stored is not None:
            self._announce_result(leg, stored, "built before: announced again")
            return
        self.outbox.put(leg.event(Status.BUILDING))
        self.progress.start_leg(leg.arch, leg.results)
        with self._blaming_builder(leg):
            result, code = self._run_mock(leg)
            self._raise_if_no_result(leg, result, code)
            self._finish_leg(leg, result, code)

    @contextlib.contextmanager
    def _blaming_builder(self, leg: Leg) -> Iterator[None]:
        """Raise `BuilderFault` for a full disk, or what it left of a package, and for an rsync that does not work."""
        try:
            yield
        except (OSError, InputError, ProgramFailed, ProgramNotFound) as error:
            raise self._builder_fault(leg, str(error)) from error

    def _finish_leg(self, leg: Leg, result: MockResult, code: int | None) -> None:
        """Upload a leg that has a result, and announce that."""
        manifest_later = self._manifest_later(leg, result, code)
        self.progress.start_upload(leg.arch)
        manifest = self.environment.uploader.upload(leg, manifest_later, self._cancel)
        self._announce_result(leg, manifest)

    def _find_stored(self, leg: Leg) -> Manifest | None:
        url = self.environment.urls.manifest(self.attempt.request.build_id, leg.arch)
        try:
            with HttpSession() as session:
                manifest = Manifest.from_json(parse_json(session.get(url, MAX_BYTES)))
        except (NotFound, HttpUnavailable):
            return None
        except InvalidMessage as error:
            log.warning("%s of %s: its published manifest cannot be read: %s", leg.arch, leg.header.name, error)
            return None
        # repogen may have died before it gave the leg the place that it noted, and another build have taken the place
        is_ours = (manifest.build_id, manifest.arch) == (self.attempt.request.build_id, leg.arch)
        return manifest if is_ours else None

    def _run_mock(self, leg: Leg) -> tuple[MockResult, int | None]:
        """Run mock and classify its result; or fail a leg for which mock need not be run."""
        request = self.attempt.request
        why = self.final_failure_reason or self.environment.arches.exclusion_reason(leg.arch, leg.header) or ""
        if not why and leg.config == Path():
            why = f"mock has no configuration for {request.target}"
            if not self._checkout.is_current:
                raise BuilderFault(f"{why}, and they could not be pulled")
        if why:
            write_reason_log(leg.results, why)
            return MockResult(Fault.PACKAGE, why), None
        log.info("building %s for arch %s, target %s", request.srpm, leg.arch, request.target)
        with self.environment.log_streamer.streaming(leg):
            return self.environment.mock.build(leg, self._cancel)

    def _raise_if_no_result(self, leg: Leg, result: MockResult, code: int | None) -> None:
        """Raise for a run of mock that decides nothing; the leg's logs are kept then, unless it lacks requirements."""
        if result.fault is Fault.BUILDER:
            raise self._builder_fault(leg, result.reason, code)
        if result.fault is Fault.NOBODY:
            self._keep_logs(leg, Status.UNFIT, result.reason, code)
            self.error_logs[leg.arch] = "root.log"
            raise TransientFailure(f"{leg.arch}: {result.reason}")
        if missing := result.unmet.missing_for(self.attempt.request):
            raise _LegWaits(missing, leg, result, code)

    def _builder_fault(self, leg: Leg, message: str, code: int | None = None) -> BuilderFault:
        """The error for this builder's fault, once the leg's logs are kept."""
        self._keep_logs(leg, Status.UNFIT, message, code)
        fault = BuilderFault(f"{leg.arch}: {message}")
        if code is not None:
            fault.first_error = self._find_first_error(leg)
        self.error_logs[leg.arch] = fault.first_error.log
        return fault

    def _manifest_later(
        self, leg: Leg, result: MockResult, code: int | None, status: str = ""
    ) -> Callable[[], Manifest]:
        """What makes the manifest, by hashing, of a leg that has ended; its results do not change any more."""
        prune_results(leg, result)
        first = FirstError()
        if not status and result.fault is not Fault.NONE:
            first = self._first_errors[leg.arch] = self._find_failure_error(leg, result.reason, code)
        return functools.partial(
            make_manifest,
            leg,
            result,
            code,
            f"{leg.config.name} {self._checkout.commit}".strip(),
            self._stop if status else self._cancel,
            finished=round(time.time(), 3),
            status=status,
            phases=self.progress.phases_of_leg(leg.arch, leg.results),
            error_line=first.line,
        )

    def _keep_logs(self, leg: Leg, status: str, why: str, code: int | None = None) -> None:
        """Upload the logs of a leg without result, if that is quickly done; nothing depends on it."""
        if not leg.results.is_dir():
            return
        try:
            complete_logs(leg.results)
            manifest = self._manifest_later(leg, MockResult(Fault.BUILDER, why), code, status)()
            self.environment.uploader.upload_logs(leg, manifest, self._stop)
        except (ReimzulError, OSError) as error:
            log.warning("%s of %s: its logs are not kept: %s", leg.arch, leg.source.name, error)
            return
        self.outbox.put(publish_request(manifest, logs=True))
        self.kept_logs[leg.arch] = self._logs_url(leg)

    def _logs_url(self, leg: Leg) -> str:
        return self.environment.urls.attempt(self.attempt.request.build_id, leg.arch, self.attempt.token)

    def _announce_result(self, leg: Leg, manifest: Manifest, note: str = "") -> None:
        """Request the leg's publishing, then announce its result: in this order, so that a crash repeats both."""
        event = self._result_event(leg, manifest, note)  # takes a while, and may be stopped
        self.outbox.put(publish_request(manifest))
        self.outbox.put(event)
        self.announced.add(leg.arch)
        if manifest.status == Status.FAILED:
            self._failed.add(leg.arch)
        self.progress.end_leg(leg.arch)
        log.info("%s of %s: %s %s", leg.arch, leg.source.name, manifest.status, manifest.reason or note)

    def _result_event(self, leg: Leg, manifest: Manifest, note: str) -> BuildEvent:
        names = [file.name for file in manifest.rpm_files]
        first = self._first_errors.get(leg.arch, FirstError())
        place = manifest.place()
        return leg.event(
            manifest.status,
            attempt=manifest.attempt,
            builder_fqdn=manifest.builder_fqdn,
            started=manifest.started,
            finished=manifest.finished,
            exit_code=manifest.exit_code,
            reason=manifest.reason or note,
            skipped=dict(manifest.skipped),
            phases=manifest.phases if note else self.progress.phases_of_leg(leg.arch, leg.results),
            place=place,
            url=self.environment.urls.place(place),
            rpm_count=len(names),
            rpms=names[:MAX_NAMED_RPMS],
            first_error=first.text,
            error_line=first.line,
            error_log=first.log,
            cause=manifest.cause,
            cause_text=manifest.cause_text,
            cause_version=manifest.cause_version,
            root_log=read_tail(leg.results / "root.log", 30, 8_000),
            build_log=read_tail(leg.results / "build.log", 80, 24_000),
        )

    def _find_failure_error(self, leg: Leg, reason: str, exit_code: int | None) -> FirstError:
        """The first error of a failed leg: where no builder could build it, that of the last attempt.

        A build that was ended for its time has none, nor has one for which mock was not run.
        """
        if reason.startswith(NO_BUILDER) and self.final_failure_reason:
            last = self.attempt.request.builder_faults[-1]
            return FirstError(last.first_error, last.error_line)
        return self._find_first_error(leg) if is_in_logs(reason, exit_code) else FirstError()

    def _find_first_error(self, leg: Leg) -> FirstError:
        return find_first_error(leg.results / "build.log", leg.results / "root.log", self._stop)

    def _announce_cancelled(self, why: str) -> None:
        end = {"reason": why, "finished": round(time.time(), 3)}
        if not self.legs:
            own = {"attempt": self.attempt.token, "builder_fqdn": self.attempt.host, **end}
            for arch in self.attempt.started_arches:
                self.outbox.put(event_for(self.attempt.request, Status.CANCELLED, arch=arch, **own))
        unfinished = [leg for leg in self.legs if leg.arch not in self.announced]
        for leg in unfinished:
            phases = self.progress.phases_of_leg(leg.arch, leg.results)
            url = self._logs_url(leg) if leg.results.is_dir() else ""
            self.outbox.put(leg.event(Status.CANCELLED, phases=phases, url=url, **end))
        for leg in unfinished:
            self._keep_logs(leg, Status.CANCELLED, why)


class BuildProgress:
    """The progress of one attempt's legs. Written by the build's threads, read by another."""

    def __init__(self, started: float) -> None:
        self._source = Phase(name=_SOURCE, start=round(started, 3))
        self._logs: dict[str, Path] = {}  #: of the legs that are built now, in the order they began
        self._uploads: dict[str, Phase] = {}

    def start_leg(self, arch: str, results: Path) -> None:
        """Start a leg, which has its state.log in `results`."""
        if not self._source.end:
            self._source = _with_end(self._source)
        self._logs[arch] = results / "state.log"

    def start_upload(self, arch: str) -> None:
        self._uploads[arch] = Phase(name=_UPLOAD, start=round(time.time(), 3))

    def end_leg(self, arch: str) -> None:
        self._logs.pop(arch, None)

    def current_phase(self, main: str) -> tuple[str, Phase]:
        """The arch and phase of the main leg, or of the first other leg that is built now."""
        logs = dict(self._logs)
        arch = main if main in logs or not logs else next(iter(logs))
        if arch in self._uploads:
            return arch, Phase(name=_UPLOAD, start=self._uploads[arch].start)
        now = read_state_log(logs[arch]).current_phase if arch in logs else None
        return arch, now or Phase(name=_SOURCE, start=self._source.start)

    def phases_of_leg(self, arch: str, results: Path) -> tuple[Phase, ...]:
        last = [_with_end(self._uploads[arch])] if arch in self._uploads else []
        return (self._source, *read_state_log(results / "state.log").phases(), *last)


def _with_end(phase: Phase) -> Phase:
    """A phase that ends now; a clock that was set back makes its duration 0, not negative."""
    return attr.evolve(phase, end=max(phase.start, round(time.time(), 3)))


def publish_request(manifest: Manifest, *, logs: bool = False) -> RepogenRequest:
    """The request to the store to publish an upload, or with `logs` to keep its logs."""
    return RepogenRequest(
        target=manifest.request.target,
        build_id=manifest.build_id,
        arch=manifest.arch,
        attempt=manifest.attempt,
        place=manifest.place(),
        index=manifest.status == Status.SUCCESS and not manifest.request.scratch,
        request=manifest.request,
        logs=logs,
    )


def parse_srpm_name(srpm: str) -> tuple[str, str, str]:
    """Name, version and release from a file name, for a source whose header cannot be read."""
    stem = srpm.removesuffix(".src.rpm").removesuffix(".nosrc.rpm")
    parts = stem.rsplit("-", 2)
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 and all(parts) else (stem, "0", "0")


def write_reason_log(results: Path, why: str) -> None:
    results.mkdir(parents=True, exist_ok=True)
    (results / "stderr").write_text(f"{format_time(time.time())}: not built: {why}\n", encoding="utf-8")
    complete_logs(results)
