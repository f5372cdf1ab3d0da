# SPDX-License-Identifier: Apache-2.0
"""Checks of values from outside: each is a function that returns the value, or raises `ValueError`.

Values that become a path or an argument of a program have a narrow alphabet: no slash, no leading dot or dash, no
control characters. Errors say what is wrong and what would be right.
"""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import date, datetime, time, timezone
from typing import Any, Callable

#: A component of a path: names, versions and releases of rpms, file names.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~^-]*\Z")
#: Unicode's control and format characters, line separators and surrogates (Cc, Cf, Zl, Zp, Cs), except tab and line
#: feed. They are invisible, and some make text look like another: they change its direction, or the terminal's state.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f]"
)
_MAX_SUBMITTER_CHARACTERS = 64

TIMESTAMP_FORMAT = "%Y%m%d%H%M%S"
_TIMESTAMP = re.compile(r"([0-9]{4})" + r"([0-9]{2})" * 5)
#: The last second of the year 9999: a later time cannot be printed as a date.
LAST_UNIX_TIME = 253402300799


def quoted(value: Any, limit: int = 80) -> str:
    """A value from outside for a message to a person: quoted, on one line, shortened."""
    quoted = ascii(value)
    return quoted if len(quoted) <= limit else quoted[: limit - 3] + "..."


def make_printable(text: str) -> str:
    """Replace each character that is not shown, or that changes how others are shown, by `?`; lines and tabs stay."""
    return _UNPRINTABLE.sub("?", text)


def _matching(pattern: str | re.Pattern[str], limit: int, right: str) -> Callable[[Any], str]:
    compiled = re.compile(pattern)

    def check(value: Any) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise ValueError(f"{quoted(value)} is not {right}")
        if len(value) > limit:
            raise ValueError(f"{quoted(value)} is longer than {limit} characters")
        return value

    return check


name = _matching(NAME, 200, "a name of letters, digits and ._+~^- that begins with a letter, a digit or _")
target = _matching(
    r"[A-Za-z0-9][A-Za-z0-9._+-]*",
    128,
    "a target: letters, digits and ._+-, beginning with a letter or digit, as c7.1708.u",
)
disttag = _matching(r"\.?[A-Za-z0-9][A-Za-z0-9._+~^]*", 64, "a disttag: letters, digits and ._+~^, as .el7_4")
arch = _matching(r"[a-z0-9][a-z0-9_]*", 32, "an arch, as x86_64")
host = _matching(r"[A-Za-z0-9][A-Za-z0-9._-]*", 253, "a host name")
build_id = _matching(r"[0-9a-f]{32}", 32, "a build id (32 hex digits)")
batch_id = _matching(r"[0-9a-f]{8}", 8, "a batch id (8 hex digits)")
cause_id = _matching(r"[0-9a-f]{8}", 8, "a cause (8 hex digits)")
sha256 = _matching(r"[0-9a-f]{64}", 64, "a sha256 (64 hex digits)")
token = _matching(r"[0-9a-f]{16}", 16, "a token (16 hex digits)")
signature = _matching(r"[1-9][0-9]{0,8}:[0-9a-f]{64}", 74, "a signature (<key number>:<64 hex digits>)")
attempt = _matching(r"[0-9]{1,12}-[0-9a-f]{8}", 32, "an attempt (<seconds>-<8 hex digits>)")
_folder = _matching(NAME, 200 + 1 + 32, "a folder <version-release>.<arch>")  # as long as its two parts may be


def submitter(value: Any) -> str:
    r"""The name of a user, as `CORP\jdoe`. It never becomes a path or an argument of a program."""
    if not isinstance(value, str) or not value.strip() or value.startswith("-"):
        raise ValueError(f"{quoted(value)} is not the name of a submitter")
    if _UNPRINTABLE.search(value) or "\t" in value or "\n" in value:
        raise ValueError(f"{quoted(value)} is not the name of a submitter: it has characters that cannot be shown")
    if len(value) > _MAX_SUBMITTER_CHARACTERS:
        raise ValueError(f"{quoted(value)} is longer than {_MAX_SUBMITTER_CHARACTERS} characters")
    return value


def restrict_submitter(value: str) -> str:
    """Reduce a submitter's name to what versions before 0.2 accept: accents are dropped, the rest becomes `_`."""
    letters = (each for each in unicodedata.normalize("NFKD", value) if not unicodedata.combining(each))
    plain = re.sub(r"[^A-Za-z0-9._@+$-]", "_", "".join(letters))[:_MAX_SUBMITTER_CHARACTERS]
    return plain if re.match(r"[A-Za-z0-9_]", plain) else f"_{plain[1:]}"


