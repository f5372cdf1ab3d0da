# SPDX-License-Identifier: Apache-2.0
"""mock's configurations for a farm on one machine: a git repository from which the builders' checkouts are pulled.

If the host has mock, a target is the host's own distribution, as /etc/mock describes it. Otherwise it is one for the
stand-in, which builds with what the host has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import attr

from devfarm.processes import find_program
from reimzul.core.arch import read_arches
from reimzul.core.process import output_of
from reimzul.core.store_paths import StorePaths

_ETC_MOCK = Path("/etc/mock")
_OS_RELEASE = Path("/etc/os-release")


@attr.frozen
class MockConfigs:
    folder: Path  #: the repository
    store: StorePaths | None = None  #: a store on this machine, in which each target gets empty repodata at once

    def make(self, roots: Path | None) -> None:
        """Make it, unless it exists. `roots` is where the stand-in for mock builds; None for mock itself."""
        if not (self.folder / ".git").is_dir():
            (self.folder / "mock").mkdir(parents=True)
            self._git("init", "--quiet")
        defaults = f"config_opts['basedir'] = {str(roots)!r}\n" if roots else "# as mock has it\n"
        logging = _ETC_MOCK / "logging.ini"
        # the stand-in only checks that the file exists
        text = logging.read_text(encoding="utf-8") if logging.is_file() else "# mock's own is in /etc/mock\n"
        self.write({"site-defaults.cfg": defaults, "logging.ini": text})

    def clone(self, checkout: Path) -> None:
        """Make a builder's checkout, unless it exists."""
        if not checkout.is_dir():
            checkout.parent.mkdir(parents=True, exist_ok=True)
            output_of(["git", "clone", "--quiet", self.folder, checkout])

    def add_target(self, target: str, arches: Sequence[str]) -> None:
        """Add a target (named without its arch) for these arches."""
        if self.store is not None:
            for arch in arches:
                folder = self.store.target(f"{target}.{arch}")
                if not (folder / "repodata").exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    output_of([find_program("createrepo_c"), "--quiet", folder])
        # a store elsewhere may have no repodata of the target: dnf would fail until the target is first published
        skip = self.store is None
        self.write({f"{target}.{arch}.cfg": _config(target, arch, arches, skip) for arch in arches})

    def write(self, texts: Mapping[str, str]) -> None:
        """Commit these files; the builders pull them before their next build."""
        for name, text in texts.items():
            (self.folder / "mock" / name).write_text(text, encoding="utf-8")
        self._git("add", "mock")
        # git fails where there is nothing to commit, as in a farm that is continued
        self._git("commit", "--quiet", "--allow-empty", "--message", f"mock: {', '.join(sorted(texts))}")

    def _git(self, *arguments: str) -> None:
        author = ("-c", "user.name=reimzul devfarm", "-c", "user.email=reimzul@farm.test")
        output_of(["git", "-C", self.folder, *author, *arguments])


def _config(target: str, arch: str, arches: Sequence[str], skip: bool) -> str:
    """A target's configuration: the distribution's where there is one, and the farm's own repositories."""
    # an arch that follows another is published in its repository, so that one comes first
    known = read_arches().known
    leaders = [other for other in arches if other in known and arch in known[other].follows]
    optional = "skip_if_unavailable=1\n" if skip else ""
    ours = "".join(
        f"[{name}]\nname={name}\nbaseurl=http://repohost/repo/{name}/\ngpgcheck=0\n{optional}"
        for name in (f"{target}.{each}" for each in (*leaders, arch))
    )
    target = "i686" if arch == "i386" else arch
    return f"""{_distribution(arch) or f"config_opts['target_arch'] = {target!r}"}
config_opts['root'] = 'TARGETNAME'
config_opts['dnf.conf'] = config_opts.get('dnf.conf', '') + \"\"\"
{ours}\"\"\"
"""


def _distribution(arch: str) -> str:
    """/etc/mock's configuration for the host's own distribution, with absolute includes; empty if there is none."""
    if not _OS_RELEASE.is_file():
        return ""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', _OS_RELEASE.read_text(encoding="utf-8"), re.MULTILINE))
    version = release.get("VERSION_ID", "").partition(".")[0]
    path = _ETC_MOCK / f"{release.get('ID')}-{version}-{arch}.cfg"
    if not path.is_file():
        return ""
    # mock looks for a relative include beside the rendered configuration, where the templates are not
    return re.sub(r"include\((['\"])(?!/)", rf"include(\1{_ETC_MOCK}/", path.read_text(encoding="utf-8"))
