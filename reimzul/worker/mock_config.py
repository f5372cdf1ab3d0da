# SPDX-License-Identifier: Apache-2.0
"""mock's configuration for a leg: the git checkout is pulled, the file chosen as the original does, and rendered.

Each configuration is rendered into a folder of its own, and written only when it changes: mock drops its root cache
when the configuration is newer. --uniqueext, not the configuration, makes a build's root its own.

A copy without credentials is uploaded beside the build's logs, where everybody reads it.

The targets that have a configuration are reported with the heartbeats. An idle worker pulls the checkout every few
minutes, and at once for `reimzul targets --refresh`.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import logging
import os
import re
import string
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Optional

import attr

from reimzul.core import control, validators
from reimzul.core.arch import Arches
from reimzul.core.beanstalk import Broker
from reimzul.core.errors import ProgramFailed, ReimzulError
from reimzul.core.fs import file_lock, write_atomic
from reimzul.core.mock_config import REQUIRED_FILES, SITE_DEFAULTS, MockConfigError, Renderer, find_missing_configs
from reimzul.core.process import output_of
from reimzul.core.targets import TargetList, split_arch
from reimzul.worker.model import BuilderFault

log = logging.getLogger(__name__)

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


# --- credentials ------------------------------------------------------------------------------------------------------

REDACTED = "REDACTED"
#: What the name of an option, a key or a variable contains if its value is a credential.
_SECRET_NAME = re.compile(
    r"pass(?:word|wd|phrase)|token|secret|user_?name|credential|api_?key|access_?key|_auth$|^auth$", re.I
)
#: The part of a URL before its host, also where it has a token alone.
_USER_INFO = re.compile(r"://[^\s/'\"]*@")
#: The name of an option or a key, up to its value.
_OPTION = re.compile(r"(?<![\w.-])([\w.-]+)['\"]?\]?[ \t]*[=:][ \t]*(?![=/ \t])")


def redact_credentials(text: str) -> str:
    """Replace each credential in a mock configuration by `REDACTED`.

    A configuration is Python, with texts in it that are dnf's options. Values in the Python are found by its parser,
    with all their lines; whatever else looks like an option is found line by line, also where Python cannot parse it.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")  # Python's parser ends lines there too
    return "\n".join(_redact_lines(_redact_python(lines).split("\n")))


def _redact_python(text: str) -> str:
    """Replace the values that Python's parser finds; a text that is no Python stays as it is."""
    try:
        values = list(_find_secret_values(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError):
        return text
    lines = text.encode().split(b"\n")  # the parser counts bytes, and lines as `\n` ends them
    for value in sorted(values, key=lambda each: (each.lineno, each.col_offset), reverse=True):
        first, last = value.lineno - 1, (value.end_lineno or value.lineno) - 1
        begin, end = lines[first][: value.col_offset], lines[last][value.end_col_offset or 0 :]
        lines[first : last + 1] = [begin + repr(REDACTED).encode() + end]
    return b"\n".join(lines).decode()


def _find_secret_values(tree: ast.AST) -> Iterator[ast.expr]:
    """The outermost values that belong to a name of a credential."""
    found = list(_secret_values_of(tree))
    yield from found
    for child in ast.iter_child_nodes(tree):
        if child not in found:
            yield from (each for each in _find_secret_values(child) if each not in found)


def _secret_values_of(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from [node.value] if any(map(_names_secret, targets)) else ()
    elif isinstance(node, ast.Dict):
        yield from (value for key, value in zip(node.keys, node.values) if key is not None and _names_secret(key))
    elif isinstance(node, ast.Call):
        yield from (each.value for each in node.keywords if _SECRET_NAME.search(each.arg or ""))
        if node.args and isinstance(node.args[0], ast.Constant) and _names_secret(node.args[0]):
            yield from node.args[1:]  # setdefault


def _names_secret(target: ast.expr) -> bool:
    """Whether a variable, a key, or one of the keys that lead to an entry names a credential."""
    if isinstance(target, ast.Constant):
        return isinstance(target.value, str) and len(target.value) < 100 and bool(_SECRET_NAME.search(target.value))
    if isinstance(target, ast.Name):
        return bool(_SECRET_NAME.search(target.id))
    if isinstance(target, ast.Subscript):
        return _names_secret(target.value) or any(
            _names_secret(each) for each in ast.walk(target.slice) if isinstance(each, ast.Constant)
        )
    return isinstance(target, ast.Attribute) and bool(_SECRET_NAME.search(target.attr))


def _redact_lines(lines: list[str]) -> Iterator[str]:
    """Redact options line by line, with the lines that continue a value: those that are indented deeper."""
    depth = None  # of the option whose value goes on
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if depth is not None and line.strip() and indent > depth:
            yield line[:indent] + REDACTED
            continue
        redacted = "\\n".join(map(_redact_option, line.split("\\n")))
        depth = indent if redacted != line and redacted.endswith(REDACTED) else None
        yield _USER_INFO.sub(f"://{REDACTED}@", redacted)


def _redact_option(line: str) -> str:
    for option in _OPTION.finditer(line):
        if _SECRET_NAME.search(option[1]) and not line[option.end() :].startswith(repr(REDACTED)):
            return line[: option.end()] + REDACTED
    return line


#: Seconds between two pulls of an idle worker, and of one whose checkout has no configurations.
PULL_INTERVAL_SECONDS, EMPTY_PULL_INTERVAL_SECONDS = 300.0, 60.0
#: Seconds between two looks for the flag of `reimzul targets --refresh`.
FLAG_POLL_SECONDS = 5.0
_DISTTAG_LETTERS = string.ascii_letters + "_+"


def read_targets(folder: Path, arches: Arches, tubes: Collection[str]) -> TargetList:
    """Return the targets with a configuration in a folder whose arch's tube is one of `tubes`."""
    return TargetList.from_names(_iterate_targets(folder, arches, tubes))


def _iterate_targets(folder: Path, arches: Arches, tubes: Collection[str]) -> Iterator[str]:
    try:
        files = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".cfg") and entry.is_file()]
    except OSError as error:
        log.debug("no mock configuration can be read: %s", error)
        return
    for file in files:
        target = file[: -len(".cfg")]
        name, arch = split_arch(target, arches)
        if not arch or arches.tube_of(arch) not in tubes or _is_of_package(name):
            continue
        try:
            yield validators.target(target)
        except ValueError:
            continue  # no request can name it


