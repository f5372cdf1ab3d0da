# SPDX-License-Identifier: Apache-2.0
"""Prints a plan: facts apart from estimates, for people, for pipes and as JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attr
import click

from reimzul.core.formatting import find_nearest, format_duration, format_time, pluralize
from reimzul.plan.contents import list_required_names
from reimzul.plan.document import Member
from reimzul.plan.graph import find_longest_chain
from reimzul.plan.maker import ArchPlan
from reimzul.submit.batch_options import BatchOptions
from reimzul.submit.planning import PlanDraft, Span
from reimzul.submit.submission import SubmissionOptions

#: Requirements for which a similar name is looked for, and names that a line lists.
_MAX_MISSPELT, _MAX_LISTED = 200, 12
#: Characters that a misspelt name has in common with the right one, at its beginning or end.
_COMMON_CHARACTERS = 3


@attr.frozen(kw_only=True)
class UnprovidedRequirement:
    """A requirement that neither the batch nor the target provides: another repository has to."""

    requirement: str
    arch: str
    names: Sequence[str]  #: of the source packages that have it
    nearest: str  #: the provided name that is most like it


def list_unprovided(plans: Sequence[ArchPlan]) -> list[UnprovidedRequirement]:
    found = []
    for plan in plans:
        names = plan.index.list_names()
        for number, (requirement, sources) in enumerate(sorted(plan.index.list_unprovided().items())):
            nearest = _find_similar(requirement, names) if number < _MAX_MISSPELT else ""
            found.append(
                UnprovidedRequirement(requirement=requirement, arch=plan.arch, names=sorted(sources), nearest=nearest)
            )
    return found


def _find_similar(requirement: str, names: set[str]) -> str:
    """Return the name that is most like a requirement's, of those that begin or end alike."""
    wanted = list_required_names(requirement)[0]
    beginning, end = wanted[:_COMMON_CHARACTERS], wanted[-_COMMON_CHARACTERS:]
    return find_nearest(wanted, [each for each in names if each.startswith(beginning) or each.endswith(end)])


