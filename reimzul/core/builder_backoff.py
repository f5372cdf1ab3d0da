# SPDX-License-Identifier: Apache-2.0
"""For how long a builder leaves a request to others that it could not build.

The broken builder is always the idle one: without this it would take the job straight back, and use up all tries while
a healthy one is busy. Workers obey it, and `reimzul explain` says so.
"""

from __future__ import annotations

#: Seconds for which it leaves the request to those that have not tried it, which may be busy for long, or drained for
#: longer; and to those that could not build it either.
SAME_BUILDER_BACKOFF_SECONDS, SAME_BUILDER_BACKOFF_ALL_FAILED_SECONDS = 3600, 60


def compute_backoff(elapsed: float, watchers: int, failed: int) -> float:
    """Return the seconds for which a builder still leaves a request to others; 0: it takes it now.

    `elapsed`: seconds since it was at fault. `watchers`: how many workers watch the tube; `failed`: how many workers
    the hosts have that were at fault for this request.
    """
    if watchers > failed:
        limit = SAME_BUILDER_BACKOFF_SECONDS
    else:
        limit = SAME_BUILDER_BACKOFF_ALL_FAILED_SECONDS if watchers > 1 else 0
    return max(0.0, limit - elapsed)
