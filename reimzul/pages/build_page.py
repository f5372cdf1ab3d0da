# SPDX-License-Identifier: Apache-2.0
"""The page of a build: the first error of each arch first, then attempts, phases, files and logs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import attr

from reimzul.core.failure_cause import FailureCause, cause_of
from reimzul.core.manifest import File
from reimzul.core.package_change import describe_change
from reimzul.core.store_paths import leg_key
from reimzul.core.validators import make_printable
from reimzul.history import BuildFilter, BuildRecord
from reimzul.history.attempt_logs import LOG_NAMES, LogSource, list_attempts
from reimzul.pages.index import FAILURES
from reimzul.pages.rendering import OutputFile, Rendered, build_path, render_json
from reimzul.pages.sources import STORE_LINKS, PageSources, StoreSilent

#: Records of one build that are read, and files of an arch that are listed; build.json has all.
MAX_LEGS, _MAX_FILES = 50, 100
#: Seconds in which the files of a build that has ended may still be on their way to their place.
_ARRIVAL_SECONDS = 3600.0
#: Seconds until a page without its files is rendered again: they were not there yet, or the store was silent.
_ARRIVAL_POLL_SECONDS, _SILENT_POLL_SECONDS = 20.0, 120.0
#: Not linked: versions before 0.2 put repositories' passwords into it.
_UNLINKED = ("mock.cfg",)


@attr.frozen(kw_only=True)
class AttemptLogs:
    """An attempt and the links to its logs."""

    source: LogSource
    folders: Sequence[str]  #: where its logs are or will be, the likeliest first

    @property
    def links(self) -> list[tuple[str, str]]:
        return [(name, self.folders[0] + name) for name in LOG_NAMES]


@attr.frozen(kw_only=True)
class LegView:
    leg: BuildRecord
    cause: Optional[FailureCause]
    attempts: Sequence[AttemptLogs]
    usual: Optional[float]
    files: Optional[Sequence[File]]  #: None: it has none in the store
    files_note: str  #: why there are none

    @property
    def change(self) -> str:
        return describe_change(self.leg)

    @property
    def error_lines(self) -> Iterator[tuple[str, bool]]:
        """Yield the lines of the first error, and whether each is the cause."""
        cause = make_printable(self.leg.error_line).strip()
        for line in make_printable(self.leg.first_error).splitlines():
            yield line, bool(cause) and cause in line

    @property
    def listed_files(self) -> Sequence[File]:
        return (self.files or ())[:_MAX_FILES]

    @property
    def unlisted_count(self) -> int:
        return max(0, len(self.files or ()) - _MAX_FILES)

    @property
    def phases(self) -> list[dict[str, Any]]:
        """The phases with the share of the whole that each begins at and takes, in thousandths."""
        known = [each for each in self.leg.phases if each.get("end", 0) >= each.get("start", 0) > 0]
        begin = min((each["start"] for each in known), default=0.0)
        whole = max((each["end"] for each in known), default=0.0) - begin or 1.0
        return [
            {
                "name": each.get("name", ""),
                "seconds": each["end"] - each["start"],
                "from": round(1000 * (each["start"] - begin) / whole),
                "share": max(2, round(1000 * (each["end"] - each["start"]) / whole)),
            }
            for each in known
        ]

    def can_link(self, file: File) -> bool:
        return bool(self.leg.place) and file.name not in _UNLINKED

    def to_dict(self) -> dict[str, Any]:
        cause = {"cause": self.cause.id, "message": self.cause.text} if self.cause else None
        return {
            **self.leg.to_output(),
            "failure": cause,
            "usual": self.usual,
            "over": not self.leg.is_unfinished,
            "files": None if self.files is None else [attr.asdict(each) for each in self.files],
            "logs": [
                {"attempt": each.source.attempt.attempt, "over": each.source.is_over, "folders": list(each.folders)}
                for each in self.attempts
            ],
        }


def render_build(sources: PageSources, build_id: str) -> Rendered | None:
    """Render the page of a build; None if the history does not have it. Raises `HistoryUnavailable`."""
    assert sources.history is not None
    legs = sources.history.find_builds(BuildFilter(build_id=build_id), MAX_LEGS)
    if not legs:
        return None
    legs.sort(key=lambda leg: (not (leg.queued_at or leg.target.endswith(f".{leg.arch}")), leg.arch))
    views = [_make_view(sources, leg) for leg in legs]
    is_pruned = _note_next_check(sources, build_id, views)
    page = sources.renderer.render(
        "build.html",
        build_path(build_id),
        build=legs[0],
        views=views,
        is_pruned=is_pruned,
        has_batch_page=bool(sources.index.find_summary(legs[0].batch)),
        is_live=any(leg.is_unfinished for leg in legs),
        file_link=sources.file_link,
    )
    value = {"build_id": build_id, "made": time.time(), "pruned": is_pruned, "arches": [v.to_dict() for v in views]}
    return Rendered((page, _render_json(build_id, value)), _next_render(views))


def _render_json(build_id: str, value: dict[str, Any]) -> OutputFile:
    return render_json(build_path(build_id, "json"), value)


def _make_view(sources: PageSources, leg: BuildRecord) -> LegView:
    attempts = [
        AttemptLogs(source=each, folders=[*each.kept, each.live] if each.is_over else [each.live, *each.kept])
        for each in list_attempts(leg, STORE_LINKS)
    ]
    files, note = _find_files(sources, leg)
    return LegView(
        leg=leg,
        cause=cause_of(leg) if leg.state in FAILURES else None,
        attempts=attempts,
        usual=sources.usual_duration(leg.package, leg.arch, leg_key(leg.build_id, leg.arch)),
        files=files,
        files_note=note,
    )


def _find_files(sources: PageSources, leg: BuildRecord) -> tuple[Sequence[File] | None, str]:
    if not leg.is_over:
        return None, ""
    try:
        files = sources.store.read_files(leg)
    except StoreSilent:
        return None, "silent"
    if files is not None:
        return files, ""
    if time.time() - leg.at < _ARRIVAL_SECONDS:
        return None, "awaited"
    return None, "pruned" if leg.place or leg.logs_folder or leg.published else "none"


def _note_next_check(sources: PageSources, build_id: str, views: Sequence[LegView]) -> bool:
    """Plan when the store is looked at again for a build that is over; return whether its files are pruned."""
    notes = {view.files_note for view in views}
    if any(view.leg.is_unfinished for view in views) or notes & {"silent", "awaited"}:
        return False
    if any(view.files is not None for view in views):
        sources.index.plan_check(build_id, next_check_time(max(view.leg.at for view in views)))
        return False
    sources.index.plan_check(build_id, 0.0)
    sources.index.mark_pruned(build_id)
    return "pruned" in notes


def next_check_time(ended: float) -> float:
    """Return when the files of a build are looked for again: after a day, of an old build after up to a week."""
    now, day = time.time(), 86400.0
    return now + min(7 * day, max(day, (now - ended) / 10))


def _next_render(views: Sequence[LegView]) -> float | None:
    """Return the seconds until the page is rendered again for files that it lacks: ever longer after the end."""
    waits = [_SILENT_POLL_SECONDS for view in views if view.files_note == "silent"]
    waits += [max(_ARRIVAL_POLL_SECONDS, time.time() - view.leg.at) for view in views if view.files_note == "awaited"]
    return min(waits, default=None)
