# SPDX-License-Identifier: Apache-2.0
"""Whether the user who runs the farm's programs may use a file, looked at from outside: by owner, group and mode."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from reimzul.admin.doctor.check import Result, closed, fail, ok
from reimzul.admin.doctor.host import Host

READ, WRITE, ENTER = os.R_OK, os.W_OK, os.X_OK


def groups(user: pwd.struct_passwd) -> set[int]:
    """The groups a user is in."""
    return set(os.getgrouplist(user.pw_name, user.pw_gid))


def in_group(user: pwd.struct_passwd, name: str) -> bool:
    """Whether a user is in a group. Raises `KeyError` where there is no such group."""
    return grp.getgrnam(name).gr_gid in groups(user)


def may(user: pwd.struct_passwd, path: Path, how: int) -> bool:
    """Whether a user may do that with a path, and may get there. Raises `OSError` where it cannot be looked at."""
    found = path.stat()
    if how & WRITE and os.statvfs(path).f_flag & os.ST_RDONLY:
        return False
    theirs = groups(user)
    above = [folder for folder in path.resolve().parents if not _allowed(user.pw_uid, theirs, folder.stat(), ENTER)]
    return not above and _allowed(user.pw_uid, theirs, found, how)


def _allowed(uid: int, groups_of: set[int], found: os.stat_result, how: int) -> bool:
    if uid == 0:
        return True
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid == uid:
        mode >>= 6
    elif found.st_gid in groups_of:
        mode >>= 3
    return mode & how == how


def writable(host: Host, folder: Path) -> Result:
    """Whether the programs here can make files in a folder; `make install` makes those that are missing."""
    user = host.entry
    if user is None:
        return fail(f"there is no user {host.user} on this host", "make install, or install the package of this role")
    try:
        if not folder.is_dir():
            return fail(f"{folder} is not there", f"install -d -o {host.user} -g {host.user} {folder}")
        allowed = may(user, folder, READ | WRITE | ENTER)
    except PermissionError:
        return closed(str(folder))
    if allowed:
        return ok(f"{folder}")
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return fail(f"{folder} is on a file system that is mounted read-only", "look at the kernel's log for why")
    return fail(f"user {host.user} cannot write to {folder}", f"chown {host.user} {folder}")
