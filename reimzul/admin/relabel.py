# SPDX-License-Identifier: Apache-2.0
"""`reimzul causes --relabel`: stores the causes of failures by this version of the rule (`core/failure_cause.py`).

Until then commands and pages compute them each time. Each part is one write of the history, so it may be interrupted
and run again; the notifier goes on recording meanwhile.
"""

from __future__ import annotations

import contextlib
import sys

import click

from reimzul.admin import lookup
from reimzul.core.failure_cause import CAUSE_VERSION
from reimzul.core.formatting import pluralize
from reimzul.core.settings import Settings
from reimzul.history import open_history

#: Builds that one write relabels: the notifier waits for it.
_PART = 500


def relabel(settings: Settings) -> None:
    """Relabel all failures; show progress on a terminal. Raises `NoHistory`, `HistoryUnavailable`."""
    with lookup.reading_history(settings.history.url):
        pass  # to write would create a missing history
    with contextlib.closing(open_history(settings.history.url)) as history:
        total, done = history.count_old_causes(), 0
        if not sys.stderr.isatty():
            while history.renew_causes(_PART):
                pass
            return
        with click.progressbar(length=total, label="Relabelling", file=sys.stderr, show_eta=True) as bar:
            while count := history.renew_causes(_PART):
                bar.update(count)
                done += count
    click.echo(
        f"{pluralize(done, 'failure')} relabelled: all causes are by version {CAUSE_VERSION} of the rule", err=True
    )
