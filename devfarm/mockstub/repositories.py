# SPDX-License-Identifier: Apache-2.0
"""The repositories of the stand-in for mock: the host's own dnf reads, caches and searches them.

All builds of one root name share a cache, whatever their `--uniqueext`. Repositories with an http baseurl are read;
https, mirror lists and metalinks are not. Nothing is installed: installed_pkgs.log lists those that meet BuildRequires.
"""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

from devfarm.mockstub.config import I386, MockConfig
from reimzul.core.mock_config import list_repositories

#: Paths begin at the installroot, which is the cache of the root's name.
_MAIN = {
    "cachedir": "/dnf_cache", "logdir": "/log", "persistdir": "/state", "reposdir": "/none", "plugins": "0",
    "check_config_file_age": "0",  # our dnf.conf is always newer than what is cached
}  # fmt: skip
#: What is taken from the configuration, for all repositories or for one.
_OPTIONS = ("name", "baseurl", "enabled", "metadata_expire", "skip_if_unavailable")
_FOUND = "found "


def search_command(config: MockConfig, folder: Path, requirement: str) -> list[str]:
    """Write dnf's configuration into a folder; return the command that finds the newest packages for a requirement.

    `parse_found` reads what it prints. Nothing is returned where there is no repository to read.
    """
    parser = ConfigParser(interpolation=None)
    parser.read_dict({"main": _MAIN})
    for section in list_repositories(config.conf):
        if section.name == "main" or section.last_value("baseurl").startswith("http://"):
            given = {option: section.last_value(option) for option in _OPTIONS if option in section.options}
            parser.read_dict({section.name: given})
    if parser.sections() == ["main"]:
        return []
    path = folder / "dnf.conf"
    with path.open("w", encoding="utf-8") as stream:
        parser.write(stream)
    is_i386 = config.target in I386
    arches = [*(sorted(I386) if is_i386 else [config.target]), "noarch"]
    form = f"{_FOUND}%{{name}}-%{{evr}}.%{{arch}} %{{installsize}}\n"
    return [
        "env", "no_proxy=*", "NO_PROXY=*",  # URLs lead to this host's own stunnel
        "dnf", f"--config={path}", f"--installroot={config.cache}", f"--releasever={config.releasever or 1}",
        f"--forcearch={'i686' if is_i386 else config.target}", "repoquery", "--latest-limit=1",
        f"--arch={','.join(arches)}", f"--qf={form}", "--whatprovides", requirement,
    ]  # fmt: skip


def parse_found(lines: list[str]) -> dict[str, str]:
    """The packages that a search found: nevra -> installed bytes."""
    rows = (line.removeprefix(_FOUND).split() for line in lines if line.startswith(_FOUND))
    return {nevra: size for nevra, size in rows}
