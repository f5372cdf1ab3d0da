# SPDX-License-Identifier: Apache-2.0
"""This host as doctor sees it - settings, roles, stunnel - and the checks of its programs, folders and disks."""

from __future__ import annotations

import contextlib
import grp
import os
import platform
import pwd
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

import attr

from reimzul import __version__
from reimzul.admin.config_cmd import find_warnings
from reimzul.admin.doctor import (
    Check,
    CheckGroup,
    Misconfigured,
    Result,
    fail,
    install_hint,
    is_root,
    ok,
    recommend,
    require,
    warn,
)
from reimzul.core.cli import local_hostname
from reimzul.core.config import DEFAULT_FILE
from reimzul.core.errors import InputError, ProgramNotFound, ReimzulError
from reimzul.core.event_signature import EventKeys
from reimzul.core.formatting import format_size
from reimzul.core.fs import FreeSpace
from reimzul.core.process import output_of
from reimzul.core.roles import (
    BSTORE,
    BUILDER,
    CONTROLLER,
    ROLES,
    StunnelConfig,
    find_roles,
    find_stunnel_config,
    read_stunnel_config,
)
from reimzul.core.rpm_header import import_rpm
from reimzul.core.settings import Settings
from reimzul.core.store_paths import MANIFEST, StorePaths
from reimzul.history.workers import FULL, LOW
from reimzul.store.createrepo import read_failure

ALL = "all"
#: The user who runs the farm's programs on an installed host.
OWNER = "reimzul"
#: The sections of reimzul.ini that only one role uses. They decide the role if nothing else does.
_SETTINGS = {CONTROLLER: ("history", "notifier", "mqtt", "mail"), BUILDER: ("worker",), BSTORE: ("repogen",)}
#: Time limit for a program that a check runs: less than the limit of the check, so that the message names the program.
PROGRAM_TIMEOUT_SECONDS = 12.0
READ, WRITE, ENTER = os.R_OK, os.W_OK, os.X_OK
#: The programs each role needs, and their packages: Debian's name, then Fedora's and EL's if it differs.
NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    CONTROLLER: {"rpmbuild": ("rpm", "rpm-build")},  # for reimzul doctor --canary alone
    BUILDER: {"git": ("git",), "rsync": ("rsync",)},
    BSTORE: {"rsync": ("rsync",)},
}
#: Folders with system programs, which are missing in an ordinary user's PATH.
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
#: A URL with a password, as `[history] url` may have; all other passwords are in files of their own.
_CREDENTIALS = re.compile(r"^[^#;].*://[^/\s@]*:[^/\s]*@", re.MULTILINE)

_FREE_SPACE = "free some space (du -xh -d 2 {folder} | sort -h shows what takes it)"

#: A complete upload that repogen has not taken for this long is reported. Repogen itself scans the spool hourly.
STUCK_UPLOAD_SECONDS = 2 * 3600
#: The prefix of doctor's test folder in spool/, see `services`.
UPLOAD_PREFIX = "doctor."

_NEW_EVENT_KEY = (
    "on the controller: reimzul setup controller --new-event-key; then the command that it prints, on bstore"
)

# --- the host and its roles


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
        return self.file in (None, DEFAULT_FILE)

    @property
    def name(self) -> str:
        """The name under which the farm knows this host."""
        return (self.settings.worker.fqdn if BUILDER in self.roles else "") or local_hostname()

    def has_role(self, *roles: str) -> bool:
        return any(role in self.roles for role in roles)

    @property
    def needs_stunnel(self) -> bool:
        """A single host with all roles needs none."""
        return bool(self.stunnel.sections) or set(self.roles) != set(ROLES)

    @property
    def user_entry(self) -> pwd.struct_passwd | None:
        try:
            return pwd.getpwnam(self.user)
        except KeyError:
            return None

    def require_user(self, hint: str) -> pwd.struct_passwd:
        """The passwd entry of the farm's user. Raises `Misconfigured` if there is no such user."""
        if self.user_entry is None:
            raise Misconfigured(f"user {self.user} does not exist on this host", hint)
        return self.user_entry

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
    config = read_stunnel_config(stunnel or find_stunnel_config(file))
    found = [role for role in ROLES if role in roles or ALL in roles] if roles else detect_roles(config, file)
    user = OWNER if file in (None, DEFAULT_FILE) else pwd.getpwuid(os.geteuid()).pw_name
    return Host(settings=settings, file=file, roles=tuple(found), stunnel=config, user=user)


def detect_roles(config: StunnelConfig, file: Path | None) -> list[str]:
    """Detect the roles as `find_roles` does, else from the settings. Raises `InputError`."""
    found = find_roles(config, file)
    if not found and file is not None and file != DEFAULT_FILE:
        lines = {line.strip() for line in file.read_text(encoding="utf-8").splitlines()}
        found = [role for role in ROLES if any(f"[{section}]" in lines for section in _SETTINGS[role])]
    if not found:
        raise InputError(f"cannot detect this host's role: give --role ({', '.join((*ROLES, ALL))})")
    return found


# --- permissions


