# SPDX-License-Identifier: Apache-2.0
"""The errors of the farm, named by what to do about them.

What a daemon does: `InvalidMessage` buries the job, `RetryLater` releases it, `BrokerUnavailable` reconnects,
`ReservationLost` leaves the job to whoever has it now. What a command does: each class carries the exit code that
its message is printed with, so that a script can tell causes apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Callable, Union

#: Exit codes of every command of the project, beside 0. 2 is click's own for wrong usage.
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 3
EXIT_INPUT = 4
EXIT_BROKER = 5
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130


class ReimzulError(Exception):
    """An error that one line explains to a person."""

    exit_code = EXIT_FAILED


class ConfigError(ReimzulError):
    """The configuration is wrong; nothing starts until it is corrected."""

    exit_code = EXIT_CONFIG


class InputError(ReimzulError):
    """Input from a person is wrong; the message says what would be right."""

    exit_code = EXIT_INPUT


class InvalidMessage(ReimzulError):
    """The job body is not a valid message. The daemon announces and buries it."""

    exit_code = EXIT_INPUT


class BrokerUnavailable(ReimzulError):
    """beanstalkd does not answer, or its answers are out of step: reconnect."""

    exit_code = EXIT_BROKER


class ReservationLost(ReimzulError):
    """The job is no longer reserved by us: settle nothing."""


class JobSettled(ReimzulError):
    """The handler has released or deleted the job itself."""


class RetryLater(ReimzulError):
    """It cannot be done now: release the job and retry after `pause` seconds."""

    def __init__(self, why: str, *, pause: int = 10) -> None:
        super().__init__(why)
        self.pause = pause  #: seconds until the next try


class ShutdownRequested(ReimzulError):
    """The daemon is to stop: release the jobs in hand."""


class TimedOut(ReimzulError):
    """A program exceeded its timeout and was ended."""

    _why = " after"

    def __init__(self, program: str, seconds: float) -> None:
        super().__init__(f"{program} was ended{self._why} {seconds:g} s")
        self.seconds = seconds


class ProcessStalled(TimedOut):
    """A program did nothing for too long, and was ended."""

    _why = ": it did nothing for"


class ProgramFailed(ReimzulError):
    """A program that had to succeed did not."""

    def __init__(self, program: str, code: int, output: str = "") -> None:
        self.program, self.code = program, code
        super().__init__(f"{program} {describe_exit(code)}" + (f": {output}" if output else ""))


class ProgramNotFound(ReimzulError):
    """A program the farm runs is not installed, or not where the setting says."""


_Translations = Mapping[Union[type[Exception], tuple[type[Exception], ...]], Callable[[Any], Exception]]


class ErrorTranslation(contextlib.AbstractContextManager[None]):
    """See `translate_errors`; it has no state, so it may be entered again and by several threads."""

    def __init__(self, translations: _Translations) -> None:
        self._translations = translations

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            return
        for kinds, translate in self._translations.items():
            if isinstance(error, kinds):
                raise translate(error) from error


def translate_errors(translations: _Translations) -> ErrorTranslation:
    """Raise another error for one that is raised in the block: the first row of its class makes it.

    A row may also clean up, as close a connection that is out of step.
    """
    return ErrorTranslation(translations)


def describe_os_error(error: Exception) -> str:
    """The operating system's reason alone, as `permission denied`: the message around it names the file."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def describe_exit(code: int | None) -> str:
    """An exit status as `subprocess` gives it, in words: negative is a signal's number."""
    if code is None:
        return "is still running"
    if code < 0:
        return f"was ended by signal {-code}"
    return f"exited with {code}"
