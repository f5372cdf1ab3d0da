# SPDX-License-Identifier: Apache-2.0
"""`reimzul causes --relabel`: stores the causes of failures by this version of the rule (`core/failure_cause.py`).

Until then commands and pages compute them each time. A cause is computed from what the history has; where that lacks
the line of the logs that names the cause, and with --logs in any case, that line is looked for in the store's logs.

Each part is one write of the history, so it may be interrupted and run again; the notifier goes on recording meanwhile.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Callable

import attr
import click

from reimzul.admin import lookup, output
from reimzul.core import validators
from reimzul.core.error_extractor import FirstError, find_first_error
from reimzul.core.failure_cause import CAUSE_VERSION, is_current, is_in_logs
from reimzul.core.formatting import pluralize
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.message import MAX_ERROR_LINE, Status
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls, leg_key
from reimzul.history import BuildFilter, BuildRecord, History, open_history
from reimzul.history.attempt_logs import list_attempts

#: Builds that one write relabels: the notifier waits for it.
_PART = 100


def relabel(settings: Settings, *, with_logs: bool = False) -> None:
    """Relabel failures; show progress on a terminal. Raises `NoHistory`, `HistoryUnavailable`.

    `with_logs`: read the logs of all failures, not only of those that lack the line which names the cause.
    Raises `HttpUnavailable` then, if the store does not answer.
    """
    with lookup.reading_history(settings.history.url):
        pass  # to write would create a missing history
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    with contextlib.closing(open_history(settings.history.url)) as history, HttpSession() as session:
        logs = StoredLogs(session, urls)
        total = sum(1 for _ in history.iterate_failures(BuildFilter())) if with_logs else history.count_old_causes()
        parts = _iterate_failures(history) if with_logs else _iterate_old(history)
        done = 0
        with _show_progress(total) as update:
            for part in parts:
                explained = {key: logs.explain_again(each, with_logs=with_logs) for key, each in part.items()}
                history.store_causes({key: each for key, each in explained.items() if not is_current(each)})
                update(len(part))
                done += len(part)
    if sys.stderr.isatty():
        note = f"; without logs: {logs.outage}" if logs.outage else ""
        text = f"{pluralize(done, 'failure')} relabelled by version {CAUSE_VERSION} of the rule{note}"
        output.print_note(text, as_json=True)


def _iterate_old(history: History) -> Iterator[Mapping[str, BuildRecord]]:
    while part := history.find_old_causes(_PART):
        yield part


def _iterate_failures(history: History) -> Iterator[Mapping[str, BuildRecord]]:
    """Yield the failures, then those whose stored cause is still by another version of the rule."""
    keys = [(each.build_id, each.arch) for each in history.iterate_failures(BuildFilter()) if each.build_id]
    for first in range(0, len(keys), _PART):
        part = {}
        for key in keys[first : first + _PART]:
            for record in history.find_builds(BuildFilter(build_id=key[0], arch=key[1]), 1):
                part[leg_key(*key)] = record
        yield part
    yield from _iterate_old(history)


@contextlib.contextmanager
def _show_progress(total: int) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=total, label="Relabelling", file=sys.stderr, show_eta=True) as bar:
        yield bar.update


@attr.define
class StoredLogs:
    """Looks for errors in the logs that the store keeps."""

    session: HttpSession
    urls: StoreUrls
    outage: str = ""  #: why the logs cannot be read; they are not asked for again

    def explain_again(self, record: BuildRecord, *, with_logs: bool) -> BuildRecord:
        """Return the record of a failure with the error that its logs have now, if they are to be read.

        Its cause is computed when it is stored. Raises `HttpUnavailable` if the logs have to be read `with_logs`.
        """
        is_wanted = with_logs or (not record.error_line and not self.outage)
        if record.status != Status.FAILED or not is_wanted or not is_in_logs(record.reason, record.exit_code):
            return record
        try:
            first = self._find_error(record)
        except HttpUnavailable as error:
            if with_logs:
                raise
            self.outage = str(error)
            return record
        text, line = validators.make_printable(first.text), validators.line(MAX_ERROR_LINE)(first.line)
        if not line or (text, line, first.log) == (record.first_error, record.error_line, record.error_log):
            return record
        # by version 0, so that it is computed again
        return attr.evolve(record, first_error=text, error_line=line, error_log=first.log, cause_version=0)

    def _find_error(self, record: BuildRecord) -> FirstError:
        """Return the first error of the logs; an empty one if the store has none of them."""
        attempts = (each for each in list_attempts(record, self.urls) if each.attempt.attempt == record.attempt)
        folders = next((each.kept for each in attempts), [self.urls.place(record.place)] if record.place else [])
        with tempfile.TemporaryDirectory(prefix="reimzul-relabel-") as folder:
            build_log, root_log = (Path(folder) / name for name in ("build.log", "root.log"))
            self._download(folders, build_log)
            self._download(folders, root_log)
            return find_first_error(build_log, root_log)

    def _download(self, folders: Sequence[str], log: Path) -> None:
        for url in (f"{folder}{log.name}{suffix}" for folder in folders for suffix in ("", ".gz")):
            try:
                with log.open("wb") as stream:
                    stream.writelines(self.session.stream(url))
            except NotFound:
                log.unlink()
                continue
            if url.endswith(".gz"):
                _unpack(log)
            return


def _unpack(log: Path) -> None:
    """Unpack a log that mock's compress_logs plugin has packed; of a damaged one, as far as it goes."""
    packed = log.rename(log.with_name(f"{log.name}.gz"))
    with contextlib.suppress(OSError, EOFError, zlib.error), gzip.open(packed) as source, log.open("wb") as stream:
        shutil.copyfileobj(source, stream)
