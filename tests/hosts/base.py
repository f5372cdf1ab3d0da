# SPDX-License-Identifier: Apache-2.0
"""The parts of machines, made once and kept: a bare Debian, a folder of its packages, and Python's wheels.

A machine starts with nothing but what `BARE` says; what the farm needs it installs by itself with apt-get and pip,
from these folders instead of the network. Each is kept by a hash of its recipe: a changed recipe makes another.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import attr

from devfarm.demo import demo_srpms
from tests.hosts.room import CACHE

SUITE = "bookworm"
_SITE = "http://deb.debian.org/debian"
#: A host as somebody gets it who rents one.
BARE = ("systemd", "systemd-sysv", "dbus", "iproute2", "procps", "ca-certificates", "udev", "python3-minimal")
#: All that is installed on a machine from then on, by `make install` or by a person; with what they depend on.
OFFERED = (
    "git", "make",
    "python3-venv", "python3-rpm", "stunnel4", "rsync", "openssl", "logrotate",
    "beanstalkd", "nginx-light", "createrepo-c", "mosquitto", "mosquitto-clients",
    # builders: what the stand-in for mock builds with
    "rpm", "gcc", "gcc-multilib", "libc6-dev", "patch", "file",
    # the customer
    "dnf", "dnf-plugins-core",
    # a clock that is wrong
    "faketime",
)  # fmt: skip
#: The Python of `SUITE`, for which wheels are fetched.
_PYTHON = ("3.11", "cp311")
_DAYS_KEPT = 30

#: No disk is synced for a package that can be unpacked again; nothing is asked.
_DPKG = "force-unsafe-io\nforce-confold\n"
_APT = """\
APT::Install-Recommends "false";
APT::Get::Assume-Yes "true";
Acquire::Languages "none";
Dir::Cache::pkgcache "";
"""
#: Where folders are seen in a machine: Debian's packages, wheels, git repositories, source rpms.
PACKAGES_THERE, WHEELS_THERE, GIT_THERE, SOURCES_THERE = "/mnt/packages", "/mnt/wheels", "/mnt/git", "/mnt/sources"
#: The documents' git server is that folder, which belongs to nobody in the machine.
_GIT = f'[url "{GIT_THERE}/"]\n\tinsteadOf = https://git.example.org/\n[safe]\n\tdirectory = *\n'


@attr.frozen
class Base:
    """The parts of machines."""

    system: Path  #: the bare Debian
    packages: Path  #: a repository of Debian's packages
    wheels: Path  #: Python's
    sources: tuple[Path, ...]  #: source rpms of real programs


def base() -> Base:
    """All of it; what is not there yet is made, which needs Debian's and PyPI's network once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with _lock():
        system = _make_once("system", _recipe_of_system(), _make_system)
        packages = _make_once("packages", f"{system.name} {OFFERED}", lambda goal: _make_packages(system, goal))
        wheels = _make_once("wheels", f"{_PYTHON} {_requirements()}", _make_wheels)
        sources = demo_srpms(CACHE / "sources", _say)
        _forget()
    return Base(system, packages, wheels, tuple(sources))


def _recipe_of_system() -> str:
    return f"{SUITE} {BARE} {_DPKG} {_APT} {_PIP} {_GIT}"


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another run that makes the machines' base")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_once(what: str, recipe: str, make: Callable[[Path], None]) -> Path:
    """The folder of a recipe; half of one is never seen by its name."""
    path = CACHE / f"{what}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not path.is_dir():
        started = time.monotonic()
        _say(f"making {path}, once")
        for left in CACHE.glob(f"making-{what}*"):
            shutil.rmtree(left)
        making = CACHE / f"making-{what}"
        making.mkdir(mode=0o755)
        with _in_memory() as folder:
            make(folder)
            _run("cp", "-a", f"{folder}/.", making)
        making.rename(path)
        _say(f"made {path.name} in {time.monotonic() - started:.0f} s")
    os.utime(path)
    return path


