# SPDX-License-Identifier: Apache-2.0
"""Uploading a leg: its manifest, and rsync through stunnel into the spool folder of its attempt.

The files go first, and are hashed while they do; `build.json` goes last, by an rsync of its own: a spool folder with a
manifest is whole.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import attr

from reimzul.core import validators
from reimzul.core.errors import ProgramFailed, ProgramNotFound, ReimzulError, TimedOut
from reimzul.core.manifest import File, Manifest, sha256_of
from reimzul.core.message import Phase, Status
from reimzul.core.process import run
from reimzul.core.retry import CancelToken
from reimzul.core.rpm_header import read_header
from reimzul.core.store_paths import MANIFEST, StoreUrls
from reimzul.worker.mock_result import Fault, MockResult
from reimzul.worker.model import Leg

log = logging.getLogger(__name__)

#: Pauses between tries, seconds, the last again and again: an upload is tried for as long as it takes.
PAUSES = (1, 2, 5, 10, 20, 30, 60)
#: rsync's exit codes that no waiting mends, as they tell of this host's rsync or of its arguments: usage, action not
#: supported. All others may be the link's or the store's, and pass; a build of hours is not thrown away for them.
PERMANENT_EXIT_CODES = (1, 4)
#: Seconds without a byte after which rsync itself gives up.
RSYNC_IO_TIMEOUT_SECONDS = 60
#: Seconds that the upload of logs may take which decide nothing.
LOGS_TIMEOUT_SECONDS = 30
#: How often, in seconds, an upload that does not get through is said.
SAY_AGAIN = 60.0
#: rsync's small questions and answers, each in a packet of its own, at once: else each of them waits for the other
#: end's acknowledgement of the one before, 40 ms and three times a call (bstore's rsyncd.conf has the same).
NODELAY = "--sockopts=TCP_NODELAY"


class UploadImpossible(ReimzulError):
    """This host's rsync does not do it, however often it is tried."""


@attr.frozen(kw_only=True)
class Uploader:
    """rsync on this host, and the store it uploads to."""

    rsync: str
    arguments: tuple[str, ...]
    urls: StoreUrls

    def upload(
        self, leg: Leg, told: Callable[[], Manifest], heed: Callable[[], None], wait: Callable[[float], None]
    ) -> Manifest:
        """Upload a leg's results, have `told` reckon their manifest meanwhile, and upload that when both have ended.

        It is tried again until it is there. What `told`, `heed` and `wait` raise ends it. Raises `CannotShip`.
        """
        request = leg.attempt.request
        where = self.urls.spool(request.build_id, leg.arch, leg.attempt.token)
        with ThreadPoolExecutor(1, "manifest") as pool:
            future = pool.submit(told)

            def heed_both() -> None:
                heed()
                if future.done():
                    future.result()

            self._until_there(leg.results, where, leg, heed_both, wait)
            manifest = future.result()
        self._until_there(self._manifest(leg, manifest), where, leg, heed, wait)
        return manifest

    def upload_logs(self, leg: Leg, manifest: Manifest, heed: Callable[[], None]) -> None:
        """Upload what an attempt left that decides nothing: tried once. Raises what kept it from arriving."""
        where = self.urls.spool(leg.attempt.request.build_id, leg.arch, leg.attempt.token)
        for folder in (leg.results, self._manifest(leg, manifest)):
            self._once(folder, where, leg.folder / "rsync.log", heed, timeout=LOGS_TIMEOUT_SECONDS)

    def _manifest(self, leg: Leg, manifest: Manifest) -> Path:
        """The folder with the manifest alone."""
        told = leg.folder / "manifest"
        told.mkdir(exist_ok=True)
        (told / MANIFEST).write_text(manifest.to_text(), encoding="utf-8")
        return told

    def _until_there(
        self, folder: Path, where: str, leg: Leg, heed: Callable[[], None], wait: Callable[[float], None]
    ) -> None:
        said, tries = 0.0, 0
        while True:
            try:
                self._once(folder, where, leg.folder / "rsync.log", heed)
                return
            except ProgramNotFound as error:
                raise UploadImpossible(str(error)) from error
            except (ProgramFailed, TimedOut) as error:
                if isinstance(error, ProgramFailed) and error.code in PERMANENT_EXIT_CODES:
                    raise UploadImpossible(str(error)) from error
                if time.monotonic() - said > SAY_AGAIN or not said:
                    log.warning("%s of %s is not uploaded yet: %s", leg.arch, leg.attempt.request.srpm, error)
                    said = time.monotonic()
            wait(PAUSES[min(tries, len(PAUSES) - 1)])
            tries += 1

    def _once(
        self, folder: Path, where: str, output: Path, heed: Callable[[], None], timeout: float | None = None
    ) -> None:
        output.unlink(missing_ok=True)
        code = run(self.argv(folder, where), output=output, cancel=CancelToken(heed), timeout=timeout)
        if code:
            last = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise ProgramFailed("rsync", code, "".join(last))

    def argv(self, folder: Path, where: str) -> list[str]:
        """rsync's command line; modes are ours to say, since mock's files may be closed to bstore's http server."""
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
            where,
        ]


def prune_results(leg: Leg, verdict: MockResult) -> None:
    """Leave in a leg's results what is uploaded: of a failed one only logs, of a follower no source rpm."""
    for path in sorted(leg.results.iterdir()):
        unwanted = path.name.endswith(".rpm") if verdict.fault is not Fault.NONE else False
        repeated = validators.is_source_rpm(path.name) and not leg.is_main
        if unwanted or repeated or not path.is_file():
            discard(path)


def make_manifest(
    leg: Leg,
    verdict: MockResult,
    code: int | None,
    config: str,
    heed: Callable[[], None],
    *,
    finished: float,
    status: str = "",
    phases: Sequence[Phase] = (),
) -> Manifest:
    """What a leg came to, each of its files hashed; `heed` is called often, and what it raises ends it."""
    files = []
    for path in sorted(leg.results.iterdir()):
        nevra = read_header(path).nevra if path.name.endswith(".rpm") else ""
        files.append(
            File(name=path.name, size=path.stat().st_size, sha256=sha256_of(path, CancelToken(heed)), nevra=nevra)
        )
    return Manifest(
        request=leg.attempt.request,
        arch=leg.arch,
        attempt=leg.attempt.token,
        status=status or (Status.SUCCESS if verdict.fault is Fault.NONE else Status.FAILED),
        pkgname=leg.package.name,
        evr=leg.package.evr,
        builder_fqdn=leg.attempt.host,
        started=round(leg.attempt.started, 3),
        finished=finished,
        exit_code=code,
        reason=verdict.reason,
        config=config,
        files=tuple(files),
        skipped=dict(leg.skipped),
        phases=tuple(phases),
    )


def discard(path: Path) -> None:
    """Remove what is not uploaded; a folder is nothing of mock's, and stays behind on the builder."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.parent.parent / f"left-{path.name}")
    else:
        path.unlink()


def read_tail(path: Path, lines: int, limit: int) -> str:
    """The last lines of a log, in any encoding, at most `limit` bytes of it."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - limit))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
