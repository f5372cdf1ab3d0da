# SPDX-License-Identifier: Apache-2.0
"""One build, from its request to its uploaded legs. It runs beside the thread that owns beanstalkd's connection.

What it has to say goes into an outbox, in order, and that thread puts it into tubes (`desk.py`). A handler of the
flow, it knows nothing of claims: it ends by returning, or by raising what became of it.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Callable, TypeVar, Union

import attr

from reimzul.core.arch import Arches
from reimzul.core.errors import InputError, InvalidMessage, ReimzulError, RetryLater, ShutdownRequested
from reimzul.core.manifest import MAX_BYTES, Manifest
from reimzul.core.message import BuildEvent, RepogenRequest, Status, event_for, parse_json
from reimzul.core.rpm_header import Header
from reimzul.core.store_paths import StoreUrls
from reimzul.worker import download, upload
from reimzul.worker.download import Downloader, DownloadNotWritable, SourceUnavailable
from reimzul.worker.error_extractor import FirstError, find_first_error
from reimzul.worker.log_stream import LogStreamer
from reimzul.worker.mock import Mock, complete_logs
from reimzul.worker.mock_config import CheckoutState, MockConfigRepo, MockConfigUnusable
from reimzul.worker.mock_phases import BuildProgress
from reimzul.worker.mock_result import Fault, MockResult, is_timeout
from reimzul.worker.model import AttemptSpec, Leg, Package, order_legs, skip_reason
from reimzul.worker.upload import Uploader, UploadImpossible, make_manifest

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds between two looks whether the build is to end.
LOOK = 0.25
#: How the reason of a leg begins that used up its tries.
NO_BUILDER_PREFIX = "no builder could build it: "

Outgoing = Union[BuildEvent, RepogenRequest]


class BuilderFault(ReimzulError):
    """This builder could not build it; another may."""

    def __init__(self, words: str, first: FirstError | None = None) -> None:
        super().__init__(words)
        self.first_error = first or FirstError()  #: in the logs of its leg


class TransientFailure(RetryLater):
    """Nobody's fault: the job is given back with a pause, and the attempt does not count."""


class BuildCancelled(ReimzulError):
    """A person wants it to end."""


@attr.frozen(kw_only=True)
class BuildEnvironment:
    """What a build needs of its host and its farm."""

    arches: Arches
    incoming: Downloader
    urls: StoreUrls
    configs: MockConfigRepo
    mock: Mock
    uploader: Uploader
    log_streamer: LogStreamer


