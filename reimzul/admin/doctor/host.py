# SPDX-License-Identifier: Apache-2.0
"""This host as doctor sees it - settings, roles, stunnel - and the checks of its programs, folders and disks."""

from __future__ import annotations

import grp
import os
import platform
import pwd
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

import attr

from reimzul import __version__
from reimzul.admin.config_cmd import find_warnings
from reimzul.admin.doctor import stunnel_config
from reimzul.admin.doctor.check import Check, Result, combine, fail, is_root, not_permitted, ok, warn
from reimzul.admin.doctor.stunnel_config import StunnelConfig
from reimzul.core.cli import local_hostname
from reimzul.core.config import DEFAULT_FILE
from reimzul.core.errors import InputError, ProgramNotFound
from reimzul.core.fs import FreeSpace
from reimzul.core.process import output_of
from reimzul.core.rpm_header import import_rpm
from reimzul.core.settings import Settings

CONTROLLER, BUILDER, BSTORE = "controller", "builder", "bstore"
ROLES = (CONTROLLER, BUILDER, BSTORE)
ALL = "all"
#: The user who runs the farm's programs on an installed host.
OWNER = "reimzul"
#: The unit that is enabled on hosts of each role.
_UNITS = {
    CONTROLLER: "reimzul-notifier.service",
    BUILDER: "reimzul-worker@*.service",
    BSTORE: "reimzul-repogen-worker@*.service",
}
#: The sections of reimzul.ini that only one role uses. They decide the role if nothing else does.
_SETTINGS = {CONTROLLER: ("history", "notifier", "mqtt", "mail"), BUILDER: ("worker",), BSTORE: ("repogen",)}
_ENABLED = Path("/etc/systemd/system")
#: Time limit for a program that a check runs: less than the limit of the check, so that the message names the program.
PROGRAM_TIMEOUT_SECONDS = 12.0
READ, WRITE, ENTER = os.R_OK, os.W_OK, os.X_OK
#: MiB and inodes: a disk of the controller or bstore with less is full, or nearly full.
FULL, LOW = (200, 1_000), (2_048, 20_000)
#: The programs each role needs, and their packages: Debian's name, then Fedora's and EL's if it differs.
NEEDED = {
    CONTROLLER: {"rpmbuild": "rpm (Fedora, EL: rpm-build), for reimzul doctor --canary alone"},
    BUILDER: {"git": "git", "rsync": "rsync"},
    BSTORE: {"rsync": "rsync"},
}
_OPTIONAL_PROGRAMS = ("rpmbuild",)
#: Folders with system programs, which are missing in an ordinary user's PATH.
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
#: A URL with a password, as `[history] url` may have; all other passwords are in files of their own.
_CREDENTIALS = re.compile(r"^[^#;].*://[^/\s@]*:[^/\s]*@", re.MULTILINE)


@attr.frozen(kw_only=True)
class Host:
    settings: Settings
    file: Path | None  #: the settings file; None if there is none and the defaults apply
    roles: tuple[str, ...]
    stunnel: StunnelConfig
    user: str  #: who runs the farm's programs here

    @property
    def is_installed(self) -> bool:
        """Whether the settings are this machine's own, and not those of a farm in a folder."""
        return _is_default(self.file)

    @property
    def name(self) -> str:
        """The name under which the farm knows this host."""
        return (self.settings.worker.fqdn if BUILDER in self.roles else "") or local_hostname()

    def has_role(self, *roles: str) -> bool:
        """Whether the host has at least one of these roles."""
        return any(role in self.roles for role in roles)

    @property
    def user_entry(self) -> pwd.struct_passwd | None:
        """The passwd entry of the farm's user; None if there is no such user."""
        try:
            return pwd.getpwnam(self.user)
        except KeyError:
            return None

    def run_as_user(self, *argv: str, env: Mapping[str, str] | None = None) -> str:
        """Run a program as the farm's user if this process is root, else as itself; return its output.

        Raises `ProgramFailed`, `ProgramNotFound` and `TimedOut`.
        """
        entry, cwd = self.user_entry, None
        if entry and entry.pw_uid != os.geteuid() and is_root():
            argv = ("runuser", "-u", self.user, "--", *argv)
            env, cwd = {**(env or {}), "HOME": entry.pw_dir}, Path("/")
        return output_of(argv, timeout=PROGRAM_TIMEOUT_SECONDS, env=env, cwd=cwd)


