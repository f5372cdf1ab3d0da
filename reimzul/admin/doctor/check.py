# SPDX-License-Identifier: Apache-2.0
"""A check and what it found; and many of them side by side, each with a limit of its own. A doctor does not hang."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Callable

import attr

from reimzul.core.errors import ReimzulError

OK, WARN, FAIL = "ok", "warn", "FAIL"
#: Seconds a check may take.
LIMIT = 15.0


@attr.frozen
class Result:
    """What a look found."""

    level: str  #: OK, WARN or FAIL
    words: str
    remedy: str = ""  #: what to do about it


def ok(words: str) -> Result:
    """All is well."""
    return Result(OK, words)


def warn(words: str, remedy: str = "") -> Result:
    """The farm works; a person should know."""
    return Result(WARN, words, remedy)


def fail(words: str, remedy: str = "") -> Result:
    """Something of the farm does not work."""
    return Result(FAIL, words, remedy)


def closed(what: str) -> Result:
    """Something that we may not look at: a fault for root alone."""
    if os.geteuid() == 0:
        return fail(f"{what}: permission denied, also to root")
    return warn(f"{what} is not ours to look at", "run it as root")


def worst(results: Sequence[Result], well: str) -> Result:
    """Several results as one: the words of all that is not well, `well` where all is."""
    ill = [result for result in results if result.level != OK]
    if not ill:
        return ok(well)
    level = FAIL if any(result.level == FAIL for result in ill) else WARN
    words = "; ".join(result.words for result in ill)
    return Result(level, words, "; ".join(dict.fromkeys(result.remedy for result in ill if result.remedy)))


@attr.frozen(kw_only=True)
class Check:
    """One thing to look at."""

    name: str
    look: Callable[[], Result]
    needs: tuple[str, ...] = ()  #: names of checks; where one of them fails, this one is not looked at


@attr.frozen(kw_only=True)
class Finding:
    """What came of a check."""

    name: str
    level: str
    words: str
    remedy: str
    seconds: float  #: it took


class _Running:
    """A check in a thread of its own, which is left behind where it does not end."""

    def __init__(self, check: Check, others: dict[str, _Running], limit: float) -> None:
        self.check = check
        self.needs = [others[name] for name in check.needs if name in others]
        self.limit = limit
        self.looking = threading.Event()
        self.done = threading.Event()
        self.result = Result(FAIL, "")
        self.began = self.ended = time.monotonic()
        # no pool: Python waits for a pool's threads before it ends, for these it does not
        threading.Thread(target=self._run, name=check.name, daemon=True).start()

    def _run(self) -> None:
        failed = [each.check.name for each in self.needs if each.finding().level == FAIL]
        self.began = time.monotonic()
        self.looking.set()
        result = warn(f"not looked at, since {failed[0]} fails") if failed else looked(self.check)
        self.ended = time.monotonic()
        self.result = result
        self.done.set()

    def finding(self) -> Finding:
        """What it found, waiting for it; that it has not ended is found too."""
        self.looking.wait()  # those it needs have limits
        if self.done.wait(max(0.0, self.began + self.limit - time.monotonic())):
            result, seconds = self.result, self.ended - self.began
        else:
            result = fail(f"no answer within {self.limit:g} s", "look at what this host is busy with")
            seconds = self.limit
        return Finding(
            name=self.check.name,
            level=result.level,
            words=one_line(result.words),
            remedy=one_line(result.remedy),
            seconds=round(seconds, 3),
        )


def looked(check: Check) -> Result:
    """What a check finds; what it raises is a finding too."""
    try:
        return check.look()
    except ReimzulError as error:
        return fail(str(error))
    except PermissionError as error:
        return closed(str(error.filename or check.name))
    except OSError as error:
        return fail(f"{error.filename or check.name}: {(error.strerror or str(error)).lower()}")
    except Exception as error:
        return fail(f"a bug of the doctor: {error!r}", "tell the developers of it")


def examine(checks: Sequence[Check], limit: float = LIMIT) -> Iterator[Finding]:
    """All of them at once; what they found, in their order. A check comes after those it needs."""
    running: dict[str, _Running] = {}
    for check in checks:
        running[check.name] = _Running(check, running, limit)
    for each in running.values():
        yield each.finding()


def one_line(words: str) -> str:
    """Words with neither tabs nor line ends, which stand between cells and lines."""
    return " ".join(words.split())
