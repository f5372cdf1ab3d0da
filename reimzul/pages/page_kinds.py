# SPDX-License-Identifier: Apache-2.0
"""The table of pages: which builds each kind shows, how it is rendered, and how soon and how often at most.

A new kind of page is a row here, a function that renders it, and a template.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, Optional

import attr

from reimzul.history.build_record import BuildState
from reimzul.pages import batch_pages, farm_pages, feeds, list_pages
from reimzul.pages.build_page import render_build
from reimzul.pages.farm_pages import FARM
from reimzul.pages.index import FAILURES, AttemptRow, BuildRow, PageIndex
from reimzul.pages.list_pages import BUILDERS, PACKAGES, TARGETS, ListKind
from reimzul.pages.rendering import Rendered, build_path, is_batch_id, is_page_name, page_path
from reimzul.pages.sources import PageSources

_RUNNING = (BuildState.QUEUED, BuildState.BUILDING)


@attr.frozen(kw_only=True)
class BuildChange:
    """A change of a build on an arch."""

    index: PageIndex
    before: Optional[BuildRow]
    after: BuildRow
    attempts: Sequence[AttemptRow]
    has_new_name: bool

    @property
    def is_visible(self) -> bool:
        """Whether lists show something else than before."""
        return self.before != self.after

    @property
    def touches_failures(self) -> bool:
        states = {self.after.state, self.before.state if self.before else ""}
        return self.is_visible and bool(states & set(FAILURES))

    @property
    def touches_results(self) -> bool:
        return self.is_visible and self.after.state not in _RUNNING

    @property
    def builders(self) -> list[str]:
        return list(filter(is_page_name, {each.builder for each in self.attempts}))


@attr.frozen(kw_only=True)
class PageKind:
    render: Callable[[PageSources, str], Optional[Rendered]]  #: None: nothing is to be shown any more
    names: Callable[[BuildChange], Iterable[str]]  #: of the pages that show a change
    paths: Callable[[str], Sequence[str]]  #: of its files, which are removed if it shows nothing any more
    delay: float  #: seconds until a change is shown
    pause: float  #: seconds between two renderings at least
    needs_history: bool = False


def _list_kind(kind: ListKind, names: Callable[[BuildChange], Iterable[str]], pause: float) -> PageKind:
    return PageKind(
        render=functools.partial(list_pages.render_list, kind),
        names=names,
        paths=lambda name: [page_path(kind.folder, name, suffix) for suffix in ("html", "json")],
        delay=5.0,
        pause=pause,
    )


def _part_kind(kind: ListKind, names: Callable[[BuildChange], Iterable[tuple[str, str]]]) -> PageKind:
    """The older parts of a list; a change within the newest part is not theirs."""

    def find_parts(change: BuildChange) -> Iterator[str]:
        for name, position in names(change):
            number = change.index.find_part(kind.kind, name, position)
            if number < len(change.index.list_parts(kind.kind, name)):
                yield f"{number}/{name}"

    return PageKind(
        render=functools.partial(list_pages.render_part, kind),
        names=find_parts,
        paths=lambda name: [f"{kind.folder}/older/{_swap(name)}.{suffix}" for suffix in ("html", "json")],
        delay=10.0,
        pause=60.0,
    )


def _swap(numbered: str) -> str:
    number, _, name = numbered.partition("/")
    return f"{name}/{number}"


def _farm_kind(
    render: Callable[[PageSources, str], Rendered],
    is_touched: Callable[[BuildChange], bool],
    delay: float,
    pause: float,
) -> PageKind:
    return PageKind(
        render=render,
        names=lambda change: [FARM] if is_touched(change) else [],
        paths=lambda _: [],
        delay=delay,
        pause=pause,
    )


def _package_of(change: BuildChange) -> list[str]:
    return [change.after.package] if change.is_visible and is_page_name(change.after.package) else []


def _target_of(change: BuildChange) -> list[str]:
    return [change.after.target] if change.is_visible and is_page_name(change.after.target) else []


def _badge_of(change: BuildChange) -> list[str]:
    names = [*_target_of(change), *_package_of(change)]
    return ["/".join(names)] if len(names) == 2 and change.touches_results and not change.after.scratch else []


def _batch_of_new_build(change: BuildChange) -> list[str]:
    """The batch whose page links a build now, or does no more."""
    return [change.after.batch] if change.before is None and is_batch_id(change.after.batch) else []


def _split(numbered: str) -> tuple[str, int]:
    number, _, name = numbered.partition("/")
    return name, int(number)


PAGE_KINDS: dict[str, PageKind] = {
    "build": PageKind(
        render=render_build,
        names=lambda change: [change.after.build_id],
        paths=lambda build_id: [build_path(build_id, suffix) for suffix in ("html", "json")],
        delay=0.0,
        pause=2.0,
        needs_history=True,
    ),
    "now": _farm_kind(farm_pages.render_now, lambda change: change.is_visible, 0.0, 5.0),
    "package": _list_kind(PACKAGES, _package_of, 20.0),
    "target": _list_kind(TARGETS, _target_of, 20.0),
    "builder": _list_kind(BUILDERS, lambda change: change.builders, 20.0),
    "package part": _part_kind(PACKAGES, lambda change: [(n, change.after.position) for n in _package_of(change)]),
    "target part": _part_kind(TARGETS, lambda change: [(n, change.after.position) for n in _target_of(change)]),
    "builder part": _part_kind(
        BUILDERS, lambda change: [(e.builder, e.position) for e in change.attempts if is_page_name(e.builder)]
    ),
    "target feed": PageKind(
        render=feeds.render_target_feed,
        names=lambda change: _target_of(change) if change.touches_failures or change.has_new_name else [],
        paths=lambda name: [page_path("feeds", name, "atom")],
        delay=5.0,
        pause=60.0,
    ),
    "package feed": PageKind(
        render=feeds.render_package_feed,
        names=lambda change: _package_of(change) if change.touches_failures or change.has_new_name else [],
        paths=lambda name: [page_path("feeds", f"package-{name}", "atom")],
        delay=5.0,
        pause=60.0,
    ),
    "badge": PageKind(
        render=feeds.render_badge,
        names=_badge_of,
        paths=lambda name: [f"badges/{name}.svg"],
        delay=5.0,
        pause=20.0,
    ),
    "batch": PageKind(
        render=batch_pages.render_batch,
        names=_batch_of_new_build,
        paths=lambda batch: [page_path("batches", batch, suffix) for suffix in ("html", "json")],
        delay=0.0,
        pause=5.0,
    ),
    "batch part": PageKind(
        render=batch_pages.render_batch_part,
        names=lambda _: [],  # its batch's page finds out
        paths=lambda name: [batch_pages.part_path(*_split(name), suffix) for suffix in ("html", "json")],
        delay=0.0,
        pause=60.0,
    ),
    "batches": _farm_kind(batch_pages.render_batches, lambda _: False, 0.0, 10.0),
    "causes": _farm_kind(farm_pages.render_causes, lambda change: change.touches_failures, 10.0, 60.0),
    "stats": _farm_kind(farm_pages.render_stats, lambda change: change.touches_results, 30.0, 300.0),
    "search": _farm_kind(farm_pages.render_search, lambda change: change.has_new_name, 5.0, 60.0),
}
