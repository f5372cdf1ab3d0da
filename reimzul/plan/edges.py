# SPDX-License-Identifier: Apache-2.0
"""Which sources of a batch need which, on one arch.

A BuildRequires is looked up, by its name alone, in what the headers of the batch's source rpms provide; else in what
the last builds of these sources in the target provide, as automatic provides and files. What nobody provides makes no
edge: the member waits for it when it is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attr

from reimzul.plan.contents import TargetContents, is_rich, list_required_names
from reimzul.plan.document import OrderRule

#: Source -> each source it needs, with a BuildRequires that the target does not satisfy and only the other provides;
#: empty if there is none: then the need can be dropped where it closes a cycle.
Needs = dict[str, dict[str, str]]


@attr.frozen(kw_only=True)
class PlannedSource:
    """A source rpm of a batch, as its header has it."""

    name: str
    srpm: str  #: its file name
    evr: str  #: version-release
    requires: tuple[str, ...] = ()  #: its BuildRequires
    provides: tuple[str, ...] = ()  #: the packages that it builds, by name
    has_dynamic_requires: bool = False


@attr.frozen
class Offer:
    """Who provides a name in a requirement."""

    providers: list[str]  #: sources of the batch
    is_listed: bool  #: whether the target satisfies it already


class CapabilityIndex:
    """Who provides what: the headers of a batch's sources on an arch, and the target."""

    def __init__(self, sources: Mapping[str, PlannedSource], target: TargetContents) -> None:
        self.sources = sources
        self.target = target
        self._by_header: dict[str, list[str]] = {}
        self._offers: dict[str, list[Offer]] = {}
        for source in sources.values():
            for name in dict.fromkeys(source.provides):
                self._by_header.setdefault(name, []).append(source.name)

    def find_providers(self, name: str) -> list[str]:
        """The sources of the batch that provide a capability."""
        by_header = self._by_header.get(name)
        return by_header or [each for each in self.target.find_providers(name) if each in self.sources]

    def find_offers(self, requirement: str) -> list[Offer]:
        """Find who provides each name in a requirement."""
        offers = self._offers.get(requirement)
        if offers is None:  # most requirements are those of many sources
            offers = self._offers[requirement] = [
                Offer(self.find_providers(each), self.target.satisfies(each if is_rich(requirement) else requirement))
                for each in list_required_names(requirement)
            ]
        return offers

    def list_unprovided(self) -> dict[str, list[str]]:
        """The requirements that neither the batch nor the target provides, with the sources that have them."""
        found: dict[str, list[str]] = {}
        for source in self.sources.values():
            for requirement in dict.fromkeys(source.requires):
                offers = () if is_rich(requirement) else self.find_offers(requirement)
                if any(not each.providers and not each.is_listed for each in offers):
                    found.setdefault(requirement, []).append(source.name)
        return found

    def list_names(self) -> set[str]:
        """The names of all capabilities that are provided."""
        return {*self._by_header, *self.target.list_names()}


def find_needs(index: CapabilityIndex, order: str) -> Needs:
    """Return what each source needs, by a rule of `OrderRule`."""
    names = list(index.sources)
    if order == OrderRule.NONE:
        return {name: {} for name in names}
    if order == OrderRule.LISTED:
        return {name: {before: ""} if before else {} for before, name in zip(["", *names], names)}
    direct = {name: _find_build_needs(index, index.sources[name], order) for name in names}
    runtime = {name: _find_runtime_needs(index, name, order) for name in names if name in index.target.sources}
    needs: Needs = {}
    for name, found in direct.items():
        implied = {each for need in found for each in direct[need]}
        more = _find_reachable(found, runtime) - implied - {name}
        needs[name] = {**dict.fromkeys(more, ""), **found}
    return needs


def _find_build_needs(index: CapabilityIndex, source: PlannedSource, order: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for requirement in source.requires:
        for offer in index.find_offers(requirement):
            if offer.is_listed and order == OrderRule.NEEDED:
                continue
            is_required = not offer.is_listed and len(offer.providers) == 1 and not is_rich(requirement)
            for provider in offer.providers:
                if provider != source.name:
                    found[provider] = found.get(provider) or (requirement if is_required else "")
    return found


def _find_runtime_needs(index: CapabilityIndex, name: str, order: str) -> list[str]:
    """The sources that provide what the last build of a source requires at runtime."""
    needed: set[str] = set()
    for required in index.target.sources[name].requires:
        if order == OrderRule.NEEDED and index.target.satisfies(required):
            continue
        needed.update(index.find_providers(required))
    return sorted(needed - {name})


def _find_reachable(start: Iterable[str], graph: Mapping[str, Iterable[str]]) -> set[str]:
    found = set(start)
    pending = list(found)
    while pending:
        for each in graph.get(pending.pop(), ()):
            if each not in found:
                found.add(each)
                pending.append(each)
    return found
