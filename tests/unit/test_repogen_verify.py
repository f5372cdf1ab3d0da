# SPDX-License-Identifier: Apache-2.0
"""An upload held against its manifest: what passes, and the first word about what does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reimzul.core.arch import read_arches
from reimzul.core.errors import InputError
from reimzul.core.message import RepogenRequest, Status
from reimzul.core.retry import CancelToken
from reimzul.core.rpm_header import Header
from reimzul.core.store_paths import MANIFEST, StorePaths
from reimzul.repogen import verify
from reimzul.repogen.verify import InvalidUpload, read_upload
from tests import uploads

ARCHES = read_arches()
RPM = {"hello-1-1.x86_64.rpm": (b"package", "hello-1-1.x86_64")}


@pytest.fixture(autouse=True)
def headers(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What each file's header says: a NEVRA, or SOURCERPM; here every package is what its name says, from hello."""
    said: dict[str, str] = {}

    def read_header(path: Path) -> Header:
        found = said.get(path.name, path.name[: -len(".rpm")])
        if not found:
            raise InputError(f"{path}: not an rpm package")
        if found.endswith(".rpm") or found == "no SOURCERPM":
            return uploads.header_of(path, source_rpm=found if found.endswith(".rpm") else "")
        return uploads.header_of(Path(f"{found}.rpm"))

    monkeypatch.setattr(verify, "read_header", read_header)
    monkeypatch.setattr(verify, "read_published_texts", lambda path: [])
    return said


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return uploads.make_store(tmp_path)


def copy_and_verify(store: StorePaths, asked: RepogenRequest) -> dict[str, int]:
    """Copy an upload and verify the copy; the modes of what it has."""
    with uploads.copier_of(store).copied(uploads.spool_of(store, asked), CancelToken()) as folder:
        manifest = read_upload(folder)
        assert manifest
        verify.verify_upload(folder, manifest, asked, ARCHES, CancelToken())
        return {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}


def test_what_is_whole_passes_and_can_be_read_by_everybody(store: StorePaths) -> None:
    asked = uploads.upload(store, RPM)
    folder = uploads.spool_of(store, asked)
    folder.chmod(0o700)
    (folder / "build.log").chmod(0o600)
    modes = copy_and_verify(store, asked)
    assert modes.pop("build.log") == 0o644
    assert sorted(set(modes.values())) == [0o644, 0o755]


def test_what_a_cut_transfer_left_is_left_out(store: StorePaths) -> None:
    asked = uploads.upload(store, RPM)
    folder = uploads.spool_of(store, asked)
    (folder / ".hello-1-1.x86_64.rpm.a1B2c3").write_bytes(b"pack")
    assert ".hello-1-1.x86_64.rpm.a1B2c3" not in copy_and_verify(store, asked)


def sparse(folder: Path) -> None:
    os.truncate(folder / "build.log", 1 << 20)


def test_whoever_waits_is_asked_for_every_piece_of_a_large_file(store: StorePaths) -> None:
    """The jobs in hand are touched then, and a stop is noticed."""
    asks: list[int] = []
    asked = uploads.upload(store, {"hello-1-1.x86_64.rpm": (bytes(5 << 20), "hello-1-1.x86_64")})
    folder = uploads.spool_of(store, asked)
    manifest = read_upload(folder)
    assert manifest
    verify.verify_upload(folder, manifest, asked, ARCHES, CancelToken(lambda: asks.append(1)))
    assert len(asks) >= 5


def add_file(folder: Path) -> None:
    (folder / "other.rpm").write_bytes(b"x")


def longer(folder: Path) -> None:
    (folder / "hello-1-1.x86_64.rpm").write_bytes(b"package and more")


def change_package(folder: Path) -> None:
    (folder / "hello-1-1.x86_64.rpm").write_bytes(b"packagE")


def missing(folder: Path) -> None:
    (folder / "root.log").unlink()


def link_log(folder: Path) -> None:
    (folder / "root.log").unlink()
    (folder / "root.log").symlink_to("/etc/passwd")


def piped(folder: Path) -> None:
    (folder / "root.log").unlink()
    os.mkfifo(folder / "root.log")


def nested(folder: Path) -> None:
    (folder / ".hidden").mkdir()


def listed_twice(folder: Path) -> None:
    uploads.rewrite_manifest(folder, lambda said: said["files"].append(said["files"][0]))


def lists_itself(folder: Path) -> None:
    uploads.rewrite_manifest(folder, lambda said: said["files"][0].update(name=MANIFEST))


def of_another_target(folder: Path) -> None:
    uploads.rewrite_manifest(folder, lambda said: said["request"].update(target="c8.x86_64"))


def of_another_attempt(folder: Path) -> None:
    uploads.rewrite_manifest(folder, lambda said: said.update(attempt="1-00000000"))


