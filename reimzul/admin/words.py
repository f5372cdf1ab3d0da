# SPDX-License-Identifier: Apache-2.0
"""Numbers as people read them: spans of time, sizes, counts. Pure."""

from __future__ import annotations

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def span(seconds: float) -> str:
    """A span of time in its two largest units: `4.2 s`, `38 s`, `5 min 07 s`, `3 h 20 min`, `2 d 4 h`."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def skewed(seconds: float) -> str:
    """How far a clock is off: `2 h 00 min ahead of the controller's`."""
    return f"{span(abs(seconds))} {'ahead of' if seconds > 0 else 'behind'} the controller's"


def size(count: float) -> str:
    """Bytes in the unit that leaves few digits."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def counted(number: int, thing: str) -> str:
    """A number and what it counts: `1 build`, `2 builds`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
