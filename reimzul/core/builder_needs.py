# SPDX-License-Identifier: Apache-2.0
"""What a builder needs before it can build anything: mock and its configurations. Workers and doctor check the same.

The checks only look at files, as a worker repeats them before every job.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from reimzul.core.errors import describe_os_error
from reimzul.core.mock_config import SITE_DEFAULTS

#: The program that takes mock's place where there is no mock.
STANDIN = "reimzul-standin-mock"
#: What mock wants beside a target's configuration.
REQUIRED_FILES = (SITE_DEFAULTS, "logging.ini")
#: The stand-in builds with the host's own programs: what shows that one is here, and its package on Debian.
_STANDIN_NEEDS = (
    ("rpmbuild", "rpm"), ("dnf", "dnf"), ("gcc", "gcc"), ("patch", "patch"), ("/usr/include/stdio.h", "libc6-dev"),
)  # fmt: skip
#: The same where x86_64 builds i386 too.
_MULTILIB = ("/usr/lib/gcc/x86_64-*/*/32/libgcc.a", "gcc-multilib")


def is_standin(mock: str) -> bool:
    return Path(mock).name == STANDIN


def find_missing_mock(mock: str) -> str:
    """Why no build can start; empty if mock is installed, and the stand-in finds what it builds with."""
    if shutil.which(mock) is None:
        return f"mock is not installed: there is no program {mock}"
    if is_standin(mock) and (packages := list_missing_packages()):
        return f"{STANDIN} lacks what it builds with: {', '.join(packages)}"
    return ""


def list_missing_packages() -> list[str]:
    """The packages, by Debian's names, that the stand-in lacks on this host."""
    needs = (*_STANDIN_NEEDS, *((_MULTILIB,) if os.uname().machine == "x86_64" else ()))
    return [package for probe, package in needs if not _is_present(probe)]


def _is_present(probe: str) -> bool:
    """Whether a program, or a file (a glob), is on this host."""
    return bool(glob.glob(probe)) if probe.startswith("/") else shutil.which(probe) is not None


def find_missing_configs(checkout: Path) -> str:
    """Why no build can find its configuration; empty if there are some."""
    folder = checkout / "mock"
    try:
        return next(_list_missing_configs(folder), "")
    except OSError as error:  # as a folder that this user may not enter
        return f"no mock configurations: {folder}: {describe_os_error(error)}"


def _list_missing_configs(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"no mock configurations: {folder} does not exist"
    elif missing := [name for name in REQUIRED_FILES if not (folder / name).is_file()]:
        yield f"no mock configurations: {folder} has no {' and no '.join(missing)}"
    elif all(file.name == SITE_DEFAULTS for file in folder.glob("*.cfg")):
        yield f"no mock configurations: {folder} has no target's .cfg"
