# SPDX-License-Identifier: Apache-2.0
"""Makes the members of a plan from its sources, what the target lists and how long builds take."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attr

from reimzul.core.arch import NOARCH, Arches
from reimzul.plan.arrangement import Arrangement, arrange_sources
from reimzul.plan.document import SEED_SUFFIX, Member
from reimzul.plan.edges import CapabilityIndex, PlannedSource, find_needs
from reimzul.plan.graph import measure_chains, rank_chains

#: What ends the disttag of a seed.
SEED_DISTTAG = "~bootstrap"
#: The sha256 of a source rpm that is not in incoming/ yet.
_NO_SHA256 = "0" * 64


@attr.frozen(kw_only=True)
class ArchPlan:
    """The part of a plan that is built on one arch: needs never cross arches."""

    arch: str
    target: str  #: with the arch
    index: CapabilityIndex
    seconds: Mapping[str, float]  #: how long each source takes
    measured: Collection[str]  #: the sources of which that is not a guess
    arrangement: Arrangement

    @property
    def sources(self) -> Mapping[str, PlannedSource]:
        return self.index.sources


def plan_arch(
    arch: str,
    target: str,
    index: CapabilityIndex,
    seconds: Mapping[str, float],
    order: str,
    seeds: Mapping[str, str],
    measured: Collection[str] = (),
) -> ArchPlan:
    """Order the sources of an arch. `seeds`: source -> the bcond that its seed is built with."""
    arrangement = arrange_sources(find_needs(index, order), seconds, seeds)
    return ArchPlan(arch=arch, target=target, index=index, seconds=seconds, measured=measured, arrangement=arrangement)


@attr.frozen(kw_only=True)
class MemberMaker:
    """Makes the members of all arches of a batch."""

    plans: Sequence[ArchPlan]
    known: Arches
    disttag: str
    seeds: Mapping[str, str] = attr.field(factory=dict)  #: source -> the bcond that its seed is built with

    def make_members(self) -> list[Member]:
        """Make all members, with their ranks."""
        chains: dict[str, float] = {}
        for plan in self.plans:
            needs = plan.arrangement.needs
            seconds = {name: plan.seconds[name.removesuffix(SEED_SUFFIX)] for name in needs}
            chains.update((f"{name}.{plan.arch}", chain) for name, chain in measure_chains(needs, seconds).items())
        ranks = rank_chains(chains)
        return [
            self._make_member(plan, name, chains[f"{name}.{plan.arch}"], ranks[f"{name}.{plan.arch}"])
            for plan in self.plans
            for name in plan.arrangement.needs
        ]

    def _make_member(self, plan: ArchPlan, name: str, chain: float, rank: int) -> Member:
        plain = name.removesuffix(SEED_SUFFIX)
        source, listed = plan.sources[plain], plan.index.target.sources.get(plain)
        has_noarch_leg = plain in self.known.noarch_last and plan.arch != NOARCH
        return Member(
            name=name,
            arch=plan.arch,
            target=plan.target,
            srpm=source.srpm,
            srpm_sha256=_NO_SHA256,
            evr=source.evr,
            tube=self.known.tube_of(plan.arch),
            legs=(plan.arch, NOARCH) if has_noarch_leg else (plan.arch,),
            disttag=self.disttag if name == plain else self.disttag + SEED_DISTTAG,
            bconds=() if name == plain else (self.seeds[plain],),
            needs=tuple(f"{need}.{plan.arch}" for need in plan.arrangement.needs[name]),
            provides=tuple(sorted({*source.provides, *(listed.provides if listed else ())})),
            packages=tuple(sorted({*source.provides, *(listed.packages if listed else ())})),
            is_listed=listed is not None,
            seconds=plan.seconds[plain],
            is_measured=plain in plan.measured,
            chain=chain,
            rank=rank,
        )
