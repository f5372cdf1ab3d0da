# SPDX-License-Identifier: Apache-2.0
"""What a target lists, as a plan needs it: the last build of each source, and what its packages provide and require."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import attr

from reimzul.core.capability import Provide, is_satisfied, list_names
from reimzul.core.listed_packages import PackageContent
from reimzul.core.rpm_header import compare_versions


@attr.define(kw_only=True)
class ListedSource:
    """A build of a source that a target lists."""

    name: str
    epoch: str
    evr: str  #: version-release
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
        self.requires.update(each for text in package.requires for each in list_required_names(text))

    @property
    def version(self) -> str:
        """epoch:version-release."""
        return f"{self.epoch}:{self.evr}"


class TargetContents:
    """All that a target lists on one arch."""

    def __init__(self, packages: Iterable[PackageContent] = ()) -> None:
        self.sources: dict[str, ListedSource] = {}  #: the newest build of each
        self.releases: dict[str, set[str]] = {}  #: the version-releases of each source that are listed
        self._provided: dict[str, list[Provide]] = {}
        for package in packages:
            self._add(package)
        self._providers: dict[str, list[str]] = {}
        for source in self.sources.values():
            for name in source.provides:
                self._providers.setdefault(name, []).append(source.name)

    def _add(self, package: PackageContent) -> None:
        name, evr = package.source, package.source_evr
        self.releases.setdefault(name, set()).add(evr)
        known = self.sources.get(name)
        version = f"{package.epoch}:{evr}"
        if known is None or (version != known.version and compare_versions(version, known.version) > 0):
            known = self.sources[name] = ListedSource(name=name, epoch=package.epoch, evr=evr)
        if version == known.version:
            known.add(package)
        if not package.is_source:
            for each in package.provides:
                self._provided.setdefault(each.name, []).append(each)
            for file in package.files:
                self._provided.setdefault(file, []).append(Provide(file))

    def find_providers(self, name: str) -> Collection[str]:
        """The sources whose last builds provide a capability, by its name alone."""
        return self._providers.get(name, ())

    def satisfies(self, requirement: str) -> bool:
        """Whether listed packages provide what is required, in that version."""
        return is_satisfied(requirement, self._provided)

    def list_names(self) -> Collection[str]:
        """The names of all capabilities that are provided."""
        return self._provided.keys()


def is_rich(requirement: str) -> bool:
    """Whether a requirement is a rich dependency, as `(a or b)`."""
    return requirement.startswith("(")


def list_required_names(requirement: str) -> list[str]:
    """The names of capabilities in a requirement; of one on rpm itself, none."""
    if is_rich(requirement):
        return list_names(requirement)
    return [] if requirement.startswith("rpmlib(") else [requirement.split(" ", 1)[0]]
