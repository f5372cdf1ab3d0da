# SPDX-License-Identifier: Apache-2.0
"""Graphs of what needs what: components, cycles, an order that respects them, and the longest chains.

A graph maps each node to the nodes it needs. Each function returns the same for the same graph, whatever order its sets
are in, and uses no recursion: a graph may have 100,000 nodes.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping

#: Node -> nodes it needs; each of these is a node too.
Graph = Mapping[str, Collection[str]]
#: The largest rank; 0 is that of the longest chain.
MAX_RANK = 4095


def reverse_graph(graph: Graph) -> dict[str, list[str]]:
    """Return the nodes that need each node."""
    found: dict[str, list[str]] = {node: [] for node in graph}
    for node, needs in graph.items():
        for need in needs:
            found[need].append(node)
    return found


def find_components(graph: Graph) -> list[list[str]]:
    """Return the strong components, sorted, each after those that it needs (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []
    done: set[str] = set()
    for root in sorted(graph):
        if root in index:
            continue
        path: list[tuple[str, Iterator[str]]] = [_visit(root, graph, index, low, stack)]
        while path:
            node, rest = path[-1]
            for need in rest:
                if need not in index:
                    path.append(_visit(need, graph, index, low, stack))
                    break
                if need not in done and index[need] < low[node]:
                    low[node] = index[need]
            else:
                path.pop()
                if path and low[node] < low[path[-1][0]]:
                    low[path[-1][0]] = low[node]
                if low[node] == index[node]:
                    found.append(_pop_component(node, stack, done))
    return found


def _visit(
    node: str, graph: Graph, index: dict[str, int], low: dict[str, int], stack: list[str]
) -> tuple[str, Iterator[str]]:
    index[node] = low[node] = len(index)
    stack.append(node)
    return node, iter(sorted(graph[node]))


def _pop_component(root: str, stack: list[str], done: set[str]) -> list[str]:
    component: list[str] = []
    while not component or component[-1] != root:
        component.append(stack.pop())
    done.update(component)
    return sorted(component)


def find_cycles(graph: Graph) -> list[list[str]]:
    """Return the components in which nodes need each other."""
    return [each for each in find_components(graph) if len(each) > 1 or each[0] in graph[each[0]]]


def find_shortest_cycle(graph: Graph, component: Iterable[str]) -> list[str]:
    """Return a shortest cycle of a component, each node followed by one that it needs; empty if it has none."""
    inside = set(component)
    left = {node: {need for need in graph[node] if need in inside} for node in sorted(inside)}
    needed_by = {node: set(each) for node, each in reverse_graph(left).items()}
    best: list[str] = []
    for node in sorted(left, key=lambda each: (-len(left[each]) * len(needed_by[each]), each)):
        if node not in left:
            continue
        cycle = _find_cycle_through(node, left, len(best) or len(inside) + 1)
        best = cycle or best
        if len(best) == 1:
            break
        _remove_node(node, left, needed_by)
    start = best.index(min(best)) if best else 0
    return best[start:] + best[:start]


def _find_cycle_through(node: str, graph: Mapping[str, Collection[str]], limit: int) -> list[str]:
    """Return a shortest cycle through a node that has fewer than `limit` nodes."""
    came_from: dict[str, str] = {}
    pending = deque([(node, 1)])
    while pending:
        each, length = pending.popleft()
        if length >= limit:
            return []
        for need in sorted(graph[each]):
            if need == node:
                cycle = [each]
                while cycle[-1] != node:
                    cycle.append(came_from[cycle[-1]])
                return cycle[::-1]
            if need not in came_from:
                came_from[need] = each
                pending.append((need, length + 1))
    return []


def _remove_node(node: str, graph: dict[str, set[str]], needed_by: dict[str, set[str]]) -> None:
    """Remove a node, and then all that can be in no cycle any more."""
    pending = [node]
    while pending:
        each = pending.pop()
        if each not in graph:
            continue
        for need in graph.pop(each):
            if need in needed_by:
                needed_by[need].discard(each)
                pending += [] if needed_by[need] else [need]
        for other in needed_by.pop(each):
            if other in graph:
                graph[other].discard(each)
                pending += [] if graph[other] else [other]


def order_nodes(graph: Graph, required: Graph, urgency: Mapping[str, float]) -> list[str]:
    """Return all nodes, each after those it needs; where a cycle prevents that, the most urgent node comes next.

    `required` are the needs that have to be respected; there must be no cycle among them.
    """
    needed_by = reverse_graph(graph)
    unmet = {node: len(set(needs)) for node, needs in graph.items()}
    unmet_required = {node: len(set(required.get(node, ()))) for node in graph}
    free = [(-urgency[node], node) for node, count in unmet.items() if not count]
    possible = [(-urgency[node], node) for node, count in unmet_required.items() if not count]
    heapq.heapify(free)
    heapq.heapify(possible)
    ordered: dict[str, None] = {}
    while len(ordered) < len(graph):
        if not free and not possible:
            raise ValueError("a cycle among the required needs")
        _, node = heapq.heappop(free or possible)
        if node in ordered:
            continue
        ordered[node] = None
        for other in needed_by[node]:
            unmet[other] -= 1
            if not unmet[other]:
                heapq.heappush(free, (-urgency[other], other))
            if node in required.get(other, ()):
                unmet_required[other] -= 1
                if not unmet_required[other]:
                    heapq.heappush(possible, (-urgency[other], other))
    return list(ordered)


def measure_chains(graph: Graph, seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of the longest chain that begins with each node; the graph must have no cycles."""
    needed_by = reverse_graph(graph)
    unmet = {node: len(others) for node, others in needed_by.items()}
    pending = [node for node, count in unmet.items() if not count]
    chains = dict.fromkeys(graph, 0.0)
    count = 0
    while pending:
        node = pending.pop()
        count += 1
        chains[node] += seconds[node]
        for need in graph[node]:
            chains[need] = max(chains[need], chains[node])
            unmet[need] -= 1
            if not unmet[need]:
                pending.append(need)
    if count < len(graph):
        raise ValueError("chains are measured in a graph without cycles")
    return chains


def find_longest_chain(graph: Graph, chains: Mapping[str, float]) -> list[str]:
    """Return the nodes of the longest chain, each needed by the next."""
    needed_by = reverse_graph(graph)
    following: Collection[str] = graph
    found = []
    while following:
        found.append(min(following, key=lambda node: (-chains[node], node)))
        following = needed_by[found[-1]]
    return found


def rank_chains(chains: Mapping[str, float]) -> dict[str, int]:
    """Return the rank of each node, relative to the longest chain of all."""
    longest = max(chains.values(), default=0.0) or 1.0
    return {node: round(MAX_RANK * (1 - chain / longest)) for node, chain in chains.items()}
