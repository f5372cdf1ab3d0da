# SPDX-License-Identifier: Apache-2.0
"""`reimzul log`: prints a log of a build, and follows it while it is written and from one attempt to the next.

A log is in `live/` while it is written, and in its leg's folder or in `attempts/` when it is complete. It only ever
grows, so the number of bytes read from one folder is the offset at which to go on in the next.
"""

from __future__ import annotations

import codecs
import sys
import time
import zlib
from collections.abc import Sequence
from typing import Optional

import click

from reimzul.admin import lookup
from reimzul.admin.output import pass_settings
from reimzul.core import validators
from reimzul.core.cli import EXIT_CODES
from reimzul.core.errors import EXIT_FAILED, InputError, ReimzulError
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.option_types import NearestChoice
from reimzul.core.retry import LogThrottle
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls
from reimzul.history import BuildRecord, HistoryUnavailable
from reimzul.history.attempt_logs import LogSource, list_attempts

#: How much of a log is read at a time. A gzipped one may be a thousand times as long as its file.
_PIECE_BYTES, _GZIP_PIECE_BYTES = 1 << 20, 1 << 16
#: zlib's number for the gzip format.
_GZIP_WBITS = 31
#: Seconds between two reads of a growing log, and between two reads of the history.
_POLL_SECONDS, _HISTORY_POLL_SECONDS = 0.5, 2.0
#: Seconds to wait for the complete log of an attempt that has ended: it may still be uploaded.
_ARRIVAL_TIMEOUT_SECONDS = 20.0
#: Seconds between two notes that the store does not answer.
_OUTAGE_NOTE_SECONDS = 60.0
#: States of a log: more of it can be read at once, it grows, it is fully read, it is in no folder, the store is down.
_MORE, _GROWS, _COMPLETE, _NOWHERE, _UNAVAILABLE = "more", "grows", "complete", "nowhere", "unavailable"


@click.command("log", epilog=EXIT_CODES)
@lookup.build_ids_argument(many=False)
@click.argument("log", type=NearestChoice(["build", "root", "state"]), required=False)
@click.option("-f", "--follow", is_flag=True, help="Follow the log to its end, and then the logs of later attempts.")
@click.option("--arch", metavar="ARCH", help="Its log on this arch; on the requested one by default.")
@click.option("--attempt", metavar="NUMBER", help="The attempt, by number or name; the last by default.")
@pass_settings
def print_log(
    settings: Settings, given: str, log: str | None, follow: bool, arch: str | None, attempt: str | None
) -> int:
    """Print a log of a build: build.log, root.log or state.log of mock; by default the one with the cause of a failure.

    The cause is in root.log if packages could not be installed, otherwise in build.log. While a build runs, its logs
    are some 3 s behind. The logs of all attempts are kept, of failed ones too; `reimzul show` lists them. On a terminal
    control and format characters are shown as `?`. ID may be shortened to what no other build has.

    \b
    Examples:
      reimzul log 72b893f8
      reimzul log 72b893f8 root -f --arch i386
      reimzul log 72b893f8 --attempt 1
    """
    build = lookup.read_builds(settings, [given])[0]
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    logs = LogFollower(settings.history.url, urls, build.build_id, arch, log and f"{log}.log")
    return 0 if logs.print_log(LogOutput(), attempt, follow=follow) else EXIT_FAILED


