# SPDX-License-Identifier: Apache-2.0
"""Which members of a batch were built against an old build of another: what was in their buildroots, and what is
published now.

Pure. A package of another member makes a member stale if the target lists a newer one now, by version or, of the same
version, by build time. It does not if both were built since the batch began and are equal but for their versions: the
same provides, requires and files. Without that, members that need each other would be rebuilt in turn for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attr

from reimzul.core.listed_packages import PackageContent
from reimzul.core.rpm_header import compare_versions
from reimzul.plan.state import BatchState


@attr.frozen
class InstalledPackage:
    """A package that was in a buildroot."""

    nevra: str
    name: str
    version: str  #: [epoch:]version-release
    arch: str
    built: int  #: seconds since 1970


def parse_installed(log: str) -> Iterator[InstalledPackage]:
    """Read mock's installed_pkgs.log: a line for each package, with NEVRA and build time first."""
    for line in log.splitlines():
        nevra, _, rest = line.partition(" ")
        built = rest.partition(" ")[0]
        package, dot, arch = nevra.rpartition(".")
        parts = package.rsplit("-", 2)
        if dot and len(parts) == 3 and built.isdigit():
            yield InstalledPackage(nevra, parts[0], f"{parts[1]}-{parts[2]}", arch, int(built))


class PublishedPackages:
    """The packages of a batch's members that a target lists on one arch."""

    def __init__(self, packages: Iterable[PackageContent], sources: Iterable[str]) -> None:
        """`sources`: the names of the members."""
        self._newest: dict[tuple[str, str], PackageContent] = {}
        self._listed: dict[tuple[str, int], PackageContent] = {}
        wanted = frozenset(sources)
        for each in packages:
            if each.source in wanted and not each.is_source:
                self._listed[each.nevra, each.built] = each
                key = (each.name, each.arch)
                if key not in self._newest or _is_newer(each, self._newest[key]):
                    self._newest[key] = each

    def find_stale_reason(self, source: str, installed: Iterable[InstalledPackage], since: float) -> str:
        """Say why a build of a source is stale; empty if it is not. `since`: when the batch began."""
        for package in installed:
            newest = self._newest.get((package.name, package.arch))
            if newest is None or newest.source == source or not _is_newer(newest, package):
                continue
            old = self._listed.get((package.nevra, package.built))
            if old is not None and package.built >= since and _describe_interface(old) == _describe_interface(newest):
                continue
            when = "" if newest.nevra != package.nevra else ", built later,"
            return f"built against {package.nevra}, and {newest.nevra}{when} is published now"
        return ""


def _is_newer(one: PackageContent, other: PackageContent | InstalledPackage) -> bool:
    order = 0 if one.version == other.version else compare_versions(one.version, other.version)
    return order > 0 or (order == 0 and one.built > other.built)


def _describe_interface(package: PackageContent) -> tuple[frozenset[str], ...]:
    """What others can see of a package, without its own version."""

    def normalize(texts: Iterable[str]) -> frozenset[str]:
        return frozenset(text.replace(package.evr, "OWN") for text in texts)

    provides = (f"{each.name} {each.flags} {each.version}" for each in package.provides)
    return normalize(provides), normalize(package.requires), frozenset(package.files)


def find_last_pass(state: BatchState) -> int:
    """Return the number of the last pass of settle, which ends the disttags of its builds; 0 if there was none."""
    suffixes = (
        progress.disttag[len(progress.member.disttag) + 1 :]
        for progress in state.members.values()
        if progress.disttag.startswith(f"{progress.member.disttag}.")
    )
    return max((int(each) for each in suffixes if each.isdigit()), default=0)