def _is_of_package(name: str) -> bool:
    """Whether a configuration is a single package's: `<name>-<version>-<release>` with a disttag as `.el7`, no arch.

    Other names are targets, as `centos-7-1708`; a package's that is reported as a target does no harm.
    """
    package, version, release = ["", "", "", *name.rsplit("-", 2)][-3:]
    tags = [(part, part.lstrip(_DISTTAG_LETTERS)) for part in release.split(".")[1:]]
    has_disttag = any(rest != part and rest[:1].isdigit() for part, rest in tags)
    return bool(package) and version[:1].isdigit() and release[:1].isdigit() and has_disttag


@attr.define
class ConfigPuller:
    """Pulls the checkout while the worker is idle, in a thread: no job waits for a git server that is slow."""

    configs: MockConfigRepo
    _pulled_at: float = attr.field(default=float("-inf"), init=False)
    _polled_at: float = attr.field(default=float("-inf"), init=False)
    _flag: Optional[control.ControlFlag] = attr.field(default=None, init=False)  #: the last one that was obeyed
    _thread: Optional[threading.Thread] = attr.field(default=None, init=False)

    def pull_if_due(self, broker: Broker) -> None:
        """Start a pull if the last one is long ago or a person wants one. Raises `BrokerUnavailable`."""
        now = time.monotonic()
        if self._thread is not None and self._thread.is_alive():
            return
        is_empty = bool(find_missing_configs(self.configs.checkout))
        interval = EMPTY_PULL_INTERVAL_SECONDS if is_empty else PULL_INTERVAL_SECONDS
        if self._has_new_flag(broker, now) or now - self._pulled_at >= interval:
            self._pulled_at = now
            self._thread = threading.Thread(target=self._pull, name="mock configurations", daemon=True)
            self._thread.start()

    def _has_new_flag(self, broker: Broker, now: float) -> bool:
        if now - self._polled_at < FLAG_POLL_SECONDS:
            return False
        self._polled_at = now
        flag = control.refresh_flag(broker)
        is_new = flag is not None and flag != self._flag
        self._flag = flag or self._flag
        return is_new

    def _pull(self) -> None:
        try:
            self.configs.pull()
        except OSError as error:  # a folder that cannot be written to; each build reports it
            log.warning("%s cannot be pulled: %s", self.configs.checkout, error)
