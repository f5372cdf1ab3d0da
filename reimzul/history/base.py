# SPDX-License-Identifier: Apache-2.0
"""What any home of the history does."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Optional

import attr

from reimzul.core.errors import ReimzulError
from reimzul.core.message import Event
from reimzul.core.validators import is_source_rpm
from reimzul.history.build_record import Document


class HistoryUnavailable(ReimzulError):
    """The history cannot be reached, read or written now."""


class NoHistory(ReimzulError):
    """There is no history yet: nothing was ever recorded."""


@attr.frozen(kw_only=True)
class BuildFilter:
    """Which builds are asked for; what is None is not looked at."""

    status: Optional[str] = None  #: `Published` too: a Success that is published
    target: Optional[str] = None
    arch: Optional[str] = None
    srpm: Optional[str] = None  #: the file's whole name, or its beginning
    submitter: Optional[str] = None
    build_id: Optional[str] = None  #: or its beginning
    since: Optional[str] = None  #: a timestamp: submitted then or later

    @property
    def whole_srpm(self) -> bool:
        """Whether `srpm` is a whole name, and not its beginning."""
        return self.srpm is not None and is_source_rpm(self.srpm)


@attr.frozen(kw_only=True)
class PendingCount:
    """What one sink still has to be told."""

    sink: str
    count: int
    oldest: float  #: when the oldest of it was first to be told
    next_try: Optional[float] = None  #: None where it is in hand, or not known since a restart
    at: float = attr.field(default=0.0, eq=False)  #: when this was so


class History(abc.ABC):
    """What became of every build, which messages were none, and what the notifier owes to whom."""

    @abc.abstractmethod
    def record(self, events: Sequence[Event]) -> None:
        """Take in events, which may come again and in any order. All or nothing where the home can do that.

        Raises `HistoryAway`; then all of them may be recorded again.
        """

    @abc.abstractmethod
    def find_builds(self, wanted: BuildFilter, limit: int) -> list[Document]:
        """The newest builds that match, newest first, at most `limit`. Raises `HistoryAway`."""

    @abc.abstractmethod
    def iterate_builds(self, wanted: BuildFilter) -> Iterator[Document]:
        """All builds that match, in no order, read as far as they are asked for. Raises `HistoryAway`."""

    @abc.abstractmethod
    def find_unfinished(self) -> list[Document]:
        """All builds that wait or are under way, in no order. Raises `HistoryAway`."""

    @abc.abstractmethod
    def recent_successes(self, name: str, arch: str, limit: int) -> list[Document]:
        """The newest builds of a package on an arch that succeeded, whatever their version and target.

        Newest first, at most `limit`. Raises `HistoryAway`.
        """

    @abc.abstractmethod
    def iterate_refusals(self) -> Iterator[Document]:
        """The messages that were refused, newest first: key, tube, job, reason, begins, host, at.

        Read as far as they are asked for. Raises `HistoryAway`.
        """

    @abc.abstractmethod
    def delete_refusals(self, keys: Sequence[str]) -> None:
        """Drop these of what was refused. Raises `HistoryAway`."""

    @abc.abstractmethod
    def save_pending_counts(self, owed: Sequence[PendingCount]) -> None:
        """Keep what is owed now, and nothing of what was owed before. Raises `HistoryAway`."""

    @abc.abstractmethod
    def pending_counts(self) -> list[PendingCount]:
        """What was owed last, by sink. Raises `HistoryAway`."""

    @abc.abstractmethod
    def override(self, srpm: str, target: str, arch: str, comment: str) -> Optional[Document]:
        """Set `Override` and a comment on the latest build; what it is now, None where there is none.

        Raises `HistoryAway`.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Leave."""