def user_can(user: pwd.struct_passwd, path: Path, access: int) -> bool:
    """Whether a user can reach a path and has that access to it, by owner, group and mode.

    Raises `OSError` if the path cannot be examined.
    """
    if access & WRITE and _is_read_only(path):
        return False
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    wanted = [*((folder, ENTER) for folder in path.resolve().parents), (path, access)]
    return all(_grants(each.stat(), user.pw_uid, groups, needed) for each, needed in wanted)


def _is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _grants(status: os.stat_result, uid: int, groups: Collection[int], access: int) -> bool:
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid == uid:
        mode >>= 6
    elif status.st_gid in groups:
        mode >>= 3
    return uid == 0 or mode & access == access


def check_writable(host: Host, folder: Path) -> Result:
    """Check that the farm's user can write in a folder. Raises `Misconfigured`, and `OSError` if it is not known."""
    user = host.require_user("make install, or install the package of this role")
    require(folder.is_dir(), f"{folder} does not exist", f"install -d -o {host.user} -g {host.user} {folder}")
    if not user_can(user, folder, READ | WRITE | ENTER):
        require(
            not _is_read_only(folder),
            f"{folder} is on a file system that is mounted read-only",
            f"dmesg says why; then: mount --options remount,rw --target {folder}",
        )
        raise Misconfigured(f"user {host.user} cannot write to {folder}", _hint_for_access(user, folder))
    return ok(str(folder))


def _hint_for_access(user: pwd.struct_passwd, folder: Path) -> str:
    """How a user gets access to a folder: by each folder above it first."""
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    closed = [each for each in folder.resolve().parents if not _grants(each.stat(), user.pw_uid, groups, ENTER)]
    if closed:
        return f"chmod o+x {' '.join(map(str, reversed(closed)))}"
    return f"chown {user.pw_name} {folder}; chmod u+rwx {folder}"


# --- checks of every host


checks = CheckGroup()


@checks.add("version")
def _describe_version(_: Host) -> Result:
    return ok(f"reimzul {__version__} on Python {platform.python_version()}")


@checks.add("settings")
def _check_settings(host: Host) -> Iterator[Result]:
    if host.has_role(CONTROLLER):
        yield from map(warn, find_warnings(host.settings))
    file = host.file
    if file and host.user_entry and not user_can(host.user_entry, file, READ):
        group = grp.getgrgid(host.user_entry.pw_gid).gr_name
        yield fail(f"user {host.user} cannot read {file}", f"chgrp {group} {file}; chmod 640 {file}")
    if file and file.stat().st_mode & stat.S_IROTH and _CREDENTIALS.search(file.read_text(encoding="utf-8")):
        yield warn(f"{file} contains a URL with a password, and every user can read it", f"chmod 640 {file}")
    yield ok(str(file) if file else f"there is no {DEFAULT_FILE}: the defaults apply")


@checks.add("programs")
def _check_programs(host: Host) -> Iterator[Result]:
    needed = {name: packages for role in host.roles for name, packages in NEEDED[role].items()}
    if host.stunnel.sections:
        needed["stunnel"] = ("stunnel4", "stunnel")
    path = f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}"
    for name, packages in needed.items():
        if shutil.which(name, path=path) is None:
            report = warn if name == "rpmbuild" else fail  # only the canary needs rpmbuild
            yield report(f"{name} is not installed", install_hint(*packages))
    yield ok(", ".join(needed))


@checks.add("rpm")
def _check_rpm(_: Host) -> Result:
    try:
        import_rpm()
    except ProgramNotFound as error:
        return fail(str(error), f"{install_hint('python3-rpm')}; make install")
    return ok("Python can import the rpm bindings")


@checks.add("events.key", applies=lambda host: host.has_role(CONTROLLER, BSTORE))
def _check_event_key(host: Host) -> Iterator[Result]:
    path = host.settings.farm.event_keys
    if host.has_role(BUILDER):
        yield ok("a key of events protects nothing here: workers run on this host, as the same user")
        return
    if path is None:
        message = "events are not signed: whoever has a builder's key can announce a build as published"
        yield warn(message, _NEW_EVENT_KEY)
        return
    if path.exists():
        path.open().close()  # an ordinary user is not permitted
        status = path.stat()
        hint = f"chown root:reimzul-store {path}; chmod 640 {path}"
        require(not status.st_mode & stat.S_IRWXO, f"every user can read {path}", hint)
        if status.st_mode & stat.S_IRGRP and host.user_entry and status.st_gid == host.user_entry.pw_gid:
            yield fail(f"all daemons can read {path}: its group is that of {host.user}", f"chgrp reimzul-store {path}")
    try:
        keys = EventKeys.load(path).keys
    except ReimzulError as error:
        yield fail(str(error), _NEW_EVENT_KEY)
        return
    ending = [f"key {key.number} until {key.until}" for key in keys if key.until]
    yield ok("; ".join([f"events are signed by key {max(key.number for key in keys)}", *ending]))