@attr.frozen(kw_only=True)
class PlanReport:
    """A draft, and what is computed of it to be printed."""

    draft: PlanDraft
    options: SubmissionOptions
    batch: BatchOptions
    now: float = attr.field(factory=time.time)
    spans: Mapping[str, Span] = attr.field(init=False)
    unprovided: Sequence[UnprovidedRequirement] = attr.field(init=False)

    @spans.default
    def _forecast(self) -> Mapping[str, Span]:
        return self.draft.forecast()

    @unprovided.default
    def _list_unprovided(self) -> Sequence[UnprovidedRequirement]:
        return list_unprovided(self.draft.plans)

    @property
    def work_seconds(self) -> float:
        return sum(each.seconds for each in self.draft.members)

    @property
    def longest_chain(self) -> list[str]:
        """The keys of the members of the longest chain."""
        graph = {each.key: each.needs for each in self.draft.members}
        return find_longest_chain(graph, {each.key: each.chain for each in self.draft.members})

    @property
    def seconds(self) -> float | None:
        """How long all of it takes, from now; None if no builder is known for a member."""
        if len(self.spans) < len(self.draft.members):
            return None
        return max(each.end for each in self.spans.values())

    # --- JSON

    def to_output(self) -> dict[str, Any]:
        draft = self.draft
        return {
            "target": self.options.target,
            "arches": list(self.options.arches),
            "order": self.batch.order,
            "scratch": self.options.scratch,
            "possible": not draft.problems,
            "problems": [attr.asdict(each) for each in draft.problems],
            "facts": {
                "builds": [_describe_member(each) for each in draft.members],
                "excluded": [attr.asdict(each) for each in draft.exclusions],
                "unprovided": [{**attr.asdict(each), "names": list(each.names)} for each in self.unprovided],
                "dynamic": sorted(self._list_dynamic()),
                "cycles": list(self._list_cycles()),
                "configured": self._count_configured(),
            },
            "estimates": {
                "builds": [self._estimate_member(each) for each in draft.members],
                "builders": len(draft.capacity.builders),
                "work_seconds": self.work_seconds,
                "chain_seconds": max(each.chain for each in draft.members),
                "longest_chain": self.longest_chain,
                "seconds": self.seconds,
                "end": self.now + self.seconds if self.seconds is not None else 0,
            },
        }

    def _estimate_member(self, member: Member) -> dict[str, Any]:
        span = self.spans.get(member.key)
        return {
            "key": member.key,
            "seconds": member.seconds,
            "chain_seconds": member.chain,
            "start": self.now + span.start if span else 0,
            "end": self.now + span.end if span else 0,
        }

    def _list_dynamic(self) -> set[str]:
        """The source packages whose BuildRequires only their builds compute."""
        sources = (source for plan in self.draft.plans for source in plan.sources.values())
        return {each.name for each in sources if each.has_dynamic_requires}

    def _list_cycles(self) -> Iterator[dict[str, Any]]:
        for plan in self.draft.plans:
            for cycle in plan.arrangement.cycles:
                yield {
                    "arch": plan.arch,
                    "names": list(cycle.names),
                    "seeds": list(cycle.seeds),
                    "dropped": [{"name": name, "need": need} for name, need in cycle.dropped],
                    "blocking": [{"name": name, "requirement": each} for name, each in cycle.blocking],
                }

    def _count_configured(self) -> list[dict[str, Any]]:
        """How many workers have a mock configuration for each target."""
        return [
            {
                "arch": arch,
                "target": target,
                "workers": sum(bool(each.targets and each.targets.may_have(target)) for each in self.draft.workers),
            }
            for arch, target in self.options.targets.items()
        ]

    # --- text

    def print_text(self) -> None:
        """Print the plan for people; in a pipe, a line for each build, with tabs."""
        members = sorted(self.draft.members, key=lambda each: (each.rank, -each.chain, each.key))
        if not sys.stdout.isatty():
            for each in members:
                span = self.spans.get(each.key)
                start, end = (f"{span.start:.0f}", f"{span.end:.0f}") if span else ("", "")
                click.echo("\t".join((each.key, each.target, each.srpm, start, end, " ".join(each.needs))))
            return
        click.echo("\n".join([*self._describe_facts(), "", *self._describe_estimates(), "", *self._table(members)]))

    def _describe_facts(self) -> Iterator[str]:
        draft, members = self.draft, len(self.draft.members)
        yield f"Facts: {pluralize(members, 'build')} of {pluralize(len(draft.sources), 'source package')}"
        for row in self._count_configured():
            yield f"  {row['target']}: {pluralize(row['workers'], 'worker')} with a mock configuration"
        for each in draft.exclusions:
            yield f"  {each.name} is not built for {each.arch}: {each.reason}"
        for plan in draft.plans:
            for cycle in plan.arrangement.cycles:
                yield f"  {_describe_cycle(plan, cycle.names, len(cycle.dropped), cycle.seeds)}"
        if dynamic := self._list_dynamic():
            yield f"  BuildRequires that only the build computes: {_shorten(sorted(dynamic))}"
        for missing in self.unprovided:
            if missing.nearest:
                wanted = f"{_shorten(missing.names)} requires {missing.requirement}, which nothing here provides"
                yield f"  {missing.arch}: {wanted}; is {missing.nearest} meant?"
        others = sorted({each.requirement for each in self.unprovided if not each.nearest})
        if others:
            yield f"  Other repositories of the mock configuration have to provide: {_shorten(others)}"

    def _describe_estimates(self) -> Iterator[str]:
        builders = pluralize(len(self.draft.capacity.builders), "builder")
        yield f"Estimates, with {builders}:"
        yield f"  all builds one after another: {format_duration(self.work_seconds)}"
        chain = max(each.chain for each in self.draft.members)
        yield f"  longest chain: {format_duration(chain)}: {_shorten(self.longest_chain, ' -> ')}"
        if self.seconds is None:
            without = sorted({each.arch for each in self.draft.members if each.key not in self.spans})
            yield f"  end: unknown, no builder of {', '.join(without)} takes jobs"
        else:
            yield f"  end: in {format_duration(self.seconds)}, at {format_time(self.now + self.seconds)}"

    def _table(self, members: Sequence[Member]) -> Iterator[str]:
        rows = [("BUILD", "START", "TAKES", "NEEDS")]
        for each in members:
            span = self.spans.get(each.key)
            start = f"+{format_duration(span.start)}" if span else "-"
            needs = _shorten([need.rpartition(".")[0] for need in each.needs], limit=4)
            rows.append((each.key, start, format_duration(each.seconds), needs or "-"))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]])


def _describe_member(member: Member) -> dict[str, Any]:
    return {
        "key": member.key,
        "name": member.name,
        "arch": member.arch,
        "target": member.target,
        "srpm": member.srpm,
        "evr": member.evr,
        "disttag": member.disttag,
        "bconds": list(member.bconds),
        "arches": list(member.legs),
        "needs": list(member.needs),
        "is_listed": member.is_listed,
        "rank": member.rank,
    }


def _describe_cycle(plan: ArchPlan, names: Sequence[str], dropped: int, seeds: Sequence[str]) -> str:
    where = f"{plan.arch}: a cycle of {pluralize(len(names), 'source package')}: {_shorten(names)}"
    if seeds:
        return f"{where}; {', '.join(seeds)} built first as seed, and again at the end"
    return f"{where}; {pluralize(dropped, 'need')} met by the builds that {plan.target} lists"


def _shorten(names: Sequence[str], separator: str = ", ", limit: int = _MAX_LISTED) -> str:
    more = f"{separator}{len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more
