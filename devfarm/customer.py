# SPDX-License-Identifier: Apache-2.0
"""Who a farm is for: a real dnf that lists, downloads and checks what a repository has, over HTTP.

It has an installroot of its own, so that it knows nothing of this machine and changes nothing of it.
"""

from __future__ import annotations

from pathlib import Path

import attr

from devfarm.parts import which
from reimzul.core.errors import ReimzulError
from reimzul.core.process import output_of

_PATIENCE = 120  # seconds


@attr.frozen
class Dnf:
    """dnf with one repository."""

    root: Path  #: its installroot; what it keeps lies in there
    url: str
    arch: str

    def listing(self) -> str:
        """dnf's own list of what it finds."""
        return self._dnf("list", "--available")

    def nevras(self) -> list[str]:
        """The same for programs: name-version-release.arch, each on its own."""
        wanted = "%{name}-%{version}-%{release}.%{arch}\n"
        return sorted(set(self._dnf("repoquery", "--qf", wanted).split()))

    def download(self, folder: Path) -> list[Path]:
        """Have dnf download all of it, which compares each package with its checksum in the repodata."""
        folder.mkdir(parents=True, exist_ok=True)
        self._dnf("download", f"--destdir={folder}", "*")
        return sorted(folder.glob("*.rpm"))

    def _dnf(self, command: str, *words: str) -> str:
        config = self._prepared()
        argv = [which("dnf"), command, "--quiet", f"--config={config}", f"--installroot={self.root}", "--releasever=1"]
        return output_of([*argv, f"--forcearch={self.arch}", *words], timeout=_PATIENCE, env=_no_proxy())

    def _prepared(self) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        config = self.root / "dnf.conf"
        # paths in here begin at the installroot; expired at once, since the farm publishes while we look
        config.write_text(
            "[main]\nreposdir=/none\ncachedir=/cache\nlogdir=/log\npersistdir=/state\nplugins=1\n"
            f"[farm]\nname=the farm\nbaseurl={self.url}\nenabled=1\ngpgcheck=0\nmetadata_expire=0\n",
            encoding="utf-8",
        )
        return config


def _no_proxy() -> dict[str, str]:
    return {"no_proxy": "*", "NO_PROXY": "*"}


def check(packages: list[Path]) -> str:
    """rpm's own word on packages: header and payload digests. Raises `ReimzulError` where one is not well."""
    said = output_of([which("rpmkeys"), "--checksig", "--nosignature", *packages])
    if said.count("digests OK") != len(packages):
        raise ReimzulError(f"rpm finds fault with what dnf downloaded: {said}")
    return said
