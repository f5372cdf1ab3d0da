# SPDX-License-Identifier: Apache-2.0
"""How a run of the stand-in for mock can end: mock's exit codes, and the exceptions that carry them."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """The exit codes of mock that the stand-in gives, too."""

    BUILT = 0
    FAILED = 1  #: rpmbuild's own failure, and whatever mock has no number of its own for
    CONFIG = 3
    COMMAND_LINE = 5
    ARCH = 6
    INTERRUPTED = 7
    BUILD_REQUIRES = 10  #: %generate_buildrequires failed
    TIMEOUT = 11
    DEPENDENCIES = 30
    SOURCE = 40  #: the source rpm cannot be unpacked
    SETUP = 50
    LOCKED = 60
    RESULTS = 70


class Fault(Exception):
    """The run ends here, with this exit code and these words on stderr."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class Signalled(BaseException):
    """We were told to end. No `Exception`: nothing but the outermost frame handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