def fail_manifest(folder: Path) -> None:
    uploads.rewrite_manifest(folder, lambda said: said.update(status=Status.FAILED))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (add_file, "'other.rpm' is there and not in build.json"),
        (longer, "hello-1-1.x86_64.rpm has 16 bytes instead of 7"),
        (change_package, "hello-1-1.x86_64.rpm has the sha256 "),
        (missing, "root.log is not there"),
        (link_log, "'root.log' is no plain file"),
        (piped, "'root.log' is no plain file"),
        (nested, "'.hidden' is no plain file"),
        (sparse, "'build.log' has holes"),
        (listed_twice, "names a file twice"),
        (lists_itself, "or itself"),
        (of_another_target, "c8.x86_64, not of "),
        (of_another_attempt, "1-00000000 c7.1708.u.x86_64, not of "),
        (fail_manifest, "hello-1-1.x86_64.rpm: a package of a build that failed"),
    ],
)
def test_each_harm_is_named(store: StorePaths, harm: Callable[[Path], None], words: str) -> None:
    asked = uploads.upload(store, RPM)
    harm(uploads.spool_of(store, asked))
    with pytest.raises(InvalidUpload) as told:
        copy_and_verify(store, asked)
    assert words in str(told.value)


def test_a_package_has_to_be_the_one_its_manifest_says(store: StorePaths, headers: dict[str, str]) -> None:
    asked = uploads.upload(store, RPM)
    headers["hello-1-1.x86_64.rpm"] = "evil-1-1.x86_64"
    with pytest.raises(InvalidUpload, match="is 'evil-1-1.x86_64' instead of 'hello-1-1.x86_64'"):
        copy_and_verify(store, asked)


@pytest.mark.parametrize(
    ("name", "nevra"),
    [("hello-1-1.x86_64.rpm", "hello-1:1-1.x86_64"), ("hello-1-1.src.rpm", "hello-1-1.src"),
     ("hello-1-1.nosrc.rpm", "hello-2:1-1.src"), ("lib-x-1-1.noarch.rpm", "lib-x-2:1-1.noarch")],
)  # fmt: skip
def test_a_file_is_named_as_rpmbuild_names_it(
    store: StorePaths, headers: dict[str, str], name: str, nevra: str
) -> None:
    headers[name] = nevra
    assert name in copy_and_verify(store, uploads.upload(store, {name: (b"package", nevra)}))


@pytest.mark.parametrize(
    ("name", "nevra", "words"),
    [("glibc-2.99-1.x86_64.rpm", "hello-1-1.x86_64", "it must be called hello-1-1.x86_64.rpm"),
     ("hello-1-1.src.rpm", "hello-1-1.x86_64", "it must be called hello-1-1.x86_64.rpm"),
     ("kernel-1-1.src.rpm", "kernel-1-1.src", "is not the source rpm of hello")],
)  # fmt: skip
def test_a_package_under_another_name_is_refused(
    store: StorePaths, headers: dict[str, str], name: str, nevra: str, words: str
) -> None:
    headers[name] = nevra
    with pytest.raises(InvalidUpload, match=words):
        copy_and_verify(store, uploads.upload(store, {name: (b"package", nevra)}))


def _packages(*names: str) -> dict[str, tuple[bytes, str]]:
    return {name: (b"package", name[: -len(".rpm")].replace(".nosrc", ".src")) for name in names}


ONE, DEVEL = "hello-1-1.x86_64.rpm", "hello-devel-9-9.x86_64.rpm"
#: The packages of a leg, and what their headers say that does not follow from their names.
LEGITIMATE_LEGS: dict[str, tuple[dict[str, str], str]] = {
    "subpackages of another version": ({ONE: "hello-1-1.src.rpm", DEVEL: "hello-1-1.src.rpm"}, "x86_64"),
    "with the source rpm": ({"hello-1-1.src.rpm": "", ONE: "hello-1-1.src.rpm"}, "x86_64"),
    "a source rpm without sources": ({"hello-1-1.nosrc.rpm": "", ONE: "hello-1-1.nosrc.rpm"}, "x86_64"),
    "the source rpm alone": ({"hello-1-1.src.rpm": ""}, "x86_64"),
    "another release by the disttag": ({"hello-1-1.el7.src.rpm": "", ONE: "hello-1-1.el7.src.rpm"}, "x86_64"),
    "a follower, with another release": ({"hello-1-1.i686.rpm": "hello-1-1.k4.el7.src.rpm"}, "i386"),
    "a follower without sources": ({"hello-1-1.i386.rpm": "hello-1-1.el7.nosrc.rpm"}, "i386"),
    "a noarch package": ({"hello-doc-1-1.noarch.rpm": "hello-1-1.src.rpm", ONE: "hello-1-1.src.rpm"}, "x86_64"),
    "a noarch leg": ({"hello-doc-1-1.noarch.rpm": "hello-1-1.src.rpm"}, "noarch"),
    "an arch that no table has": ({"hello-1-1.sh4.rpm": "hello-1-1.src.rpm"}, "sh4"),
    "32-bit arm": ({"hello-1-1.armv7hl.rpm": "hello-1-1.src.rpm"}, "armhfp"),
    "a microarchitecture": ({"hello-1-1.x86_64_v2.rpm": "hello-1-1.src.rpm"}, "x86_64"),
}


