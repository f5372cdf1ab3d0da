# SPDX-License-Identifier: Apache-2.0
"""A real dnf that lists, downloads and checks what a repository has, over HTTP.

It has an installroot of its own: it knows nothing of this machine and changes nothing on it.
"""

from __future__ import annotations

from pathlib import Path

import attr

from devfarm.processes import find_program
from reimzul.core.errors import ReimzulError
from reimzul.core.process import output_of

_TIMEOUT_SECONDS = 120


@attr.frozen
class Dnf:
    root: Path  #: its installroot, with all that it stores
    url: str
    arch: str

    def list_available(self) -> str:
        return self._run("list", "--available")

    def list_nevras(self) -> list[str]:
        """name-version-release.arch of each package."""
        form = "%{name}-%{version}-%{release}.%{arch}\n"
        return sorted(set(self._run("repoquery", "--qf", form).split()))

    def download(self, folder: Path) -> list[Path]:
        """Download all packages; dnf compares each with its checksum in the repodata."""
        folder.mkdir(parents=True, exist_ok=True)
        self._run("download", f"--destdir={folder}", "*")
        return sorted(folder.glob("*.rpm"))

    def _run(self, command: str, *arguments: str) -> str:
        self.root.mkdir(parents=True, exist_ok=True)
        config = self.root / "dnf.conf"
        # these paths begin at the installroot; metadata expires at once, since the farm publishes meanwhile
        config.write_text(
            "[main]\nreposdir=/none\ncachedir=/cache\nlogdir=/log\npersistdir=/state\nplugins=1\n"
            f"[farm]\nname=the farm\nbaseurl={self.url}\nenabled=1\ngpgcheck=0\nmetadata_expire=0\n",
            encoding="utf-8",
        )
        argv = [find_program("dnf"), command, "--quiet", f"--config={config}", f"--installroot={self.root}"]
        argv += ["--releasever=1", f"--forcearch={self.arch}", *arguments]
        return output_of(argv, timeout=_TIMEOUT_SECONDS, env={"no_proxy": "*", "NO_PROXY": "*"})


def check_digests(packages: list[Path]) -> None:
    """Have rpm check the header and payload digests of packages. Raises `ReimzulError` where one is wrong."""
    output = output_of([find_program("rpmkeys"), "--checksig", "--nosignature", *packages])
    if output.count("digests OK") != len(packages):
        raise ReimzulError(f"rpm finds wrong digests in what dnf downloaded: {output}")
