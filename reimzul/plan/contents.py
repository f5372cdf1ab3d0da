# SPDX-License-Identifier: Apache-2.0
"""What a target lists, as a plan needs it: the last build of each source, and what its packages provide and require."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import attr

from reimzul.core.listed_packages import PackageContent
from reimzul.core.rpm_version import Capability, Evr


@attr.define(kw_only=True)
class ListedSource:
    """A build of a source that a target lists."""

    name: str
    evr: Evr
    packages: list[str] = attr.field(factory=list)  #: names of its binary packages
    provides: set[str] = attr.field(factory=set)  #: names of capabilities, and files
    requires: set[str] = attr.field(factory=set)  #: what its binary packages require, by name
    build_requires: tuple[str, ...] = ()  #: of its source rpm, if that is listed
    location: str = ""  #: of its source rpm, relative to the target; empty: not listed

    def add(self, package: PackageContent) -> None:
        if package.is_source:
            self.build_requires, self.location = package.requires, package.location
            return
        self.packages.append(package.name)
        self.provides.update(each.name for each in package.provides)
        self.provides.update(package.files)
        self.requires.update(each.name for text in package.requires for each in list_capabilities(text))


class TargetContents:
    """All that a target lists on one arch."""

    def __init__(self, packages: Iterable[PackageContent] = ()) -> None:
        self.sources: dict[str, ListedSource] = {}  #: the newest build of each
        self.releases: dict[str, set[str]] = {}  #: the version-releases of each source that are listed
        self._provided: dict[str, list[Capability]] = {}
        for package in packages:
            self._add(package)
        self._providers: dict[str, list[str]] = {}
        for source in self.sources.values():
            for name in source.provides:
                self._providers.setdefault(name, []).append(source.name)

    def _add(self, package: PackageContent) -> None:
        name, release = package.source_name, package.source_release
        self.releases.setdefault(name, set()).add(release)
        evr = attr.evolve(Evr.parse(release), epoch=package.evr.epoch)
        known = self.sources.get(name)
        if known is None or evr.compare(known.evr) > 0:
            known = self.sources[name] = ListedSource(name=name, evr=evr)
        if evr.compare(known.evr) == 0:
            known.add(package)
        if not package.is_source:
            for each in package.provides:
                self._provided.setdefault(each.name, []).append(each)
            for file in package.files:
                self._provided.setdefault(file, []).append(Capability(file))

    def find_providers(self, name: str) -> Collection[str]:
        """The sources whose last builds provide a capability, by its name alone."""
        return self._providers.get(name, ())

    def satisfies(self, required: Capability) -> bool:
        """Whether a listed package provides what is required, in that version."""
        return any(required.is_met_by(each) for each in self._provided.get(required.name, ()))

    def list_names(self) -> Collection[str]:
        """The names of all capabilities that are provided."""
        return self._provided.keys()


def is_rich(requirement: str) -> bool:
    """Whether a requirement is a rich dependency, as `(a if b)`."""
    return requirement.startswith("(")


_RICH_OPERATORS = frozenset(("and", "or", "if", "else", "with", "without", "unless"))
_COMPARISONS = frozenset(("<", "<=", "=", ">=", ">"))


def list_capabilities(requirement: str) -> list[Capability]:
    """The capabilities of a requirement: of a rich dependency, each name in it; of one on rpm itself, none."""
    if requirement.startswith("rpmlib("):
        return []
    if not is_rich(requirement):
        return [Capability.parse(requirement)]
    found, is_version = [], False
    for word in requirement.split():
        name = word.lstrip("(")
        while name.endswith(")") and name.count(")") > name.count("("):
            name = name[:-1]
        if name and not is_version and name not in _COMPARISONS and name not in _RICH_OPERATORS:
            found.append(Capability(name))
        is_version = word in _COMPARISONS
    return found
