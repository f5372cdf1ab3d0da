# SPDX-License-Identifier: Apache-2.0
"""`reimzul doctor`: checks this host and its links to the others, with a hint for each problem.

This module defines checks and their results, and runs many checks in parallel, each with its own time limit. The
checks themselves are in the modules beside it.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Callable, TypeVar, Union

import attr

from reimzul.core.errors import ReimzulError

if TYPE_CHECKING:
    from reimzul.admin.doctor.host import Host

#: Levels: all is well; the farm works, but a person should know; a part of the farm does not work.
OK, WARN, FAIL = "ok", "warn", "FAIL"
CHECK_TIMEOUT_SECONDS = 15.0


def _to_one_line(text: str) -> str:
    return " ".join(text.split())


@attr.frozen
class Result:
    level: str  #: OK, WARN or FAIL
    message: str = attr.field(converter=_to_one_line)
    hint: str = attr.field(converter=_to_one_line, default="")  #: what a person should do about it

    def as_finding(self, name: str, seconds: float = 0.0) -> Finding:
        return Finding(self.level, self.message, self.hint, name=name, seconds=seconds)


@attr.frozen
class Finding(Result):
    name: str = attr.field(kw_only=True)
    seconds: float = attr.field(default=0.0, kw_only=True)  #: duration

    def to_dict(self) -> dict[str, object]:  # as --json prints it, under key names of its own
        return {
            "name": self.name,
            "level": self.level,
            "message": self.message,
            "remedy": self.hint,
            "seconds": round(self.seconds, 3),
        }


class Misconfigured(ReimzulError):
    """Something is not as it has to be. It ends a check, and is its result."""

    def __init__(self, message: str, hint: str, level: str = FAIL) -> None:
        super().__init__(message)
        self.result = Result(level, message, hint)


def require(condition: object, message: str, hint: str) -> None:
    """Let the check fail unless the condition is true. Raises `Misconfigured`."""
    if not condition:
        raise Misconfigured(message, hint)


def recommend(condition: object, message: str, hint: str) -> None:
    """End the check with a warning unless the condition is true. Raises `Misconfigured`."""
    if not condition:
        raise Misconfigured(message, hint, WARN)


#: Results of each level, made of a message and a hint.
ok, warn, fail = (partial(Result, level) for level in (OK, WARN, FAIL))


def is_root() -> bool:
    return os.geteuid() == 0


def not_permitted(path: str) -> Result:
    """The result for a path that this process must not read: only root is expected to have access to everything."""
    if is_root():
        return fail(f"{path}: permission denied, even for root")
    return warn(f"{path} is not readable for this user", "run reimzul doctor as root")


def install_hint(debian: str, fedora: str = "") -> str:
    """How to install a package on this host, by its name in Debian, and in Fedora and EL if it differs."""
    if shutil.which("apt-get"):
        return f"apt-get install {debian}"
    return f"dnf install {fedora or debian}"


def combine(results: Iterable[Result]) -> Result:
    """Merge several results into one that lists every problem; only without a problem it lists what is ok."""
    found = list(results)
    found = [result for result in found if result.level != OK] or found
    level = max((result.level for result in found), key=(OK, WARN, FAIL).index)
    hints = dict.fromkeys(result.hint for result in found if result.hint)
    return Result(level, "; ".join(result.message for result in found), "; ".join(hints))


def shorten(texts: Sequence[str], limit: int = 3) -> str:
    more = f"; and {len(texts) - limit} more" if len(texts) > limit else ""
    return "; ".join(texts[:limit]) + more


def describe_error(error: OSError) -> str:
    return (error.strerror or str(error) or "no answer").lower()


Results = Union[Result, Iterable[Result]]


@attr.frozen(kw_only=True)
class Check:
    name: str
    run: Callable[[], Results]  #: several results are combined; what it raises becomes its result
    needs: tuple[str, ...] = ()  #: names of checks; if one of them fails, this check is skipped


F = TypeVar("F", bound=Callable[["Host"], Results])


class CheckGroup:
    """Functions that check a host. Called with a host, the group makes the checks of that host."""

    def __init__(self, *needs: str) -> None:
        self.needs = needs  #: the names of checks that all checks of the group need
        self._rows: list[tuple[str, tuple[str, ...], Callable[[Host], object], Callable[[Host], Results]]] = []

    def add(self, name: str, *needs: str, applies: Callable[[Host], object] = lambda _: True) -> Callable[[F], F]:
        """Return a decorator that adds a function, for the hosts that it `applies` to."""

        def add_function(function: F) -> F:
            self._rows.append((name, (*self.needs, *needs), applies, function))
            return function

        return add_function

    def __call__(self, host: Host) -> list[Check]:
        return [
            Check(name=name, run=partial(function, host), needs=needs)
            for name, needs, applies, function in self._rows
            if applies(host)
        ]


class _RunningCheck:
    """A check in its own thread, which is abandoned when it exceeds its time limit."""

    def __init__(self, check: Check, others: dict[str, _RunningCheck], timeout: float) -> None:
        self.check, self.timeout = check, timeout
        self.needs = [others[name] for name in check.needs if name in others]
        self.has_begun, self.has_ended = threading.Event(), threading.Event()
        self.result = fail(f"no answer within {timeout:g} s", "look for what keeps this host busy")
        self.began, self.seconds = time.monotonic(), timeout
        # Not a thread pool: Python would wait at exit for a pool's threads, but not for daemon threads.
        threading.Thread(target=self._run, name=check.name, daemon=True).start()

    def _run(self) -> None:
        failed = [each.check.name for each in self.needs if each.wait().level == FAIL]
        self.began = time.monotonic()
        self.has_begun.set()
        result = warn(f"skipped because {failed[0]} fails") if failed else _run_check(self.check)
        self.result, self.seconds = result, time.monotonic() - self.began
        self.has_ended.set()

    def wait(self) -> Finding:
        """Wait for the check's end, at most until its time limit."""
        self.has_begun.wait()  # the checks it needs have time limits, too
        self.has_ended.wait(max(0.0, self.began + self.timeout - time.monotonic()))
        return self.result.as_finding(self.check.name, self.seconds)


def _run_check(check: Check) -> Result:
    try:
        found = check.run()
        return found if isinstance(found, Result) else combine(found)
    except Misconfigured as error:
        return error.result
    except ReimzulError as error:
        return fail(str(error))
    except PermissionError as error:
        return not_permitted(str(error.filename or check.name))
    except OSError as error:
        return fail(f"{error.filename or check.name}: {describe_error(error)}")
    except Exception as error:  # noqa: BLE001  a bug in one check must not hide what the others find
        return fail(f"bug in reimzul doctor: {error!r}", "report it to the developers")


def run_checks(checks: Sequence[Check], timeout: float = CHECK_TIMEOUT_SECONDS) -> Iterator[Finding]:
    """Run all checks in parallel and yield their findings in the order given. A check must follow those it needs."""
    running: dict[str, _RunningCheck] = {}
    for check in checks:
        running[check.name] = _RunningCheck(check, running, timeout)
    for each in running.values():
        yield each.wait()
