# SPDX-License-Identifier: Apache-2.0
"""Checks mock, its configurations and whether a builder takes jobs.

The configurations are rendered as mock renders them, by the user who builds and in a process of their own: they are
Python code of anybody who may push to their repository, and must not run with more rights than mock's.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from reimzul.admin.doctor import CheckGroup, Result, fail, ok, recommend, require, shorten, warn
from reimzul.admin.doctor.host import READ, Host, user_can
from reimzul.admin.doctor.services import connect
from reimzul.core import mock_config
from reimzul.core.arch import Arches, read_arches
from reimzul.core.control import drain_flag
from reimzul.core.errors import ProgramFailed, ReimzulError, TimedOut
from reimzul.core.mock_config import (
    CONF_KEYS,
    STANDIN,
    Repository,
    farm_urls,
    find_missing_configs,
    is_standin,
    list_missing_packages,
    list_repositories,
    user_files,
)
from reimzul.core.store_paths import StoreUrls

MOCK_GROUP = "mock"
#: Options that a user's own mock configuration must not set: mock reads it after the target's.
_OVERRIDING_OPTIONS = ("metadata_expire", *CONF_KEYS)


checks = CheckGroup()


#: How to get mock, and what a builder without it can use.
_INSTALL_MOCK = (
    'Fedora, Enterprise Linux: dnf install mock; elsewhere see "Where there is no mock" in docs/install-builder.md'
)


def _uses_standin(host: Host) -> bool:
    return is_standin(host.settings.worker.mock)


@checks.add("mock")
def _check_mock(host: Host) -> Iterator[Result]:
    mock = host.settings.worker.mock
    if shutil.which(mock) is None:
        yield fail(f"{mock} is not installed, so the workers take no job", _hint_for_missing_mock(mock))
        return
    if _uses_standin(host) and (packages := list_missing_packages()):
        yield fail(
            f"the workers take no job: {STANDIN} lacks what it builds with", f"apt-get install {' '.join(packages)}"
        )
    try:
        version = host.run_as_user(mock, "--version").strip()
    except (ProgramFailed, TimedOut) as error:
        yield fail(f"{mock} fails for user {host.user}: {error}", _hint_for_failing_mock(host))
        return
    if _uses_standin(host):
        yield warn(
            f"{mock} builds with this host's own rpmbuild, and isolates nothing",
            "to build packages for others, use a builder with mock and [worker] mock = mock",
        )
    yield ok(f"{Path(mock).name} {version}, run by {host.user}")


def _hint_for_missing_mock(mock: str) -> str:
    if is_standin(mock):
        return 'copy it from the checkout, as "Where there is no mock" in docs/install-builder.md has it'
    if Path(mock).name != "mock" and shutil.which("mock"):
        return "mock is installed here: reimzul setup builder --set worker.mock=mock"
    return _INSTALL_MOCK


def _hint_for_failing_mock(host: Host) -> str:
    """mock ends at once for a user who is not in its group, and the check of the group has the remedy."""
    if not _uses_standin(host) and not _is_in_mock_group(host):
        return "put the user into mock's group first (mock.group)"
    return "read its message; reinstall mock if it is damaged: dnf reinstall mock mock-core-configs"


@checks.add("mock.group", applies=lambda host: not _uses_standin(host) and shutil.which(host.settings.worker.mock))
def _check_group(host: Host) -> Result:
    user = host.require_user("make install ROLE=builder")
    if user.pw_uid == 0:
        return ok(f"{host.user} needs no group")
    hint = f"usermod --append --groups {MOCK_GROUP} {host.user}; systemctl restart 'reimzul-worker@*'"
    if not _has_mock_group():
        return fail(f"group {MOCK_GROUP} does not exist", f"groupadd --system {MOCK_GROUP}; {hint}")
    require(_is_in_mock_group(host), f"user {host.user} is not in group {MOCK_GROUP}", hint)
    return ok(f"{host.user} is in group {MOCK_GROUP}")


def _has_mock_group() -> bool:
    return any(group.gr_name == MOCK_GROUP for group in grp.getgrall())


def _is_in_mock_group(host: Host) -> bool:
    user = host.user_entry
    if user is None or not _has_mock_group():
        return False
    return user.pw_uid == 0 or grp.getgrnam(MOCK_GROUP).gr_gid in os.getgrouplist(user.pw_name, user.pw_gid)


# --- the checkout of mock's configurations


@checks.add("configs")
def _check_configs(host: Host) -> Result:
    checkout = host.settings.worker.mock_configs
    folder = checkout / "mock"
    if problem := find_missing_configs(checkout):
        return fail(f"the workers take no job: {problem}", _hint_for_missing_configs(checkout))
    user = host.user_entry
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if unreadable := [file.name for file in files if user is not None and not user_can(user, file, READ)]:
        return fail(f"user {host.user} cannot read {', '.join(unreadable)}", f"chown -R {host.user}: {checkout}")
    recommend(
        (checkout / ".git").exists(), f"{checkout} is not a git checkout, so it is never updated", _clone_hint(checkout)
    )
    require(
        user is None or checkout.stat().st_uid == user.pw_uid,
        f"{checkout} does not belong to {host.user}, so git refuses to pull it",
        f"chown -R {host.user}: {checkout}",
    )
    try:
        changed = _run_git(host, "status", "--porcelain", "--untracked-files=no")
    except ReimzulError as error:
        return warn(f"{checkout}: {error}")
    recommend(
        not changed,
        f"{checkout} has uncommitted changes: {shorten([line[3:] for line in changed.splitlines()])}",
        f"runuser -u {host.user} -- git -C {checkout} checkout -- . (git -C {checkout} diff shows what that drops)",
    )
    return ok(_count_targets(host, folder))


def _hint_for_missing_configs(checkout: Path) -> str:
    if (checkout / ".git").exists():
        return f"commit the missing files to the repository of {checkout} (/etc/mock has samples), and push them"
    return _clone_hint(checkout)


def _clone_hint(checkout: Path) -> str:
    """git clones into an empty folder alone."""
    away = f"mv {checkout} {checkout}.old; " if checkout.is_dir() and any(checkout.iterdir()) else ""
    return f"{away}reimzul setup builder --mock-configs URL, with the URL of your git repository of configurations"


def _count_targets(host: Host, folder: Path) -> str:
    targets = {file.stem for file in folder.glob("*.cfg")} - {"site-defaults"}
    machine = host.settings.worker.machine or os.uname().machine
    arches = [arch.name for arch in read_arches(host.settings.farm.arches).known.values() if arch.tube == machine]
    own = sum(target.endswith(f".{arch}") for target in targets for arch in arches)
    return f"{len(targets)} targets, {own} of them for {' '.join(arches) or machine}"


def _run_git(host: Host, *arguments: str) -> str:
    """Run git in the checkout as the user who pulls it. Raises `ReimzulError`."""
    argv = ("git", "-C", str(host.settings.worker.mock_configs), *arguments)
    return host.run_as_user(*argv, env={"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}).rstrip()


# --- the configurations as mock reads them

Configs = Mapping[str, Mapping[str, str]]  #: by file name; what mock_config prints: an `error`, or options


@checks.add("configs.rendered", "configs")
def _check_rendered(host: Host) -> Iterator[Result]:
    """Check that mock can read each target's configuration, and that dnf will see the farm's latest metadata."""
    folder = host.settings.worker.mock_configs / "mock"
    store = StoreUrls.from_settings(host.settings.bstore.base_url, host.settings.bstore.upload_url).base.rstrip("/")
    home = host.user_entry.pw_dir if host.user_entry else str(Path.home())
    try:
        argv = [sys.executable, "-m", mock_config.__name__, str(folder), home, store]
        configs: Configs = json.loads(host.run_as_user(*argv))
    except (ReimzulError, ValueError) as error:
        yield warn(f"cannot test whether mock can read the configurations in {folder}: {error}")
        return
    if errors := {name: config["error"] for name, config in configs.items() if "error" in config}:
        problems = [error if name in error else f"{name}: {error}" for name, error in errors.items()]
        yield fail(shorten(problems), "correct, commit and push them: no build can use them")
    cached = [
        f"{name}: [{repository.name}]"
        for name, config in configs.items()
        for repository in _farm_repositories(config, farm_urls(store))
        if repository.last_value("metadata_expire") != "0"
    ]
    if cached:
        yield fail(
            f"dnf would use old metadata of the farm's repositories: {shorten(cached)}",
            "remove what overrides metadata_expire: it has to be 0",
        )
    if unfilled := list(_list_unfilled(configs, farm_urls(store), read_arches(host.settings.farm.arches))):
        yield warn(shorten(unfilled), "see docs/install-builder.md for where packages are published")
    yield from _find_user_overrides(Path(home))
    yield ok(f"mock can read all {len(configs)}, and dnf asks the store for metadata at every build")


def _farm_repositories(config: Mapping[str, str], urls: tuple[str, ...]) -> list[Repository]:
    return [
        repository
        for key in CONF_KEYS
        for repository in list_repositories(config.get(key, ""))
        if any(url.lower().startswith(urls) for url in repository.list_urls())
    ]


def _list_unfilled(configs: Configs, urls: tuple[str, ...], arches: Arches) -> Iterator[str]:
    for name, config in configs.items():
        target = name.removesuffix(".cfg")
        read = {folder for each in _farm_repositories(config, urls) for folder in _store_folders(each, target)}
        yield from _find_wrong_folders(target, read, configs.keys(), arches)


def _store_folders(repository: Repository, target: str) -> Iterator[str]:
    """The targets whose folder in the store a repository reads."""
    for url in repository.list_urls():
        _, found, rest = url.partition("/repo/")
        if found and "{" not in rest:
            yield rest.partition("/")[0].replace("$basearch", target.rpartition(".")[2])


def _find_wrong_folders(target: str, read: set[str], configs: Collection[str], arches: Arches) -> Iterator[str]:
    """The folders that a target's configuration reads although nothing of that target is published there."""
    stem, _, arch = target.rpartition(".")
    if arch not in arches.known:
        return
    leaders = [f"{stem}.{each.name}" for each in arches.known.values() if arch in each.follows]
    leaders = [leader for leader in leaders if f"{leader}.cfg" in configs]
    if target in read and leaders and not read & set(leaders):
        yield f"{target}.cfg reads repo/{target}/, but its packages are published in repo/{leaders[0]}/"
    own = {stem, *(f"{stem}.{each}" for each in arches.known)}
    for other in sorted(read & own - {target}):
        if f"{other}.cfg" not in configs:
            yield f"{target}.cfg reads repo/{other}/, but nothing is published there without a {other}.cfg"


