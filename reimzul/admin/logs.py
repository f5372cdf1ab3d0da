# SPDX-License-Identifier: Apache-2.0
"""Following a log from where it grows to where it is kept, and from one attempt to the next.

A log lies in `live/` while it is written, and in its leg's place or in `attempts/` when it is complete; it only ever
grows, so that how much was read of it in one folder says where to go on in the next.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Optional

import attr

from reimzul.admin import lookup
from reimzul.admin.lookup import group_by_build
from reimzul.admin.paper import Paper
from reimzul.core.errors import InputError, ReimzulError
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.message import Status
from reimzul.core.store_paths import StoreUrls
from reimzul.history import BuildFilter, BuildRecord, HistoryUnavailable
from reimzul.history.build_record import RecordedAttempt

#: Bytes that are read at a time.
_PIECE = 1 << 20
#: The same of a log in gzip's format, which may be a thousand times as long; zlib's number for that format.
_PACKED_PIECE, _GZIP = 1 << 16, 31
#: Seconds between two looks at a log that grows, and at the history for what has become of the attempt.
_LOOK, _ASK = 0.5, 2.0
#: Seconds that the log of an attempt which has ended is waited for: it is on its way to its place.
_ON_ITS_WAY = 20.0
#: Seconds between two lines that the store does not answer.
_SAY_AGAIN = 60.0
#: How it stands with a log: more of it can be read at once, it grows, it is all read, it is in no folder, or the store
#: does not answer.
_MORE, _GROWS, _COMPLETE, _NOWHERE, _AWAY = "more", "grows", "complete", "nowhere", "away"


class NoLog(ReimzulError):
    """There is no such log."""


@attr.frozen(kw_only=True)
class Attempt:
    """An attempt at a leg, and where its logs may be."""

    number: int
    token: str
    builder: str
    status: str
    last: bool  #: that is known of
    kept: Sequence[str]  #: URLs of folders where its logs are complete, the likeliest first
    live: str  #: of the folder where they grow
    error_log: str = ""  #: the log that has the cause of its failure, where that is known

    @property
    def over(self) -> bool:
        """Whether nothing more is written; a worker that was told to stop says nothing of its attempt's end."""
        return self.status not in (Status.QUEUED, Status.BUILDING) or not self.last

    @property
    def words(self) -> str:
        """How it is called."""
        return f"attempt {self.number} on {self.builder or '-'}"


class Logs:
    """One log of one leg."""

    def __init__(self, history: str, urls: StoreUrls, build_id: str, arch: Optional[str], name: str | None) -> None:
        """`name` None: the log that has the cause of a failure, else build.log."""
        self._url, self._urls, self._build_id, self._arch, self._name = history, urls, build_id, arch, name
        self._site = HttpSession(timeout=10)
        self._said = float("-inf")

    def print(self, paper: Paper, wanted: str | None, *, follow: bool) -> bool:
        """Print the log of an attempt; `follow` to its end, and then of those after it. Raises `NoLog`.

        False where the last one that was followed has ended, and the end of its log is not there.
        """
        leg = self._leg()
        attempt = chosen(attempts(leg, self._urls), wanted)
        if attempt is None:
            if not follow:
                raise NoLog(f"nobody has begun to build it for {leg.arch}: {leg.status}")
            attempt = self._next(paper, leg, 0)
        whole = True
        while attempt is not None:
            whole = self._print_one(paper, attempt, follow=follow)
            if not follow or wanted:
                break
            leg = self._leg_now(leg)
            attempt = self._next(paper, leg, attempt.number)
        return whole

    def _leg(self) -> BuildRecord:
        """The leg, as the history has it now."""
        with lookup.reading_history(self._url) as history:
            legs = history.find_builds(BuildFilter(build_id=self._build_id), 50)
        found = [leg for leg in legs if leg.arch == self._arch]
        if self._arch and not found:
            raise InputError(f"the build has no leg for {self._arch}; it has {', '.join(leg.arch for leg in legs)}")
        return found[0] if found else group_by_build(legs)[0].main

    def _next(self, paper: Paper, leg: BuildRecord, after: int) -> Attempt | None:
        """The attempt after one, once somebody has begun it; None where the leg is over without another."""
        said = False
        while True:
            later = [each for each in attempts(leg, self._urls) if each.number > after]
            if later:
                paper.note(later[0].words)
                return later[0]
            if leg.status not in (Status.QUEUED, Status.BUILDING):
                return None
            if not said:
                which = "next" if after else "first"
                paper.note(f"it waits for its {which} attempt: reimzul explain {self._build_id[:8]}")
                said = True
            time.sleep(_ASK)
            leg = self._leg_now(leg)

    def _leg_now(self, before: BuildRecord) -> BuildRecord:
        """The leg as the history has it now; as it was, where that does not answer."""
        try:
            return self._leg()
        except HistoryUnavailable:
            return before

    def _print_one(self, paper: Paper, attempt: Attempt, *, follow: bool) -> bool:
        """One attempt's log, as far as it goes; false where its end never came. Raises `NoLog` where there is none."""
        name = self._name or attempt.error_log or "build.log"
        if name != (self._name or "build.log"):
            paper.note(f"{name}: it has the cause of the failure")
        reader = _Reader(self._site, name)
        asked = waits = time.monotonic()
        while (state := self._more(reader, attempt, paper, follow=follow)) != _COMPLETE:
            if state == _MORE:
                continue
            now = time.monotonic()
            waits = waits if attempt.over and state != _AWAY else now
            if not follow or now - waits > _ON_ITS_WAY:
                if state == _NOWHERE:
                    raise NoLog(f"{attempt.words} has no {name} in the store: {attempt.status}")
                if follow:
                    paper.note(f"{attempt.words} is over, and the end of this log is not there yet")
                return not follow
            time.sleep(_LOOK)
            if now - asked > _ASK:
                attempt, asked = self._again(attempt), now
        return True

    def _more(self, reader: _Reader, attempt: Attempt, paper: Paper, *, follow: bool) -> str:
        """Print more of it; who follows waits for a store that is away."""
        try:
            return reader.more(attempt, paper)
        except HttpUnavailable as error:
            if not follow:
                raise
            if time.monotonic() - self._said > _SAY_AGAIN:
                paper.note(f"{error}; tried again")
                self._said = time.monotonic()
            return _AWAY

    def _again(self, attempt: Attempt) -> Attempt:
        """The same attempt as it is known now."""
        try:
            found = [each for each in attempts(self._leg(), self._urls) if each.token == attempt.token]
        except HistoryUnavailable:
            return attempt
        return found[0] if found else attempt


