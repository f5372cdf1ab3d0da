# SPDX-License-Identifier: Apache-2.0
"""The notifier's history and its list of workers, opened to be read and closed again: the one door into that room."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from reimzul.core import validators
from reimzul.core.beanstalk import Broker
from reimzul.core.config import Settings
from reimzul.core.submitters import SeenWorker, all_take_any, is_plain
from reimzul.history import History, open_history
from reimzul.history.workers import WorkerRecord, WorkerStore, WorkersUnavailable


@contextlib.contextmanager
def reading_history(url: str) -> Iterator[History]:
    """The history at a URL. Raises `NoHistory`, `HistoryAway` and `ConfigError`."""
    opened = open_history(url, reading=True)
    try:
        yield opened
    finally:
        opened.close()


def load_workers(settings: Settings) -> list[WorkerRecord]:
    """The latest word of each worker, of those too whose connection has ended. Raises `NoPresences`."""
    return WorkerStore(settings.notifier.presence).load_all()


def submitter_for_workers(broker: Broker, name: str, settings: Settings) -> str:
    """A submitter's name, or one in the old characters where a worker may not take it."""
    if is_plain(name):
        return name
    try:
        said = [each.heartbeat for each in load_workers(settings)]
    except WorkersUnavailable:
        return validators.restrict_submitter(name)
    known = [SeenWorker(host=each.host, version=each.version, features=each.features) for each in said]
    taken = not settings.farm.original_workers and all_take_any(broker, known)
    return name if taken else validators.restrict_submitter(name)