def _find_user_overrides(home: Path) -> Iterator[Result]:
    """What mock reads from the home of the user who builds, and what would override the target's configuration."""
    replacement = home / ".config/mock/mock.cfg"
    if os.path.exists(replacement):
        yield fail(f"mock reads {replacement} instead of every target's configuration", f"rm {replacement}")
    for path in user_files(home):
        with contextlib.suppress(OSError):  # usually there is none
            text = path.read_text(encoding="utf-8", errors="replace")
            if keys := [key for key in _OVERRIDING_OPTIONS if key in text]:
                yield warn(
                    f"mock reads {path} after a target's configuration, and it sets {', '.join(keys)}",
                    f"remove that from {path}, or dnf may use old metadata of the farm's repositories",
                )


# --- whether it takes jobs and can update


@checks.add("configs.remote", "configs")
def _check_remote(host: Host) -> Result:
    checkout = host.settings.worker.mock_configs
    if not (checkout / ".git").exists():
        return ok("not a git checkout")
    try:
        if not _run_git(host, "remote"):
            return ok("the checkout has no remote and is never pulled")
        _run_git(host, "ls-remote", "--quiet", "--heads")
    except ReimzulError as error:
        return warn(
            f"git cannot pull the configurations: {error}; builds go on with the last state",
            f"correct its URL: runuser -u {host.user} -- git -C {checkout} remote set-url origin URL; a key goes into "
            f"{host.user_entry.pw_dir if host.user_entry else '~'}/.ssh",
        )
    return ok("git can pull the configurations")


@checks.add("drained", "link.beanstalkd")
def _check_drained(host: Host) -> Result:
    with connect(host.settings) as broker:
        flag = drain_flag(broker, host.name)
    if flag is None:
        return ok(f"{host.name} takes jobs")
    by, why = f" by {flag.by}" if flag.by else "", f", {flag.why}" if flag.why else ""
    return warn(
        f"{host.name} takes no jobs: it is {'quarantined' if flag.is_quarantine else 'drained'}{by}{why}",
        f"on the controller: reimzul resume {host.name}",
    )


@checks.add("load", applies=lambda host: host.settings.worker.max_load)
def _check_load(host: Host) -> Result:
    load, limit = os.getloadavg()[0], host.settings.worker.max_load
    recommend(
        load <= limit,
        f"{load:.1f}: the workers take no job above {limit}",
        "wait, or raise [worker] max_load",
    )
    return ok(f"{load:.1f} of {limit}")
