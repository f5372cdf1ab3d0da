# SPDX-License-Identifier: Apache-2.0
"""Where the logs of an attempt are: in `live/` while it runs, in its leg's folder or in `attempts/` afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import attr

from reimzul.core.links import find_folder
from reimzul.core.store_paths import StoreUrls
from reimzul.history.build_record import BuildRecord, RecordedAttempt

#: mock's logs.
LOG_NAMES = ("build.log", "root.log", "state.log")


@attr.frozen(kw_only=True)
class LogSource:
    number: int
    attempt: RecordedAttempt
    is_last: bool  #: of those known
    kept: Sequence[str]  #: URLs of folders where its logs may be complete, the likeliest first
    live: str  #: URL of the folder where they grow
    error_log: str = ""  #: the log with the cause of its failure, where that is known

    @property
    def is_over(self) -> bool:
        """Whether nothing more is written. A worker that was stopped does not announce its attempt's end."""
        return self.attempt.is_over or not self.is_last

    @property
    def label(self) -> str:
        return f"attempt {self.number} on {self.attempt.builder_fqdn or '-'}"


def list_attempts(leg: BuildRecord, urls: StoreUrls) -> list[LogSource]:
    found = []
    for number, each in enumerate(leg.attempts, 1):
        key, decides = (leg.build_id, leg.arch, each.attempt), leg.attempt == each.attempt
        folder = each.logs_folder or find_folder(each.url)  # of another leg of the attempt, if this one has no logs
        kept = [urls.place(leg.place) if leg.place and decides else "", urls.attempt(*key)]
        kept += [urls.place(folder)] if folder else []
        error_log = each.error_log or (leg.error_log if decides else "")
        source = LogSource(
            number=number,
            attempt=each,
            is_last=number == len(leg.attempts),
            kept=list(dict.fromkeys(filter(None, kept))),
            live=urls.live(*key),
            error_log=error_log if error_log in LOG_NAMES else "",
        )
        found.append(source)
    return found
