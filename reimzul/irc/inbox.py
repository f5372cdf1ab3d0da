# SPDX-License-Identifier: Apache-2.0
"""What the broker has delivered and was not said yet. The broker is told only when it was.

It holds no more than the broker sends without hearing from us (`UNDER_WAY`); all the rest waits there, on its disk.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Callable, Optional

from reimzul.irc.line import Saying

#: How many deliveries the broker sends before it waits for us.
UNDER_WAY = 20
#: How many names of what was said are remembered, to know what is delivered again.
REMEMBERED = 1000

Receipt = Callable[[], None]


class Inbox:
    """Between the thread that hears the broker and the one that speaks."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, tuple[Saying, Receipt]] = OrderedDict()
        self._said: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def arrive(self, saying: Saying, receipt: Receipt) -> None:
        """Take one in; `receipt` tells the broker. What came before is not said again."""
        with self._lock:
            known = saying.name in self._said
            if not known:
                # delivered again after the connection broke: the old receipt is worth nothing
                self._waiting[saying.name] = (saying, receipt)
        if known:
            receipt()

    def next(self, besides: set[str]) -> Optional[Saying]:
        """The oldest that is not among those under way."""
        with self._lock:
            return next((saying for name, (saying, _) in self._waiting.items() if name not in besides), None)

    def done(self, name: str) -> None:
        """It was said, and heard by the server."""
        with self._lock:
            _, receipt = self._waiting.pop(name, (None, None))
            self._said[name] = None
            while len(self._said) > REMEMBERED:
                self._said.popitem(last=False)
        if receipt is not None:
            receipt()