def find_host(settings: Settings, file: Path | None, roles: Collection[str], stunnel: Path | None) -> Host:
    """Describe this host; detect its roles and its stunnel configuration if not given. Raises `InputError`."""
    config = stunnel_config.read_config(stunnel or _find_stunnel_config(file))
    found = [role for role in ROLES if role in roles or ALL in roles] if roles else detect_roles(config, file)
    user = OWNER if _is_default(file) else pwd.getpwuid(os.geteuid()).pw_name
    return Host(settings=settings, file=file, roles=tuple(found), stunnel=config, user=user)


def _is_default(file: Path | None) -> bool:
    return file is None or file == DEFAULT_FILE


def _find_stunnel_config(file: Path | None) -> Path:
    """A devfarm has its stunnel configurations beside its settings."""
    beside = file.with_name(f"stunnel-{file.stem}.conf") if file and not _is_default(file) else None
    return beside if beside and beside.exists() else stunnel_config.INSTALLED


def detect_roles(config: StunnelConfig, file: Path | None) -> list[str]:
    """Detect the roles from stunnel's sections and the enabled units, else from the settings. Raises `InputError`."""
    matches = {
        CONTROLLER: "beanstalkd" in config.offers,
        BUILDER: not config.offers and any(section.name == "rsyncd" for section in config.clients),
        BSTORE: "rsyncd" in config.offers,
    }
    enabled = {role: _is_default(file) and any(_ENABLED.glob(f"*.wants/{unit}")) for role, unit in _UNITS.items()}
    found = [role for role in ROLES if matches[role] or enabled[role]]
    if not found and file and not _is_default(file):
        found = _roles_by_settings(file)
    if not found:
        raise InputError(f"cannot detect this host's role: give --role ({', '.join((*ROLES, ALL))})")
    return found


def _roles_by_settings(file: Path) -> list[str]:
    try:
        lines = {line.strip() for line in file.read_text(encoding="utf-8").splitlines()}
    except (OSError, UnicodeDecodeError):
        return []
    return [role for role in ROLES if any(f"[{section}]" in lines for section in _SETTINGS[role])]


# --- permissions


def _groups_of(user: pwd.struct_passwd) -> set[int]:
    return set(os.getgrouplist(user.pw_name, user.pw_gid))


def is_in_group(user: pwd.struct_passwd, name: str) -> bool:
    """Whether a user is a member of a group. Raises `KeyError` if there is no such group."""
    return grp.getgrnam(name).gr_gid in _groups_of(user)


def user_can(user: pwd.struct_passwd, path: Path, access: int) -> bool:
    """Whether a user can reach a path and has that access to it, by owner, group and mode.

    Raises `OSError` if the path cannot be examined.
    """
    status = path.stat()
    if access & WRITE and os.statvfs(path).f_flag & os.ST_RDONLY:
        return False
    groups = _groups_of(user)
    above = all(_grants(folder.stat(), user.pw_uid, groups, ENTER) for folder in path.resolve().parents)
    return above and _grants(status, user.pw_uid, groups, access)


def _grants(status: os.stat_result, uid: int, groups: set[int], access: int) -> bool:
    if uid == 0:
        return True
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid == uid:
        mode >>= 6
    elif status.st_gid in groups:
        mode >>= 3
    return mode & access == access


def no_user(host: Host, hint: str) -> Result:
    return fail(f"user {host.user} does not exist on this host", hint)


def check_writable(host: Host, folder: Path) -> Result:
    user = host.user_entry
    if user is None:
        return no_user(host, "make install, or install the package of this role")
    try:
        if not folder.is_dir():
            return fail(f"{folder} does not exist", f"install -d -o {host.user} -g {host.user} {folder}")
        if user_can(user, folder, READ | WRITE | ENTER):
            return ok(str(folder))
    except PermissionError:
        return not_permitted(str(folder))
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return fail(f"{folder} is on a file system that is mounted read-only", "look into the kernel's log (dmesg)")
    return fail(f"user {host.user} cannot write to {folder}", f"chown {host.user} {folder}")


