# SPDX-License-Identifier: Apache-2.0
"""Arches: the tube of one, who serves it, what follows it, and whether a package allows it.

The table is `arches.yml`, shipped beside this module and replaceable by a setting. It is checked when it is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attr

from reimzul.core.errors import ConfigError

SHIPPED = Path(__file__).with_name("arches.yml")
NOARCH = "noarch"
_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,31}\Z")


class ArchLimits(Protocol):
    """What a source rpm's header says of arches."""

    @property
    def exclusive_arch(self) -> tuple[str, ...]:
        """ExclusiveArch; a macro that the packager's host did not know stays in it as it was written."""

    @property
    def exclude_arch(self) -> tuple[str, ...]:
        """ExcludeArch, likewise."""

    @property
    def build_archs(self) -> tuple[str, ...]:
        """BuildArch of the main package, likewise."""


@attr.frozen(kw_only=True)
class Arch:
    """One arch that may be submitted."""

    name: str
    tube: str  #: the tube its requests travel in
    follows: tuple[str, ...] = ()  #: arches built beside it, from the same request
    accepts: tuple[str, ...] = ()  #: what a package may call it, beside its own name


@attr.frozen(kw_only=True)
class Arches:
    """The whole table."""

    known: Mapping[str, Arch]
    serves: Mapping[str, tuple[str, ...]]  #: machine (uname -m) -> tubes watched beside its own
    noarch_last: frozenset[str]  #: packages that end with a noarch leg

    def tube_of(self, arch: str) -> str:
        """The tube of a known arch."""
        return self.known[arch].tube

    def tubes(self) -> list[str]:
        """Every tube that carries requests, in the table's order."""
        return list(dict.fromkeys(arch.tube for arch in self.known.values()))

    def tubes_of_machine(self, machine: str) -> list[str]:
        """The tubes that a builder of this machine watches, its own first."""
        return [machine, *self.serves.get(machine, ())]

    def legs_of(self, arch: str, package: str) -> tuple[str, ...]:
        """The arches one request is built for: its own, those that follow, noarch for the few that end with it."""
        last = (NOARCH,) if package in self.noarch_last and arch != NOARCH else ()
        return (arch, *self.known[arch].follows, *last)

    def exclusion_reason(self, arch: str, header: ArchLimits) -> str | None:
        """Why a package that limits its arches so is not built for `arch`; None where it is.

        A noarch package may be allowed by `noarch` in its ExclusiveArch, as rpmbuild reads it. A tag that allows `arch`
        only if an unexpanded macro does forbids nothing: the macro may be known in mock's buildroot.
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

    def exclusion_doubt(self, arch: str, header: ArchLimits) -> str:
        """The tags whose unexpanded macros decide whether a package is built for `arch`, in words; else nothing."""
        names = {arch, NOARCH, *self.known[arch].accepts}
        tags = {"ExclusiveArch": header.exclusive_arch, "BuildArch": header.build_archs}
        doubtful = {tag: words for tag, words in tags.items() if not names & set(words)}
        macros = {tag: find_macros(words) for tag, words in {**doubtful, "ExcludeArch": header.exclude_arch}.items()}
        return ", ".join(f"{tag} has {' '.join(found)}" for tag, found in macros.items() if found)


def find_macros(words: Sequence[str]) -> list[str]:
    """The words of a tag with a macro that rpmbuild did not expand, as `%{zig_arches}`."""
    return [word for word in words if "%" in word]


def _excludes_all(words: Sequence[str], names: set[str]) -> bool:
    """Whether a tag that lists the allowed arches allows none of `names`, whatever its macros expand to."""
    return bool(words) and not names & set(words) and not find_macros(words)


class _NoYaml(Exception):
    """A text that is none."""


def _parse_yaml(text: str) -> Any:
    """What a table says. The parser of YAML is loaded only for one that is not JSON below its comments."""
    try:
        return json.loads("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    except ValueError:
        pass
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _NoYaml(error) from error


def read_arches(path: Path | None = None) -> Arches:
    """The table of `path`, or the shipped one. Raises `ConfigError` that names the fault."""
    path = path or SHIPPED
    try:
        raw = _parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, _NoYaml) as error:
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
