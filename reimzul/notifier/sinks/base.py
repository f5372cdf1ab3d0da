# SPDX-License-Identifier: Apache-2.0
"""What a sink is: somebody who wants to be told.

A new one is a class here beside, and a row in the table (`reimzul.notifier.sinks`). Each lives in a thread of its
own (lane.py), made and used there alone, so it may take its time; but it ends by itself: whatever it waits for has a
bound.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import ClassVar, Optional, TypeVar

from reimzul.core.config import Settings
from reimzul.core.errors import ReimzulError
from reimzul.core.message import Event
from reimzul.history.result_rules import Notification

S = TypeVar("S", bound="Sink")


class SinkAway(ReimzulError):
    """A sink takes nothing now: what it was not told yet is owed to it."""


class Sink(abc.ABC):
    """Somebody who is told of events."""

    name: ClassVar[str]  #: what the ledger and `owed` call it: letters, digits, ._-

    @classmethod
    @abc.abstractmethod
    def of(cls: type[S], settings: Settings) -> Optional[S]:
        """The sink these settings ask for; None where it is switched off. Raises `ConfigError`."""

    def wants(self, event: Event) -> bool:
        """Whether this event is for it. Asked in another thread: decide by the event alone."""
        return True

    @abc.abstractmethod
    def tell(self, notices: Sequence[Notification]) -> Iterator[Notification]:
        """Tell these, and yield each as soon as it is certain to have arrived.

        Raises `SinkAway` where it takes no more now. Anything else that is raised is taken for one notice's fault:
        the rest is told one by one.
        """

    def close(self) -> None:  # noqa: B027  not every sink holds something
        """Leave, quickly."""
