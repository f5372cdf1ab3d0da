# SPDX-License-Identifier: Apache-2.0
"""The pages about the whole farm: now, causes, stats and search."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from reimzul.core.formatting import pluralize
from reimzul.core.message import WorkerState
from reimzul.history.build_record import BuildState
from reimzul.history.workers import WorkerRecord
from reimzul.pages.index import FAILURES, SUCCESSES, BuildRow, PageIndex
from reimzul.pages.list_pages import describe_worker, row_to_dict
from reimzul.pages.rendering import OutputFile, Rendered, is_page_name, page_path, render_json
from reimzul.pages.sources import PageSources

#: The name of each page of this module.
FARM = "farm"
#: Rows of each list of the first page, of causes, and builds that are named for a cause.
_MAX_RUNNING, _MAX_RECENT, _MAX_BUILDERS, _MAX_CAUSES, _MAX_EXAMPLES = 100, 20, 150, 100, 5
_MAX_BATCHES = 10
#: Days that causes and stats count.
PERIOD_DAYS = 30
_DAY_SECONDS = 86400
#: Seconds between two renderings of the first page while builds wait or run: it shows for how long.
_MOVING_SECONDS = 10.0
#: Names on a page of all packages.
_NAMES_PER_PAGE = 400
_NEWEST_FIRST = "ORDER BY position DESC"
#: The kinds of names that search finds.
_SEARCHED = ("package", "target", "builder")


def _period_start() -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(time.time() - PERIOD_DAYS * _DAY_SECONDS))


# --- now


def render_now(sources: PageSources, _: str) -> Rendered:
    index, now = sources.index, time.time()
    failures = _find_recent(index, FAILURES)
    targets = [name for name in index.list_names("target") if is_page_name(name)]
    batches = index.list_summaries(is_unfinished=True)
    running = [_describe_running(sources, row, now) for row in _find_state(index, BuildState.BUILDING, _MAX_RUNNING)]
    running.sort(key=lambda each: each["row"].started or now)
    queues = _describe_queues(sources, now)
    busy_tubes = {each["arch"] for each in queues if each["waiting"]}
    workers = [
        {**describe_worker(each, now), **_explain_idleness(each, busy_tubes, now)}
        for each in sorted(sources.processes, key=lambda each: _rank(each, now))
    ]
    values: dict[str, Any] = {
        "running": running,
        "running_count": _count_state(index, BuildState.BUILDING),
        "queues": queues,
        "workers": workers[:_MAX_BUILDERS],
        "worker_count": len(workers),
        "failures": failures,
        "successes": _find_recent(index, SUCCESSES),
        "targets": targets,
        "batches": batches[:_MAX_BATCHES],
        "batch_count": len(batches),
        "outage": sources.outage,
        "followed_at": sources.followed_at,
    }
    page = sources.renderer.render("now.html", "index.html", now=now, **values)
    value = {
        "made": now,
        "history_read": sources.followed_at,
        "problem": sources.outage,
        "building": [_running_to_dict(each) for each in running],
        "batches": batches[:_MAX_BATCHES],
        "queues": queues,
        "builders": workers[:_MAX_BUILDERS],
        "failures": [row_to_dict(row) for row in failures],
        "targets": targets,
    }
    is_moving = running or bool(busy_tubes)
    return Rendered((page, render_json("index.json", value)), _MOVING_SECONDS if is_moving else None)


def _find_state(index: PageIndex, state: str, limit: int) -> list[BuildRow]:
    return index.find_build_rows("state = ?", state, order=_NEWEST_FIRST, limit=limit)


def _count_state(index: PageIndex, state: str) -> int:
    return int(index.select("SELECT count(*) FROM builds WHERE state = ?", state)[0][0])


def _find_recent(index: PageIndex, states: Sequence[str]) -> list[BuildRow]:
    found = [row for state in states for row in _find_state(index, state, 3 * _MAX_RECENT)]
    return sorted(found, key=lambda row: row.ended, reverse=True)[:_MAX_RECENT]


def _describe_running(sources: PageSources, row: BuildRow, now: float) -> dict[str, Any]:
    current = [each.heartbeat.build for each in sources.processes if each.heartbeat.build]
    phases = [each.phase for each in current if each.build_id == row.build_id and each.arch == row.arch]
    usual, elapsed = sources.usual_duration(row.package, row.arch), now - row.started if row.started else None
    share = min(1.0, elapsed / usual) if usual and elapsed is not None else None
    return {"row": row, "phase": phases[0] if phases else "", "elapsed": elapsed, "usual": usual, "share": share}


def _running_to_dict(running: dict[str, Any]) -> dict[str, Any]:
    return {**row_to_dict(running["row"]), **{key: running[key] for key in ("phase", "elapsed", "usual")}}


def _describe_queues(sources: PageSources, now: float) -> list[dict[str, Any]]:
    waiting = {
        tube: (count, oldest)
        for tube, count, oldest in sources.index.select(
            "SELECT tube, count(DISTINCT build_id), min(queued) FROM builds WHERE state = ? GROUP BY tube",
            BuildState.QUEUED,
        )
    }
    workers: defaultdict[str, list[WorkerRecord]] = defaultdict(list)
    for each in sources.live_processes:
        for tube in each.heartbeat.arches if each.is_worker else ():
            workers[tube].append(each)
    return [
        {
            "arch": tube,
            "waiting": waiting.get(tube, (0, 0.0))[0],
            "wait": now - waiting[tube][1] if tube in waiting and waiting[tube][1] else None,
            "workers": len(workers[tube]),
            "free": sum(each.state_at(now) == "idle" for each in workers[tube]),
        }
        for tube in sorted({*waiting, *workers})
    ]


def _explain_idleness(worker: WorkerRecord, busy_tubes: set[str], now: float) -> dict[str, str]:
    """Say why a worker is idle, by what waits in its tubes."""
    sent = worker.heartbeat
    if not worker.is_worker or worker.state_at(now) != WorkerState.IDLE or sent.why:
        return {}
    waiting = sorted(busy_tubes & set(sent.arches))
    if not waiting:
        return {"reason": f"nothing waits for {', '.join(sent.arches) or 'it'}"}
    return {"reason": f"what waits for {', '.join(waiting)} is not due yet, or left to other builders"}


def _rank(worker: WorkerRecord, now: float) -> tuple[bool, bool, str, str]:
    """Order workers: those with a problem first, then those that build."""
    state = worker.state_at(now)
    is_fine = state in ("idle", "building", "busy") and not worker.heartbeat.errors
    return (is_fine, worker.heartbeat.build is None, worker.heartbeat.host, worker.heartbeat.instance)


# --- causes


def render_causes(sources: PageSources, _: str) -> Rendered:
    index, since = sources.index, _period_start()
    rows = index.select(
        "SELECT cause, count(*) AS many, count(DISTINCT package), max(position) FROM builds"
        " WHERE cause <> '' AND position >= ? GROUP BY cause ORDER BY many DESC, cause LIMIT ?",
        since,
        _MAX_CAUSES,
    )
    causes = []
    for cause, builds, packages, _last in rows:
        where, order = "cause = ? AND cause <> '' AND position >= ?", _NEWEST_FIRST
        examples = index.find_build_rows(where, cause, since, order=order, limit=_MAX_EXAMPLES)
        causes.append({"cause": cause, "builds": builds, "packages": packages, "examples": examples})
    failed = int(index.select("SELECT count(*) FROM builds WHERE cause <> '' AND position >= ?", since)[0][0])
    page = sources.renderer.render("causes.html", "causes.html", causes=causes, failed=failed, days=PERIOD_DAYS)
    value = {
        "made": time.time(),
        "days": PERIOD_DAYS,
        "failed": failed,
        "causes": [
            {
                **{key: each[key] for key in ("cause", "builds", "packages")},
                "message": each["examples"][0].why,
                "examples": [{"build_id": row.build_id, "arch": row.arch} for row in each["examples"]],
            }
            for each in causes
        ],
    }
    return Rendered((page, render_json("causes.json", value)))


# --- stats


def render_stats(sources: PageSources, _: str) -> Rendered:
    index, since = sources.index, _period_start()
    days = _count_days(index, since)
    arches = list(_summarize_arches(index, since))
    top = index.select(
        "SELECT package, count(*), sum(duration) FROM builds WHERE position >= ? AND duration IS NOT NULL"
        " GROUP BY package ORDER BY sum(duration) DESC LIMIT 10",
        since,
    )
    packages = [{"package": name, "builds": count, "seconds": total} for name, count, total in top]
    highest = max((each["succeeded"] + each["failed"] + each["other"] for each in days), default=0)
    page = sources.renderer.render(
        "stats.html", "stats.html", days=days, arches=arches, packages=packages, highest=highest, period=PERIOD_DAYS
    )
    value = {"made": time.time(), "days": days, "arches": arches, "packages": packages}
    return Rendered((page, render_json("stats.json", value)))


def _count_days(index: PageIndex, since: str) -> list[dict[str, Any]]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    query = "SELECT substr(position, 1, 8), state, count(*) FROM builds WHERE position >= ? GROUP BY 1, 2"
    for day, state, count in index.select(query, since):
        counts[day][state] += count
    now, days = time.time(), []
    for ago in reversed(range(PERIOD_DAYS + 1)):
        moment = time.gmtime(now - ago * _DAY_SECONDS)
        results = counts[time.strftime("%Y%m%d", moment)]
        succeeded, failed = (sum(results[state] for state in states) for states in (SUCCESSES, FAILURES))
        other = sum(results.values()) - succeeded - failed
        day = {"day": time.strftime("%Y-%m-%d", moment), "succeeded": succeeded, "failed": failed, "other": other}
        days.append(day)
    return days


def _summarize_arches(index: PageIndex, since: str) -> Iterator[dict[str, Any]]:
    query = "SELECT arch, state, duration, wait FROM builds WHERE position >= ?"
    rows: defaultdict[str, list[tuple[str, float | None, float | None]]] = defaultdict(list)
    for arch, *values in index.select(query, since):
        rows[arch].append((values[0], values[1], values[2]))
    for arch, found in sorted(rows.items()):
        durations = sorted(seconds for _, seconds, _ in found if seconds is not None)
        waits = sorted(seconds for _, _, seconds in found if seconds is not None)
        yield {
            "arch": arch,
            "builds": len(found),
            "failed": sum(state in FAILURES for state, _, _ in found),
            "duration": statistics.median(durations) if durations else None,
            "duration_95": durations[int(0.95 * (len(durations) - 1))] if durations else None,
            "wait": statistics.median(waits) if waits else None,
            "wait_95": waits[int(0.95 * (len(waits) - 1))] if waits else None,
        }


# --- search


def render_search(sources: PageSources, _: str) -> Rendered:
    names = {kind: list(filter(is_page_name, sources.index.list_names(kind))) for kind in _SEARCHED}
    files: list[OutputFile] = []
    stale: list[str] = []
    ranges = {}
    for kind, known in names.items():
        chunks = [known[first : first + _NAMES_PER_PAGE] for first in range(0, len(known), _NAMES_PER_PAGE)]
        for number, chunk in enumerate(chunks, 1):
            files += _render_names(sources, kind, number, chunk, is_last=number == len(chunks))
        ranges[kind] = [(_chunk_path(kind, number), chunk) for number, chunk in enumerate(chunks, 1)]
        stale += [_chunk_path(kind, len(chunks) + more, suffix) for more in (1, 2) for suffix in ("html", "json")]
    total = pluralize(sum(map(len, names.values())), "name")
    page = sources.renderer.render("search.html", "search.html", names=names, ranges=ranges, total=total)
    batches = [each["batch"] for each in sources.index.list_summaries()]
    return Rendered((page, render_json("search.json", {**names, "batch": batches}), *files), stale=tuple(stale))


def _render_names(
    sources: PageSources, kind: str, number: int, names: Sequence[str], *, is_last: bool
) -> list[OutputFile]:
    before = _chunk_path(kind, number - 1) if number > 1 else ""
    after = "" if is_last else _chunk_path(kind, number + 1)
    path = _chunk_path(kind, number)
    values = {"kind": kind, "names": names, "before": before, "after": after}
    page = sources.renderer.render("names.html", path, **values)
    return [page, render_json(_chunk_path(kind, number, "json"), {kind: list(names)})]


def _chunk_path(kind: str, number: int, suffix: str = "html") -> str:
    return page_path("search", f"{kind}-{number}", suffix)