def folder_checks(host: Host) -> list[Check]:
    settings = host.settings
    has_pages = settings.pages.url and settings.pages.folder.is_dir()  # another host may make them
    #: role, setting, folder, and whether it must be writable and whether its disk is checked
    rows = (
        (CONTROLLER, "incoming", settings.incoming.folder, True, True),
        (CONTROLLER, "ledger", settings.notifier.ledger.parent, True, True),
        (CONTROLLER, "logfile", settings.logs.logfile.parent, True, False),
        (CONTROLLER if has_pages else "", "pages", settings.pages.folder, True, True),
        (BSTORE, "root", settings.bstore.root, False, True),
        (BUILDER, "results", settings.worker.results, True, True),
        (BUILDER, "mock_roots", settings.worker.mock_roots, False, True),
    )
    ours = [row for row in rows if host.has_role(row[0])]
    return [
        *(Check(name=f"folder.{row[1]}", run=partial(check_writable, host, row[2])) for row in ours if row[3]),
        *(Check(name=f"disk.{row[1]}", run=partial(_check_disk, host, row[0], row[2])) for row in ours if row[4]),
    ]


def _check_disk(host: Host, role: str, folder: Path) -> Result:
    free, worker = FreeSpace.measure(folder), host.settings.worker
    if role == BUILDER:
        lacking = "; ".join(free.shortfalls(worker.min_free_mib, worker.min_free_inodes))
        require(
            not lacking,
            f"the workers take no job: {lacking}",
            f"{_FREE_SPACE.format(folder=folder)}; or lower [worker] min_free_mib or min_free_inodes: "
            f"reimzul setup builder --set worker.min_free_mib=N",
        )
    else:
        lacking, scarce = ("; ".join(free.shortfalls(*limits)) for limits in (FULL, LOW))
        hint = _FREE_SPACE.format(folder=folder) + ("; reimzul prune removes old builds" if role == BSTORE else "")
        require(not lacking, lacking, hint)
        recommend(not scarce, scarce, hint)
    return ok(format_size(free.mib << 20) + ("" if free.inodes is None else f" and {free.inodes} inodes") + " free")


# --- checks of bstore


store_checks = CheckGroup()


@store_checks.add("createrepo_c")
def _check_createrepo(host: Host) -> Result:
    program = host.settings.repogen.createrepo_c
    try:
        version = host.run_as_user(program, "--version").strip()
    except ReimzulError as error:
        hint = "reimzul setup bstore --set repogen.createrepo_c=createrepo_c"
        return fail(str(error), hint if shutil.which("createrepo_c") else install_hint("createrepo-c", "createrepo_c"))
    return ok(version.splitlines()[0] if version else program)


@store_checks.add("store")
def _check_folders(host: Host) -> Result:
    store = StorePaths(host.settings.bstore.root)
    folders = [store.root, *(folder for folder in store.folders() if folder.is_dir())]
    for folder in folders:
        check_writable(host, folder)
    require(
        len({folder.stat().st_dev for folder in folders}) == 1,
        f"the folders in {store.root} are on several file systems: publishing needs a rename within one",
        "move all of them to one file system",
    )
    missing = len(folders) <= len(store.folders())
    return ok(f"{store.root}, one file system{'; repogen creates the missing folders' if missing else ''}")


@store_checks.add("spool", "store")
def _check_spool(host: Host) -> Result:
    spool, hours = StorePaths(host.settings.bstore.root).spool, STUCK_UPLOAD_SECONDS // 3600
    if not spool.is_dir():
        return ok("nothing has been uploaded yet")
    if stuck := sorted(_list_stuck(spool, time.time() - STUCK_UPLOAD_SECONDS)):
        return warn(
            f"{len(stuck)} complete uploads have waited for over {hours} h, the first is {stuck[0]}",
            "journalctl -u 'reimzul-repogen-worker@*' shows why repogen does not take them",
        )
    return ok(f"no complete upload has waited for over {hours} h")


def _list_stuck(spool: Path, before: float) -> Iterator[str]:
    for folder in spool.iterdir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not folder.name.startswith(UPLOAD_PREFIX) and (folder / MANIFEST).lstat().st_ctime < before:
                yield folder.name


@store_checks.add("after_createrepo")
def _check_hook(host: Host) -> Iterator[Result]:
    argv, state = host.settings.repogen.after_createrepo, StorePaths(host.settings.bstore.root).state
    if not argv:
        yield ok("no program runs after createrepo_c")
    elif shutil.which(argv[0]) is None:
        yield fail(
            f"{argv[0]} does not exist: no new repodata is published",
            "install it, or correct [repogen] after_createrepo",
        )
    else:
        for path in sorted(state.glob("*.hook")):
            if failure := read_failure(path):
                times = "once" if failure.count == 1 else f"{failure.count} times"
                when = f"{times}, last {max(0, int(time.time() - failure.at))} s ago"
                yield fail(
                    f"{path.stem} keeps its old repodata: {argv[0]} failed {when}: {failure.reason}",
                    f"fix the cause, then: reimzul repogen {path.stem}",
                )
        yield ok(f"the last run of {argv[0]} succeeded for every target")
