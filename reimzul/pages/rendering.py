# SPDX-License-Identifier: Apache-2.0
"""Turns what a page shows into HTML, JSON and XML, and writes files that no reader ever sees half.

All text is escaped, and characters that control a terminal or the direction of text are shown as `?`: names, logs and
reasons come from source rpms, builders and submitters.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.resources
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, Union
from urllib.parse import quote

import attr
import jinja2

from reimzul.core.formatting import (
    format_duration,
    format_rfc3339,
    format_size,
    format_time,
    format_timestamp,
    pluralize,
    to_output,
)
from reimzul.core.validators import make_printable
from reimzul.history.build_record import BuildState
from reimzul.plan.overview import BatchPhase
from reimzul.plan.progress import MemberState

#: How each state of a build, attempt, worker, batch or member is shown beside its word: nobody depends on colours.
_SHAPES = {
    BuildState.PUBLISHED: "●", BuildState.BUILT: "◉", BuildState.FAILED: "▲", BuildState.REJECTED: "■",
    BuildState.CANCELLED: "✕", BuildState.OVERRIDE: "◆", BuildState.BUILDING: "◐", BuildState.QUEUED: "○",
    BuildState.CLAIMED: "◇", "idle": "○", "busy": "◐", "draining": "◧", "drained": "□", "unfit": "▲", "silent": "▽",
    "gone": "✕", "quarantined": "■", "retried": "↻",
    MemberState.HELD: "◌", MemberState.RELEASED: "○", MemberState.WAITING: "◇", MemberState.SKIPPED: "▷",
    BatchPhase.SUBMITTED: "○", BatchPhase.RUNNING: "◐", BatchPhase.PAUSED: "◫", BatchPhase.RESTING: "▲",
    BatchPhase.CANCELLING: "✕", BatchPhase.OVER: "●",
}  # fmt: skip
#: Rows of lists that are kept as they were rendered: a list shows most of its rows again and again. Some 40 MB.
_KEPT_ROWS = 16_384
#: Names that can be those of a page: no folder, nothing hidden, nothing that a file system refuses.
_BUILD_ID = re.compile(r"[0-9a-f]{32}")
_BATCH_ID = re.compile(r"[0-9a-f]{8}")
_PAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~^@:-]{0,150}")


@attr.frozen
class OutputFile:
    path: str  #: relative to the folder of the pages
    text: str


@attr.frozen
class Rendered:
    """What a page consists of: its HTML, the JSON beside it, a feed."""

    files: tuple[OutputFile, ...]
    again_in: Optional[float] = None  #: seconds after which it is rendered again although nothing has changed
    stale: tuple[str, ...] = ()  #: paths of files that it had before, and has no more


def is_page_name(name: str) -> bool:
    """Whether a package, target or builder of this name can have a page; the history may hold any text."""
    return _PAGE_NAME.fullmatch(name) is not None


def is_build_id(text: str) -> bool:
    return _BUILD_ID.fullmatch(text) is not None


def is_batch_id(text: str) -> bool:
    return _BATCH_ID.fullmatch(text) is not None


def page_path(folder: str, name: str, suffix: str = "html") -> str:
    return f"{folder}/{name}.{suffix}"


def build_path(build_id: str, suffix: str = "html") -> str:
    return f"builds/{build_id[:2]}/{build_id}.{suffix}"


class PageRenderer:
    """The templates, and what all pages have in common."""

    def __init__(self, layout: str) -> None:
        """`layout` changes with the templates and the static files, which browsers keep."""
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("reimzul.pages", "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters.update(
            time=format_time,
            timestamp=_timestamp_element,
            duration=_duration_text,
            size=format_size,
            shape=lambda state: _SHAPES.get(state, "◇"),
            count=pluralize,
            path=quote,
            lines=lambda text: make_printable(text).splitlines(),
            rfc3339=format_rfc3339,
        )
        functions = {"build_path": build_path, "page_path": page_path, "is_page_name": is_page_name}
        render_row = functools.lru_cache(_KEPT_ROWS)(self._render_row)
        self._environment.globals.update(functions, layout=layout, render_row=render_row)

    def render(self, template: str, path: str, **values: Any) -> OutputFile:
        """Render a page; `root` leads from its folder to that of all pages."""
        values.setdefault("root", "../" * path.count("/") or "./")
        values.setdefault("made", time.time())
        text = self._environment.get_template(template).render(path=path, **values)
        return OutputFile(path, text)

    def _render_row(self, macro: str, *values: Any) -> str:
        """Render a row of a list by a macro of macros.html."""
        row: str = getattr(self._environment.get_template("macros.html").module, macro)(*values)
        return row


def _finalize(value: Any) -> Any:
    """Make text that is put into a page harmless; what a template has made of it already stays."""
    return make_printable(value) if type(value) is str else value


def _timestamp_element(timestamp: str) -> str:
    return format_timestamp(timestamp) if timestamp else "–"


def _duration_text(seconds: float | None) -> str:
    return "–" if seconds is None else format_duration(seconds)


def render_json(path: str, value: Union[Mapping[str, Any], list[Any]]) -> OutputFile:
    return OutputFile(path, json.dumps(to_output(value), ensure_ascii=True, separators=(",", ":")) + "\n")


def write_files(folder: Path, files: Iterable[OutputFile]) -> None:
    """Write files, each by a rename. They are not synced: the daemon makes them again. Raises `OSError`."""
    for each in files:
        write_file(folder / each.path, each.text)


def write_file(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        try:
            temporary.write_text(text, encoding="utf-8", errors="replace")
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8", errors="replace")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def copy_static_files(folder: Path) -> str:
    """Copy style sheet and scripts into the folder of the pages; return the digest of all that pages are made by."""
    package = importlib.resources.files("reimzul.pages")
    digest = hashlib.sha256()
    for name in ("templates", "static"):
        for each in sorted(package.joinpath(name).iterdir(), key=lambda each: each.name):
            digest.update(each.read_bytes())
            if name == "static":
                write_file(folder / name / each.name, each.read_text(encoding="utf-8"))
    return digest.hexdigest()[:12]
