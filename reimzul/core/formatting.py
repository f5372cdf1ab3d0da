# SPDX-License-Identifier: Apache-2.0
"""How every program writes times, spans, sizes and JSON, and how it names what a misspelt word may mean.

People read `2026-11-29 04:03:14Z` and `5 min 07 s`; programs read RFC 3339 and seconds. Inside the farm's programs, in
its messages and in the history, times are seconds since 1970.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Keys of JSON output whose values are times.
_TIME_KEYS = frozenset(
    ("at", "heard", "started", "finished", "start", "end", "since", "until", "published", "last_published")
    + ("queued_at", "put_at", "released_at", "due", "when", "oldest", "next_try", "created", "expected_end", "made")
)
#: Keys of objects whose own keys are data and whose values are counts.
_COUNT_KEYS = frozenset(("results", "reasons", "unrecorded", "counts"))
#: Keys of JSON output where 0 stands for an unknown value.
_NUMBERS_OF_THINGS = frozenset(("job",))
#: Keys of the original's messages and documents that have a plainer name in JSON output.
_OUTPUT_NAMES = {"builder_fqdn": "builder"}

#: Known words that an error message lists.
_MAX_LISTED_WORDS = 12


def to_output(value: Any, key: str = "") -> Any:
    """Return a value as it is printed in JSON: times in RFC 3339, seconds with milliseconds, `null` for the unknown.

    `key` is the value's own; what is in a list has none. An empty string in a list is no unknown value, and stays.
    """
    if isinstance(value, str):  # most are: the pages write millions of them
        return value or None
    if isinstance(value, Mapping) and key in _COUNT_KEYS:
        return dict(value)
    if isinstance(value, Mapping):
        return {_OUTPUT_NAMES.get(name, name): to_output(each, name) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [each if isinstance(each, str) else to_output(each) for each in value]
    if value == 0 and (key in _TIME_KEYS or key in _NUMBERS_OF_THINGS):
        return None
    if key in _TIME_KEYS and isinstance(value, (int, float)):
        return format_rfc3339(value)
    return round(value, 3) if isinstance(value, float) else value


def format_time(moment: float | None) -> str:
    """Format seconds since 1970 in UTC for people: `2026-11-29 04:03:14Z`."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(moment)) if moment else "-"


def format_timestamp(timestamp: str) -> str:
    """Format a build's timestamp, YYYYMMDDHHMMSS, for people."""
    return re.sub(r"^(....)(..)(..)(..)(..)(..)$", r"\1-\2-\3 \4:\5:\6Z", timestamp) or "-"


def format_rfc3339(moment: float) -> str:
    """Format seconds since 1970 for programs: `2026-11-29T04:03:14Z`, with milliseconds where there are some."""
    milliseconds = round(moment * 1000)
    fraction = f".{milliseconds % 1000:03}" if milliseconds % 1000 else ""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000)) + fraction + "Z"


def format_duration(seconds: float) -> str:
    """Format a duration in its two largest units: `4.2 s`, `38 s`, `5 min 07 s`, `3 h 20 min`, `2 d 4 h`."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    if not minutes:
        return f"{whole} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {whole:02} s"
    return f"{hours} h {minutes:02} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def format_size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def pluralize(number: int, thing: str) -> str:
    """Format a count with its noun: `1 build`, `2 builds`, `2 batches`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "es" if thing.endswith("ch") else "s")


def list_first(names: Sequence[str], limit: int) -> str:
    """List the first names, and say how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def find_nearest(given: str, known: Iterable[str]) -> str:
    """Return the known word that a misspelt one is most like; "" if none is like it."""
    import difflib  # rarely needed, and it would delay the start of every command

    return next(iter(difflib.get_close_matches(given, list(known), 1)), "")


def list_known(known: Iterable[str]) -> str:
    """Return the end of a sentence that refuses an unknown word, with words that are known; nothing if none is."""
    names = sorted(known)
    more = f" and {len(names) - _MAX_LISTED_WORDS} more" if len(names) > _MAX_LISTED_WORDS else ""
    return f"; there are {', '.join(names[:_MAX_LISTED_WORDS])}{more}" if names else ""


def suggest_nearest(given: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that refuses an unknown word: `; is c9s meant?`, or nothing."""
    nearest = find_nearest(given, known)
    return f"; is {nearest} meant?" if nearest else ""


def join_words(words: Sequence[str]) -> str:
    """Join words as in a sentence: `a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
