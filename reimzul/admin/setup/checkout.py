# SPDX-License-Identifier: Apache-2.0
"""A builder's checkout of mock's configurations: cloned as the user who pulls it before each build."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reimzul.admin.setup import ini
from reimzul.admin.setup.roles import MOCK_CONFIGS, SETTINGS
from reimzul.admin.setup.system import System
from reimzul.admin.setup.units import Step
from reimzul.core.errors import InputError
from reimzul.core.validators import quoted

#: What git takes as a repository, and could never take as an option.
_URL = re.compile(
    r"(?:(?:https?|ssh|git|file)://|[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*:|/)[^\s\x00-\x1f]+\Z"
)


def cloning(system: System, url: str | None) -> Sequence[Step]:
    """What makes the checkout; nothing where there is one, or none is wanted. Raises `InputError`."""
    if url is None:
        return ()
    if not _URL.match(url):
        raise InputError(f"{quoted(url)} is not where a git repository is, as https://git.example.org/mock_configs")
    folder = ini.value_in(system.text(SETTINGS) or "", "worker", "mock_configs") or MOCK_CONFIGS
    if system.at(f"{folder}/.git").exists() or not system.running:
        return ()
    # its own HOME: root's is closed to it
    git = ("env", "HOME=/srv/reimzul", "GIT_TERMINAL_PROMPT=0", "git", "clone", "--quiet", "--", url, folder)
    return (Step(argv=("runuser", "-u", "reimzul", "--", *git), words=f"mock's configurations cloned into {folder}"),)
