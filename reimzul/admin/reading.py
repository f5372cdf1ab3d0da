# SPDX-License-Identifier: Apache-2.0
"""The notifier's history and its list of workers, opened to be read and closed again: the one door into that room."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from reimzul.core import validators
from reimzul.core.beanstalk import Broker
from reimzul.core.config import Settings
from reimzul.core.submitters import SeenWorker, all_accept_any_name, is_plain
from reimzul.history import History, open_history
from reimzul.history.presence import NoPresences, Presences, Seen


@contextlib.contextmanager
def history(url: str) -> Iterator[History]:
    """The history at a URL. Raises `NoHistory`, `HistoryAway` and `ConfigError`."""
    opened = open_history(url, reading=True)
    try:
        yield opened
    finally:
        opened.close()


def workers(settings: Settings) -> list[Seen]:
    """The latest word of each worker, of those too whose connection has ended. Raises `NoPresences`."""
    return Presences(settings.notifier.presence).all()


def name_for_workers(broker: Broker, name: str, settings: Settings) -> str:
    """A submitter's name, or one in the old characters where a worker may not take it."""
    if is_plain(name):
        return name
    try:
        said = [each.presence for each in workers(settings)]
    except NoPresences:
        return validators.restrict_submitter(name)
    known = [SeenWorker(host=each.host, version=each.version, features=each.features) for each in said]
    return name if all_accept_any_name(broker, known) else validators.restrict_submitter(name)
