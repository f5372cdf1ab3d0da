# SPDX-License-Identifier: Apache-2.0
"""What the stand-in for mock says: build.log, root.log and state.log in mock's formats, and mock's lines on stderr.

Until `open` is called there is only stderr, as with mock: a call that was refused leaves no logs behind.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from devfarm.standin_faults import Exit, Fault

#: What mock calls itself in the logs; readers that look for mock's own line find it.
VERSION = "6.7"
TITLE = f"Mock Version: {VERSION} (reimzul's stand-in for mock)"
EXPLANATION = (
    "this is not mock but reimzul's stand-in for it, for trying and testing: "
    "the host's own rpmbuild in a private folder, with the host's own packages and no chroot"
)


class Logs:
    """The three logs of a run. Files are appended to, as mock's are."""

    def __init__(self) -> None:
        self.root = _logger("%(levelname)s: %(message)s")
        self.state = _logger("%(message)s")
        self.build = logging.Logger("build", logging.DEBUG)
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
            _to_file(self.build, folder / "build.log", "%(message)s")
        except OSError as error:
            raise Fault(Exit.FAILED, f"cannot write logs: {error}") from error

    @property
    def build_log(self) -> Path:
        """Where a program's output goes beside what `build` says."""
        return self.folder / "build.log"

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Frame what happens inside by mock's `Start:` and `Finish:`."""
        self.state.info("Start: %s", name)
        try:
            yield
        finally:
            self.state.info("Finish: %s", name)

    @contextlib.contextmanager
    def step(self, name: str, *, bootstrap: bool = False) -> Iterator[None]:
        """The same of a step that mock does not call finished where it failed."""
        where = "(bootstrap)" if bootstrap else ""
        self.state.info("Start%s: %s", where, name)
        yield
        self.state.info("Finish%s: %s", where, name)


def _logger(on_stderr: str) -> logging.Logger:
    # Not registered with `logging`: a run's logs are its own, also where tests make several in one process.
    logger = logging.Logger("standin", logging.DEBUG)
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter(on_stderr))
    logger.addHandler(handler)
    return logger


def _to_file(logger: logging.Logger, path: Path, form: str) -> None:
    handler = logging.FileHandler(path, mode="a", encoding="utf-8")
    handler.setFormatter(logging.Formatter(form))
    logger.addHandler(handler)
