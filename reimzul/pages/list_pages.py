# SPDX-License-Identifier: Apache-2.0
"""The pages of a package, a target and a builder: a summary, and a list that is cut into parts.

A list's page has the newest rows, at most `MAX_ROWS`. When it has more, the oldest of them become a part, a page of
their own that changes only if one of its builds does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Union

import attr

from reimzul.core.links import LinkRoots
from reimzul.core.message import WorkerState
from reimzul.history.build_record import BuildState
from reimzul.history.workers import WorkerRecord
from reimzul.pages.index import AttemptRow, BuildRow, PageIndex
from reimzul.pages.rendering import Rendered, page_path, render_json
from reimzul.pages.sources import STORE_LINKS, PageSources, StoreSilent, TargetContent

#: Rows of a page, and of a part that is cut from it.
MAX_ROWS, PART_ROWS = 200, 100
#: Seconds between two looks at what a target lists: so many times as long as the last look took, within bounds.
_CONTENT_FACTOR, _MIN_CONTENT_SECONDS, _MAX_CONTENT_SECONDS = 100.0, 20.0, 600.0
_DAY_SECONDS = 86400
#: After every position.
_END = "\U0010ffff"

Row = Union[BuildRow, AttemptRow]


@attr.frozen(kw_only=True)
class ListKind:
    """A kind of page with a list."""

    kind: str
    folder: str
    template: str
    read: Callable[[PageIndex, str, str, str], Sequence[Row]]  #: the rows between two positions, newest first
    summarize: Callable[[PageSources, str, Sequence[Row]], tuple[dict[str, Any], float | None]]

    def path(self, name: str, number: int, parts: int, suffix: str = "html") -> str:
        """Return the path of a part of a list; the last is the list's own page."""
        if number == parts:
            return page_path(self.folder, name, suffix)
        return page_path(f"{self.folder}/older/{name}", str(number), suffix)


def render_list(kind: ListKind, sources: PageSources, name: str) -> Rendered | None:
    """Render the newest rows, and have parts that are cut now rendered; None if there is nothing to show."""
    parts = sources.index.list_parts(kind.kind, name)
    rows = kind.read(sources.index, name, parts[-1], _END)
    while len(rows) > MAX_ROWS:
        rows = rows[:-PART_ROWS]
        parts.append(rows[-1].position)
        with sources.index.transaction():
            sources.index.add_part(kind.kind, name, len(parts), parts[-1])
            sources.index.mark_due(f"{kind.kind} part", f"{len(parts) - 1}/{name}", 0.0, 0.0, is_backlog=True)
    summary, again_in = kind.summarize(sources, name, rows)
    if not rows and len(parts) == 1 and not summary.get("workers"):
        return None
    return Rendered(_render_files(kind, sources, name, len(parts), len(parts), rows, summary), again_in)


def render_part(kind: ListKind, sources: PageSources, numbered: str) -> Rendered | None:
    """Render an older part of a list, named `<number>/<name>`."""
    digits, _, name = numbered.partition("/")
    number, parts = int(digits), sources.index.list_parts(kind.kind, name)
    if number >= len(parts):
        return None
    rows = kind.read(sources.index, name, parts[number - 1], parts[number])
    return Rendered(_render_files(kind, sources, name, number, len(parts), rows, {}))


def _render_files(
    kind: ListKind,
    sources: PageSources,
    name: str,
    number: int,
    parts: int,
    rows: Sequence[Row],
    summary: dict[str, Any],
) -> tuple[Any, ...]:
    older = kind.path(name, number - 1, parts) if number > 1 else ""
    newer = kind.path(name, number + 1, parts) if number < parts else ""
    path = kind.path(name, number, parts)
    values: dict[str, Any] = {"name": name, "rows": rows, "older": older, "newer": newer, "summary": summary}
    keys = sorted({row.key for row in rows if isinstance(row, AttemptRow)})
    values["builds"] = {row.key: row for row in _find_rows(sources.index, keys)}
    page = sources.renderer.render(kind.template, path, is_head=number == parts, **values)
    value = {
        kind.kind: name,
        "made": time.time(),
        "summary": {key: each for key, each in summary.items() if not key.startswith("_")},
        "older": older,
        "newer": newer,
        "rows": [row_to_dict(row) for row in rows],
    }
    return page, render_json(kind.path(name, number, parts, "json"), value)


def row_to_dict(row: Row) -> dict[str, Any]:
    names = [each.name for each in attr.fields(type(row)) if each.name not in ("key", "position")]
    return {name: getattr(row, name) for name in names}


# --- packages


def _read_package(index: PageIndex, name: str, since: str, until: str) -> Sequence[Row]:
    return _read_builds(index, "package", name, since, until)


def _read_builds(index: PageIndex, column: str, name: str, since: str, until: str) -> list[BuildRow]:
    where = f"{column} = ? AND position >= ? AND position < ?"
    return index.find_build_rows(where, name, since, until, order="ORDER BY position DESC")


def _summarize_package(sources: PageSources, name: str, rows: Sequence[Row]) -> tuple[dict[str, Any], float | None]:
    latest: dict[str, BuildRow] = {}
    for row in rows:
        if isinstance(row, BuildRow) and not row.scratch and row.state not in (BuildState.QUEUED, BuildState.BUILDING):
            latest.setdefault(f"{row.target} {row.arch}", row)
    ordered = [latest[key] for key in sorted(latest)]
    usual = {arch: sources.usual_duration(name, arch) for arch in sorted({row.arch for row in ordered})}
    value = {"latest": [row_to_dict(row) for row in ordered], "_latest": ordered, "usual": usual}
    return value, None