@contextlib.contextmanager
def _in_memory() -> Iterator[Path]:
    """A folder to make things in: thousands of packages' files are synced one by one, which no disk likes."""
    with TemporaryDirectory(prefix="reimzul-farm-test-") as name:
        # in our own mounts: it is gone when we are
        _run("mount", "-t", "tmpfs", "-o", "mode=755", "farm-test", name)
        try:
            yield Path(name)
        finally:
            _run("umount", "--lazy", name)


def _forget() -> None:
    """Remove the parts that no run has used for long."""
    for path in CACHE.glob("*-*"):
        if path.is_dir() and time.time() - path.stat().st_mtime > _DAYS_KEPT * 86400:
            shutil.rmtree(path)


def _make_system(goal: Path) -> None:
    _run("debootstrap", "--variant=minbase", f"--include={','.join(BARE)}", SUITE, goal, _SITE)
    texts = {
        "etc/dpkg/dpkg.cfg.d/farm-test": _DPKG,
        "etc/apt/apt.conf.d/90farm-test": _APT,
        "etc/apt/sources.list": f"deb {_SITE} {SUITE} main\n",
        "etc/gitconfig": _GIT,
        "etc/pip.conf": _PIP,
        "etc/machine-id": "",
    }
    for name, text in texts.items():
        (goal / name).write_text(text)
    (goal / "var/log/journal").mkdir(exist_ok=True)  # the journal outlives a boot
    for there in (PACKAGES_THERE, WHEELS_THERE, GIT_THERE, SOURCES_THERE):
        (goal / there.lstrip("/")).mkdir()
    _run("chroot", goal, "apt-get", "-q", "clean")


#: Wheels and no network: what is not there is an error at once.
_PIP = f"[global]\nno-index = true\nfind-links = {WHEELS_THERE}\ndisable-pip-version-check = true\n"


def _make_packages(system: Path, goal: Path) -> None:
    """apt-get itself says what each needs; a copy of the bare system is what it looks at."""
    root = goal / "root"
    root.mkdir()
    _run("cp", "-a", f"{system}/.", root)
    archives = root / "var/cache/apt/archives"
    _run("chroot", root, "apt-get", "-q", "update")
    for group in OFFERED:  # one by one, so that what one recommends is there in any case
        _run("chroot", root, "apt-get", "-q", "--download-only", "install", group)
    for package in archives.glob("*.deb"):
        shutil.copy(package, goal)
    shutil.rmtree(root)
    index = _run("dpkg-scanpackages", "--multiversion", ".", cwd=goal)
    (goal / "Packages").write_text(index)
    # the line in the machine's sources.list
    (goal / "sources.list").write_text(f"deb [trusted=yes] file:{PACKAGES_THERE} ./\n")


def _make_wheels(goal: Path) -> None:
    version, implementation = _PYTHON
    tags = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")
    platforms = [f"--platform={tag}_{os.uname().machine}" for tag in tags]
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", goal]
    argv += ["--only-binary=:all:", "--implementation=cp", f"--python-version={version}"]
    argv += [f"--abi={abi}" for abi in (implementation, "abi3", "none")]
    _run(*argv, *platforms, "--platform=any", *_requirements())


def _requirements() -> Sequence[str]:
    """The requirements of `pip install .[controller,irc]`, and those to build it."""
    # as it is installed in the environment: the checkout may have an older egg-info, and comes first in sys.path
    (installed,) = importlib.metadata.distributions(name="reimzul", path=[sysconfig.get_path("purelib")])
    rows = installed.requires or []
    wanted = [row for row in rows if "extra ==" not in row or re.search(r"extra == .(controller|irc).", row)]
    return sorted({row.partition(";")[0].strip() for row in wanted} | {"setuptools>=77", "wheel"})


def _run(*argv: object, cwd: Path | None = None) -> str:
    """Run a program; its output is shown only if it fails."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    environment["PATH"] += ":/usr/sbin:/sbin"
    words = [str(word) for word in argv]
    done = subprocess.run(
        words, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stdout[-2000:] + done.stderr[-2000:]
        raise RuntimeError(f"{' '.join(words[:6])} ended with {done.returncode}:\n{said}")
    return done.stdout


def _say(words: str) -> None:
    print(f"farm-test: {words}", flush=True)
