# SPDX-License-Identifier: Apache-2.0
"""The pages of a batch, and the list of all batches.

A batch's own page shows the members that matter most. If it has more members than that, parts list all of them by name.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Callable, Optional

import attr

from reimzul.core.errors import InputError, describe_os_error
from reimzul.core.store_paths import leg_key
from reimzul.pages.farm_pages import FARM
from reimzul.pages.index import PageIndex
from reimzul.pages.rendering import OutputFile, Rendered, page_path, render_json
from reimzul.pages.sources import PageSources
from reimzul.plan import overview
from reimzul.plan.batches import (
    BatchSummary,
    BatchView,
    count_builders,
    describe_phase,
    describe_progress,
    make_view,
    summarize,
    summary_to_dict,
    view_to_dict,
)
from reimzul.plan.overview import BatchPhase, TreeLine, describe_member, sort_members, walk_tree
from reimzul.plan.progress import MemberProgress, MemberState
from reimzul.plan.state import BatchState

log = logging.getLogger(__name__)

#: Members of a batch's page and of a part, and batches of a page of the list.
MAX_MEMBERS, PART_MEMBERS, MAX_BATCHES = 150, 200, 200
#: Members of the longest chain, causes, members that are named for a cause, and members that fail newly.
_MAX_CHAIN, _MAX_CAUSES, _MAX_NAMED, _MAX_NEWLY_FAILING = 12, 20, 6, 50
#: Members of the tree: those that wait for none, and for each of them those that wait for it, down to a depth.
_MAX_ROOTS, _MAX_BELOW, _MAX_DEPTH = 12, 12, 6
#: Seconds between two renderings of a batch that runs: it shows for how long still.
_MOVING_SECONDS = 30.0
#: Seconds until a batch whose files cannot be read is tried again.
_RETRY_SECONDS = 600.0
#: Seconds between two renderings, at least: of a part, the list of batches, the first page, and the names of search.
_PART_PAUSE_SECONDS, _LIST_PAUSE_SECONDS, _NOW_PAUSE_SECONDS, _SEARCH_PAUSE_SECONDS = 60.0, 10.0, 5.0, 60.0


# --- a batch


def render_batch(sources: PageSources, batch: str) -> Rendered | None:
    """Render a batch's own page, and have parts rendered that have changed; None if its files are gone."""
    return _render_state(sources, batch, lambda state: _render_own_page(sources, state))


def _render_state(
    sources: PageSources, batch: str, render: Callable[[BatchState], Optional[Rendered]]
) -> Rendered | None:
    """Render a page from a batch's files; while they cannot be read, it stays as it is."""
    if not sources.index.is_known_batch(batch):
        return None
    try:
        state = sources.batches.read(batch)
    except (InputError, OSError) as error:
        text = describe_os_error(error) if isinstance(error, OSError) else str(error)
        log.warning("the pages of batch %s stay as they are: %s", batch, text)
        return Rendered((), _RETRY_SECONDS)
    return render(state)


def _render_own_page(sources: PageSources, state: BatchState) -> Rendered:
    heartbeats = [each.heartbeat for each in sources.live_processes if each.is_worker]
    view = make_view(state, count_builders(state, heartbeats), _find_newly_failing(sources.index, state))
    linked = set(sources.index.list_builds_of_batch(state.plan.batch))
    _save_summary(sources.index, view)
    parts = _mark_parts(sources, state, linked)
    shown = sort_members(state, state.members.values())[:MAX_MEMBERS]
    causes = overview.group_failures_by_cause(state)
    page = sources.renderer.render(
        "batch.html",
        page_path("batches", state.plan.batch),
        made=view.now,
        view=view,
        plan=state.plan,
        phase=overview.find_phase(state),
        message=describe_phase(state),
        summary=summarize(state),
        done=describe_progress(state),
        targets=sources.index.list_names("target"),
        progress=describe_shares(summarize(state)),
        linked=linked,
        chain=[state.members[key] for key in view.outlook.chain[:_MAX_CHAIN]],
        newly_failing=[state.members[key] for key in (view.newly_failing or ())[:_MAX_NEWLY_FAILING]],
        causes=causes[:_MAX_CAUSES],
        causes_left=max(0, len(causes) - _MAX_CAUSES),
        max_named=_MAX_NAMED,
        tree=_make_tree(view),
        roots_left=max(0, len(overview.find_waited_for(state)) - _MAX_ROOTS),
        rows=[_describe_row(view, each) for each in shown],
        parts=parts,
    )
    value = {"made": view.now, **view_to_dict(view, shown), "parts": parts}
    is_moving = overview.find_phase(state) == BatchPhase.RUNNING or state.counts[MemberState.BUILDING] > 0
    stale = [part_path(state.plan.batch, len(parts) + 1, suffix) for suffix in ("html", "json")]
    files = (page, render_json(page_path("batches", state.plan.batch, "json"), value))
    return Rendered(files, _MOVING_SECONDS if is_moving else None, tuple(stale))


