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


class Exit(enum.IntEnum):
    """The exit codes of mock that the stand-in has too."""

    FAILED = 1  #: rpmbuild failed, or mock has no code of its own for what happened
    CONFIG = 3
    ARCH = 6
    INTERRUPTED = 7
    BUILD_REQUIRES = 10  #: %generate_buildrequires failed
    TIMEOUT = 11
    DEPENDENCIES = 30
    SOURCE = 40  #: the source rpm cannot be unpacked
    SETUP = 50
    LOCKED = 60


class Fault(Exception):
    """Ends the run with an exit code and a text on stderr."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Logs:
    """The three logs of a run. Files are appended to, as mock's are."""

    def __init__(self) -> None:
        self.root, self.state, self.build = (logging.Logger(name, logging.DEBUG) for name in ("root", "state", "build"))  # noqa: LOG001  stands alone: nothing inherited
        self.folder = Path()
        for logger, form in ((self.root, "%(levelname)s: %(message)s"), (self.state, "%(message)s")):
            handler = logging.StreamHandler(sys.stderr)
            handler.setLevel(logging.INFO)
            _add_handler(logger, handler, form)

    def open(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        forms = {
            "root.log": (self.root, "%(levelname)s %(filename)s:%(lineno)d:  %(message)s"),
            "state.log": (self.state, "%(asctime)s - %(message)s"),
            "build.log": (self.build, "%(message)s"),
        }
        for name, (logger, form) in forms.items():
            _add_handler(logger, logging.FileHandler(folder / name, encoding="utf-8"), form)

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


def _add_handler(logger: logging.Logger, handler: logging.Handler, form: str) -> None:
    handler.setFormatter(logging.Formatter(form))
    logger.addHandler(handler)
