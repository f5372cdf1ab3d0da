# SPDX-License-Identifier: Apache-2.0
"""How the stand-in for mock reports: mock's exit codes, its build.log, root.log and state.log, its lines on stderr.

Until `open` is called there is only stderr, as with mock: a call that is refused leaves no logs.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

#: Readers that look for mock's own line in the logs find it by this version.
VERSION = "6.7"
TITLE = f"Mock Version: {VERSION} (reimzul's stand-in for mock)"
EXPLANATION = (
    "this is not mock but reimzul's stand-in for it, for trying and testing: "
    "the host's own rpmbuild in a private folder, with the host's own packages and no chroot"
)


class Exit(enum.IntEnum):
    """The exit codes of mock that the stand-in has too."""

    FAILED = 1  #: rpmbuild failed, or mock has no code of its own for what happened
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
    """Ends the run with an exit code and a text on stderr."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Signalled(BaseException):
    """A signal ends the run. Not an `Exception`, so that only `main` handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Logs:
    """The three logs of a run. Files are appended to, as mock's are."""

    def __init__(self) -> None:
        self.root = _logger("%(levelname)s: %(message)s")
        self.state = _logger("%(message)s")
        self.build = logging.Logger("build", logging.DEBUG)  # noqa: LOG001  stands alone: nothing inherited
        self.folder = Path()

    def open(self, folder: Path) -> None:
        """Log to this result folder from now on."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Fault(Exit.RESULTS, f"Could not create dir {folder}. Error: {error.strerror}") from error
        try:
            _to_file(self.root, folder / "root.log", "%(levelname)s %(filename)s:%(lineno)d:  %(message)s")
            _to_file(self.state, folder / "state.log", "%(asctime)s - %(message)s")
            _to_file(self.build, self.build_log, "%(message)s")
        except OSError as error:
            raise Fault(Exit.FAILED, f"cannot write logs: {error}") from error

    @property
    def build_log(self) -> Path:
        return self.folder / "build.log"

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Log mock's `Start:` and `Finish:` around a phase, `Finish:` also when the phase fails."""
        self.state.info("Start: %s", name)
        try:
            yield
        finally:
            self.state.info("Finish: %s", name)

    @contextlib.contextmanager
    def step(self, name: str, *, bootstrap: bool = False) -> Iterator[None]:
        """Log them around a step of which mock logs no `Finish:` when it fails."""
        where = "(bootstrap)" if bootstrap else ""
        self.state.info("Start%s: %s", where, name)
        yield
        self.state.info("Finish%s: %s", where, name)


def _logger(stderr_format: str) -> logging.Logger:
    logger = logging.Logger("mockstub", logging.DEBUG)  # noqa: LOG001  stands alone: nothing inherited
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter(stderr_format))
    logger.addHandler(handler)
    return logger


def _to_file(logger: logging.Logger, path: Path, form: str) -> None:
    handler = logging.FileHandler(path, mode="a", encoding="utf-8")
    handler.setFormatter(logging.Formatter(form))
    logger.addHandler(handler)
