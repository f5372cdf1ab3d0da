# SPDX-License-Identifier: Apache-2.0
"""The interface of a sink, which gets the farm's events.

A new sink is a class beside this module, and an entry in `reimzul.notifier.sinks`. Each has a thread of its own
(`reimzul.notifier.delivery`), which makes its connections and uses them, so a sink may take its time; but whatever it
waits for needs a timeout.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import ClassVar, Optional, TypeVar

from reimzul.core.errors import ReimzulError
from reimzul.core.message import Event
from reimzul.core.settings import Settings
from reimzul.history.result_rules import Notification

S = TypeVar("S", bound="Sink")


class SinkUnavailable(ReimzulError):
    """A sink takes nothing now: what it does not have yet is delivered later."""


class Sink(abc.ABC):
    """Something that gets events."""

    name: ClassVar[str]  #: in the outbox: letters, digits, ._-

    @classmethod
    @abc.abstractmethod
    def from_settings(cls: type[S], settings: Settings) -> Optional[S]:
        """Make the sink; None if it is switched off. Raises `ConfigError`."""

    def accepts(self, event: Event) -> bool:
        """Whether this event is for the sink. Called in the daemon's thread: decide by the event alone."""
        return True

    @abc.abstractmethod
    def deliver(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        """Deliver these, and yield each as soon as it is certain to have arrived; what is not yielded is tried later.

        Raises `SinkUnavailable` if the sink takes no more now. Any other exception counts as the fault of one notice,
        and the others are delivered one by one.
        """

    def close(self) -> None:  # noqa: B027  not every sink holds something
        """Release connections and files, quickly."""