class BuildAttempt:
    """One attempt at one request."""

    def __init__(self, attempt: AttemptSpec, tools: BuildEnvironment, last_words: str = "") -> None:
        """`last_words`: not to be built any more but ended as Failed, with this reason."""
        self.attempt = attempt
        self.tools = tools
        self.final_failure_reason = last_words
        self.outbox: queue.Queue[Outgoing | None] = queue.Queue()  #: None says nothing, and wakes who waits
        self.progress = BuildProgress(attempt.started)
        self.legs: list[Leg] = []  #: as soon as they are known
        self.announced: set[str] = set()  #: the arches of those that came to something
        self.kept_logs: dict[str, str] = {}  #: arch -> where the logs of a leg are that came to nothing
        self.error_logs: dict[str, str] = {}  #: arch -> which log of such a leg has the cause
        self._end = threading.Event()
        self._stopping = False
        self._cancelled = ""
        self._state = CheckoutState("")

    def stop(self) -> None:
        """End what runs; `run` raises `ShutdownRequested` soon after."""
        self._stopping = True
        self._end.set()

    def cancel(self, why: str) -> None:
        """End what runs, for good: `run` says so of each leg that came to nothing, and raises `Cancelled`."""
        self._cancelled = why
        self._end.set()

    def raise_if_ended(self) -> None:
        """Raise `ShutdownRequested` or `Cancelled` where the build is to end."""
        self._heed_stop()
        if self._cancelled:
            raise BuildCancelled(self._cancelled)

    def _heed_stop(self) -> None:
        if self._stopping:
            raise ShutdownRequested("told to stop")

    def wait(self, seconds: float) -> None:
        """Sleep, unless the build is to end."""
        self._end.wait(seconds)
        self.raise_if_ended()

    def run(self) -> None:
        """Do all of it. Raises `Unfit` where it was this builder's fault, `Blameless` where it was nobody's.

        Raises `Cancelled`, `ShutdownRequested` and `RetryLater` too.
        """
        self.attempt.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run()
        except BuildCancelled as error:
            self._withdraw(str(error))
            raise

    def _run(self) -> None:
        pool = ThreadPoolExecutor(2, "fetch")
        try:
            pulled = pool.submit(self.tools.configs.pull)  # beside the download: both wait for the network
            package = self._heeding(pool.submit(self._package))
            self._state = self._heeding(pulled)
        except SourceUnavailable as error:
            self._refuse(str(error))
            return
        except DownloadNotWritable as error:
            raise BuilderFault(str(error)) from error
        finally:
            pool.shutdown(wait=False)  # both end by themselves; who cancels waits for no dead link
        try:
            self.tools.configs.check_required_files()
            legs = self._legs(package)
        except MockConfigUnusable as error:
            raise BuilderFault(str(error)) from error
        self._run_legs(legs)

    def _heeding(self, future: Future[T]) -> T:
        """What comes of it, unless the build is to end before."""
        while not wait([future], timeout=LOOK).done:
            self.raise_if_ended()
        return future.result()

    def _package(self) -> Package:
        request = self.attempt.request
        wanted, rounds = request.srpm_sha256, request.source_rounds
        path = self.tools.incoming.fetch(request.srpm, wanted, self.attempt.folder, self.wait, rounds)
        header = download.read_source(path)
        return Package(path=path, name=header.name, evr=header.evr, header=header)

    def _legs(self, package: Package) -> list[Leg]:
        """The legs to be started, the main one first; it tells of those that are not."""
        request, known = self.attempt.request, self.tools.arches
        configs: dict[str, Path] = {}
        skipped: dict[str, str] = {}
        all_legs = known.legs_of(request.arch, package.name)
        wanted = [arch for arch in all_legs if arch in request.legs] or all_legs
        for arch in wanted:
            config = self.tools.configs.find_config(package.name, package.evr, request.target, request.arch, arch)
            first = arch == wanted[0]  # it ends as Failed rather than as nothing
            why = None if first else skip_reason(package.header, arch, request.arch, package.name, known)
            if why or (config is None and not first):
                skipped[arch] = why or "mock has no configuration for it"
            else:
                configs[arch] = config or Path()
        legs = [Leg(attempt=self.attempt, package=package, arch=arch, config=configs[arch]) for arch in configs]
        return [attr.evolve(legs[0], skipped=skipped), *legs[1:]]

    def _run_legs(self, legs: list[Leg]) -> None:
        """Those that can, side by side, the others after; one that fails touches no other.

        A leg that was this builder's fault is raised when all have ended: those that were built are out by then,
        and will be found published.
        """
        self.legs = legs
        by_arch = {leg.arch: leg for leg in legs}
        faults: list[BaseException] = []
        for group in order_legs([leg.arch for leg in legs]):
            with ThreadPoolExecutor(max(1, len(group)), "leg") as pool:
                futures: list[Future[None]] = [pool.submit(self._leg, by_arch[arch]) for arch in group]
                self._watch(futures)
            faults += [error for error in (future.exception() for future in futures) if error is not None]
        for kind in (BuildCancelled, ShutdownRequested, BuilderFault, BaseException):
            for error in faults:
                if isinstance(error, kind):
                    raise error

    def _watch(self, futures: list[Future[None]]) -> None:
        """Wait for the legs; a bug in one ends the others, which would otherwise be built for nothing."""
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done() and isinstance(future.exception(), Exception):
                if not isinstance(future.exception(), ReimzulError):
                    self.stop()

    def _leg(self, leg: Leg) -> None:
        """One leg, to its place in the store's spool and the two messages that say so."""
        before = self._published(leg)
        if before is not None:
            self._say(leg, before, "built before: announced again")
            return
        self.outbox.put(leg.event(Status.BUILDING))
        self.progress.start_leg(leg.arch, leg.results)
        try:
            told = self._built(leg)
            self.progress.start_upload(leg.arch)
            manifest = self.tools.uploader.upload(leg, told, self.raise_if_ended, self.wait)
        except (OSError, InputError, UploadImpossible) as error:  # a full disk, or what it left of a package; no rsync
            raise self._unfit(leg, str(error)) from error
        self._say(leg, manifest)

    def _built(self, leg: Leg) -> Callable[[], Manifest]:
        """Build it; what tells, by hashing it, what the leg came to."""
        verdict, code = self._verdict(leg)
        if verdict.fault is Fault.BUILDER:
            raise self._unfit(leg, verdict.reason, code)
        if verdict.fault is Fault.NOBODY:
            self._keep_logs(leg, Status.UNFIT, verdict.reason, code)
            self.error_logs[leg.arch] = "root.log"
            raise TransientFailure(f"{leg.arch}: {verdict.reason}")
        return self._told(leg, verdict, code)

    def _told(self, leg: Leg, verdict: MockResult, code: int | None, status: str = "") -> Callable[[], Manifest]:
        """What tells what a leg came to that is over now; from now on nothing of its results changes."""
        upload.prune_results(leg, verdict)
        return functools.partial(
            make_manifest,
            leg,
            verdict,
            code,
            f"{leg.config.name} {self._state.commit}".strip(),
            self._heed_stop if status else self.raise_if_ended,  # what is cancelled has logs too
            finished=round(time.time(), 3),
            status=status,
            phases=self.progress.phases_of_leg(leg.arch, leg.results),
        )

    def _unfit(self, leg: Leg, words: str, code: int | None = None) -> BuilderFault:
        """This builder's fault, once the leg's logs are kept."""
        self._keep_logs(leg, Status.UNFIT, words, code)
        first = FirstError() if code is None else self._first_error(leg)
        self.error_logs[leg.arch] = first.log
        return BuilderFault(f"{leg.arch}: {words}", first)

    def _first_error(self, leg: Leg) -> FirstError:
        """The cause, as a leg's logs have it."""
        return find_first_error(leg.results / "build.log", leg.results / "root.log", self._heed_stop)

    def _withdraw(self, why: str) -> None:
        """Say that it was cancelled, of each leg that came to nothing; then keep the logs these have."""
        lost = [leg for leg in self.legs if leg.arch not in self.announced]
        end = {"reason": why, "finished": round(time.time(), 3)}
        if not self.legs:
            by = {"attempt": self.attempt.token, "builder_fqdn": self.attempt.host}
            for arch in self.attempt.request.announced_arches:
                self.outbox.put(event_for(self.attempt.request, Status.CANCELLED, **{**by, **end, "arch": arch}))
        for leg in lost:
            phases = self.progress.phases_of_leg(leg.arch, leg.results)
            url = self._kept_at(leg) if leg.results.is_dir() else ""
            self.outbox.put(leg.event(Status.CANCELLED, phases=phases, url=url, **end))
        for leg in lost:
            self._keep_logs(leg, Status.CANCELLED, why)

    def _keep_logs(self, leg: Leg, status: str, why: str, code: int | None = None) -> None:
        """Upload what a leg left that came to nothing, if that is quickly done; nothing depends on it."""
        if not leg.results.is_dir():
            return
        try:
            complete_logs(leg.results)
            manifest = self._told(leg, MockResult(Fault.BUILDER, why), code, status)()
            self.tools.uploader.upload_logs(leg, manifest, self._heed_stop)
        except (ReimzulError, OSError) as error:
            log.warning("%s of %s: its logs are not kept: %s", leg.arch, leg.package.path.name, error)
            return
        self.outbox.put(_asked(manifest, manifest.place(), logs=True))
        self.kept_logs[leg.arch] = self._kept_at(leg)

    def _kept_at(self, leg: Leg) -> str:
        return self.tools.urls.attempt(self.attempt.request.build_id, leg.arch, self.attempt.token)

    def _verdict(self, leg: Leg) -> tuple[MockResult, int | None]:
        """Build it, or say why it is not even tried."""
        request = self.attempt.request
        why = self.final_failure_reason or self.tools.arches.exclusion_reason(leg.arch, leg.package.header) or ""
        if not why and leg.config == Path():
            why = f"mock has no configuration for {request.target}"
            if not self._state.is_current:
                raise BuilderFault(f"{why}, and they could not be pulled")
        if why:
            write_logs(leg.results, why)
            return MockResult(Fault.PACKAGE, why), None
        log.info("building %s for arch %s, target %s", request.srpm, leg.arch, request.target)
        try:
            with self.tools.log_streamer.streaming(leg):
                return self.tools.mock.build(leg, self.raise_if_ended)
        except MockConfigUnusable as error:
            raise BuilderFault(str(error)) from error

    def _published(self, leg: Leg) -> Manifest | None:
        """The manifest of this leg where an attempt before ours has brought it to its place already."""
        body = download.fetch_document(self.tools.urls.manifest(self.attempt.request.build_id, leg.arch), MAX_BYTES)
        try:
            return None if body is None else Manifest.from_json(parse_json(body))
        except InvalidMessage as error:
            log.warning("%s of %s: its published manifest cannot be read: %s", leg.arch, leg.package.name, error)
            return None

    def _say(self, leg: Leg, manifest: Manifest, note: str = "") -> None:
        """Ask for the leg to be published, then announce what it came to: in this order (architecture.md, 2.3)."""
        place = manifest.place()
        event = self._result(leg, manifest, place, note)  # it may take a while, and may be told to stop
        self.outbox.put(_asked(manifest, place))
        self.outbox.put(event)
        self.announced.add(leg.arch)
        self.progress.end_leg(leg.arch)
        log.info("%s of %s: %s %s", leg.arch, leg.package.path.name, manifest.status, manifest.reason or note)

    def _result(self, leg: Leg, manifest: Manifest, place: str, note: str) -> BuildEvent:
        names = [file.name for file in manifest.rpm_files]
        first = FirstError() if manifest.status == Status.SUCCESS else self._cause(leg, manifest)
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
            url=self.tools.urls.place(place),
            rpm_count=len(names),
            rpms=names[:50],
            first_error=first.text,
            error_line=first.line,
            error_log=first.log,
            root_log=upload.read_tail(leg.results / "root.log", 30, 8_000),
            build_log=upload.read_tail(leg.results / "build.log", 80, 24_000),
        )

    def _cause(self, leg: Leg, manifest: Manifest) -> FirstError:
        """The first error of a failed leg: where no builder could build it, that of the last attempt.

        A build that was ended for its time has none, nor has one for which mock was not run.
        """
        if manifest.reason.startswith(NO_BUILDER_PREFIX) and self.final_failure_reason:
            last = self.attempt.request.builder_faults[-1]
            return FirstError(last.first_error, last.error_line)
        without = manifest.exit_code is None or is_timeout(manifest.reason)
        return FirstError() if without else self._first_error(leg)

    def _refuse(self, why: str) -> None:
        """Nothing can be built of this source: end as Failed, with a log that says why, in a place of its own."""
        name, evr = parse_srpm_name(self.attempt.request.srpm)
        path = self.attempt.folder / self.attempt.request.srpm
        header = Header(name=name, epoch=None, version=evr, release="0", arch="", is_source=True)
        package = Package(path=path, name=name, evr=evr, header=header)
        leg = Leg(attempt=self.attempt, package=package, arch=self.attempt.request.announced_arches[0], config=Path())
        self.final_failure_reason = self.final_failure_reason or why
        self._run_legs([leg])


def _asked(manifest: Manifest, place: str, *, logs: bool = False) -> RepogenRequest:
    """What the store is asked to do with an upload."""
    return RepogenRequest(
        target=manifest.request.target,
        build_id=manifest.build_id,
        arch=manifest.arch,
        attempt=manifest.attempt,
        place=place,
        index=manifest.status == Status.SUCCESS and not manifest.request.scratch,
        request=manifest.request,
        logs=logs,
    )


def parse_srpm_name(srpm: str) -> tuple[str, str]:
    """Name and version-release as a file name has them, for a source whose header cannot be read."""
    stem = srpm[: -len(".nosrc.rpm")] if srpm.endswith(".nosrc.rpm") else srpm[: -len(".src.rpm")]
    parts = stem.rsplit("-", 2)
    return (parts[0], f"{parts[1]}-{parts[2]}") if len(parts) == 3 and all(parts) else (stem, "0-0")


def write_logs(results: Path, why: str) -> None:
    """The logs of a leg for which mock was not run."""
    results.mkdir(parents=True, exist_ok=True)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    (results / "stderr").write_text(f"{when} UTC: not built: {why}\n", encoding="utf-8")
    complete_logs(results)
