# SPDX-License-Identifier: Apache-2.0
"""A builder who attacks what is published: by real uploads to a real rsyncd, published by repogen's own code."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.core.message import RepogenRequest
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import StorePaths
from reimzul.repogen.publish import store_upload
from tests import uploads
from tests.conftest import free_port
from tests.rsyncd import rsyncd
from tests.waiting import until


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return uploads.make_store(tmp_path / "bstore")


@pytest.fixture
def module(store: StorePaths, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    with rsyncd(store.root, port, tmp_path, "rsyncd.conf"):
        yield f"rsync://127.0.0.1:{port}/reimzul-bstore"


def publish_upload(store: StorePaths, asked: RepogenRequest) -> dict[str, bytes]:
    """Publish an upload; what its place has."""
    leg = store_upload(uploads.copier_of(store), asked, CancelToken())
    assert leg
    return content(store.place(leg.place))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_receiver_that_is_still_open_changes_nothing_that_is_published(
    store: StorePaths, module: str, tmp_path: Path
) -> None:
    asked = uploads.upload(store, {}, status="Failed")
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "a-slow-file").write_bytes(b"x" * 200_000)  # rsyncd waits for it in the upload's folder
    (evil / "build.log").write_bytes(b"another log\n")
    argv = ["rsync", "-rtWI", "--bwlimit=8", f"{evil}/", f"{module}/spool/{uploads.spool_of(store, asked).name}/"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as attack:
        try:
            until(lambda: any(uploads.spool_of(store, asked).glob(".a-slow-file*")), 20, "rsyncd receives")
            before = publish_upload(store, asked)
            attack.wait(60)
        finally:
            attack.kill()
    place = next(store.repo.rglob("build.json")).parent
    assert content(place) == before
    assert before["build.log"] == uploads.LOGS["build.log"]


def test_a_file_that_two_uploads_share_is_not_shared_with_what_is_published(
    store: StorePaths, module: str, tmp_path: Path
) -> None:
    asked = uploads.upload(store, {}, status="Failed")
    other = store.spool / "other"
    other.mkdir()
    (other / "build.log").hardlink_to(uploads.spool_of(store, asked) / "build.log")  # were rsyncd to allow it
    before = publish_upload(store, asked)
    (tmp_path / "build.log").write_bytes(b"another log\n")
    argv = ["rsync", "-I", "--inplace", str(tmp_path / "build.log"), f"{module}/spool/other/"]
    assert subprocess.run(argv, check=False).returncode == 4, "it is refused"
    (other / "build.log").write_bytes(b"another log\n")  # were rsyncd to allow it
    assert (other / "build.log").read_bytes() == b"another log\n"
    assert content(next(store.repo.rglob("build.json")).parent) == before
