# SPDX-License-Identifier: Apache-2.0
"""What a builder builds with: mock, its configurations, and whether it takes jobs at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from reimzul.admin.doctor.access import READ, in_group, may
from reimzul.admin.doctor.check import Check, Result, fail, ok, warn, worst
from reimzul.admin.doctor.host import BUILDER, Host
from reimzul.admin.doctor.mock_configs import look_at_configurations
from reimzul.admin.doctor.queue import connect
from reimzul.core.arch import read_arches
from reimzul.core.control import drain_flag
from reimzul.core.errors import ProgramFailed, ReimzulError, TimedOut

#: What has to lie beside mock's configurations.
COMPANIONS = ("site-defaults.cfg", "logging.ini")
STANDIN = "reimzul-standin-mock"
GROUP = "mock"
#: Seconds for mock to say its version, for git to look at its files, and for it to ask another host.
MOCK, LOCAL, REMOTE = 12.0, 8.0, 8.0


def checks(host: Host) -> list[Check]:
    """All of a builder's own."""
    if not host.has(BUILDER):
        return []
    found = [
        Check(name="mock", look=lambda: _mock(host)),
        Check(name="configs", look=lambda: _configs(host)),
        Check(name="configs.rendered", look=lambda: look_at_configurations(host), needs=("configs",)),
        Check(name="configs.remote", look=lambda: _remote(host), needs=("configs",)),
        Check(name="drained", look=lambda: _drained(host), needs=("link.beanstalkd",)),
    ]
    if not _stands_in(host):
        found.insert(1, Check(name="mock.group", look=lambda: _group(host)))
    if host.settings.worker.max_load:
        found.append(Check(name="load", look=lambda: _load(host.settings.worker.max_load)))
    return found


def _stands_in(host: Host) -> bool:
    return Path(host.settings.worker.mock).name == STANDIN


def _mock(host: Host) -> Result:
    mock = host.settings.worker.mock
    try:
        said = host.run(mock, "--version", timeout=MOCK).strip()
    except (ProgramFailed, TimedOut) as error:
        return fail(f"{mock} does not run for user {host.user}: {error}", f"runuser -u {host.user} -- {mock} --version")
    except ReimzulError as error:
        return fail(str(error), "install mock, or mend [worker] mock")
    if _stands_in(host):
        words = f"{mock} builds with this host's own rpmbuild, and isolates nothing"
        return warn(words, "for packages that are given to others: install mock, and [worker] mock = mock")
    return ok(f"{Path(mock).name} {said}, run by {host.user}")


def _group(host: Host) -> Result:
    user = host.entry
    if user is None:
        return fail(f"there is no user {host.user} on this host", "make install ROLE=builder")
    if user.pw_uid == 0:
        return ok(f"{host.user} needs no group")
    remedy = f"usermod --append --groups {GROUP} {host.user}; systemctl restart 'reimzul-worker@*'"
    try:
        inside = in_group(user, GROUP)
    except KeyError:
        return fail(f"there is no group {GROUP}: is mock installed?", remedy)
    return ok(f"{host.user} is in it") if inside else fail(f"user {host.user} is not in group {GROUP}", remedy)


def _configs(host: Host) -> Result:
    checkout = host.settings.worker.mock_configs
    folder = checkout / "mock"
    clone = f"runuser -u {host.user} -- git clone <your repository of configurations> {checkout}"
    if not folder.is_dir():
        return fail(f"{folder} is not there", clone)
    missing = [name for name in COMPANIONS if not (folder / name).is_file()]
    if missing:
        return fail(f"{folder} has no {' and no '.join(missing)}", "copy them from /etc/mock, and commit them")
    unreadable = list(_unreadable(host, folder))
    if unreadable:
        return fail(f"user {host.user} cannot read {', '.join(unreadable)}", f"chown -R {host.user} {checkout}")
    if not (checkout / ".git").exists():
        return warn(f"{checkout} is no git checkout: it is never brought up to date", clone)
    return worst(list(_state(host, checkout)), _summary(host, folder))


def _unreadable(host: Host, folder: Path) -> Iterator[str]:
    user = host.entry
    for file in sorted(folder.iterdir()):
        if user is not None and file.is_file() and not may(user, file, READ):
            yield file.name


def _state(host: Host, checkout: Path) -> Iterator[Result]:
    user = host.entry
    if user is not None and checkout.stat().st_uid != user.pw_uid:
        words = f"{checkout} is not {host.user}'s: git refuses to pull it"
        yield fail(words, f"chown -R {host.user}: {checkout}")
        return
    try:
        changed = git(host, "status", "--porcelain", "--untracked-files=no", timeout=LOCAL)
    except ReimzulError as error:
        yield warn(f"{checkout}: {error}")
        return
    if changed:
        words = f"{checkout} has changes of its own: {', '.join(line[3:] for line in changed.splitlines()[:3])}"
        yield warn(words, f"git -C {checkout} diff; a pull that would touch these files fails")


def _summary(host: Host, folder: Path) -> str:
    targets = {file.stem for file in folder.glob("*.cfg")} - {"site-defaults"}
    machine = host.settings.worker.machine or os.uname().machine
    arches = [arch.name for arch in read_arches(host.settings.farm.arches).known.values() if arch.tube == machine]
    mine = sum(target.endswith(f".{arch}") for target in targets for arch in arches)
    return f"{len(targets)} targets, {mine} of them for {' '.join(arches) or machine}"


def _remote(host: Host) -> Result:
    checkout = host.settings.worker.mock_configs
    if not (checkout / ".git").exists():
        return ok("no git checkout")
    try:
        if not git(host, "remote", timeout=LOCAL):
            return ok("the checkout has no remote: it is never pulled")
        git(host, "ls-remote", "--quiet", "--heads", timeout=REMOTE)
    except ReimzulError as error:
        words = f"it cannot be pulled: {error}; builds go on with the last state"
        return warn(words, f"runuser -u {host.user} -- git -C {checkout} pull --ff-only")
    return ok("it can be pulled")


def git(host: Host, *words: str, timeout: float) -> str:
    """What git says of the checkout to the user who pulls it. Raises `ReimzulError`."""
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    return host.run("git", "-C", str(host.settings.worker.mock_configs), *words, timeout=timeout, env=quiet).rstrip()


def _drained(host: Host) -> Result:
    with connect(host.settings) as broker:
        found = drain_flag(broker, host.name)
    if found is None:
        return ok(f"{host.name} takes jobs")
    who = f" by {found.by}" if found.by else ""
    words = f"{host.name} takes no jobs: it is {'quarantined' if found.is_quarantine else 'drained'}{who}"
    return warn(f"{words}{f', {found.why}' if found.why else ''}", f"on the controller: reimzul resume {host.name}")


def _load(most: int) -> Result:
    load = os.getloadavg()[0]
    if load > most:
        return warn(f"{load:.1f}: no job is taken above {most}", "wait, or mend [worker] max_load")
    return ok(f"{load:.1f} of {most}")