# --- checks of every host


def checks(host: Host) -> list[Check]:
    return [
        Check(name="version", run=lambda: ok(f"reimzul {__version__} on Python {platform.python_version()}")),
        Check(name="settings", run=lambda: _check_settings(host)),
        Check(name="programs", run=lambda: _check_programs(host)),
        Check(name="rpm", run=_check_rpm),
    ]


def folder_checks(host: Host) -> list[Check]:
    settings = host.settings
    #: role, setting, folder, and whether it must be writable and whether its disk is checked
    rows = (
        (CONTROLLER, "incoming", settings.incoming.folder, True, True),
        (CONTROLLER, "ledger", settings.notifier.ledger.parent, True, True),
        (CONTROLLER, "logfile", settings.logs.logfile.parent, True, False),
        (BSTORE, "root", settings.bstore.root, False, True),
        (BUILDER, "results", settings.worker.results, True, True),
        (BUILDER, "mock_roots", settings.worker.mock_roots, False, True),
    )
    ours = [row for row in rows if host.has_role(row[0])]
    folders = [Check(name=f"folder.{row[1]}", run=partial(check_writable, host, row[2])) for row in ours if row[3]]
    disks = [Check(name=f"disk.{row[1]}", run=partial(_check_disk, host, row[0], row[2])) for row in ours if row[4]]
    return folders + disks


def _check_settings(host: Host) -> Result:
    results = [warn(text) for text in find_warnings(host.settings)] if host.has_role(CONTROLLER) else []
    results += _check_settings_file(host, host.file) if host.file else []
    return combine(results, str(host.file) if host.file else f"there is no {DEFAULT_FILE}: the defaults apply")


def _check_settings_file(host: Host, file: Path) -> Iterator[Result]:
    """Check that the farm's user can read the settings, and that others cannot read a password in them."""
    try:
        mode, text = stat.S_IMODE(file.stat().st_mode), file.read_text(encoding="utf-8")
        if host.user_entry and not user_can(host.user_entry, file, READ):
            yield fail(f"user {host.user} cannot read {file}", f"chgrp {host.user} {file}; chmod 640 {file}")
    except PermissionError:
        yield not_permitted(str(file))
        return
    if mode & stat.S_IROTH and _CREDENTIALS.search(text):
        yield warn(f"{file} contains a URL with a password, and every user can read it", f"chmod 640 {file}")


def _check_programs(host: Host) -> Result:
    needed = {name: package for role in host.roles for name, package in NEEDED[role].items()}
    if host.stunnel.sections:
        needed["stunnel"] = "stunnel4 (Fedora, EL: stunnel)"
    path = f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}"
    missing = [
        (warn if name in _OPTIONAL_PROGRAMS else fail)(f"{name} is not installed", f"install {package}")
        for name, package in needed.items()
        if shutil.which(name, path=path) is None
    ]
    return combine(missing, ", ".join(needed))


def _check_rpm() -> Result:
    try:
        import_rpm()
    except ProgramNotFound as error:
        return fail(str(error), "install python3-rpm, and run tools/install with the Python it belongs to")
    return ok("Python can import the rpm bindings")


def _check_disk(host: Host, role: str, folder: Path) -> Result:
    """Check the free space under a folder. A builder's limits are in its settings."""
    free, worker = FreeSpace.measure(folder), host.settings.worker
    if role == BUILDER:
        if lacking := list(free.shortfalls(worker.min_free_mib, worker.min_free_inodes)):
            hint = "free some space, or lower [worker] min_free_mib or min_free_inodes"
            return fail(f"the workers take no job: {'; '.join(lacking)}", hint)
    elif lacking := list(free.shortfalls(*FULL)):
        return fail("; ".join(lacking), "free some space")
    elif lacking := list(free.shortfalls(*LOW)):
        return warn("; ".join(lacking), "free some space soon")
    return ok(f"{free.mib} MiB" + ("" if free.inodes is None else f" and {free.inodes} inodes") + " free")
