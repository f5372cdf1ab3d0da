# SPDX-License-Identifier: Apache-2.0
"""Atom feeds of failures, and badges: what a project shows of its package on its own page."""

from __future__ import annotations

from typing import Any

from reimzul.history.build_record import BuildState
from reimzul.pages.index import FAILURES, BuildRow
from reimzul.pages.rendering import Rendered, page_path
from reimzul.pages.sources import PageSources

_MAX_ENTRIES = 50
#: States that say how a package is.
_RESULTS = (*FAILURES, BuildState.PUBLISHED, BuildState.BUILT, BuildState.CANCELLED, BuildState.OVERRIDE)
#: The word of a badge and its colour, which white text on it can be read on.
_BADGES = {
    BuildState.PUBLISHED: "#00639c", BuildState.BUILT: "#00639c", BuildState.FAILED: "#a83a00",
    BuildState.REJECTED: "#a83a00",
}  # fmt: skip
#: Width of a character of a badge in pixels, near enough: the text is given its width.
_CHARACTER_WIDTH = 6.5


def render_target_feed(sources: PageSources, name: str) -> Rendered:
    return _render_feed(sources, f"failures of {name}", page_path("feeds", name, "atom"), "target = ?", name)


def render_package_feed(sources: PageSources, name: str) -> Rendered:
    path = page_path("feeds", f"package-{name}", "atom")
    return _render_feed(sources, f"failures of {name}", path, "package = ?", name)


def _render_feed(sources: PageSources, title: str, path: str, where: str, name: str) -> Rendered:
    states = ", ".join("?" * len(FAILURES))
    order = "ORDER BY position DESC"
    rows = sources.index.find_build_rows(
        f"{where} AND state IN ({states})", name, *FAILURES, order=order, limit=_MAX_ENTRIES
    )
    rows.sort(key=lambda row: row.ended, reverse=True)
    updated = rows[0].ended if rows else 0.0
    values: dict[str, Any] = {"title": title, "rows": rows, "updated": updated, "url": sources.url, "name": name}
    return Rendered((sources.renderer.render("feed.xml", path, **values),))


def render_badge(sources: PageSources, name: str) -> Rendered | None:
    """Render the badge of a package, named `<target>/<package>`, by its latest build that is over."""
    target, _, package = name.partition("/")
    states = ", ".join("?" * len(_RESULTS))
    where = f"package = ? AND target = ? AND scratch = 0 AND state IN ({states})"
    rows = sources.index.find_build_rows(where, package, target, *_RESULTS, order="ORDER BY position DESC", limit=20)
    if not rows:
        return None
    row = _pick_worst([each for each in rows if each.build_id == rows[0].build_id])
    label, word = package, row.state
    widths = [round(len(each) * _CHARACTER_WIDTH) + 12 for each in (label, word)]
    colour = _BADGES.get(row.state, "#555555")
    path = page_path(f"badges/{target}", package, "svg")
    values: dict[str, Any] = {"label": label, "word": word, "left": widths[0], "right": widths[1], "colour": colour}
    return Rendered((sources.renderer.render("badge.svg", path, target=target, **values),))


def _pick_worst(legs: list[BuildRow]) -> BuildRow:
    """Return the arch that failed, if one did."""
    return next((each for each in legs if each.state in FAILURES), legs[0])
