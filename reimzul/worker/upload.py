# SPDX-License-Identifier: Apache-2.0
"""Uploads a leg by rsync through stunnel: its results into the spool, and its logs into live/ while they grow.

The result files go first, and are hashed while they do; `build.json` goes last, by an rsync of its own: a spool folder
with a manifest is complete.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import attr

from reimzul.core import validators
from reimzul.core.errors import ProgramFailed, ProgramNotFound, ReimzulError
from reimzul.core.failure_cause import cause_fields, find_cause
from reimzul.core.heartbeat import ErrorLog
from reimzul.core.log_reader import read_end
from reimzul.core.manifest import File, Manifest, sha256_of
from reimzul.core.message import MAX_ERROR_LINE, Phase, Status
from reimzul.core.process import run
from reimzul.core.retry import Backoff, CancelToken, LogThrottle
from reimzul.core.rpm_header import read_header
from reimzul.core.store_paths import MANIFEST, StoreUrls
from reimzul.worker.mock_result import Fault, MockResult
from reimzul.worker.model import Leg

log = logging.getLogger(__name__)

#: The step of a leg's upload among the errors that heartbeats carry.
UPLOAD_STEP = "upload"
#: Seconds between two tries: the first pause, and the longest. An upload is tried for as long as it takes.
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 60.0
#: rsync's exit codes that no retry changes, since this host's rsync or its arguments are wrong: usage, action not
#: supported. All others may be the link's or the store's, and pass; a build of hours is not thrown away for them.
PERMANENT_EXIT_CODES = (1, 4)
#: Seconds without a byte after which rsync itself gives up.
RSYNC_IO_TIMEOUT_SECONDS = 60
#: Seconds that the upload of logs may take which decide nothing.
LOGS_TIMEOUT_SECONDS = 30
#: Seconds between two log lines about an upload that does not get through.
LOG_AGAIN_SECONDS = 60.0
#: Sends each of rsync's small packets at once; else each waits 40 ms for the other end's acknowledgement, three times a
#: call (bstore's rsyncd.conf has the same).
NODELAY = "--sockopts=TCP_NODELAY"

#: The logs that are sent while they grow.
STREAMED_LOGS = ("build.log", "root.log", "state.log")
#: Seconds one call may take that sends them, and the last call, which the end of a leg waits for.
STREAM_TIMEOUT_SECONDS, LAST_STREAM_TIMEOUT_SECONDS = 20, 2
#: Seconds until growing logs are sent again after a failure: the first pause, and the longest.
FIRST_STREAM_PAUSE_SECONDS, MAX_STREAM_PAUSE_SECONDS = 2.0, 60.0


@attr.frozen(kw_only=True)
class Uploader:
    rsync: str
    arguments: tuple[str, ...]
    urls: StoreUrls
    errors: ErrorLog = attr.field(factory=ErrorLog)  #: what heartbeats report

    def upload(self, leg: Leg, make_manifest: Callable[[], Manifest], cancel: CancelToken) -> Manifest:
        """Upload a leg's results while `make_manifest` hashes them, then the manifest, and return it.

        Each is tried again until it is there. Raises `ProgramNotFound` or `ProgramFailed` where this host's rsync
        cannot do it, however often it is tried, and what `make_manifest` and `cancel` raise.
        """
        with ThreadPoolExecutor(1, "manifest") as pool:
            future = pool.submit(make_manifest)

            def check() -> None:
                cancel.raise_if_cancelled()
                if future.done():
                    future.result()

            try:
                self._upload_until_done(leg.results, leg, CancelToken(check, cancel.wait))
                manifest = future.result()
                self._upload_until_done(_write_manifest(leg, manifest), leg, cancel)
            finally:
                self.errors.clear(UPLOAD_STEP, build_id=leg.attempt.request.build_id, arch=leg.arch)
        return manifest

    def upload_logs(self, leg: Leg, manifest: Manifest, cancel: CancelToken) -> None:
        """Upload the logs of an attempt that decides nothing: one try. Raises `ReimzulError` where it fails."""
        for folder in (leg.results, _write_manifest(leg, manifest)):
            self._upload_once(folder, leg, cancel, timeout=LOGS_TIMEOUT_SECONDS)

    def _upload_until_done(self, folder: Path, leg: Leg, cancel: CancelToken) -> None:
        backoff, throttle = Backoff(FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS), LogThrottle(LOG_AGAIN_SECONDS)
        while True:
            try:
                self._upload_once(folder, leg, cancel)
                return
            except (ProgramNotFound, ProgramFailed) as error:
                if isinstance(error, ProgramNotFound) or error.code in PERMANENT_EXIT_CODES:
                    raise
                request = leg.attempt.request
                self.errors.add(
                    UPLOAD_STEP, str(error), build_id=request.build_id, arch=leg.arch, target=request.target
                )
                if throttle.is_due():
                    log.warning("%s of %s is not uploaded yet: %s", leg.arch, request.srpm, error)
            cancel.wait(backoff.next_pause())

    def _upload_once(self, folder: Path, leg: Leg, cancel: CancelToken, timeout: float | None = None) -> None:
        url = self.urls.spool(leg.attempt.request.build_id, leg.arch, leg.attempt.token)
        _run_rsync(self.argv(folder, url), leg.folder / "rsync.log", cancel, timeout)

    def argv(self, folder: Path, url: str) -> list[str]:
        """rsync's command line. It sets the modes, since mock's files may be closed to bstore's http server."""
        return [
            self.rsync,
            "--recursive",
            "--times",
            "--chmod=D0755,F0644",
            "--partial",
            NODELAY,
            f"--timeout={RSYNC_IO_TIMEOUT_SECONDS}",
            *self.arguments,
            f"{folder}/",
            url,
        ]


