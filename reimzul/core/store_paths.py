# SPDX-License-Identifier: Apache-2.0
"""Every path and URL of the store. Pure: nothing here touches a disk or a network.

All lies under one root on one file system, so that a rename is atomic (architecture.md, section 2).
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import attr

from reimzul.core import validators

MANIFEST = "build.json"


def package_folder(evr: str, arch: str) -> str:
    """The last part of a place: `<version-release>.<arch>`."""
    return f"{evr}.{arch}"


def package_dir(target: str, name: str, timestamp: str, evr: str, arch: str, *, scratch: bool) -> str:
    """The place of a leg, relative to the root; checked, since it becomes a path."""
    area = "scratch" if scratch else "repo"
    return validators.place(f"{area}/{target}/{name}/{timestamp}/{package_folder(evr, arch)}")


def spool_name(build_id: str, arch: str, attempt: str) -> str:
    """The name of the folder one attempt at one leg is uploaded into."""
    return f"{build_id}.{arch}.{attempt}"


def leg_key(build_id: str, arch: str) -> str:
    """What names a leg for ever: its entry in `index/`, and in `state/staged/`."""
    return f"{build_id}.{arch}"


@attr.frozen
class StorePaths:
    """The folders of the store on bstore's own disk."""

    root: Path

    @property
    def repo(self) -> Path:
        """What is published, a folder a target."""
        return self.root / "repo"

    @property
    def scratch(self) -> Path:
        """What is built and never published."""
        return self.root / "scratch"

    @property
    def spool(self) -> Path:
        """Where builders upload to, a folder an attempt."""
        return self.root / "spool"

    @property
    def originals(self) -> Path:
        """What workers of the original upload, until it has its place; they see it as `repo/`."""
        return self.root / "originals"

    @property
    def live(self) -> Path:
        """The logs of builds under way, a folder an attempt, as far as they have grown."""
        return self.root / "live"

    @property
    def attempts(self) -> Path:
        """The logs of attempts that did not decide their leg."""
        return self.root / "attempts"

    @property
    def rejected(self) -> Path:
        """Uploads that were not what their manifest says, kept for a person to look at."""
        return self.root / "rejected"

    @property
    def index(self) -> Path:
        """`<build id>.<arch>` -> its place, as symbolic links."""
        return self.root / "index"

    @property
    def cache(self) -> Path:
        """createrepo_c's checksums."""
        return self.root / "cache"

    @property
    def tosign(self) -> Path:
        """What waits to be collected and signed."""
        return self.root / "tosign"

    @property
    def state(self) -> Path:
        """Locks and marks of ours."""
        return self.root / "state"

    @property
    def staged_marks(self) -> Path:
        """A mark for each leg that was staged for signing, kept for good."""
        return self.state / "staged"

    @property
    def staging(self) -> Path:
        """Where tosign copies packages before the rename that shows them."""
        return self.tosign / ".staging"

    @property
    def put_again(self) -> Path:
        """A mark for each request that was put again since an upload of it was bad."""
        return self.state / "again"

    def log(self, target: str) -> Path:
        """What createrepo_c said last about a target."""
        return self.state / "createrepo" / f"{target}.log"

    def output(self, target: str) -> Path:
        """What createrepo_c makes for a target; its `repodata` is seen by nobody else."""
        return self.cache / target / "out"

    def runs(self, target: str) -> Path:
        """When the last run of createrepo_c on a target began and ended."""
        return self.state / f"{target}.runs"

    def retained(self, target: str) -> Path:
        """Which files in a target's repodata were replaced, and when."""
        return self.state / f"{target}.retained"

    def hook(self, target: str) -> Path:
        """Why the hook on a target's repodata failed last; absent where it did not."""
        return self.state / f"{target}.hook"

    def hook_log(self, target: str) -> Path:
        """What the hook said last about a target."""
        return self.state / "createrepo" / f"{target}.hook.log"

    def lock(self, target: str) -> Path:
        """The file whose flock says who runs createrepo_c on a target."""
        return self.state / "locks" / f"{target}.lock"

    def unlisted(self, target: str) -> Path:
        """The record of what lies in a target and is not listed."""
        return self.state / "unlisted" / f"{target}.json"

    def target(self, target: str) -> Path:
        """The folder of a target, which holds its `repodata`."""
        return self.repo / target

    def place(self, place: str) -> Path:
        """The folder of a place."""
        return self.root / place

    def folders(self) -> list[Path]:
        """All that has to be there before anything starts."""
        return [
            self.repo, self.scratch, self.spool, self.live, self.originals, self.attempts, self.rejected, self.index,
            self.cache, self.tosign, self.staging, self.staged_marks, self.put_again, self.state / "locks",
            self.state / "createrepo", self.state / "unlisted",
        ]  # fmt: skip


@attr.frozen
class StoreUrls:
    """The store as the others reach it, through stunnel."""

    base: str  #: of the http server, ends with a slash: http://localhost:11081/bstore/
    upload: str  #: of the rsync module, ends with a slash: rsync://localhost:11874/reimzul-bstore/

    @classmethod
    def from_settings(cls, published: str, upload: str) -> StoreUrls:
        """The URLs as [bstore] has them: base_url is, as the original's, that of `repo/` in the store."""
        return cls(published[: -len("repo/")], upload)

    def place(self, place: str) -> str:
        """Where a place's logs and packages can be read."""
        return f"{self.base}{quote(place)}/"

    def target(self, target: str) -> str:
        """What goes into a .repo file as baseurl."""
        return f"{self.base}repo/{quote(target)}/"

    def manifest(self, build_id: str, arch: str) -> str:
        """The manifest of a leg that has its place, whatever that is."""
        return f"{self.base}index/{leg_key(build_id, arch)}/{MANIFEST}"

    def spool(self, build_id: str, arch: str, attempt: str) -> str:
        """Where an attempt is uploaded to."""
        return f"{self.upload}spool/{spool_name(build_id, arch, attempt)}/"

    def live_upload(self, build_id: str, arch: str, attempt: str) -> str:
        """Where an attempt's logs are sent to while they grow."""
        return f"{self.upload}live/{spool_name(build_id, arch, attempt)}/"

    def live(self, build_id: str, arch: str, attempt: str) -> str:
        """Where they can be read meanwhile."""
        return f"{self.base}live/{spool_name(build_id, arch, attempt)}/"

    def attempt(self, build_id: str, arch: str, attempt: str) -> str:
        """Where the logs of an attempt can be read that did not decide its leg."""
        return f"{self.base}attempts/{spool_name(build_id, arch, attempt)}/"
