# SPDX-License-Identifier: Apache-2.0
"""The history of all builds, in SQLite or MongoDB: one record per build and arch.

`[history] url` chooses the database. Both keep the same promises, and one test suite checks them.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Callable, Optional

import attr

from reimzul.core.errors import ConfigError, ReimzulError
from reimzul.core.failure_cause import cause_of
from reimzul.core.message import Event, Status
from reimzul.core.validators import is_source_rpm
from reimzul.history.build_record import BuildRecord, BuildState, RefusalRecord

__all__ = [
    "CORRUPT_PATTERN", "CORRUPT_PREFIX", "BuildFilter", "BuildRecord", "FailedBuild", "History", "HistoryDamaged",
    "HistoryUnavailable", "NoHistory", "open_history", "repair_history",
]  # fmt: skip

#: What the notifier calls a damaged SQLite history that it has replaced, beside the history.
CORRUPT_PREFIX = "history.corrupt-"
CORRUPT_PATTERN = f"{CORRUPT_PREFIX}*"


class HistoryUnavailable(ReimzulError):
    """The history cannot be reached, read or written now."""


class HistoryDamaged(HistoryUnavailable):
    """SQLite finds the history's file damaged; see `repair_history`."""


class NoHistory(ReimzulError):
    """There is no history yet: nothing was ever recorded."""


def is_pattern(text: str) -> bool:
    """Whether a condition has wildcards (`*` and `?`), which match as in a shell."""
    return "*" in text or "?" in text


@attr.frozen(kw_only=True)
class BuildFilter:
    """The builds that a query finds: those that match all conditions that are not None."""

    states: Optional[Sequence[str]] = None  #: any of these `BuildState`s
    targets: Optional[Sequence[str]] = None  #: any of these names or patterns
    arch: Optional[str] = None
    srpm: Optional[str] = None  #: the file's whole name, a prefix of it, or a pattern
    submitter: Optional[str] = None  #: or a pattern
    build_id: Optional[str] = None  #: or a prefix
    batch: Optional[str] = None  #: or a prefix; empty: builds of no batch
    since: Optional[str] = None  #: a timestamp: submitted then or later
    until: Optional[str] = None  #: a timestamp: submitted before

    @property
    def is_whole_srpm(self) -> bool:
        """Whether `srpm` is a whole name, not a prefix."""
        return self.srpm is not None and is_source_rpm(self.srpm)

    @property
    def statuses(self) -> list[str]:
        """The statuses under which builds of these states are stored, without `Success` where `published` matters.

        `Held` stands for `Queued` builds whose jobs are held; `Queued` for the others.
        """
        states = set(self.states or ())
        successes = {BuildState.BUILT, BuildState.PUBLISHED}
        others = [state.capitalize() for state in BuildState.ALL if state in states - successes]
        return [*others, Status.SUCCESS] if successes <= states else others

    @property
    def needs_published(self) -> Optional[bool]:
        """Whether a `Success` has to be published (or not to be) to be found; None: all are found, or none."""
        chosen = {BuildState.BUILT, BuildState.PUBLISHED} & set(self.states or ())
        return BuildState.PUBLISHED in chosen if len(chosen) == 1 else None


@attr.frozen
class FailedBuild:
    """A failed build, as far as causes need it: a history yields thousands of them without reading their records."""

    build_id: str
    arch: str
    timestamp: str
    target: str
    package: str
    cause: str  #: by this version of the rule

    @classmethod
    def from_record(cls, record: BuildRecord) -> FailedBuild:
        values = (record.build_id, record.arch, record.timestamp, record.target, record.package)
        return cls(*values, cause_of(record).id)