# --- targets


def _read_target(index: PageIndex, name: str, since: str, until: str) -> Sequence[Row]:
    return _read_builds(index, "target", name, since, until)


def _summarize_target(sources: PageSources, name: str, rows: Sequence[Row]) -> tuple[dict[str, Any], float | None]:
    index = sources.index
    newest = index.find_build_rows(
        "target = ? AND state = ?", name, BuildState.PUBLISHED, order="ORDER BY position DESC", limit=1
    )
    published = newest[0].ended if newest else 0.0
    content, read_at, read_again_at = _read_content(sources, name, published)
    repository = LinkRoots(sources.public_url).make_link(f"repo/{name}")
    again_in = max(1.0, read_again_at - time.time()) if published > read_at else None
    value = {
        "last_published": published,
        "packages": None if content is None else content.packages,
        "bytes": None if content is None else content.bytes,
        "since": read_at,
        "repository": repository,
        "_own_repository": STORE_LINKS.target(name),
        "unfinished": sum(row.state in (BuildState.QUEUED, BuildState.BUILDING) for row in rows),
        "failed": sum(row.state == BuildState.FAILED for row in rows),
    }
    return value, again_in


def _read_content(sources: PageSources, target: str, published: float) -> tuple[TargetContent | None, float, float]:
    """Return what a target lists, as far as known, when that was read, and when it may be read again.

    It is read now if it may be out of date.
    """
    key = f"content {target}"
    known = json.loads(sources.index.get_fact(key) or "{}")
    now = time.time()
    if now > known.get("again", 0.0) and published >= known.get("at", 0.0):
        try:
            content = sources.store.read_target(target)
        except StoreSilent:
            content = None
        pause = min(_MAX_CONTENT_SECONDS, max(_MIN_CONTENT_SECONDS, _CONTENT_FACTOR * (time.time() - now)))
        known = {**(attr.asdict(content) if content else {}), "at": now, "again": now + pause}
        sources.index.set_fact(key, json.dumps(known))
    read_at, again = float(known.get("at", 0.0)), float(known.get("again", 0.0))
    if "packages" not in known:
        return None, read_at, again
    return TargetContent(packages=known["packages"], bytes=known["bytes"]), read_at, again


# --- builders


def _read_builder(index: PageIndex, name: str, since: str, until: str) -> Sequence[Row]:
    return index.find_attempt_rows(name, since, until)


def _summarize_builder(sources: PageSources, name: str, rows: Sequence[Row]) -> tuple[dict[str, Any], float | None]:
    month = f"{time.time() - 30 * _DAY_SECONDS:017.3f}"
    counts = sources.index.select(
        "SELECT state, count(*) FROM attempts WHERE builder = ? AND position >= ? GROUP BY state", name, month
    )
    results = dict(counts)
    ended = sum(count for state, count in counts if state not in (BuildState.QUEUED, BuildState.BUILDING))
    faults = results.get("unfit", 0)
    workers = [each for each in sources.processes if each.heartbeat.host == name]
    now = time.time()
    value = {
        "results": results,
        "attempts": ended,
        "faults": faults,
        "fault_rate": faults / ended if ended else None,
        "workers": [describe_worker(each, now) for each in workers],
    }
    return value, None


def _find_rows(index: PageIndex, keys: Sequence[str]) -> Iterator[BuildRow]:
    for first in range(0, len(keys), MAX_ROWS):
        some = keys[first : first + MAX_ROWS]
        yield from index.find_build_rows(f"key IN ({', '.join('?' * len(some))})", *some)


def describe_worker(worker: WorkerRecord, now: float) -> dict[str, Any]:
    """Return what pages show of a worker, repogen or tosign."""
    sent = worker.heartbeat
    build = sent.build
    errors = [f"{each.what}: {each.message}" for each in sent.errors]
    return {
        "builder": sent.host,
        "instance": sent.instance,
        "role": worker.role,
        "state": worker.state_at(now),
        "reason": _find_reason(worker, now),
        "errors": errors,
        "arches": list(sent.arches),
        "heard": worker.last_seen,
        "load": sent.load,
        "free_bytes": sent.free_mib * 1024**2,
        "version": sent.version,
        "build": None
        if build is None
        else {"build_id": build.build_id, "srpm": build.srpm, "target": build.target, "phase": build.phase},
    }


def _find_reason(worker: WorkerRecord, now: float) -> str:
    """Say why a worker builds nothing."""
    sent = worker.heartbeat
    if worker.is_silent(now):
        return "it has sent no heartbeats for over two minutes"
    if sent.build is not None:
        return sent.why
    if sent.state == WorkerState.IDLE:
        return sent.why or ("it waits for a job" if worker.is_worker else "")
    return sent.why


PACKAGES = ListKind(
    kind="package", folder="packages", template="package.html", read=_read_package, summarize=_summarize_package
)
TARGETS = ListKind(
    kind="target", folder="targets", template="target.html", read=_read_target, summarize=_summarize_target
)
BUILDERS = ListKind(
    kind="builder", folder="builders", template="builder.html", read=_read_builder, summarize=_summarize_builder
)
