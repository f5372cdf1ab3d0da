# SPDX-License-Identifier: Apache-2.0
"""mock's configuration for a leg: pulled, picked by the original's rule, rendered.

The rendered text lies in one folder a configuration, and is written only when it changes: mock drops its root cache
when the configuration is newer (mock.md). What makes a build's root its own is --uniqueext.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import attr

from reimzul.core.errors import ProgramFailed, ReimzulError
from reimzul.core.mock_config import SITE_DEFAULTS, MockConfigError, Renderer
from reimzul.core.process import output_of

log = logging.getLogger(__name__)

#: What mock wants beside a configuration.
REQUIRED_FILES = (SITE_DEFAULTS, "logging.ini")


class MockConfigUnusable(ReimzulError):
    """This builder's configurations are not usable: its own fault."""


@attr.frozen
class CheckoutState:
    """What the checkout is at."""

    commit: str  #: or words, where there is none
    is_current: bool = True  #: false where it could not be pulled


@attr.frozen
class _Branch:
    """A branch that follows one elsewhere."""

    commit: str
    remote: str
    ref: str  #: over there


#: Of a branch, the one that is checked out with a star before it; what follows no other has two words.
_FORMAT = "%(HEAD) %(objectname) %(upstream:remotename) %(upstream:remoteref)"


@attr.frozen(kw_only=True)
class MockConfigRepo:
    """The checkout of mock's configurations on this host."""

    checkout: Path
    rendered_folder: Path  #: the folder rendered configurations lie in, a folder each
    repohost: str  #: what http://repohost stands for: bstore's base URL without its last slash
    pull_timeout: int  #: seconds

    @property
    def folder(self) -> Path:
        """Where the configurations are in the checkout."""
        return self.checkout / "mock"

    def pull(self) -> CheckoutState:
        """Bring the checkout up to date. A pull that fails is said, and the last state holds."""
        if not (self.checkout / ".git").exists():
            return CheckoutState("not a git checkout")
        with _locked(self.rendered_folder / ".pull.lock"):
            branch, current = None, True
            try:
                branch = self._branch()
                if not self._is_current(branch):
                    self._pull()
                    branch = self._branch()
            except ReimzulError as error:
                log.warning("%s: its last state holds: %s", self.checkout, error)
                current = False
            try:
                commit = branch.commit[:12] if branch else self._git("rev-parse", "--short=12", "HEAD")
                return CheckoutState(commit, current)
            except ReimzulError as error:
                log.warning("%s: %s", self.checkout, error)
                return CheckoutState("unknown", current)

    def _pull(self) -> None:
        """Fetch what is new, and move the tree to it. Of a move that was broken off (we or the host were killed) the
        rest is in every later one's way: then the tree is what upstream has, and what was changed by hand is lost.
        """
        self._git("fetch", "--quiet")
        marked = self.rendered_folder / ".moving"
        if marked.exists():
            self._git("merge-base", "--is-ancestor", "HEAD", "@{upstream}")  # commits made here are not dropped
            log.warning("%s: its last pull was broken off: all in it becomes what upstream has", self.checkout)
            (self.checkout / ".git" / "index.lock").unlink(missing_ok=True)
            self._git("reset", "--hard", "--quiet", "@{upstream}")
        marked.touch()
        try:
            self._git("merge", "--ff-only", "--quiet", "@{upstream}")
        except ProgramFailed as error:
            if error.code > 0:  # it ended by itself, and left nothing half done
                marked.unlink()
            raise
        marked.unlink()

    def _branch(self) -> _Branch | None:
        """The branch that is checked out; None where there is none."""
        told = self._git("for-each-ref", f"--format={_FORMAT}", "refs/heads")
        words = next((line.split() for line in told.splitlines() if line.startswith("* ")), [])
        return _Branch(words[1], words[2], words[3]) if len(words) == 4 else None

    def _is_current(self, branch: _Branch | None) -> bool:
        """Whether the checkout is what its remote has, or has no remote.

        Mostly it is, and asking takes a third of the processes and of the time of a pull (12 ms less of a processor).
        """
        if branch is None:
            return not self._git("remote")
        there = self._git("ls-remote", "--quiet", branch.remote, branch.ref).split()
        return there[:1] == [branch.commit]

    def _git(self, *words: str) -> str:
        return output_of(["git", "-C", self.checkout, *words], timeout=self.pull_timeout).strip()

    def check_required_files(self) -> None:
        """Raise `NoConfig` where the checkout cannot serve any build."""
        missing = [name for name in REQUIRED_FILES if not (self.folder / name).is_file()]
        if missing:
            raise MockConfigUnusable(f"{self.folder} has no {' and no '.join(missing)}")

    def find_config(self, name: str, evr: str, target: str, request_arch: str, arch: str) -> Path | None:
        """The configuration of a leg by the original's rule, None where there is none.

        `<name>-<evr>.<arch>.cfg` where that is, else the target's with the leg's arch put in its place.
        """
        for candidate in (f"{name}-{evr}.{arch}.cfg", f"{replace_target_arch(target, request_arch, arch)}.cfg"):
            if (self.folder / candidate).is_file():
                return self.folder / candidate
        return None

    def render(self, config: Path) -> Path:
        """Write the folder mock is to read (--configdir) and return it. Raises `NoConfig`."""
        folder = self.rendered_folder / config.stem
        renderer = Renderer(folder=self.folder, repohost=self.repohost)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_changed(folder / "mock.cfg", renderer.render(config))
            _write_changed(folder / SITE_DEFAULTS, renderer.render_defaults())
            _write_changed(folder / "logging.ini", (self.folder / "logging.ini").read_text(encoding="utf-8"))
        except (MockConfigError, OSError, UnicodeDecodeError) as error:
            raise MockConfigUnusable(f"{config.name} cannot be rendered: {error}") from error
        return folder


def replace_target_arch(target: str, request_arch: str, arch: str) -> str:
    """A target with another arch in the place of its own: c7.1708.u.x86_64 -> c7.1708.u.i386."""
    if request_arch == arch:
        return target
    stem, dot, last = target.rpartition(".")
    return f"{stem}{dot}{arch}" if last == request_arch else target.replace(request_arch, arch, 1)


def _write_changed(path: Path, text: str) -> None:
    """Give a file a text, at once, and leave it and its mtime alone where it has it."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return
    beside = path.with_name(f".{path.name}-{os.getpid()}-{threading.get_ident()}")  # ours among workers and legs
    with beside.open("w", encoding="utf-8") as sink:
        sink.write(text)
        os.fchmod(sink.fileno(), 0o644)
    os.replace(beside, path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Ours alone among the workers of this host."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
