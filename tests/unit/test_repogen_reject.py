# SPDX-License-Identifier: Apache-2.0
"""Bad uploads: what follows is known after any crash, asked for once, and ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attr
import pytest

from reimzul.core.arch import read_arches
from reimzul.core.errors import InvalidMessage
from reimzul.core.message import BuildRequest, RepogenRequest, Status
from reimzul.core.store_paths import StorePaths, StoreUrls
from reimzul.repogen.reject import Rejection, RejectionHandler, read_rejection, read_request, reject_upload
from tests import uploads

URLS = StoreUrls("http://localhost:11081/bstore/", "rsync://localhost:11874/reimzul-bstore/")


class Told:
    """Stands for a connection: what was put, and announced."""

    def __init__(self) -> None:
        self.put_into: list[tuple[str, Any]] = []
        self.events: list[Any] = []

    def put(self, tube: Any, message: Any, *, priority: int, delay: int = 0, ttr: int = 120) -> int:
        assert (priority, delay, ttr) == (8192, 0, 120)
        self.put_into.append((tube.name, message))
        return len(self.put_into)

    def first_ready(self, tube: str) -> None:
        """Nothing is cancelled."""

    def announce(self, event: Any) -> None:
        self.events.append(event)


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return uploads.make_store(tmp_path)


@pytest.fixture
def teller(store: StorePaths) -> RejectionHandler:
    return RejectionHandler(store=store, urls=URLS, arches=read_arches(), host="bstore.example.org")


def carried_out(teller: RejectionHandler, message: RepogenRequest, verdict: Rejection) -> Told:
    told = Told()
    teller.handle(told, message, verdict)  # type: ignore[arg-type]
    return told


def bad(of: BuildRequest | None) -> Rejection:
    return Rejection(reason="root.log is not there", requeue=True, request=of)


def test_a_verdict_is_kept_beside_what_was_put_aside(store: StorePaths) -> None:
    asked = uploads.upload(store, {})
    folder = uploads.spool_of(store, asked)
    verdict = bad(read_request(folder, asked.build_id))
    reject_upload(uploads.copier_of(store), folder, folder.name, verdict)
    assert read_rejection(store, folder.name) == verdict
    assert verdict.request
    assert (store.rejected / folder.name / "build.log").exists()
    assert not folder.exists()
    assert read_rejection(store, "another") is None


def test_a_manifest_of_another_build_is_no_request_of_this(store: StorePaths) -> None:
    folder = uploads.spool_of(store, uploads.upload(store, {}))
    assert read_request(folder, "0" * 32) is None
    (folder / "build.json").write_text("junk")
    assert read_request(folder, "0" * 32) is None


def test_a_damaged_note_is_a_verdict_all_the_same(store: StorePaths) -> None:
    (store.rejected / "x.json").write_text("{")
    verdict = read_rejection(store, "x")
    assert verdict
    assert verdict.requeue
    assert "damaged" in verdict.reason


def test_the_build_is_asked_for_again_once_a_round(store: StorePaths, teller: RejectionHandler) -> None:
    of = uploads.request()
    legs = [uploads.upload(store, {}, of=of), uploads.upload(store, {}, of=of, arch="i386")]
    told = [carried_out(teller, leg, bad(of)) for leg in (*legs, *legs)]
    ((tube, again),) = [put for one in told for put in one.put_into]
    assert tube == "x86_64"
    assert again.build_id == of.build_id
    assert len(again.tries) == 1
    assert again.tries[0].builder == "bstore.example.org"
    assert again.tries[0].words.startswith("upload: root.log")
    assert [one.events[0].status for one in told] == [Status.QUEUED] * 4
    assert [one.events[0].arch for one in told] == ["x86_64", "i386"] * 2


def test_after_two_rounds_it_is_given_up(store: StorePaths, teller: RejectionHandler) -> None:
    of = uploads.request().with_failed_attempt("other.example.org", "no disk")
    for _ in range(2):
        told = carried_out(teller, uploads.upload(store, {}, of=of), bad(of))
        ((_, of),) = told.put_into
    told = carried_out(teller, uploads.upload(store, {}, of=of), bad(of))
    assert told.put_into == []
    assert told.events[0].status == Status.REJECTED
    assert "root.log is not there" in told.events[0].reason


def test_what_cannot_be_asked_for_again_is_refused_or_rejected(store: StorePaths, teller: RejectionHandler) -> None:
    asked = uploads.upload(store, {})
    with pytest.raises(InvalidMessage, match="root.log is not there"):
        carried_out(teller, asked, bad(None))
    unknown = uploads.request(arch="vax")
    told = carried_out(teller, uploads.upload(store, {}, of=unknown), bad(unknown))
    assert told.put_into == []
    assert told.events[0].status == Status.REJECTED


def test_the_request_in_the_message_helps_where_the_manifest_is_gone(
    store: StorePaths, teller: RejectionHandler
) -> None:
    of = uploads.request()
    asked = attr.evolve(uploads.upload(store, {}, of=of), request=of)
    told = carried_out(teller, RepogenRequest.decode(asked.encode()), bad(None))
    assert told.put_into[0][1].build_id == of.build_id


def test_what_was_listed_is_taken_out_of_the_repodata(store: StorePaths, teller: RejectionHandler) -> None:
    of = uploads.request()
    verdict = Rejection(reason="unreadable", requeue=False, request=of, regenerate=True)
    told = carried_out(teller, uploads.upload(store, {}, of=of), verdict)
    ((tube, message),) = told.put_into
    assert tube == "createrepo"
    assert message.is_bare
    assert message.target == of.target
    assert told.events[0].status == Status.REJECTED
