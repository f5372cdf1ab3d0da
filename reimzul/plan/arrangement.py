# SPDX-License-Identifier: Apache-2.0
"""The order of a batch on one arch: cycles are broken where the target allows it, or by seeds.

A need can be dropped if the target satisfies it already: the member is then built against the old build. Seeds are
built first, with a bcond and without the needs that lead into their cycle; the plain build of a seed comes last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attr

from reimzul.plan.document import SEED_SUFFIX
from reimzul.plan.edges import Needs
from reimzul.plan.graph import find_components, find_cycles, find_shortest_cycle, order_nodes, reverse_graph


@attr.frozen(kw_only=True)
class Cycle:
    """Members that need each other."""

    names: Sequence[str]
    dropped: Sequence[tuple[str, str]] = ()  #: the needs that were dropped: who needed whom
    seeds: Sequence[str] = ()
    #: what makes it impossible: the shortest cycle of needs that cannot be dropped, each with its BuildRequires
    blocking: Sequence[tuple[str, str]] = ()


@attr.frozen(kw_only=True)
class Arrangement:
    needs: Mapping[str, Sequence[str]]  #: without cycles; those of impossible cycles are dropped too
    cycles: Sequence[Cycle]


def arrange_sources(needs: Needs, seconds: Mapping[str, float], seeds: Collection[str] = ()) -> Arrangement:
    """Break all cycles, always in the same way. `seconds` are those that the build of each source takes."""
    seeded = [each for each in find_cycles(needs) if not set(each).isdisjoint(seeds)]
    cycles = []
    for component in seeded:
        chosen = sorted(set(component).intersection(seeds))
        needs = _add_seeds(needs, component, chosen)
        cycles.append(Cycle(names=component, seeds=chosen))
    components = find_components(needs)
    urgency = _measure_urgency(needs, components, seconds)
    kept = {name: sorted(found) for name, found in needs.items()}
    cycles += [_break_cycle(needs, each, urgency, kept) for each in components if len(each) > 1]
    return Arrangement(needs=kept, cycles=cycles)


def _add_seeds(needs: Needs, component: Sequence[str], seeds: Sequence[str]) -> Needs:
    """Return the needs with a member more for each seed, against which the others of the cycle are built."""
    inside, changed = set(component), dict(needs)
    for name in component:
        changed[name] = {
            need + SEED_SUFFIX if need in seeds else need: requirement for need, requirement in needs[name].items()
        }
    for seed in seeds:
        outside = {need: requirement for need, requirement in needs[seed].items() if need not in inside}
        changed[seed + SEED_SUFFIX] = outside
    return changed


def _measure_urgency(
    needs: Needs, components: Sequence[Sequence[str]], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Return the seconds of the longest chain that begins with each member and leaves its cycle at once."""
    needed_by = reverse_graph(needs)
    urgency: dict[str, float] = {}
    for component in reversed(components):
        inside = set(component)
        for name in component:
            following = max((urgency[each] for each in needed_by[name] if each not in inside), default=0.0)
            urgency[name] = seconds[name.removesuffix(SEED_SUFFIX)] + following
    return urgency


def _break_cycle(
    needs: Needs, component: Sequence[str], urgency: Mapping[str, float], kept: dict[str, list[str]]
) -> Cycle:
    inside = set(component)
    graph = {name: [need for need in kept[name] if need in inside] for name in component}
    required = {name: [need for need in graph[name] if needs[name][need]] for name in component}
    blocking: list[tuple[str, str]] = []
    for each in find_cycles(required):
        cycle = find_shortest_cycle(required, each)
        if not blocking or len(cycle) < len(blocking):
            blocking = [(name, needs[name][need]) for name, need in zip(cycle, [*cycle[1:], cycle[0]])]
        required.update({name: [need for need in required[name] if need not in each] for name in each})
    position = {name: place for place, name in enumerate(order_nodes(graph, required, urgency))}
    dropped = [(name, need) for name in component for need in graph[name] if position[need] > position[name]]
    for name, need in dropped:
        kept[name].remove(need)
    return Cycle(names=component, dropped=dropped, blocking=blocking)