def _find_newly_failing(index: PageIndex, state: BatchState) -> list[str] | None:
    """Return the failed members of a scratch batch whose package was built by its last build before."""
    if not state.plan.scratch:
        return None
    failed = overview.find_failed(state)
    return sorted(each.key for each in failed if index.was_built_before(leg_key(each.build_id, each.member.arch)))


def _describe_row(view: BatchView, progress: MemberProgress) -> dict[str, Any]:
    return {
        "progress": progress,
        "why": describe_member(view.state, progress, view.now),
        "behind": 0 if progress.state == MemberState.HELD else view.state.count_blocked(progress.key),
    }


def describe_shares(summary: BatchSummary) -> list[dict[str, Any]]:
    """Return the parts of a progress bar, with the share of the whole that each begins at and takes, in thousandths."""
    running = sum(summary.counts.get(each, 0) for each in MemberState.RUNNING)
    shares, before = [], 0
    for name, count in (("done", summary.good), ("failed", summary.failed_count), ("running", running)):
        begin, end = (round(1000 * each / max(1, summary.total)) for each in (before, before + count))
        shares.append({"name": name, "count": count, "from": begin, "share": end - begin})
        before += count
    return shares


def _save_summary(index: PageIndex, view: BatchView) -> None:
    """Store what lists show of a batch, and have those pages rendered that show or link it."""
    summary, seconds, batch = summarize(view.state), view.seconds_left, view.state.plan.batch
    value = {
        **summary_to_dict(summary),
        "failed": summary.failed_count,
        "expected_end": 0.0 if seconds is None else view.now + seconds,
        "progress": describe_shares(summary),
    }
    is_new = not index.find_summary(batch)
    with index.transaction():
        index.save_summary(batch, value, is_over=summary.phase == BatchPhase.OVER)
        _mark_lists(index)
        if is_new:
            _mark_builds(index, batch)
            index.mark_due("search", FARM, 0.0, _SEARCH_PAUSE_SECONDS)


def _mark_lists(index: PageIndex) -> None:
    index.mark_due("batches", FARM, 0.0, _LIST_PAUSE_SECONDS)
    index.mark_due("now", FARM, 0.0, _NOW_PAUSE_SECONDS)


def _mark_builds(index: PageIndex, batch: str) -> None:
    """Have the builds of a batch rendered, whose pages link it."""
    for build_id in index.list_builds_of_batch(batch):
        index.mark_due("build", build_id, 0.0, 0.0, is_backlog=True)


def forget_batch(index: PageIndex, batch: str) -> None:
    """Drop a batch whose files are gone, and have its pages removed."""
    summary = index.find_summary(batch)
    index.drop_batch(batch)
    index.mark_due("batch", batch, 0.0, 0.0)
    for number in range(1, _count_parts(summary.get("total", 0)) + 1):
        index.mark_due("batch part", f"{number}/{batch}", 0.0, 0.0)
    _mark_lists(index)
    _mark_builds(index, batch)
    index.mark_due("search", FARM, 0.0, _SEARCH_PAUSE_SECONDS)


# --- who waits for whom


@attr.define
class TreeNode:
    line: TreeLine
    why: str
    nodes: list[TreeNode] = attr.field(factory=list)
    is_cut: bool = False  #: of one that waits for none: more members wait for it than are shown


