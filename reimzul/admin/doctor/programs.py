# SPDX-License-Identifier: Apache-2.0
"""What is installed on this host: our own version, the settings that hold, and the programs of its roles."""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from reimzul import __version__
from reimzul.admin.config_cmd import find_warnings
from reimzul.admin.doctor.access import READ, may
from reimzul.admin.doctor.check import Check, Result, closed, fail, ok, warn, worst
from reimzul.admin.doctor.host import BSTORE, BUILDER, CONTROLLER, Host
from reimzul.core.config import DEFAULT_FILE
from reimzul.core.errors import ProgramNotFound
from reimzul.core.rpm_header import import_rpm

#: Programs by role, and the packages that bring them: Debian's, then Fedora's and EL's where they are called otherwise.
NEEDED = {
    CONTROLLER: {"rpmbuild": "rpm (Fedora, EL: rpm-build), for reimzul doctor --canary alone"},
    BUILDER: {"git": "git", "rsync": "rsync"},
    BSTORE: {"rsync": "rsync"},
}
#: Where they are, beside our PATH: that of an ordinary user does not look there.
_SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"
_MERELY_WANTED = ("rpmbuild",)
#: A URL with a password, as `[history] url` may have; all other passwords are in files of their own.
_CREDENTIALS = re.compile(r"^[^#;].*://[^/\s@]*:[^/\s]*@", re.MULTILINE)


def checks(host: Host) -> list[Check]:
    """Every host's."""
    return [
        Check(name="version", look=_version),
        Check(name="settings", look=lambda: _settings(host)),
        Check(name="programs", look=lambda: _programs(host)),
        Check(name="rpm", look=_rpm),
    ]


def _version() -> Result:
    return ok(f"reimzul {__version__} on Python {platform.python_version()}")


def _settings(host: Host) -> Result:
    said = [warn(words) for words in find_warnings(host.settings)] if host.has(CONTROLLER) else []
    said += _readable(host, host.file) if host.file else []
    return worst(said, str(host.file) if host.file else f"no {DEFAULT_FILE}: the defaults hold")


def _readable(host: Host, file: Path) -> Iterator[Result]:
    """Whether the settings are there for the user who runs the programs, and no password in them for everybody."""
    try:
        mode, text = stat.S_IMODE(file.stat().st_mode), file.read_text(encoding="utf-8")
        if host.entry and not may(host.entry, file, READ):
            yield fail(f"user {host.user} cannot read {file}", f"chgrp {host.user} {file}; chmod 640 {file}")
    except PermissionError:
        yield closed(str(file))
        return
    if mode & stat.S_IROTH and _CREDENTIALS.search(text):
        yield warn(f"{file} has a password in a URL, and everybody here can read it", f"chmod 640 {file}")


def _programs(host: Host) -> Result:
    needed = {name: package for role in host.roles for name, package in NEEDED[role].items()}
    if host.tunnels.sections:
        needed["stunnel"] = "stunnel4 (Fedora, EL: stunnel)"
    path = f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM}"
    missing = [
        (warn if name in _MERELY_WANTED else fail)(f"{name} is not installed", f"install {package}")
        for name, package in needed.items()
        if shutil.which(name, path=path) is None
    ]
    return worst(missing, ", ".join(needed))


def _rpm() -> Result:
    try:
        import_rpm()
    except ProgramNotFound as error:
        return fail(str(error), "install python3-rpm, and tools/install on the Python it belongs to")
    return ok("Python sees the rpm bindings")
