# SPDX-License-Identifier: Apache-2.0
"""Becoming the store's owner, for commands that write in it: what root wrote there, repogen could not replace."""

from __future__ import annotations

import os
import pwd

from reimzul.core.config import Settings
from reimzul.core.errors import ReimzulError
from reimzul.core.store_paths import StorePaths


class NotHere(ReimzulError):
    """The store is not on this host, or not for us to write in."""


def store(settings: Settings) -> StorePaths:
    """The store on this host, and we as who owns it. Raises `NotHere`."""
    found = StorePaths(settings.bstore.root)
    try:
        owner = os.stat(found.repo)
    except OSError as error:
        raise NotHere(
            f"{found.repo}: {(error.strerror or str(error)).lower()}: this is done on bstore ([bstore] root)"
        ) from None
    os.umask(0o022)  # the web server reads what we write
    if os.geteuid() == 0 and owner.st_uid != 0:
        _become(owner)
    if not os.access(found.repo, os.W_OK | os.X_OK):
        name = _name(owner.st_uid)
        raise NotHere(f"{found.repo} belongs to {name}: run it as root, or as sudo -u {name} reimzul …")
    return found


def _become(owner: os.stat_result) -> None:
    """For good; its groups first, while we still may."""
    try:
        os.initgroups(_name(owner.st_uid), owner.st_gid)
    except OSError:  # a number without a name
        os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
