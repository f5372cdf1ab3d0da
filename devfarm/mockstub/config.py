# SPDX-License-Identifier: Apache-2.0
"""Reads mock's configuration for the stand-in: Python text that fills `config_opts`.

Only what decides a build here is kept; settings of chroots and plugins are read and ignored. The host's own dnf reads,
caches and searches the repositories with an http baseurl; https, mirror lists and metalinks are not read. All builds of
one root name share a cache, whatever their `--uniqueext`. Nothing is installed.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import attr

from devfarm.mockstub.logs import Exit, Fault
from reimzul.core.mock_config import (
    CONF_KEYS,
    SITE_DEFAULTS,
    MockConfigError,
    Options,
    execute,
    inline_includes,
    list_repositories,
)

#: rpm's names of 32-bit x86.
I386 = frozenset({"i386", "i486", "i586", "i686", "athlon"})


@attr.frozen(kw_only=True)
class MockConfig:
    name: str  #: the root's name, without what `--uniqueext` adds
    target: str  #: rpmbuild's --target
    roots: Path
    cache: Path  #: shared by all roots of the name
    conf: str  #: dnf.conf
    releasever: str
    macros: Mapping[str, str]
    timeout: int  #: seconds for rpmbuild, 0 for no limit
    bootstrap: bool
    package_manager: str
    bootstrap_seconds: float  #: how long making a bootstrap root takes


def read_config(folder: Path, name: str, overrides: Mapping[str, Any], macros: Mapping[str, str]) -> MockConfig:
    """Read `site-defaults.cfg` and `<name>.cfg` of a folder; the command line overrides them. Raises `Fault`."""
    options = Options()
    for path in (folder / SITE_DEFAULTS, folder / f"{name}.cfg"):
        _execute(path, folder, options)
    if not options.get("root"):
        raise Fault(Exit.CONFIG, f"Error in configuration: {name}.cfg has no config_opts['root']")
    if not (folder / "logging.ini").is_file():
        raise Fault(Exit.SETUP, f"Could not find required logging config file: {folder / 'logging.ini'}")
    options.update(overrides)
    try:
        options["macros"].update(macros)
        return _from_options(options)
    except (AttributeError, TypeError, ValueError) as error:
        raise Fault(Exit.CONFIG, f"Error in configuration: {name}.cfg: {error}") from error


def _execute(path: Path, folder: Path, options: Options) -> None:
    if not path.is_file():
        raise Fault(Exit.CONFIG, f"Could not find required config file: {path}")
    try:
        execute(inline_includes(path, folder, {}), options, str(path))
    except MockConfigError as error:
        raise Fault(Exit.CONFIG, str(error)) from error
    except Exception as error:  # whatever a configuration raises is the configuration's fault
        raise Fault(Exit.CONFIG, f"Config error: {path}: {error}") from error


def _from_options(options: Options) -> MockConfig:
    name = str(options["root"])
    default = Path(tempfile.gettempdir()) / f"reimzul-standin-{os.getuid()}"
    roots = Path(options.get("basedir") or default).absolute()
    conf = next((str(options[key]) for key in CONF_KEYS if options.get(key)), "")
    return MockConfig(
        name=name,
        target=str(options.get("rpmbuild_arch") or options.get("target_arch") or os.uname().machine),
        roots=roots,
        cache=Path(options.get("cache_topdir") or roots.with_name(f"{roots.name}-cache")) / name,
        # of Jinja, which mock has, `{{ name }}` alone
        conf=re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: str(options.get(found[1], "")), conf),
        releasever=str(options.get("releasever") or ""),
        macros={macro.lstrip("%"): str(value) for macro, value in options["macros"].items()},
        timeout=int(options.get("rpmbuild_timeout") or 0),
        bootstrap=bool(options.get("use_bootstrap", True)),
        package_manager=str(options.get("package_manager") or "dnf"),
        bootstrap_seconds=float(options.get("standin_bootstrap_seconds") or 0),
    )


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