def _run_rsync(argv: list[str], output: Path, cancel: CancelToken, timeout: float | None) -> None:
    """Run rsync with its output in a file. Raises `ProgramFailed`, `ProgramNotFound`, `TimedOut`."""
    output.unlink(missing_ok=True)
    code = run(argv, output=output, cancel=cancel, timeout=timeout)
    if code:
        last = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise ProgramFailed("rsync", code, "".join(last))


def _write_manifest(leg: Leg, manifest: Manifest) -> Path:
    """Write the manifest into a folder of its own and return that."""
    folder = leg.folder / "manifest"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(manifest.to_text(), encoding="utf-8")
    return folder


def prune_results(leg: Leg, result: MockResult) -> None:
    """Leave in a leg's results only what is uploaded: of a failed one logs, of a follower no source rpm."""
    for path in sorted(leg.results.iterdir()):
        is_unwanted = path.name.endswith(".rpm") and result.fault is not Fault.NONE
        is_repeated = validators.is_source_rpm(path.name) and not leg.is_main
        if path.is_dir() and not path.is_symlink():  # mock makes no folders, so it stays behind on the builder
            path.rename(leg.folder / f"left-{path.name}")
        elif is_unwanted or is_repeated or not path.is_file():
            path.unlink()


def make_manifest(
    leg: Leg,
    result: MockResult,
    code: int | None,
    config: str,
    cancel: CancelToken,
    *,
    finished: float,
    status: str = "",
    phases: Sequence[Phase] = (),
    error_line: str = "",
) -> Manifest:
    """Make the manifest; `error_line` is the line of a failed leg's logs that names the cause, as its event has it."""
    manifest = Manifest(
        request=leg.attempt.request,
        arch=leg.arch,
        attempt=leg.attempt.token,
        status=status or (Status.SUCCESS if result.fault is Fault.NONE else Status.FAILED),
        pkgname=leg.header.name,
        evr=leg.header.evr,
        builder_fqdn=leg.attempt.host,
        started=round(leg.attempt.started, 3),
        finished=finished,
        exit_code=code,
        reason=result.reason,
        config=config,
        files=tuple(
            File(
                name=path.name,
                size=path.stat().st_size,
                sha256=sha256_of(path, cancel),
                nevra=read_header(path).nevra if path.name.endswith(".rpm") else "",
            )
            for path in sorted(leg.results.iterdir())
        ),
        skipped=dict(leg.skipped),
        phases=tuple(phases),
    )
    if manifest.status != Status.FAILED:
        return manifest
    cause = find_cause(manifest.reason, validators.line(MAX_ERROR_LINE)(error_line), manifest.pkgname)
    return attr.evolve(manifest, **cause_fields(cause))


def read_tail(path: Path, lines: int, limit: int) -> str:
    """The last lines of a log, in any encoding, at most `limit` bytes of it."""
    return "\n".join(read_end(path, limit).splitlines()[-lines:])


class _LegEnded(ReimzulError):
    """The leg has ended: the last call sends the rest."""


@attr.frozen
class LogStreamer:
    """Sends the logs of legs while they grow, so that they can be read in the store before the build ends.

    rsync's --append sends only new bytes. One call through stunnel takes some 6 ms of this host's processor and of
    bstore's (docs/performance.md), so a leg whose logs grow all the time costs 0.3 % of a core on each. Nothing depends
    on it: a call that fails is tried again later, and all is uploaded with the results.
    """

    rsync: str
    arguments: tuple[str, ...]
    urls: StoreUrls
    interval: int  #: seconds between two looks at the logs; 0: nothing is sent

    @contextlib.contextmanager
    def streaming(self, leg: Leg) -> Iterator[None]:
        """Send a leg's logs while the block runs, and their rest after it, as results may be uploaded late or never."""
        if not self.interval:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._stream, args=(leg, ended), name="live", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _stream(self, leg: Leg, ended: threading.Event) -> None:
        def check() -> None:
            if ended.is_set():
                raise _LegEnded

        backoff = Backoff(FIRST_STREAM_PAUSE_SECONDS, MAX_STREAM_PAUSE_SECONDS)
        sent_bytes, resume_at, is_last = 0, 0.0, False
        while not is_last:
            is_last = ended.wait(self.interval)
            if not is_last and time.monotonic() < resume_at:
                continue
            cancel = CancelToken() if is_last else CancelToken(check)
            timeout = LAST_STREAM_TIMEOUT_SECONDS if is_last else STREAM_TIMEOUT_SECONDS
            try:
                sent_bytes = self._send_growth(leg, sent_bytes, cancel, timeout)
                backoff.reset()
            except _LegEnded:
                continue
            except (ReimzulError, OSError) as error:
                log.debug("the growing logs of %s are not sent: %s", leg.source.name, error)
                resume_at = time.monotonic() + backoff.next_pause()

    def _send_growth(self, leg: Leg, sent_bytes: int, cancel: CancelToken, timeout: int) -> int:
        """Send the logs if they have grown; the bytes that are in the store then."""
        logs = [path for path in (leg.results / name for name in STREAMED_LOGS) if path.exists()]
        size = sum(path.stat().st_size for path in logs)
        if size != sent_bytes:
            url = self.urls.live_upload(leg.attempt.request.build_id, leg.arch, leg.attempt.token)
            _run_rsync(self.argv(logs, url), leg.folder / "live.log", cancel, timeout)
        return size

    def argv(self, logs: list[Path], url: str) -> list[str]:
        """rsync's command line. Without --times, bstore knows by its own clock when something came last."""
        options = ["--append", "--chmod=D0755,F0644", NODELAY, f"--timeout={STREAM_TIMEOUT_SECONDS}"]
        return [self.rsync, *options, *self.arguments, *map(str, logs), url]