class _Reader:
    """How far a log has been read."""

    def __init__(self, site: HttpSession, name: str) -> None:
        self._site, self._name, self._offset = site, name, 0
        self._packed: Optional[_Packed] = None

    def more(self, attempt: Attempt, paper: Paper) -> str:
        """Print what there is, and say how it stands with it."""
        for folder in (*attempt.kept, attempt.live):
            try:
                piece = self._site.read(folder + self._name, self._offset, _PIECE)
            except NotFound:
                if folder != attempt.live and (state := self._more_packed(folder, paper)):
                    return state
                continue
            paper.write(piece.body)
            self._offset += len(piece.body)
            if self._offset < piece.size:
                return _MORE
            return _GROWS if folder == attempt.live else _COMPLETE
        return _NOWHERE

    def _more_packed(self, folder: str, paper: Paper) -> str:
        """The same of a log that mock's compress_logs plugin packed; "" where there is none."""
        packed = self._packed or _Packed(self._offset)
        try:
            piece = self._site.read(f"{folder}{self._name}.gz", packed.offset, _PACKED_PIECE)
        except NotFound:
            return ""
        self._packed = packed
        try:
            paper.write(packed.unpack(piece.body))
        except zlib.error as error:
            raise NoLog(f"{folder}{self._name}.gz is damaged: {error}") from error
        return _MORE if packed.offset < piece.size else _COMPLETE


class _Packed:
    """How far a log in gzip's format has been read and unpacked."""

    def __init__(self, printed: int) -> None:
        """`printed`: bytes of the log that were printed before it was packed."""
        self.offset = 0
        self._skip = printed
        self._unpacker = zlib.decompressobj(wbits=_GZIP)

    def unpack(self, body: bytes) -> bytes:
        """What the next bytes of it hold, without what was printed before."""
        self.offset += len(body)
        plain = self._unpacker.decompress(body)
        while self._unpacker.eof and self._unpacker.unused_data:  # gzip files that were put one after the other
            rest, self._unpacker = self._unpacker.unused_data, zlib.decompressobj(wbits=_GZIP)
            plain += self._unpacker.decompress(rest)
        skip = min(self._skip, len(plain))
        self._skip -= skip
        return plain[skip:]


def attempts(leg: BuildRecord, urls: StoreUrls) -> list[Attempt]:
    """The attempts at a leg, the first one first."""
    return [_attempt(number, each, leg, urls) for number, each in enumerate(leg.attempts, 1)]


def _attempt(number: int, each: RecordedAttempt, leg: BuildRecord, urls: StoreUrls) -> Attempt:
    name = (leg.build_id, leg.arch, each.attempt)
    decided = [urls.place(leg.place)] if leg.place and leg.attempt == each.attempt else []
    kept = [*decided, urls.attempt(*name), *([each.url] if each.url else [])]
    return Attempt(
        number=number,
        token=each.attempt,
        builder=each.builder_fqdn,
        status=each.status,
        last=number == len(leg.attempts),
        kept=list(dict.fromkeys(kept)),
        live=urls.live(*name),
        error_log=_error_log(each, leg),
    )


def _error_log(each: RecordedAttempt, leg: BuildRecord) -> str:
    """Which log has the cause of an attempt's failure; names that no log has are none."""
    decided = leg.error_log if leg.attempt == each.attempt else ""
    name = each.error_log or decided
    return name if name in ("build.log", "root.log", "state.log") else ""


def chosen(known: Sequence[Attempt], wanted: str | None) -> Attempt | None:
    """The attempt that is meant, else the last; None where there is none. Raises `InputError` for one there is not."""
    if wanted is None:
        return known[-1] if known else None
    found = [each for each in known if wanted in (str(each.number), each.token)]
    found = found or [each for each in known if each.token.startswith(wanted)]
    if len(found) != 1:
        there = ", ".join(f"{each.number} ({each.token})" for each in known) or "none"
        raise InputError(f"no attempt {wanted}: there is {there}")
    return found[0]
