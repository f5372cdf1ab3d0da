# SPDX-License-Identifier: Apache-2.0
"""mock's configuration for a leg: the git checkout is pulled, the file chosen as the original does, and rendered.

Each configuration is rendered into a folder of its own, and written only when it changes: mock drops its root cache
when the configuration is newer. --uniqueext, not the configuration, makes a build's root its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from pathlib import Path

import attr

from reimzul.core.errors import ProgramFailed, ReimzulError
from reimzul.core.fs import file_lock, write_atomic
from reimzul.core.mock_config import SITE_DEFAULTS, MockConfigError, Renderer
from reimzul.core.process import output_of
from reimzul.worker.model import BuilderFault

log = logging.getLogger(__name__)

#: What mock wants beside a configuration.
REQUIRED_FILES = (SITE_DEFAULTS, "logging.ini")
#: The fields of a branch, of which the one that is checked out has a star before it; one without upstream has two.
_BRANCH_FORMAT = "%(HEAD) %(objectname) %(upstream:remotename) %(upstream:remoteref)"
#: Two legs may share a configuration, and are rendered side by side.
_render_lock = threading.Lock()


class MockConfigUnusable(BuilderFault):
    """This builder's configurations are not usable."""


@attr.frozen
class CheckoutState:
    commit: str  #: or why there is none
    is_current: bool = True  #: false where it could not be pulled


@attr.frozen(kw_only=True)
class MockConfigRepo:
    checkout: Path
    rendered_folder: Path  #: has a folder for each rendered configuration
    repohost: str  #: what http://repohost stands for: bstore's base URL without its last slash
    pull_timeout: int  #: seconds

    @property
    def folder(self) -> Path:
        return self.checkout / "mock"

    def pull(self) -> CheckoutState:
        """Update the checkout. Where that fails, log it and use the last state."""
        if not (self.checkout / ".git").exists():
            return CheckoutState("not a git checkout")
        self.rendered_folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.rendered_folder / ".pull.lock", wait=True):
            is_current = True
            try:
                if not self._is_current():
                    self._pull()
            except ReimzulError as error:
                log.warning("%s: its last state holds: %s", self.checkout, error)
                is_current = False
            try:
                return CheckoutState(self._git("rev-parse", "--short=12", "HEAD"), is_current)
            except ReimzulError as error:
                log.warning("%s: %s", self.checkout, error)
                return CheckoutState("unknown", is_current)

    def _pull(self) -> None:
        """Fetch from upstream and move the tree to it.

        The rest of a move that was broken off (the worker or the host was killed) would block each later one: then the
        tree is reset to upstream, and local changes are lost.
        """
        self._git("fetch", "--quiet")
        mark = self.rendered_folder / ".moving"
        if mark.exists():
            self._git("merge-base", "--is-ancestor", "HEAD", "@{upstream}")  # commits made here are not dropped
            log.warning("%s: its last pull was aborted; resetting it to upstream", self.checkout)
            (self.checkout / ".git" / "index.lock").unlink(missing_ok=True)
            self._git("reset", "--hard", "--quiet", "@{upstream}")
        mark.touch()
        try:
            self._git("merge", "--ff-only", "--quiet", "@{upstream}")
        except ProgramFailed as error:
            if error.code > 0:  # git ended by itself, and left nothing half done
                mark.unlink()
            raise
        mark.unlink()

    def _is_current(self) -> bool:
        """Whether the checkout is what its remote has, or has no remote.

        Mostly it is, and asking takes a third of the processes and of the time of a pull (12 ms less of a processor).
        """
        branches = self._git("for-each-ref", f"--format={_BRANCH_FORMAT}", "refs/heads").splitlines()
        fields = next((line.split() for line in branches if line.startswith("* ")), [])
        if len(fields) != 4:  # no branch is checked out, or one without upstream
            return not self._git("remote")
        _, commit, remote, ref = fields
        return self._git("ls-remote", "--quiet", remote, ref).split()[:1] == [commit]

    def _git(self, *arguments: str) -> str:
        return output_of(["git", "-C", self.checkout, *arguments], timeout=self.pull_timeout).strip()

    def check_required_files(self) -> None:
        """Raise `MockConfigUnusable` where the checkout cannot serve any build."""
        missing = [name for name in REQUIRED_FILES if not (self.folder / name).is_file()]
        if missing:
            raise MockConfigUnusable(f"{self.folder} has no {' and no '.join(missing)}")

    def find_config(self, name: str, evr: str, target: str, request_arch: str, arch: str) -> Path | None:
        """The configuration of a leg by the original's rule, None where there is none.

        `<name>-<evr>.<arch>.cfg` where that exists, else the target's with the leg's arch.
        """
        for candidate in (f"{name}-{evr}.{arch}.cfg", f"{replace_target_arch(target, request_arch, arch)}.cfg"):
            if (self.folder / candidate).is_file():
                return self.folder / candidate
        return None

    def render(self, config: Path) -> Path:
        """Write the folder mock is to read (--configdir) and return it. Raises `MockConfigUnusable`."""
        folder = self.rendered_folder / config.stem
        renderer = Renderer(folder=self.folder, repohost=self.repohost)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_if_changed(folder / "mock.cfg", renderer.render(config))
            _write_if_changed(folder / SITE_DEFAULTS, renderer.render_defaults())
            _write_if_changed(folder / "logging.ini", (self.folder / "logging.ini").read_text(encoding="utf-8"))
        except (MockConfigError, OSError, UnicodeDecodeError) as error:
            raise MockConfigUnusable(f"{config.name} cannot be rendered: {error}") from error
        return folder


def replace_target_arch(target: str, request_arch: str, arch: str) -> str:
    """A target with another arch instead of its own: c7.1708.u.x86_64 -> c7.1708.u.i386."""
    if request_arch == arch:
        return target
    stem, dot, last = target.rpartition(".")
    return f"{stem}{dot}{arch}" if last == request_arch else target.replace(request_arch, arch, 1)


def digest_rendered(configdir: Path) -> str:
    """The digest of a rendered configuration with all that it includes; how mock logs is no part of it."""
    digest = hashlib.sha256()
    for path in sorted(configdir.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.name != "logging.ini":
            with contextlib.suppress(OSError):  # mock will report the file as missing
                content = path.read_bytes()
                digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _write_if_changed(path: Path, text: str) -> None:
    """Write a file atomically, but leave it and its mtime alone where it has that text."""
    with _render_lock:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.read_text(encoding="utf-8") == text:
                return
        write_atomic(path, text)
        path.chmod(0o644)
