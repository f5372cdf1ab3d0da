# SPDX-License-Identifier: Apache-2.0
"""The table of arches: tubes, legs, which machine builds what, and which packages fit an arch.

The table is `arches.yml` beside this module, or the file of a setting. It is checked when it is read.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attr

from reimzul.core.errors import ConfigError

if TYPE_CHECKING:
    from reimzul.core.rpm_header import Header

SHIPPED = Path(__file__).with_name("arches.yml")
NOARCH = "noarch"
_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,31}\Z")


@attr.frozen(kw_only=True)
class Arch:
    name: str
    tube: str  #: the tube of its requests
    follows: tuple[str, ...] = ()  #: arches built with it, from the same request
    accepts: tuple[str, ...] = ()  #: other names that packages use for it


@attr.frozen(kw_only=True)
class Arches:
    known: Mapping[str, Arch]
    serves: Mapping[str, tuple[str, ...]]  #: machine (uname -m) -> tubes it watches besides its own
    noarch_last: frozenset[str]  #: packages that also get a noarch leg, last

    def tube_of(self, arch: str) -> str:
        return self.known[arch].tube

    def tubes(self) -> list[str]:
        """All tubes of requests, in the table's order."""
        return list(dict.fromkeys(arch.tube for arch in self.known.values()))

    def tubes_of_machine(self, machine: str) -> list[str]:
        """The tubes that a builder of this machine watches, its own first."""
        return [machine, *self.serves.get(machine, ())]

    def legs_of(self, arch: str, package: str) -> tuple[str, ...]:
        """The arches that one request is built for, in order."""
        last = (NOARCH,) if package in self.noarch_last and arch != NOARCH else ()
        return (arch, *self.known[arch].follows, *last)

    def package_arches(self, arch: str) -> tuple[str, ...]:
        """The arches that packages of a leg may be for."""
        names = (arch, *self.known[arch].accepts) if arch in self.known else (arch,)
        return tuple(dict.fromkeys((*names, NOARCH)))

    def exclusion_reason(self, arch: str, header: Header) -> str | None:
        """Why a package is not built for an arch; None if it is.

        As rpmbuild does, accept `noarch` in ExclusiveArch for a noarch package. A tag with an unexpanded macro excludes
        nothing: mock's buildroot may know the macro.
        """
        names = {arch, *self.known[arch].accepts}
        noarch = {NOARCH} if NOARCH in header.build_archs else set()
        if _excludes_all(header.exclusive_arch, names | noarch):
            return f"ExclusiveArch is {' '.join(header.exclusive_arch)}"
        if names & set(header.exclude_arch):
            return f"ExcludeArch is {' '.join(header.exclude_arch)}"
        if arch != NOARCH and _excludes_all(header.build_archs, names | {NOARCH}):
            return f"BuildArch is {' '.join(header.build_archs)}"
        return None

    def exclusion_doubt(self, arch: str, header: Header) -> str:
        """Name the tags whose unexpanded macros decide whether a package is built for an arch; empty if none does."""
        names = {arch, NOARCH, *self.known[arch].accepts}
        tags = {"ExclusiveArch": header.exclusive_arch, "BuildArch": header.build_archs}
        doubtful = {tag: words for tag, words in tags.items() if not names & set(words)}
        macros = {tag: find_macros(words) for tag, words in {**doubtful, "ExcludeArch": header.exclude_arch}.items()}
        return ", ".join(f"{tag} has {' '.join(found)}" for tag, found in macros.items() if found)


def find_macros(words: Sequence[str]) -> list[str]:
    """The values of a tag that hold an unexpanded macro, as `%{zig_arches}`."""
    return [word for word in words if "%" in word]


def _excludes_all(words: Sequence[str], names: set[str]) -> bool:
    """Whether a tag of allowed arches allows none of `names`."""
    return bool(words) and not names & set(words) and not find_macros(words)


def _parse_yaml(text: str) -> Any:
    """Parse a table. Raises `ValueError`.

    The shipped one is JSON below its comments and is read without importing yaml: every command that starts reads it,
    and yaml would add a sixth to the time of a short one.
    """
    with contextlib.suppress(ValueError):
        return json.loads("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def read_arches(path: Path | None = None) -> Arches:
    """Read a table, by default the shipped one. Raises `ConfigError`."""
    path = path or SHIPPED
    try:
        raw = _parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as the table of arches: {' '.join(str(error).split())}") from error
    try:
        return _arches_of(raw)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _arches_of(raw: Any) -> Arches:
    top = _check_mapping(raw, "the file", {"arches", "serves", "noarch_last"})
    rows = _check_mapping(top.get("arches"), "arches")
    known = {_check_name(name): _arch_of(name, row) for name, row in rows.items()}
    for arch in known.values():
        for follower in arch.follows:
            if follower not in known:
                raise ValueError(f"arches: {arch.name} is followed by {follower}, which is no arch of the table")
    machines = _check_mapping(top.get("serves"), "serves")
    serves = {_check_name(name): _check_names(row, f"serves: {name}") for name, row in machines.items()}
    packages = top.get("noarch_last") or []
    if not isinstance(packages, list) or not all(isinstance(word, str) for word in packages):
        raise ValueError("noarch_last: must be a list of package names")
    return Arches(known=known, serves=serves, noarch_last=frozenset(packages))


def _arch_of(name: str, row: Any) -> Arch:
    row = _check_mapping(row, f"arches: {name}", {"tube", "follows", "accepts"})
    return Arch(
        name=name,
        tube=_check_name(row.get("tube", name)),
        follows=_check_names(row.get("follows"), f"arches: {name}: follows"),
        accepts=_check_names(row.get("accepts"), f"arches: {name}: accepts"),
    )


def _check_mapping(raw: Any, where: str, keys: set[str] | None = None) -> dict[str, Any]:
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: must be a mapping, not {raw!r}")
    unknown = [str(key) for key in raw if keys is not None and key not in keys]
    if unknown:
        raise ValueError(f"{where}: {', '.join(unknown)} is not known; {', '.join(sorted(keys or ()))} are")
    return raw


def _check_names(raw: Any, where: str) -> tuple[str, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise ValueError(f"{where}: must be a list, not {raw!r}")
    return tuple(_check_name(word) for word in raw)


def _check_name(raw: Any) -> str:
    if not isinstance(raw, str) or not _NAME.match(raw):
        raise ValueError(f"{raw!r} is no name of an arch or a tube")
    return raw
