# SPDX-License-Identifier: Apache-2.0
"""Graphs of what needs what: components, shortest cycles, orders and chains, each compared with a slow search."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.plan.graph import (
    MAX_RANK,
    find_components,
    find_cycles,
    find_longest_chain,
    find_shortest_cycle,
    measure_chains,
    order_nodes,
    rank_chains,
)

Edges = Mapping[str, set[str]]

nodes = st.sampled_from("abcdefgh")
graphs = st.dictionaries(nodes, st.sets(nodes), max_size=8).map(
    lambda found: {node: found.get(node, set()) for node in {*found, *itertools.chain(*found.values())}}
)
acyclic_graphs = graphs.map(
    lambda found: {node: {need for need in needs if need < node} for node, needs in found.items()}
)


def find_reachable(graph: Edges, start: str) -> set[str]:
    """All that a node needs, directly or through others."""
    found: set[str] = set()
    pending = list(graph[start])
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += graph[node]
    return found


def list_paths(graph: Edges, path: list[str]) -> list[list[str]]:
    """Every path that goes on from this one, to nodes that need its last."""
    followers = [node for node in graph if path[-1] in graph[node]]
    return [path, *(found for node in followers for found in list_paths(graph, [*path, node]))]


@given(graphs)
def test_nodes_of_a_component_need_each_other_and_come_after_those_they_need(graph: Edges) -> None:
    components = find_components(graph)
    assert sorted(node for each in components for node in each) == sorted(graph)
    seen: set[str] = set()
    for each in components:
        seen |= set(each)
        for node in each:
            assert graph[node] <= seen
            mutual = {other for other in find_reachable(graph, node) if node in find_reachable(graph, other)}
            assert mutual | {node} == set(each)


@given(graphs)
def test_a_shortest_cycle_is_one_and_none_is_shorter(graph: Edges) -> None:
    for component in find_cycles(graph):
        cycle = find_shortest_cycle(graph, component)
        assert all(need in graph[node] for node, need in zip(cycle, [*cycle[1:], cycle[0]]))
        assert len(set(cycle)) == len(cycle)
        for count in range(1, len(cycle)):
            for nodes in itertools.permutations(component, count):
                assert not all(need in graph[node] for node, need in zip(nodes, [*nodes[1:], nodes[0]]))


@given(graphs)
def test_every_node_that_needs_itself_in_the_end_is_in_a_cycle(graph: Edges) -> None:
    found = {node for each in find_cycles(graph) for node in each}
    assert found == {node for node in graph if node in find_reachable(graph, node)}


def test_a_node_that_needs_itself_is_shorter_than_two_that_need_each_other() -> None:
    assert find_shortest_cycle({"a": ["b", "c"], "b": ["a"], "c": ["a", "c"]}, "abc") == ["c"]


def test_a_longer_cycle_that_is_found_later_does_not_replace_a_shorter_one() -> None:
    graph = {"a": ["b", "c"], "b": ["a"], "c": ["a", "d"], "d": ["e"], "e": ["c"]}
    assert len(find_shortest_cycle(graph, graph)) == 2


def test_without_a_cycle_there_is_no_shortest() -> None:
    assert find_shortest_cycle({"a": ["b"], "b": []}, ["a", "b"]) == []
    assert find_cycles({"a": ["b"], "b": []}) == []


@given(acyclic_graphs, st.dictionaries(nodes, st.integers(0, 9)))
def test_without_cycles_every_need_is_respected(graph: Edges, urgency: Mapping[str, int]) -> None:
    order = order_nodes(graph, {}, {node: urgency.get(node, 0) for node in graph})
    assert sorted(order) == sorted(graph)
    assert all(order.index(need) < order.index(node) for node in graph for need in graph[node])


@given(graphs, acyclic_graphs, st.dictionaries(nodes, st.integers(0, 9)))
def test_required_needs_are_respected_in_cycles_too(graph: Edges, some: Edges, urgency: Mapping[str, int]) -> None:
    required = {node: graph[node] & some.get(node, set()) for node in graph}
    order = order_nodes(graph, required, {node: urgency.get(node, 0) for node in graph})
    assert sorted(order) == sorted(graph)
    assert all(order.index(need) < order.index(node) for node in graph for need in required[node])


def test_a_cycle_begins_with_its_most_urgent_node() -> None:
    ring = {"a": ["b"], "b": ["c"], "c": ["a"]}
    assert order_nodes(ring, {}, {"a": 1, "b": 3, "c": 2}) == ["b", "a", "c"]
    assert order_nodes(ring, {"b": ["c"]}, {"a": 1, "b": 3, "c": 2}) == ["c", "b", "a"]
    with pytest.raises(ValueError, match="a cycle among the required needs"):
        order_nodes(ring, ring, dict.fromkeys(ring, 0))


@given(acyclic_graphs, st.dictionaries(nodes, st.integers(1, 9)))
def test_the_longest_chain_is_the_longest_path(graph: Edges, seconds: Mapping[str, int]) -> None:
    weights = {node: float(seconds.get(node, 1)) for node in graph}
    chains = measure_chains(graph, weights)
    for node in graph:
        assert chains[node] == max(sum(weights[each] for each in path) for path in list_paths(graph, [node]))
    longest = find_longest_chain(graph, chains)
    assert sum(weights[node] for node in longest) == max(chains.values(), default=0)
    assert all(need in graph[node] for need, node in zip(longest, longest[1:]))


def test_chains_of_a_cycle_are_refused() -> None:
    with pytest.raises(ValueError, match="without cycles"):
        measure_chains({"a": ["b"], "b": ["a"], "c": ["a"], "d": ["c"]}, dict.fromkeys("abcd", 1))


def test_the_most_urgent_of_those_that_need_nothing_come_first() -> None:
    assert order_nodes({"a": [], "b": [], "c": []}, {}, {"a": 1, "b": 3, "c": 2}) == ["b", "c", "a"]


def test_ranks_are_relative_to_the_longest_chain() -> None:
    assert rank_chains({"a": 200.0, "b": 100.0, "c": 0.0}) == {"a": 0, "b": 2048, "c": MAX_RANK}
    assert rank_chains({"a": 0.0}) == {"a": MAX_RANK}
    assert rank_chains({}) == {}


def test_a_graph_deeper_than_pythons_stack_is_no_problem() -> None:
    ring = {f"{number:05}": [f"{(number + 1) % 20_000:05}"] for number in range(20_000)}
    assert [len(each) for each in find_components(ring)] == [20_000]
    assert len(find_shortest_cycle(ring, ring)) == 20_000
    chain = {**ring, "19999": []}
    assert max(measure_chains(chain, dict.fromkeys(chain, 1.0)).values()) == 20_000
