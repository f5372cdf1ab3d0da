# SPDX-License-Identifier: Apache-2.0
"""What it costs to publish copies of uploads: `python -m bench.publish`.

repogen copies an upload out of the spool, hashes the copy, syncs it and renames it. The floor is the same by hashing,
syncing and renaming the upload itself, which no builder must be able to do anything to.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Callable

import click

from bench.report import Figure, progress, tell
from reimzul.core import fs
from reimzul.core.message import RepogenRequest
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import StorePaths
from reimzul.repogen.copier import UploadCopier
from reimzul.repogen.publish import store_upload
from reimzul.repogen.verify import read_upload, verify_checksum
from tests import uploads

_RUNS = 3


def make_upload(store: StorePaths, count: int, size: int) -> RepogenRequest:
    """An upload of so many logs of so many bytes; packages would measure rpm, not the copy."""
    logs = {f"log-{number}.log": (bytes([number % 251]) * size, "") for number in range(count)}
    return uploads.upload(store, logs, status="Failed")


def publish_copy(store: StorePaths, request: RepogenRequest) -> None:
    store_upload(UploadCopier(store, 10_000, 20_480), request, CancelToken())


def rename_in_place(store: StorePaths, request: RepogenRequest) -> None:
    """What repogen did before it copied: hash, sync and rename the upload itself."""
    spool = uploads.spool_of(store, request)
    manifest = read_upload(spool)
    assert manifest
    for file in manifest.files:
        verify_checksum(spool / file.name, file, CancelToken())
    fs.sync(spool)
    spool.rename(store.repo / spool.name)


def seconds_of(publish: Callable[[StorePaths, RepogenRequest], object], count: int, size: int) -> list[float]:
    values = []
    for _ in range(_RUNS):
        folder = Path(tempfile.mkdtemp(prefix="reimzul-bench-"))
        try:
            store = uploads.make_store(folder)
            request = make_upload(store, count, size)
            began = time.monotonic()
            publish(store, request)
            values.append(time.monotonic() - began)
        finally:
            shutil.rmtree(folder)
    return values


@click.command()
def command() -> None:
    """Publish a large upload and one of many files, and compare each with a rename of the upload itself."""
    figures = []
    for what, count, size in (("1 GiB in one file", 1, 1 << 30), ("1,000 files of 20 KiB", 1000, 20 << 10)):
        progress(what)
        floor = seconds_of(rename_in_place, count, size)
        ours = seconds_of(publish_copy, count, size)
        figures.append(Figure(what=what, unit="s", values=ours, floor=sorted(floor)[_RUNS // 2]))
    tell("publish", figures)


if __name__ == "__main__":
    command()
