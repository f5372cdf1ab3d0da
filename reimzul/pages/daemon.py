# SPDX-License-Identifier: Apache-2.0
"""The loop of reimzul-pages: looks for changes at most once a second, and renders the pages that show them.

After each round the daemon rests until the round has lasted five times as long as it used a core: it never takes more
than a fifth of one.
Under more changes than that allows, pages are late, and several changes of a page are rendered once.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from reimzul.core.daemon import SdNotify, Stop, handle_signals
from reimzul.core.errors import ConfigError, ReimzulError, describe_os_error
from reimzul.core.formatting import format_time
from reimzul.core.fs import folder_lock
from reimzul.core.links import PublicUrl
from reimzul.core.retry import LogThrottle
from reimzul.core.settings import Settings
from reimzul.history import BuildFilter, History, HistoryUnavailable, NoHistory, open_history
from reimzul.history.workers import WorkerStore
from reimzul.pages.build_page import MAX_LEGS, next_check_time
from reimzul.pages.farm_pages import FARM
from reimzul.pages.follower import BatchFilesFollower, HeartbeatFollower, HistoryFollower
from reimzul.pages.index import DuePage, IndexDamaged, PageIndex, Urgency, remove_index
from reimzul.pages.page_kinds import PAGE_KINDS
from reimzul.pages.rendering import PageRenderer, Rendered, copy_static_files, render_json, write_file, write_files
from reimzul.pages.sources import BatchReader, PageSources, StoreReader, StoreSilent

log = logging.getLogger(__name__)

#: Seconds between two looks for changes, at least; processor seconds that a round takes over changes, and renders.
LOOK_SECONDS, ROUND_SECONDS = 1.0, 0.2
#: What a round renders in turn, and until which part of that time: some pages each time, so that none waits for ever.
_TURNS = ((Urgency.WATCHED, 0.75), (Urgency.FRESH, 0.95), (Urgency.BACKLOG, 1.0), (Urgency.WATCHED, 1.0))
#: How many times as long as its processor time a round lasts, with the rest after it; and seconds that it may last.
_ROUND_FACTOR, _MAX_ROUND_SECONDS = 5.0, 30.0
#: Pages that are taken from the index, and rendered before they are marked.
_RENDER_BATCH = 8
#: Seconds until a page that could not be rendered is tried again; seconds between log lines about what fails.
_RETRY_SECONDS, _LOG_AGAIN_SECONDS = 3600.0, 60.0
#: Seconds between two notes that the daemon is alive, which tell a browser how old the pages are.
_STATUS_SECONDS = 10.0
#: Seconds before a crash of the host in which written pages may be lost: nothing is synced.
_UNSYNCED_SECONDS = 600.0
#: Builds whose files are looked for in the store, a round.
_CHECKS = 3
#: The folder of the index, in that of the pages; no web server offers it.
INDEX_FOLDER = ".index"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class PagesDaemon:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.pages.folder
        self._index_path = self._folder / INDEX_FOLDER / "pages.sqlite"
        self.stop = Stop()
        self._service = SdNotify()
        self._public_url = PublicUrl(settings.bstore)
        self._outage_logs = LogThrottle(_LOG_AGAIN_SECONDS)
        self._status_due = LogThrottle(_STATUS_SECONDS)
        self._history: History | None = None
        self._outage_since = 0.0

    def run(self) -> None:
        """Serve until a signal stops the daemon. Raises `ConfigError`, `IndexUnavailable`."""
        with handle_signals(self.stop):
            while not self.stop.is_requested:
                try:
                    with self.hold_folder():
                        self._serve()
                except IndexDamaged as error:
                    log.error("%s; it is made again from the history", error)
                    remove_index(self._index_path)
        self._service.announce_stop()
        log.info("stopped")

    def _serve(self) -> None:
        self._service.announce_ready("rendering")
        while not self.stop.is_requested:
            began, used = time.monotonic(), time.process_time()
            with self._surviving("the pages cannot be made"):
                self.run_round()
            used = time.process_time() - used
            round_seconds = max(LOOK_SECONDS, min(_MAX_ROUND_SECONDS, _ROUND_FACTOR * used))
            self._rest(round_seconds - (time.monotonic() - began))

    def _rest(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not self.stop.is_requested:
            self._service.ping()
            self.stop.now.wait(min(left, LOOK_SECONDS))

    @contextlib.contextmanager
    def hold_folder(self) -> Iterator[None]:
        """Open the index, and keep a second daemon from writing the same pages."""
        index_folder = self._index_path.parent
        try:
            index_folder.mkdir(parents=True, exist_ok=True)
            with folder_lock(index_folder), contextlib.closing(PageIndex(self._index_path)) as index:
                layout = copy_static_files(self._folder)
                store = StoreReader(self._settings.bstore)
                self.sources = PageSources(
                    renderer=PageRenderer(layout),
                    index=index,
                    store=store,
                    batches=BatchReader(self._settings.incoming.folder),
                    url=self._settings.pages.url,
                )
                self._batch_follower = BatchFilesFollower(index, self.sources.batches)
                self._history_follower = HistoryFollower(index)
                workers = WorkerStore(self._settings.notifier.presence)
                self._heartbeats = HeartbeatFollower(index, workers.load_all)
                self._mark_at_start(index, layout)
                try:
                    yield
                finally:
                    store.close()
                    self._close_history()
        except BlockingIOError:
            raise ConfigError(f"[pages] folder: another reimzul-pages writes to {self._folder}") from None
        except OSError as error:
            raise ConfigError(f"[pages] folder: {self._folder}: {describe_os_error(error)}") from error

    def _mark_at_start(self, index: PageIndex, layout: str) -> None:
        """Have pages rendered that another version has made, or that the last boot may have lost."""
        boot = _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else ""
        with index.transaction():
            if index.get_fact("layout") != layout:
                index.mark_all_due(0.0)
            elif index.get_fact("boot") != boot:
                index.mark_all_due(float(index.get_fact("alive") or 0) - _UNSYNCED_SECONDS)
            index.set_fact("layout", layout)
            index.set_fact("boot", boot)
            for kind in ("now", "batches", "causes", "stats", "search"):
                index.mark_due(kind, FARM, 0.0, 0.0)

    # --- a round

    def run_round(self) -> None:
        """Take over what has changed, and render for a while. Raises `IndexUnavailable`, `OSError`."""
        self.sources.public_url = self._public_url.get()
        is_caught_up = self._follow()
        with self._surviving("the heartbeats cannot be read"):
            self.sources.processes = self._heartbeats.follow()
        with self._surviving("the batches cannot be read"):
            self._batch_follower.follow()
        self._check_store()
        self._render_due(everything=is_caught_up)
        if self._status_due.is_due():
            self._write_status()

    def _follow(self) -> bool:
        """Follow the history; return whether nothing is left to take over."""
        try:
            history, deadline = self._open_history(), time.process_time() + ROUND_SECONDS
            is_caught_up = False
            while not is_caught_up and time.process_time() < deadline:
                is_caught_up = self._history_follower.follow(history)
            if not is_caught_up:
                self._history_follower.look_ahead(history)
            self._history_follower.sweep(history)
        except NoHistory as error:
            is_new_farm = not self.sources.index.select("SELECT 1 FROM builds LIMIT 1")
            self._note_outage("" if is_new_farm else str(error))
            return True
        except HistoryUnavailable as error:
            self._note_outage(str(error))
            return True
        self.sources.followed_at = time.time()
        if self._outage_since:
            self._note_outage("")
        return is_caught_up

    def _open_history(self) -> History:
        """Return the history; a file is opened each time, as the notifier may have replaced it."""
        if self._history is not None and self._history.is_file:
            self._close_history()
        if self._history is None:
            self._history = open_history(self._settings.history.url, reading=True)
        self.sources.history = self._history
        return self._history

    def _close_history(self) -> None:
        if self._history is not None:
            self._history.close()
        self._history = self.sources.history = None

    def _note_outage(self, problem: str) -> None:
        if problem:
            self._close_history()
        if problem and self._outage_logs.is_due():
            log.warning("%s; the pages stay as they are", problem)
        if not problem and self._outage_logs.reset():
            log.info("the history can be read again")
        if bool(problem) != bool(self._outage_since):
            self._outage_since = time.time() if problem else 0.0
            self._status_due.reset()
            self.sources.index.mark_due("now", FARM, 0.0, 0.0)
        self.sources.outage = problem and f"since {format_time(self._outage_since)}: {problem}"

    def _check_store(self) -> None:
        """Look whether the store still has the files of some builds."""
        if self.sources.history is None:
            return
        index = self.sources.index
        for build_id in index.list_checks(_CHECKS):
            with contextlib.suppress(StoreSilent, HistoryUnavailable):
                legs = self.sources.history.find_builds(BuildFilter(build_id=build_id), MAX_LEGS)
                if any(self.sources.store.read_files(leg) is not None for leg in legs):
                    index.plan_check(build_id, next_check_time(max(leg.at for leg in legs)))
                else:
                    index.plan_check(build_id, time.time() + _RETRY_SECONDS)
                    index.mark_due("build", build_id, 0.0, 0.0)
                    index.hasten_checks(build_id)

    # --- rendering

    def _render_due(self, *, everything: bool) -> None:
        """Render pages for a while, the urgent ones first; `everything`: lists are complete, and worth it."""
        is_away = self.sources.history is None
        left_out = {kind for kind, row in PAGE_KINDS.items() if is_away and row.needs_history}
        began = time.process_time()
        for urgency, share in _TURNS:
            if everything or urgency == Urgency.WATCHED:
                self._render_until(began + share * ROUND_SECONDS, urgency, left_out)
        self._service.set_status(f"{self.sources.index.count_due()} pages to be rendered")

    def _render_until(self, deadline: float, urgency: Urgency, without: set[str]) -> None:
        while due := self.sources.index.list_due(urgency, _RENDER_BATCH, without=without):
            self._service.ping()
            self._render_pages(due)
            if time.process_time() >= deadline or self.stop.is_requested:
                break

    def _render_pages(self, due: list[DuePage]) -> None:
        done, later = [], []
        for page in due:
            try:
                rendered = PAGE_KINDS[page.kind].render(self.sources, page.name)
            except HistoryUnavailable as error:
                self._note_outage(str(error))
                break
            except (OSError, ReimzulError):
                raise
            except Exception:  # one bad page stops no other
                log.exception("the %s page of %s cannot be rendered", page.kind, page.name)
                later.append((page, _RETRY_SECONDS))
                continue
            if rendered is None:
                self._remove(page)
                continue
            write_files(self._folder, rendered.files)
            for path in rendered.stale:
                (self._folder / path).unlink(missing_ok=True)
            done.append(page)
            later += self._plan_again(page, rendered)
        self.sources.index.mark_rendered(done)
        for page, seconds in later:
            self.sources.index.postpone(page, seconds)

    @staticmethod
    def _plan_again(page: DuePage, rendered: Rendered) -> list[tuple[DuePage, float]]:
        return [] if rendered.again_in is None else [(page, rendered.again_in)]

    def _remove(self, page: DuePage) -> None:
        """Remove a page that shows nothing any more; no link leads to it once the others are rendered."""
        for path in PAGE_KINDS[page.kind].paths(page.name):
            (self._folder / path).unlink(missing_ok=True)
        index = self.sources.index
        with index.transaction():
            index.drop_page(page.kind, page.name)
            if page.kind in ("package", "target", "builder"):
                index.drop_name(page.kind, page.name)
                index.mark_due("search", FARM, 0.0, PAGE_KINDS["search"].pause)

    def _write_status(self) -> None:
        """Write how old the pages are, for those that were rendered before."""
        status = {
            "made": time.time(),
            "since": self.sources.followed_at,
            "problem": self.sources.outage,
        }
        write_file(self._folder / "status.json", render_json("status.json", status).text)
        self.sources.index.set_fact("alive", str(time.time()))

    @contextlib.contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Log a failure that may be over soon, as of a full disk, and go on."""
        try:
            yield
        except IndexDamaged:
            raise
        except (OSError, ReimzulError) as error:
            text = describe_os_error(error) if isinstance(error, OSError) else str(error)
            if self._outage_logs.is_due():
                log.warning("%s: %s; trying again", what, text)
            self._service.set_note(pages=f"since {format_time(time.time())}: {text}")
        else:
            self._service.set_note(pages="")