def _make_tree(view: BatchView) -> list[TreeNode]:
    """Return the members that wait for none, each with the first of those that wait for it."""
    roots: list[TreeNode] = []
    branch: list[TreeNode] = []  #: the node that was added last, below those that it waits for
    left = 0
    for line in walk_tree(view.state):
        if not line.depth:
            if len(roots) == _MAX_ROOTS:
                break
            node, left = TreeNode(line, describe_member(view.state, line.progress, view.now)), _MAX_BELOW
            roots.append(node)
        elif not left or line.depth > _MAX_DEPTH:
            roots[-1].is_cut = True
            continue
        else:
            node, left = TreeNode(line, ""), left - 1
            branch[line.depth - 1].nodes.append(node)
        branch[line.depth :] = [node]
    return roots


# --- all members by name


def part_path(batch: str, number: int, suffix: str = "html") -> str:
    return page_path("batches", f"{batch}-{number}", suffix)


def _count_parts(members: int) -> int:
    return -(-members // PART_MEMBERS) if members > MAX_MEMBERS else 0


def _list_part(state: BatchState, number: int) -> list[MemberProgress]:
    """Return the members of a part; the first has number 1."""
    keys = sorted(state.members)[(number - 1) * PART_MEMBERS : number * PART_MEMBERS]
    return [state.members[key] for key in keys]


def _mark_parts(sources: PageSources, state: BatchState, linked: Collection[str]) -> list[str]:
    """Have those parts rendered that have changed; return the paths of all."""
    batch, count = state.plan.batch, _count_parts(len(state.members))
    with sources.index.transaction():
        for number in range(1, count + 1):
            shown = [(each.key, each.state, each.build_id in linked, each.at) for each in _list_part(state, number)]
            if sources.batches.note_part(batch, number, hash(tuple(shown))):
                sources.index.mark_due("batch part", f"{number}/{batch}", 0.0, _PART_PAUSE_SECONDS)
    return [part_path(batch, number) for number in range(1, count + 1)]


def render_batch_part(sources: PageSources, numbered: str) -> Rendered | None:
    """Render a part of a batch's members, named `<number>/<batch>`."""
    digits, _, batch = numbered.partition("/")
    return _render_state(sources, batch, lambda state: _render_members(sources, state, int(digits)))


def _render_members(sources: PageSources, state: BatchState, number: int) -> Rendered | None:
    batch, count = state.plan.batch, _count_parts(len(state.members))
    if number > count:
        return None
    members = _list_part(state, number)
    around = {
        "before": part_path(batch, number - 1) if number > 1 else "",
        "after": part_path(batch, number + 1) if number < count else "",
    }
    linked = set(sources.index.list_builds_of_batch(batch))
    page = sources.renderer.render(
        "batch_members.html", part_path(batch, number), batch=batch, members=members, linked=linked, **around
    )
    shown = [{"member": each.key, "state": each.state, "build_id": each.build_id, "at": each.at} for each in members]
    return Rendered((page, render_json(part_path(batch, number, "json"), {"batch": batch, **around, "members": shown})))


# --- all batches


def list_path(number: int, suffix: str = "html") -> str:
    """Return the path of a page of the list of batches; the first has the newest."""
    return page_path("batches", f"older-{number}", suffix) if number > 1 else f"batches.{suffix}"


def render_batches(sources: PageSources, _: str) -> Rendered:
    summaries = sources.index.list_summaries()
    pages = [summaries[first : first + MAX_BATCHES] for first in range(0, len(summaries), MAX_BATCHES)] or [[]]
    files = [
        file for number, rows in enumerate(pages, 1) for file in _render_batch_list(sources, number, len(pages), rows)
    ]
    stale = [list_path(len(pages) + 1, suffix) for suffix in ("html", "json")]
    return Rendered(tuple(files), stale=tuple(stale))


def _render_batch_list(
    sources: PageSources, number: int, count: int, rows: Sequence[dict[str, Any]]
) -> Iterator[OutputFile]:
    around = {
        "older": list_path(number + 1) if number < count else "",
        "newer": list_path(number - 1) if number > 1 else "",
    }
    yield sources.renderer.render("batches.html", list_path(number), rows=rows, **around)
    yield render_json(list_path(number, "json"), {**around, "batches": rows})
