# SPDX-License-Identifier: Apache-2.0
"""How often a target may be indexed: runs rest as long as they last, and never exceed the seconds that pass.

`state/<target>.runs` holds the last run's start and end. It is read and written under the target's lock, so all repogen
workers of a store rest together.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import attr

#: Rest after the second run of a row. After the first there is none: legs of one build end shortly after each other.
REST_SECONDS = 1.0
#: Rest after the third run of a row and later ones. It makes up for the second run, which came without a rest.
LATER_REST_SECONDS = 1.5
LONGEST_REST_SECONDS = 30.0


@attr.frozen(kw_only=True)
class Run:
    """The last run on a target; times in seconds since 1970."""

    start: float = 0.0
    end: float = 0.0
    row: int = 0  #: its number in a row of runs that follow each other closely

    @property
    def duration(self) -> float:
        """Seconds it took."""
        return self.end - self.start

    @property
    def rest(self) -> float:
        """Seconds from its end to the earliest start of the next run."""
        if self.row < 2:
            return 0.0
        shortest = REST_SECONDS if self.row == 2 else LATER_REST_SECONDS
        return min(max(shortest, self.duration), LONGEST_REST_SECONDS)

    def allows_next(self, now: float) -> bool:
        """Whether the next run may start; an end in the future means that the clock was put back, and is ignored."""
        return self.end > now or now - self.end >= self.rest

    def followed_by(self, start: float, end: float) -> Run:
        """The run after this one. A pause longer than the rest begins a new row."""
        pause = start - self.end
        begins_row = pause < 0 or pause >= self.rest + max(REST_SECONDS, self.duration)
        return Run(start=start, end=end, row=1 if begins_row else self.row + 1)


def read_run(path: Path) -> Run:
    """The last run that a file tells of; one that never was where the file is absent or damaged."""
    try:
        raw = json.loads(path.read_bytes())
        run = Run(start=float(raw["start"]), end=float(raw["end"]), row=int(raw["row"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return Run()
    return run if 0 <= run.start <= run.end else Run()


def write_run(path: Path, run: Run) -> None:
    """Record a run. The disk is not synced: without the record, the next run starts at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(attr.asdict(run)) + "\n", encoding="utf-8")
    temporary.replace(path)