def is_source_rpm(file_name: str) -> bool:
    """Whether a file name is a source rpm's; .nosrc.rpm is one without its NoSource or NoPatch files."""
    return file_name.endswith((".src.rpm", ".nosrc.rpm"))


def package_of(srpm_name: str) -> str:
    """The name of a package, from the file name of its source rpm."""
    return srpm_name.rsplit("-", 2)[0]


def srpm(value: Any) -> str:
    """The file name of a source rpm in `incoming/`."""
    if name(value) and not is_source_rpm(value):
        raise ValueError(f"{quoted(value)} does not end with .src.rpm")
    return str(value)


def timestamp(value: Any) -> str:
    """A time in UTC as 14 digits, YYYYMMDDHHMMSS."""
    found = _TIMESTAMP.fullmatch(value) if isinstance(value, str) else None
    if not found:
        raise ValueError(f"{quoted(value)} is not a timestamp (YYYYMMDDHHMMSS)")
    year, month, day, hour, minute, second = map(int, found.groups())
    try:  # strptime would take ten times as long
        date(year, month, day)
        time(hour, minute, second)
    except ValueError:
        raise ValueError(f"{quoted(value)} is not a date") from None
    return found.string


def place(value: Any) -> str:
    """A folder of bstore: `repo|scratch/<target>/<name>/<timestamp>/<version-release>.<arch>`."""
    parts = value.split("/") if isinstance(value, str) else []
    if len(parts) != 5 or parts[0] not in ("repo", "scratch"):
        raise ValueError(f"{quoted(value)} is not a place in the store (repo/<target>/<name>/<timestamp>/<folder>)")
    target(parts[1])
    name(parts[2])
    timestamp(parts[3])
    _folder(parts[4])
    return str(value)


def logs_folder(value: Any) -> str:
    """A folder of bstore with logs: a place, or `attempts/<build id>.<arch>.<attempt>`."""
    area, _, name = value.partition("/") if isinstance(value, str) else ("", "", "")
    if area != "attempts":
        return place(value)
    parts = name.split(".")
    if len(parts) != 3:
        raise ValueError(f"{quoted(value)} is not a folder attempts/<build id>.<arch>.<attempt>")
    build_id(parts[0])
    arch(parts[1])
    attempt(parts[2])
    return str(value)


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{quoted(value)} is not true or false")
    return value


def optional_flag(value: Any) -> bool | None:
    return None if value is None else flag(value)


def integer(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{quoted(value)} is not a whole number from {low} to {high}")
        return value

    return check


def number(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"{quoted(value)} is not a number from {low:g} to {high:g}")
        return float(value)

    return check


def unix_time(value: Any) -> float:
    """A Unix time in seconds. Clocks may be wrong: a time outside 1970 to 9999 becomes the nearest in it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value == math.inf:
        raise ValueError(f"{quoted(value)} is not a time in seconds since 1970")
    return float(min(max(value, 0), LAST_UNIX_TIME))


def text(limit: int) -> Callable[[Any], str]:
    """The check of text for people: unprintable characters become `?`; the last `limit` characters are kept."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{quoted(value)} is not text")
        return make_printable(value)[-limit:]

    return check


def line(limit: int) -> Callable[[Any], str]:
    """The check of one line for people: unprintable characters become `?`; the first `limit` characters are kept."""

    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{quoted(value)} is not text")
        return make_printable(" ".join(value.split()))[:limit].rstrip()

    return check


def one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"{quoted(value)} is not one of {', '.join(words)}")
        return value

    return check


def optional(check: Callable[[Any], str]) -> Callable[[Any], str]:
    """Accept an empty text too: messages of the original lack some fields."""
    return lambda value: "" if value == "" else check(value)


def list_of(check: Callable[[Any], Any], limit: int) -> Callable[[Any], tuple[Any, ...]]:
    def check_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or len(value) > limit:
            raise ValueError(f"{quoted(value)} is not a list of at most {limit}")
        return tuple(check(item) for item in value)

    return check_all


def dict_of(key: Callable[[Any], Any], check: Callable[[Any], Any], limit: int) -> Callable[[Any], dict[str, Any]]:
    def check_all(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > limit:
            raise ValueError(f"{quoted(value)} is not an object of at most {limit} entries")
        return {key(name): check(item) for name, item in value.items()}

    return check_all


def now_timestamp() -> str:
    return datetime.now(timezone.utc).strftime(TIMESTAMP_FORMAT)
