# SPDX-License-Identifier: Apache-2.0
"""Uploads are copied before anything is believed of them: within limits, where there is room, and one at a time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from reimzul.core import fs
from reimzul.core.errors import RetryLater
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import StorePaths
from reimzul.repogen.publish import archive_logs, store_upload
from reimzul.repogen.reject import Rejection, reject_upload
from reimzul.repogen.verify import UnpublishablePackage
from tests import uploads

LOG = b"x" * (2 << 20)


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return uploads.make_store(tmp_path)


@pytest.fixture
def spool(store: StorePaths) -> Path:
    return uploads.spool_of(store, uploads.upload(store, {}, status="Failed"))


def test_a_copy_has_inodes_of_its_own(store: StorePaths, spool: Path) -> None:
    with uploads.copier_of(store).copied(spool, CancelToken()) as copy:
        for path in copy.iterdir():
            assert path.read_bytes() == (spool / path.name).read_bytes()
            assert path.stat().st_ino != (spool / path.name).stat().st_ino
    assert list(store.publishing.iterdir()) == []


def test_too_many_files_are_refused_unread(store: StorePaths, spool: Path) -> None:
    copier = uploads.copier_of(store, max_files=len(list(spool.iterdir())) - 1)
    with pytest.raises(UnpublishablePackage, match="max_upload_files"), copier.copied(spool, CancelToken()):
        pass


def test_too_many_bytes_are_refused_unread(store: StorePaths, spool: Path) -> None:
    os.truncate(spool / "build.log", 20 << 30)  # it has no room on this disk, and is not read
    copier = uploads.copier_of(store, max_mib=1024)
    with pytest.raises(UnpublishablePackage, match=r"20\.0 GiB, over 1\.0 GiB"), copier.copied(spool, CancelToken()):
        pass


def test_an_upload_over_the_limits_is_rejected_and_its_note_kept(store: StorePaths, spool: Path) -> None:
    (spool / "build.log").write_bytes(LOG)
    reject_upload(uploads.copier_of(store, max_mib=1), spool, spool.name, Rejection(reason="large", requeue=False))
    assert not spool.exists()
    assert (store.rejected / f"{spool.name}.json").exists()
    assert uploads.tree(store.rejected / spool.name) == set()


def test_without_room_the_job_waits(store: StorePaths, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reimzul.repogen.copier._clone", lambda *_: False)
    monkeypatch.setattr(fs.FreeSpace, "measure", lambda folder: fs.FreeSpace(folder=folder, mib=10, inodes=None))
    with (
        pytest.raises(RetryLater, match="no room to publish: disk under"),
        uploads.copier_of(store).copied(spool, CancelToken()),
    ):
        pass
    assert list(store.publishing.iterdir()) == []
    assert spool.exists()


def test_copies_of_the_dead_are_removed_and_those_of_the_living_stay(store: StorePaths, spool: Path) -> None:
    (store.publishing / "dead").mkdir()
    copier = uploads.copier_of(store)
    with copier.copied(spool, CancelToken()) as living, pytest.MonkeyPatch.context() as patch:
        later = time.time() + 3600
        patch.setattr(time, "time", lambda: later)
        copier.remove_abandoned()
        assert list(store.publishing.iterdir()) == [living]


def test_the_upload_of_a_stored_attempt_is_removed_and_not_kept_twice(store: StorePaths) -> None:
    asked = uploads.upload(store, {}, status="Failed")
    spool = uploads.spool_of(store, asked)
    content = {path.name: path.read_bytes() for path in spool.iterdir()}
    assert store_upload(uploads.copier_of(store), asked, CancelToken())
    spool.mkdir()  # as a kill leaves it between the rename and the removal
    for name, body in content.items():
        (spool / name).write_bytes(body)
    assert store_upload(uploads.copier_of(store), asked, CancelToken())
    assert not spool.exists()
    assert uploads.tree(store.attempts) == set()


def test_logs_are_kept_without_links_and_pipes(store: StorePaths, spool: Path) -> None:
    (spool / "evil.log").symlink_to("/etc/passwd")
    os.mkfifo(spool / "pipe.log")
    archive_logs(uploads.copier_of(store), spool)
    assert uploads.tree(store.attempts / spool.name) == {*uploads.LOGS, "build.json"}
    assert not spool.exists()