class LogOutput:
    """Prints a log: byte for byte in a pipe, on a terminal without characters that control it or its text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace") if sys.stdout.isatty() else None

    def write(self, piece: bytes) -> None:
        if self._decoder is None:
            sys.stdout.buffer.write(piece)
        else:
            sys.stdout.write(validators.make_printable(self._decoder.decode(piece).replace("\r\n", "\n")))
        sys.stdout.flush()

    @staticmethod
    def print_note(text: str) -> None:
        sys.stdout.flush()
        click.echo(f"--- {text}", err=True)


class NoLog(ReimzulError):
    """The requested log does not exist."""


class LogFollower:
    def __init__(self, history: str, urls: StoreUrls, build_id: str, arch: Optional[str], name: str | None) -> None:
        """`name` None: the log with the cause of a failure, else build.log."""
        self._url, self._urls, self._build_id, self._arch, self._name = history, urls, build_id, arch, name
        self._session = HttpSession(timeout=10)
        self._outage_notes = LogThrottle(_OUTAGE_NOTE_SECONDS)

    def print_log(self, output: LogOutput, wanted: str | None, *, follow: bool) -> bool:
        """Print the log of an attempt; `follow` it to its end, then those of later attempts. Raises `NoLog`.

        Returns False where the last attempt that was followed is over and the end of its log never arrived.
        """
        leg = self._read_leg()
        source = select_attempt(list_attempts(leg, self._urls), wanted)
        if source is None:
            if not follow:
                raise NoLog(f"no attempt to build it for {leg.arch} has begun: {leg.state}")
            source = self._wait_for_attempt(output, leg, 0)
        complete = True
        while source is not None:
            complete = self._print_one(output, leg, source, follow=follow)
            if not follow or wanted:
                break
            leg = self._reread_leg(leg)
            source = self._wait_for_attempt(output, leg, source.number)
        return complete

    def _read_leg(self) -> BuildRecord:
        with lookup.reading_history(self._url) as history:
            build = lookup.find_recorded_builds(history, [self._build_id])[0]
        found = [leg for leg in build.legs if leg.arch == self._arch]
        if self._arch and not found:
            raise InputError(
                f"the build is not for {self._arch}; it is for {', '.join(leg.arch for leg in build.legs)}"
            )
        return found[0] if found else build.main

    def _reread_leg(self, before: BuildRecord) -> BuildRecord:
        """The leg as the history has it now, or as it was where the history cannot be read."""
        try:
            return self._read_leg()
        except HistoryUnavailable:
            return before

    def _wait_for_attempt(self, output: LogOutput, leg: BuildRecord, after: int) -> LogSource | None:
        """Wait for the attempt after number `after`; None where the leg ends without another."""
        is_noted = False
        while True:
            later = [each for each in list_attempts(leg, self._urls) if each.number > after]
            if later:
                output.print_note(later[0].label)
                return later[0]
            if not leg.is_unfinished:
                return None
            if not is_noted:
                which = "next" if after else "first"
                output.print_note(f"waiting for its {which} attempt: reimzul explain {self._build_id[:8]}")
                is_noted = True
            time.sleep(_HISTORY_POLL_SECONDS)
            leg = self._reread_leg(leg)

    def _print_one(self, output: LogOutput, leg: BuildRecord, source: LogSource, *, follow: bool) -> bool:
        """Print one attempt's log as far as it goes; False where its end never arrived. Raises `NoLog`."""
        name = self._name or source.error_log or "build.log"
        if name != (self._name or "build.log"):
            output.print_note(f"{name}: it has the cause of the failure")
        reader = _LogReader(self._session, name)
        last_read = waiting_since = time.monotonic()
        while (state := self._print_more(reader, source, output, follow=follow)) != _COMPLETE:
            if state == _MORE:
                continue
            now = time.monotonic()
            if not source.is_over or state == _UNAVAILABLE:
                waiting_since = now
            if not follow or now - waiting_since > _ARRIVAL_TIMEOUT_SECONDS:
                if state == _NOWHERE:
                    raise NoLog(f"{source.label} has no {name} in the store: {source.attempt.state}")
                if follow:
                    output.print_note(f"{source.label} is over, and the end of this log has not arrived")
                return not follow
            time.sleep(_POLL_SECONDS)
            if now - last_read > _HISTORY_POLL_SECONDS:
                leg, last_read = self._reread_leg(leg), now
                known = {each.attempt.attempt: each for each in list_attempts(leg, self._urls)}
                source = known.get(source.attempt.attempt, source)
        return True

    def _print_more(self, reader: _LogReader, source: LogSource, output: LogOutput, *, follow: bool) -> str:
        try:
            return reader.print_more(source, output)
        except HttpUnavailable as error:
            if not follow:
                raise
            if self._outage_notes.is_due():
                output.print_note(f"{error}; retrying")
            return _UNAVAILABLE


class _LogReader:
    def __init__(self, session: HttpSession, name: str) -> None:
        self._session, self._name, self._offset = session, name, 0
        self._gzip: Optional[_GzipLog] = None

    def print_more(self, source: LogSource, output: LogOutput) -> str:
        """Print the next piece; returns the log's state."""
        for folder in (*source.kept, source.live):
            try:
                piece = self._session.read(folder + self._name, self._offset, _PIECE_BYTES)
            except NotFound:
                if folder != source.live and (state := self._print_more_gzipped(folder, output)):
                    return state
                continue
            output.write(piece.body)
            self._offset += len(piece.body)
            if self._offset < piece.size:
                return _MORE
            return _GROWS if folder == source.live else _COMPLETE
        return _NOWHERE

    def _print_more_gzipped(self, folder: str, output: LogOutput) -> str:
        """Like `print_more` for a log that mock's compress_logs plugin has packed; empty where there is none."""
        packed = self._gzip or _GzipLog(self._offset)
        try:
            piece = self._session.read(f"{folder}{self._name}.gz", packed.offset, _GZIP_PIECE_BYTES)
        except NotFound:
            return ""
        self._gzip = packed
        try:
            output.write(packed.unpack(piece.body))
        except zlib.error as error:
            raise NoLog(f"{folder}{self._name}.gz is damaged: {error}") from error
        return _MORE if packed.offset < piece.size else _COMPLETE


class _GzipLog:
    """Unpacks a gzipped log piece by piece, without the bytes that were printed before it was packed."""

    def __init__(self, printed: int) -> None:
        self.offset = 0
        self._skip = printed
        self._unpacker = zlib.decompressobj(wbits=_GZIP_WBITS)

    def unpack(self, body: bytes) -> bytes:
        self.offset += len(body)
        plain = self._unpacker.decompress(body)
        while self._unpacker.eof and self._unpacker.unused_data:  # several gzip files, one after the other
            rest, self._unpacker = self._unpacker.unused_data, zlib.decompressobj(wbits=_GZIP_WBITS)
            plain += self._unpacker.decompress(rest)
        skip = min(self._skip, len(plain))
        self._skip -= skip
        return plain[skip:]


def select_attempt(known: Sequence[LogSource], wanted: str | None) -> LogSource | None:
    """The wanted attempt, else the last; None where there is none. Raises `InputError` for an unknown one."""
    if wanted is None:
        return known[-1] if known else None
    tokens = {each.attempt.attempt: each for each in known}
    found = [each for token, each in tokens.items() if wanted in (str(each.number), token)]
    found = found or [each for token, each in tokens.items() if token.startswith(wanted)]
    if len(found) != 1:
        attempts = ", ".join(f"{each.number} ({token})" for token, each in tokens.items()) or "none"
        raise InputError(f"no attempt {wanted}; known attempts: {attempts}")
    return found[0]
