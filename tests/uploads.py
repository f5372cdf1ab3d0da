# SPDX-License-Identifier: Apache-2.0
"""Uploads as a worker leaves them in the spool, and dying at a chosen step of what is done with them."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable

import pytest

from reimzul.core import fs
from reimzul.core.beanstalk import Broker, ReservedJob
from reimzul.core.manifest import File, Manifest
from reimzul.core.message import BuildRequest, RepogenRequest, Status, new_attempt, new_build_id
from reimzul.core.rpm_header import Header
from reimzul.core.store_paths import MANIFEST, StorePaths, spool_name
from reimzul.repogen.copier import UploadCopier
from reimzul.store import repodata

LOGS = {"build.log": b"+ make\n", "root.log": b"installed\n", "state.log": b"done\n"}
TARGET = "c7.1708.u.x86_64"


def make_store(root: Path) -> StorePaths:
    """A store with all its folders."""
    store = StorePaths(root)
    fs.create_store_dirs(store)
    return store


def copier_of(store: StorePaths, *, max_files: int = 10_000, max_mib: int = 1024) -> UploadCopier:
    """The copier of uploads from a store's spool."""
    return UploadCopier(store, max_files, max_mib)


def request(**changed: Any) -> BuildRequest:
    """A request of a new build."""
    said = {
        "srpm": "hello-1-1.src.rpm", "arch": "x86_64", "target": TARGET, "disttag": ".el7", "submitter": "arrfab",
        "build_id": new_build_id(), "timestamp": "20240102030405",
    }  # fmt: skip
    return BuildRequest(**{**said, **changed})


def upload(
    store: StorePaths,
    rpms: Mapping[str, tuple[bytes, str]],
    *,
    of: BuildRequest | None = None,
    arch: str = "x86_64",
    status: str = Status.SUCCESS,
    pkgname: str = "hello",
    evr: str = "1-1",
) -> RepogenRequest:
    """Put a leg into the spool: logs, packages by name (content and NEVRA), a manifest; what asks for it."""
    asked = of or request()
    contents = {**LOGS, **{name: content for name, (content, _) in rpms.items()}}
    files = [
        File(
            name=name,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            nevra=rpms[name][1] if name in rpms else "",
        )
        for name, content in sorted(contents.items())
    ]
    manifest = Manifest(
        request=asked, arch=arch, attempt=new_attempt(), status=status, pkgname=pkgname, evr=evr,
        builder_fqdn="builder1.example.org", started=1.0, finished=2.0, exit_code=0, files=tuple(files),
    )  # fmt: skip
    folder = store.spool / spool_name(asked.build_id, arch, manifest.attempt)
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / MANIFEST).write_text(manifest.to_text())
    return RepogenRequest(
        target=asked.target,
        build_id=asked.build_id,
        arch=arch,
        attempt=manifest.attempt,
        place=manifest.place(),
        index=status == Status.SUCCESS and not asked.scratch,
    )


def list_all(store: StorePaths, target: str = TARGET) -> None:
    """Write repodata that list every package in a target, real or not."""
    folder = store.target(target) / "repodata"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        f'<package><checksum pkgid="YES">{hashlib.sha256(path.read_bytes()).hexdigest()}</checksum>'
        f'<location href="{path.relative_to(folder.parent)}"/></package>'
        for path in sorted(folder.parent.rglob("*.rpm"))
    ]
    (folder / "primary.xml").write_text(f'<metadata packages="{len(rows)}">{"".join(rows)}</metadata>')
    (folder / "repomd.xml").write_text('<repomd><data type="primary"><location href="primary.xml"/></data></repomd>')


def header_of(path: Path, **changed: Any) -> Header:
    """The header that a package has by its file name, built from the source rpm of hello."""
    name, version, release = path.name.rpartition(".")[0].rpartition(".")[0].rsplit("-", 2)
    arch = path.name.split(".")[-2]
    said = {
        "name": name, "epoch": None, "version": version, "release": release, "arch": arch,
        "is_source": arch in ("src", "nosrc"), "source_rpm": "hello-1-1.src.rpm",
    }  # fmt: skip
    return Header(**{**said, **changed})


def spool_of(store: StorePaths, asked: RepogenRequest) -> Path:
    """The folder an upload lies in."""
    return store.spool / spool_name(asked.build_id, asked.arch, asked.attempt)


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a manifest says."""
    said = json.loads((folder / MANIFEST).read_text())
    change(said)
    (folder / MANIFEST).write_text(json.dumps(said))


def tree(folder: Path) -> set[str]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


class Died(BaseException):
    """The process ends here: no handler of ours may see it, as none sees SIGKILL."""


class Steps:
    """Counts every step that leaves something behind, and dies before or after the given one."""

    STEPS = (
        (os, "rename"), (os, "unlink"), (os, "fsync"), (os, "mkdir"), (repodata, "exchange_names"),
        (pathlib.Path, "replace"), (pathlib.Path, "symlink_to"), (Broker, "put_raw"), (ReservedJob, "delete"),
    )  # fmt: skip

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.die_at, self.after = 0, -1, False
        for owner, name in self.STEPS:
            patch.setattr(owner, name, self._count(getattr(owner, name)))

    def _count(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*words: Any, **more: Any) -> Any:
            self.count += 1
            here = self.count == self.die_at
            if here and not self.after:
                raise Died
            try:
                return step(*words, **more)
            finally:
                if here:
                    raise Died

        return counted

    def deaths(self, whole: Callable[[], object]) -> Iterator[int]:
        """Run it once to the end, then die before and after each step; set up again for each."""
        whole()
        steps = self.count
        assert steps
        for step in range(1, steps + 1):
            for after in (False, True):
                self.count, self.die_at, self.after = 0, step, after
                yield step

    def live(self) -> None:
        """Die no more."""
        self.die_at = -1
