# SPDX-License-Identifier: Apache-2.0
"""Paths and URLs of the store.

All folders lie under one root on one file system, so that a rename is atomic. Nothing here touches a disk or a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote

import attr

from reimzul.core import validators

MANIFEST = "build.json"


def package_folder(evr: str, arch: str) -> str:
    """The last part of a place: `<version-release>.<arch>`."""
    return f"{evr}.{arch}"


def package_dir(target: str, name: str, timestamp: str, evr: str, arch: str, *, scratch: bool) -> str:
    """The place of a leg, relative to the root; its parts are checked, since it becomes a path."""
    area = "scratch" if scratch else "repo"
    return validators.place(f"{area}/{target}/{name}/{timestamp}/{package_folder(evr, arch)}")


def spool_name(build_id: str, arch: str, attempt: str) -> str:
    """The name of an attempt's folder in `spool/`, `live/` and `attempts/`."""
    return f"{build_id}.{arch}.{attempt}"


def leg_key(build_id: str, arch: str) -> str:
    """The name of a leg in `index/` and `state/staged/`."""
    return f"{build_id}.{arch}"


def _below_root(path: str) -> Any:
    """An attribute of `StorePaths`: a folder below its root."""
    return attr.field(init=False, default=attr.Factory(lambda store: store.root / path, takes_self=True))


def _of_target(pattern: str) -> Callable[[StorePaths, str], Path]:
    """A method of `StorePaths`: the path of a target below the root."""
    return lambda store, target: store.root / pattern.format(target)


@attr.frozen
class StorePaths:
    root: Path
    repo: Path = _below_root("repo")  #: published legs, a folder per target
    scratch: Path = _below_root("scratch")  #: scratch builds, never published
    spool: Path = _below_root("spool")  #: uploads of builders, a folder per attempt
    publishing: Path = _below_root(
        "publishing"
    )  #: copies of uploads, until they have their place; no builder reaches it
    live: Path = _below_root("live")  #: growing logs of running builds, a folder per attempt
    attempts: Path = _below_root("attempts")  #: logs of attempts that did not decide their leg
    rejected: Path = _below_root("rejected")  #: uploads that contradict their manifest, kept for a person
    index: Path = _below_root("index")  #: symbolic links `<build id>.<arch>` -> the leg's place
    cache: Path = _below_root("cache")  #: createrepo_c's checksums and output
    tosign: Path = _below_root("tosign")  #: packages that wait for the signer
    staging: Path = _below_root("tosign/.staging")  #: where tosign copies packages before it shows them by a rename
    state: Path = _below_root("state")  #: locks and records of repogen and tosign
    staged_marks: Path = _below_root("state/staged")  #: a file for each leg that was staged for signing, kept for ever
    put_again: Path = _below_root("state/again")  #: a file for each request that was requeued after a bad upload

    target = _of_target("repo/{}")  #: its folder, which holds its `repodata`
    output = _of_target("cache/{}/out")  #: createrepo_c's output folder, which no client sees
    log = _of_target("state/createrepo/{}.log")  #: createrepo_c's last output
    runs = _of_target("state/{}.runs")  #: when createrepo_c last ran
    retained_record = _of_target("state/{}.retained")  #: the record of replaced files in its repodata
    hook = _of_target("state/{}.hook")  #: why the hook last failed; absent if it did not
    hook_log = _of_target("state/createrepo/{}.hook.log")  #: the hook's last output
    lock = _of_target("state/locks/{}.lock")  #: its lock file: whoever holds it may run createrepo_c
    unlisted = _of_target("state/unlisted/{}.json")  #: the record of its legs that the repodata does not list

    def place(self, place: str) -> Path:
        return self.root / place

    def exposed(self, place: str, build_id: str) -> Path:
        """Where the signer finds a leg: `tosign/<target>/<name>-<version-release>.<arch>.<build id>`."""
        _, target, package, _, folder = place.split("/")
        return self.tosign / target / f"{package}-{folder}.{build_id}"

    def folders(self) -> list[Path]:
        """All folders that must exist before a daemon starts."""
        return [
            self.repo, self.scratch, self.spool, self.publishing, self.live, self.attempts, self.rejected, self.index,
            self.cache, self.tosign, self.staging, self.staged_marks, self.put_again, self.state / "locks",
            self.state / "createrepo", self.state / "unlisted",
        ]  # fmt: skip


@attr.frozen
class StoreUrls:
    """The store as other hosts reach it, through stunnel."""

    base: str  #: of the http server, ends with a slash: http://localhost:11081/bstore/
    upload: str  #: of the rsync module, ends with a slash: rsync://localhost:11874/reimzul-bstore/

    @classmethod
    def from_settings(cls, published: str, upload: str) -> StoreUrls:
        """Made from [bstore]: base_url is the URL of `repo/`, as in the original."""
        return cls(published[: -len("repo/")], upload)

    def place(self, place: str) -> str:
        return f"{self.base}{quote(place)}/"

    def target(self, target: str) -> str:
        return f"{self.base}repo/{quote(target)}/"

    def manifest(self, build_id: str, arch: str) -> str:
        return f"{self.base}index/{leg_key(build_id, arch)}/{MANIFEST}"

    def spool(self, build_id: str, arch: str, attempt: str) -> str:
        """The rsync URL that an attempt is uploaded to."""
        return f"{self.upload}spool/{spool_name(build_id, arch, attempt)}/"

    def live_upload(self, build_id: str, arch: str, attempt: str) -> str:
        """The rsync URL that an attempt's growing logs are sent to."""
        return f"{self.live_module}{spool_name(build_id, arch, attempt)}/"

    @property
    def live_module(self) -> str:
        """The URL of the rsync module that takes growing logs: the other one lets no file be appended to."""
        return f"{self.upload[:-1]}-live/"

    def live(self, build_id: str, arch: str, attempt: str) -> str:
        """The URL of an attempt's growing logs."""
        return f"{self.base}live/{spool_name(build_id, arch, attempt)}/"

    def attempt(self, build_id: str, arch: str, attempt: str) -> str:
        """The URL of the logs of an attempt that did not decide its leg."""
        return f"{self.base}attempts/{spool_name(build_id, arch, attempt)}/"