class History(abc.ABC):
    """All builds, the messages that were refused, and how much each sink has still to deliver.

    Every method raises `HistoryUnavailable`. An instance belongs to one thread.
    """

    #: Whether it is a file, which the notifier may replace: who follows it opens it again for each look.
    is_file = False

    @abc.abstractmethod
    def record(self, events: Sequence[Event]) -> None:
        """Record events, which may come again and in any order. All or nothing if the database can do that.

        After `HistoryUnavailable` all of them may be recorded again.
        """

    @abc.abstractmethod
    def find_builds(self, wanted: BuildFilter, limit: int) -> list[BuildRecord]:
        """Return the newest builds that match, the newest first, at most `limit`."""

    @abc.abstractmethod
    def iterate_builds(self, wanted: BuildFilter) -> Iterator[BuildRecord]:
        """Yield all builds that match, in no order, without loading all of them."""

    @abc.abstractmethod
    def find_unfinished(self) -> list[BuildRecord]:
        """Return all builds that wait or run, in no order."""

    @abc.abstractmethod
    def iterate_failures(self, wanted: BuildFilter, cause: str = "") -> Iterator[FailedBuild]:
        """Yield the failed builds that match and whose cause begins with `cause`, in no order, by the index of causes.

        The states in `wanted` do not count.
        """

    @abc.abstractmethod
    def count_old_causes(self) -> int:
        """Return the number of builds whose stored cause is by another version of the rule."""

    @abc.abstractmethod
    def find_old_causes(self, limit: int) -> dict[str, BuildRecord]:
        """Return at most so many of these builds, by their keys."""

    @abc.abstractmethod
    def store_causes(self, records: Mapping[str, BuildRecord]) -> None:
        """Store the error and the cause of these failures, by their keys, by this version of the rule.

        A build whose result has changed since it was read stays as it is.
        """

    @abc.abstractmethod
    def recent_successes(self, name: str, arch: str, limit: int) -> list[BuildRecord]:
        """Return the newest successful builds of a package on an arch, of any version and target, the newest first."""

    @abc.abstractmethod
    def iterate_refusals(self) -> Iterator[RefusalRecord]:
        """Yield the refused messages, the newest first, without loading all of them."""

    @abc.abstractmethod
    def delete_refusals(self, keys: Sequence[str]) -> None:
        """Delete refused messages by their keys; unknown keys are ignored."""

    @abc.abstractmethod
    def list_targets(self) -> list[str]:
        """Return all targets that anything was submitted for, sorted."""

    @abc.abstractmethod
    def override(self, srpm: str, target: str, arch: str, comment: str, build_id: str = "") -> Optional[BuildRecord]:
        """Set a build's status to `Override`, with a comment; return its record, or None if there is none.

        It is the build with that id, if it is over; without an id the latest of those that are.
        """

    @abc.abstractmethod
    def find_changed(self, after: int, limit: int) -> list[tuple[int, BuildRecord]]:
        """Return the builds that were written after the write of that number, in the order of writes, at most `limit`.

        Each write of a record has a higher number than all before. With several writers (an override) a lower number
        may become readable after a higher one: read some numbers again.
        """

    @abc.abstractmethod
    def last_change(self) -> int:
        """Return the number of the latest write; 0 if there was none. A smaller one than before: a backup came back."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the connection."""


def open_history(url: str, *, reading: bool = False) -> History:
    """Open the history at a checked URL ([history] url); with `reading` nothing can be recorded.

    Raises `ConfigError` if a library is missing, `HistoryUnavailable`, and `NoHistory` if there is nothing to read yet.
    """
    return history_class(url)(url, reading=reading)


def repair_history(url: str, *, thorough: bool = False) -> str:
    """Replace a damaged SQLite history by what can be read of it, and say in words what was done; "" if nothing was.

    For the one program that records builds. `thorough`: SQLite has found damage, which a quick look may miss.
    Raises `HistoryUnavailable`.
    """
    if not url.startswith("sqlite://"):
        return ""  # MongoDB's own journal and checksums
    from reimzul.history.sqlite import replace_damaged

    return replace_damaged(url, thorough=thorough)


def history_class(url: str) -> Callable[..., History]:
    """Return the class for this kind of URL; the libraries of the other are not imported. Raises `ConfigError`."""
    if url.startswith("sqlite://"):
        from reimzul.history.sqlite import SqliteHistory

        return SqliteHistory
    try:
        from reimzul.history.mongo import MongoHistory
    except ImportError as error:
        raise ConfigError(
            f"[history] url: MongoDB needs pymongo, which is not installed ({error}): pip install 'reimzul[controller]'"
        ) from error
    return MongoHistory
