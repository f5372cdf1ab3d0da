# SPDX-License-Identifier: Apache-2.0
"""The spool looked through: what is taken up, what is put aside, what is removed, what is left alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from reimzul.core.message import RepogenRequest
from reimzul.core.store_paths import MANIFEST, StorePaths
from reimzul.repogen.verify import UNREQUESTED_SECONDS, IncompleteUpload, SpoolEntry, UnknownUpload, scan_spool
from tests import uploads

DAY = 86400


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return uploads.make_store(tmp_path)


def scan_later(store: StorePaths, later: float) -> list[SpoolEntry]:
    """What is found `later` seconds from now: ctimes cannot be set, so the clock is moved."""
    return list(scan_spool(store, 7, time.time() + later))


def test_a_whole_upload_is_left_to_its_worker_for_a_while(store: StorePaths) -> None:
    uploads.upload(store, {})
    assert scan_later(store, UNREQUESTED_SECONDS - 60) == []


@pytest.mark.parametrize("scratch", [True, False])
def test_a_whole_upload_nobody_asks_for_is_taken_up_as_if_asked_for(store: StorePaths, scratch: bool) -> None:
    asked = uploads.upload(store, {}, of=uploads.request(scratch=scratch))
    for later in (UNREQUESTED_SECONDS + 1, 30 * DAY):
        assert scan_later(store, later) == [asked]
    assert uploads.spool_of(store, asked).exists()


def test_an_upload_never_completed_is_removed_after_days(store: StorePaths) -> None:
    folder = uploads.spool_of(store, uploads.upload(store, {}))
    (folder / MANIFEST).unlink()
    (store.spool / "file").write_text("")
    assert scan_later(store, 7 * DAY - 60) == []
    assert scan_later(store, 7 * DAY + 1) == [IncompleteUpload(name=name) for name in sorted((folder.name, "file"))]
    assert list(store.spool.iterdir()) == []


def test_an_upload_nobody_can_read_is_strange(store: StorePaths) -> None:
    folder = uploads.spool_of(store, uploads.upload(store, {}))
    (folder / MANIFEST).write_text("{")
    assert scan_later(store, 0) == []
    (strange,) = scan_later(store, UNREQUESTED_SECONDS + 1)
    assert isinstance(strange, UnknownUpload)
    assert strange.folder == folder
    assert "build.json" in strange.reason


def test_a_link_in_the_spool_is_not_followed(store: StorePaths) -> None:
    uploads.spool_of(store, uploads.upload(store, {})).rename(store.root / "elsewhere")
    (store.spool / "link").symlink_to(store.root / "elsewhere")
    (strange,) = scan_later(store, 30 * DAY)
    assert isinstance(strange, UnknownUpload)
    assert strange.folder == store.spool / "link"


@pytest.mark.parametrize("name", ["x", "x.x86_64.1-00000000", f"{'0' * 32}.x86_64", f"{'0' * 32}.x86_64.1-00000000.2"])
def test_a_folder_with_no_name_of_ours_is_strange(store: StorePaths, name: str) -> None:
    folder = uploads.spool_of(store, uploads.upload(store, {}))
    folder.rename(store.spool / name)
    (strange,) = scan_later(store, UNREQUESTED_SECONDS + 1)
    assert isinstance(strange, UnknownUpload)


def test_a_name_that_is_not_the_manifests_is_asked_for_and_fails_there(store: StorePaths) -> None:
    asked = uploads.upload(store, {})
    uploads.spool_of(store, asked).rename(store.spool / f"{'0' * 32}.x86_64.1-00000000")
    (request,) = scan_later(store, UNREQUESTED_SECONDS + 1)
    assert isinstance(request, RepogenRequest)
    assert request.build_id == "0" * 32
