# SPDX-License-Identifier: Apache-2.0
"""mock's configurations as mock would have them: rendered and run by the user who builds, in a process of their own.

A configuration is Python text of whoever may push to its repository: it is never run with more rights than mock's.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from reimzul.admin.doctor.check import Result, fail, warn, worst
from reimzul.admin.doctor.host import Host
from reimzul.core import mock_config
from reimzul.core.arch import Arches, read_arches
from reimzul.core.errors import ReimzulError
from reimzul.core.mock_config import CONF_KEYS, Repository, farm_urls, list_repositories, user_files
from reimzul.core.store_paths import StoreUrls

#: Seconds for all configurations to be rendered and run.
_PATIENCE_SECONDS = 12.0
#: How many faults of one kind are shown.
_SHOWN = 3
#: What a user's own configuration of mock must not set: mock reads it after the target's.
_SPOILING = ("metadata_expire", *CONF_KEYS)


def look_at_configurations(host: Host) -> Result:
    """Whether mock can read each target's configuration, and finds the farm's repositories as they are now."""
    folder = host.settings.worker.mock_configs / "mock"
    urls = StoreUrls.from_settings(host.settings.bstore.base_url, host.settings.bstore.upload_url)
    store = urls.base.rstrip("/")
    try:
        home = host.entry.pw_dir if host.entry else str(Path.home())
        argv = [sys.executable, "-m", mock_config.__name__, str(folder), home, store]
        said = host.run(*argv, timeout=_PATIENCE_SECONDS)
        found: dict[str, dict[str, str]] = json.loads(said)
    except (ReimzulError, ValueError) as error:
        return warn(f"whether mock can read the configurations in {folder} is not known: {error}")
    results = [*_faults(found), *_stale(found, farm_urls(store))]
    results += _never_filled(found, farm_urls(store), read_arches(host.settings.farm.arches))
    return worst([*results, *_of_the_user(host)], f"mock can read all {len(found)}, and asks the store at every build")


def _several(words: list[str]) -> str:
    more = f"; and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return "; ".join(words[:_SHOWN]) + more


def _faults(found: Mapping[str, Mapping[str, str]]) -> Iterator[Result]:
    told = [each["error"] if name in each["error"] else f"{name}: {each['error']}" for name, each in found.items()
            if "error" in each]  # fmt: skip
    if told:
        yield fail(_several(told), "correct them, and commit and push that: no build can use them")


def _stale(found: Mapping[str, Mapping[str, str]], urls: tuple[str, ...]) -> Iterator[Result]:
    told = [
        f"{name}: [{repository.name}]"
        for name, each in found.items()
        for repository in _of_the_farm(each, urls)
        if repository.last_value("metadata_expire") != "0"
    ]
    if told:
        words = f"dnf would believe old metadata of the farm's repositories: {_several(told)}"
        yield fail(words, "remove what sets them again: metadata_expire has to be 0")


def _of_the_farm(each: Mapping[str, str], urls: tuple[str, ...]) -> Iterator[Repository]:
    for key in CONF_KEYS:
        for repository in list_repositories(each.get(key, "")):
            if any(url.lower().startswith(urls) for url in repository.list_urls()):
                yield repository


def _never_filled(found: Mapping[str, Mapping[str, str]], urls: tuple[str, ...], arches: Arches) -> Iterator[Result]:
    told: list[str] = []
    for name, each in found.items():
        target = name.removesuffix(".cfg")
        read = {folder for repository in _of_the_farm(each, urls) for folder in _folders(repository, target)}
        told += _complaints(target, read, set(found), arches)
    if told:
        words = "where packages of a target are published: docs/install-builder.md"
        yield warn(_several(told), words)


def _folders(repository: Repository, target: str) -> Iterator[str]:
    """The targets whose folder in the store a repository is."""
    for url in repository.list_urls():
        _, found, rest = url.partition("/repo/")
        if found and "{" not in rest:
            yield rest.partition("/")[0].replace("$basearch", target.rpartition(".")[2])


def _complaints(target: str, read: set[str], configs: Collection[str], arches: Arches) -> Iterator[str]:
    """What is wrong with the repositories of its own that a target's configuration reads."""
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
            yield f"{target}.cfg reads repo/{other}/, where nothing is ever published: there is no {other}.cfg"


def _of_the_user(host: Host) -> Iterator[Result]:
    """What mock reads from the home of the user who builds, and which would undo or replace what is rendered."""
    if host.entry is None:
        return
    home = Path(host.entry.pw_dir)
    replacing = home / ".config/mock/mock.cfg"
    if os.path.exists(replacing):
        yield fail(f"mock builds with {replacing} in the place of every target's configuration", f"rm {replacing}")
    for path in user_files(home):
        with contextlib.suppress(OSError):  # mostly there is none
            text = path.read_text(encoding="utf-8", errors="replace")
            keys = [key for key in _SPOILING if key in text]
            if keys:
                words = f"mock reads {path} after a target's configuration, and it names {', '.join(keys)}"
                yield warn(words, f"remove that from {path}, or dnf may use old metadata of the farm's repositories")
