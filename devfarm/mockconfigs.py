# SPDX-License-Identifier: Apache-2.0
"""mock's configurations for a farm on one machine: a git repository, which the builders' checkouts are pulled from.

Where the host has a mock of its own, a target is the host's own distribution, as /etc/mock describes it. Elsewhere
it is one for the stand-in, which builds with what the host has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import attr

from devfarm.parts import which
from reimzul.core.arch import read_arches
from reimzul.core.process import output_of
from reimzul.core.store_paths import StorePaths

_ETC_MOCK = Path("/etc/mock")
_OS_RELEASE = Path("/etc/os-release")
#: rpm's names of the machines that may build for an arch.
_LEGAL_HOSTS = {"i386": ("i386", "i486", "i586", "i686", "x86_64"), "ppc": ("ppc", "ppc64")}
_TARGET_ARCH = {"i386": "i686"}

_LOGGING = """\
[formatters]
keys: detailed,simple,unadorned,state
[handlers]
keys: simple_console,detailed_console,unadorned_console,simple_console_warnings_only
[loggers]
keys: root,build,state,mockbuild
[formatter_state]
format: %(asctime)s - %(message)s
[formatter_unadorned]
format: %(message)s
[formatter_simple]
format: %(levelname)s: %(message)s
[formatter_detailed]
format: %(levelname)s %(filename)s:%(lineno)d:  %(message)s
[handler_unadorned_console]
class: StreamHandler
args: []
formatter: unadorned
level: INFO
[handler_simple_console]
class: StreamHandler
args: []
formatter: simple
level: INFO
[handler_simple_console_warnings_only]
class: StreamHandler
args: []
formatter: simple
level: WARNING
[handler_detailed_console]
class: StreamHandler
args: []
formatter: detailed
level: WARNING
[logger_root]
level: NOTSET
handlers: simple_console
[logger_mockbuild]
level: NOTSET
handlers:
qualname: mockbuild
propagate: 1
[logger_state]
level: NOTSET
handlers: unadorned_console
qualname: mockbuild.Root.state
propagate: 0
[logger_build]
level: NOTSET
handlers: simple_console_warnings_only
qualname: mockbuild.Root.build
propagate: 0
"""


@attr.frozen
class MockConfigs:
    """The repository of configurations, and who works from it."""

    folder: Path
    store: StorePaths | None = None  #: where it is on this machine: there each target gets empty repodata at once

    def make(self, roots: Path | None) -> None:
        """Make it, where it is not there yet. The stand-in for mock builds in `roots`, mock itself where it likes."""
        if not (self.folder / ".git").is_dir():
            (self.folder / "mock").mkdir(parents=True)
            self._git("init", "--quiet")
        defaults = f"config_opts['basedir'] = {str(roots)!r}\n" if roots else "# as mock has it\n"
        self.write({"site-defaults.cfg": defaults, "logging.ini": _logging()})

    def clone(self, checkout: Path) -> None:
        """Make a builder's checkout, where it is not there yet."""
        if not checkout.is_dir():
            checkout.parent.mkdir(parents=True, exist_ok=True)
            output_of(["git", "clone", "--quiet", self.folder, checkout])

    def add_target(self, target: str, arches: Mapping[str, str] | list[str]) -> None:
        """Offer a target (without its arch) for these arches; a mapping gives more text for each."""
        more = arches if isinstance(arches, Mapping) else dict.fromkeys(arches, "")
        if self.store is not None:
            for arch in more:
                _make_repodata(self.store.target(f"{target}.{arch}"))
        # nobody has made repodata elsewhere: dnf would fail at a target until it is first published
        skip = self.store is None
        self.write({f"{target}.{arch}.cfg": _config(target, arch, more, skip) + text for arch, text in more.items()})

    def write(self, texts: Mapping[str, str]) -> None:
        """Commit these files; the builders have them from their next build on."""
        for name, text in texts.items():
            (self.folder / "mock" / name).write_text(text, encoding="utf-8")
        self._git("add", "mock")
        # where nothing changed there is nothing to commit, which git takes for an error
        if self._git("status", "--porcelain"):
            self._git("commit", "--quiet", "--message", f"mock: {', '.join(sorted(texts))}")

    def _git(self, *words: str) -> str:
        who = ("-c", "user.name=reimzul devfarm", "-c", "user.email=reimzul@farm.test")
        return output_of(["git", "-C", self.folder, *who, *words])


def _logging() -> str:
    real = _ETC_MOCK / "logging.ini"
    return real.read_text(encoding="utf-8") if real.is_file() else _LOGGING


def _make_repodata(folder: Path) -> None:
    if not (folder / "repodata").exists():
        folder.mkdir(parents=True, exist_ok=True)
        output_of([which("createrepo_c"), "--quiet", folder])


def _config(target: str, arch: str, arches: Iterable[str], skip: bool) -> str:
    """A target's configuration: the distribution's own where there is one, and the farm's own repositories."""
    legal = _LEGAL_HOSTS.get(arch, (arch,))
    # a leg that follows another is published with it, so that comes first
    known = read_arches().known
    leaders = [other for other in arches if other in known and arch in known[other].follows]
    ours = "".join(_repository(f"{target}.{each}", skip) for each in (*leaders, arch))
    text = f"""
config_opts['root'] = 'TARGETNAME'
config_opts['dnf.conf'] = config_opts.get('dnf.conf', '') + \"\"\"
{ours}\"\"\"
"""
    plain = (
        f"config_opts['target_arch'] = {_TARGET_ARCH.get(arch, arch)!r}\nconfig_opts['legal_host_arches'] = {legal!r}\n"
    )
    return (_distribution(arch) or plain) + text


def _repository(target: str, skip: bool) -> str:
    optional = "skip_if_unavailable=1\n" if skip else ""
    return f"[{target}]\nname={target}\nbaseurl=http://repohost/repo/{target}/\ngpgcheck=0\n{optional}"


def _distribution(arch: str) -> str:
    """What /etc/mock says of the host's own distribution, includes made absolute; nothing where it says nothing."""
    if not _OS_RELEASE.is_file():
        return ""
    said = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', _OS_RELEASE.read_text(encoding="utf-8"), re.MULTILINE))
    version = said.get("VERSION_ID", "").partition(".")[0]
    path = _ETC_MOCK / f"{said.get('ID')}-{version}-{arch}.cfg"
    if not path.is_file():
        return ""
    # a relative include is looked for beside the rendered configuration, where the templates are not
    return re.sub(r"include\((['\"])(?!/)", rf"include(\1{_ETC_MOCK}/", path.read_text(encoding="utf-8"))