@pytest.mark.parametrize("leg", LEGITIMATE_LEGS)
def test_a_legitimate_leg_passes(store: StorePaths, headers: dict[str, str], leg: str) -> None:
    said, arch = LEGITIMATE_LEGS[leg]
    headers.update({name: source for name, source in said.items() if source})
    assert copy_and_verify(store, uploads.upload(store, _packages(*said), arch=arch)).keys() >= said.keys()


@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize(
    ("said", "arch", "words"),
    [
        ({ONE: "glibc-2-1.src.rpm"}, "x86_64",
         f"{ONE} was built from 'glibc-2-1.src.rpm' (SOURCERPM), not from a source rpm of hello"),
        ({ONE: "hello-extra-1-1.src.rpm"}, "x86_64", "not from a source rpm of hello"),
        ({ONE: "hello-1-1.x86_64.rpm"}, "x86_64", "not from a source rpm of hello"),
        ({ONE: "no SOURCERPM"}, "x86_64", f"{ONE} was built from '' (SOURCERPM), not from a source rpm of hello"),
        ({"hello-1-1.src.rpm": "", ONE: "hello-2-1.src.rpm"}, "x86_64", "not from hello-1-1.src.rpm"),
        ({"hello-1-1.src.rpm": "", ONE: "hello-1-1.nosrc.rpm"}, "x86_64", "not from hello-1-1.src.rpm"),
        ({ONE: "hello-1-1.src.rpm", DEVEL: "hello-2-1.src.rpm"}, "x86_64",
         f"{DEVEL} was built from 'hello-2-1.src.rpm' (SOURCERPM), not from hello-1-1.src.rpm"),
        ({"hello-1-1.i686.rpm": "hello-1-1.src.rpm", "zlib-1-1.i686.rpm": "zlib-1-1.src.rpm"}, "i386",
         "zlib-1-1.i686.rpm was built from 'zlib-1-1.src.rpm' (SOURCERPM), not from hello-1-1.src.rpm"),
        ({"hello-1-1.src.rpm": "", "hello-2-1.src.rpm": ""}, "x86_64",
         "hello-1-1.src.rpm and hello-2-1.src.rpm are two source rpms: a build has one"),
        ({"hello-1-1.i686.rpm": "hello-1-1.src.rpm"}, "x86_64",
         "hello-1-1.i686.rpm is for 'i686': a build on x86_64 may have packages for x86_64, amd64, "),
        ({ONE: "hello-1-1.src.rpm"}, "i386", "may have packages for i386, i486, i586, i686, athlon, noarch"),
        ({ONE: "hello-1-1.src.rpm"}, "noarch", "a build on noarch may have packages for noarch (arches.yml)"),
        ({"hello-1-1.armv7hl.rpm": "hello-1-1.src.rpm"}, "aarch64", "may have packages for aarch64, noarch"),
        ({ONE: "hello-1-1.src.rpm"}, "sh4", "a build on sh4 may have packages for sh4, noarch"),
    ],
)  # fmt: skip
def test_a_package_of_another_source_or_arch_is_refused(
    store: StorePaths, headers: dict[str, str], said: dict[str, str], arch: str, words: str, scratch: bool
) -> None:
    headers.update({name: source for name, source in said.items() if source})
    asked = uploads.upload(store, _packages(*said), arch=arch, of=uploads.request(scratch=scratch))
    with pytest.raises(InvalidUpload) as refusal:
        copy_and_verify(store, asked)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_package_has_to_be_one(store: StorePaths, headers: dict[str, str]) -> None:
    asked = uploads.upload(store, RPM)
    headers["hello-1-1.x86_64.rpm"] = ""
    with pytest.raises(InvalidUpload, match=r"^hello-1-1.x86_64.rpm: not an rpm package$"):
        copy_and_verify(store, asked)


def test_a_manifest_that_is_not_there_yet_is_no_fault(store: StorePaths) -> None:
    assert read_upload(store.spool / "nothing") is None
    (store.spool / "file").write_text("")
    assert read_upload(store.spool / "file") is None


@pytest.mark.parametrize("body", ["", "{", "[]", '{"request": 1}', "\0" * 100])
def test_a_manifest_that_is_none_is_said_so(store: StorePaths, body: str) -> None:
    folder = uploads.spool_of(store, uploads.upload(store, RPM))
    (folder / MANIFEST).write_text(body)
    with pytest.raises(InvalidUpload, match="build.json: "):
        read_upload(folder)


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_no_link_and_no_pipe_is_read_as_a_manifest(store: StorePaths, kind: str) -> None:
    folder = uploads.spool_of(store, uploads.upload(store, RPM))
    (store.spool / "link").symlink_to(folder)
    (folder / MANIFEST).rename(store.root / MANIFEST)
    if kind == "pipe":
        os.mkfifo(folder / MANIFEST)
    else:
        (folder / MANIFEST).symlink_to(store.root / MANIFEST)
    with pytest.raises(InvalidUpload, match="not a plain file"):
        read_upload(folder)
    with pytest.raises(InvalidUpload, match="not a plain file"):
        read_upload(store.spool / "link")
