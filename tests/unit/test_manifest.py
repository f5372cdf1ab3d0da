# SPDX-License-Identifier: Apache-2.0
"""`build.json`: it is read as it was written, anything else is refused, and events have its rpms and place."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import attr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core import manifest as manifests
from reimzul.core.errors import InvalidMessage
from reimzul.core.manifest import File, Manifest, read_manifest, sha256_of
from reimzul.core.store_paths import MANIFEST
from tests.unit import strategies

WIRE: dict[str, Any] = {
    "request": {
        "srpm": "time-1.7-45.src.rpm",
        "arch": "x86_64",
        "target": "c7.x86_64",
        "disttag": ".el7",
        "submitter": "johnny",
        "build_id": "0" * 32,
        "timestamp": "20170913124500",
    },
    "arch": "i386",
    "attempt": "1505306701-0000000a",
    "status": "Success",
    "pkgname": "time",
    "evr": "1.7-45.el7",
    "builder_fqdn": "builder1.example.org",
    "started": 1505306701,
    "finished": 1505306791.5,
    "files": [
        {"name": "build.log", "size": 1, "sha256": "0" * 64},
        {"name": "time-1.7-45.el7.i386.rpm", "size": 2, "sha256": "1" * 64, "nevra": "time-1.7-45.el7.i386"},
        {"name": "time-1.7-45.el7.src.rpm", "size": 3, "sha256": "2" * 64, "nevra": "time-1.7-45.el7.src"},
    ],
}


def write_manifest(folder: Path, content: bytes) -> Path:
    (folder / MANIFEST).write_bytes(content)
    return folder


def refusal(folder: Path, content: bytes) -> str:
    with pytest.raises(InvalidMessage) as refused:
        read_manifest(write_manifest(folder, content))
    assert str(refused.value).isprintable()
    return str(refused.value)


def test_a_manifest_reads_back_from_its_file(tmp_path: Path) -> None:
    manifest = Manifest.from_json({**WIRE, "later": [1]})
    assert read_manifest(write_manifest(tmp_path, manifest.to_text().encode())) == manifest
    assert manifest.extra == {"later": [1]}


def test_a_manifest_carries_the_whole_request() -> None:
    manifest = Manifest.from_json({**WIRE, "request": {**WIRE["request"], "x": 1}})
    assert json.loads(manifest.to_text())["request"] == {**WIRE["request"], "scratch": False, "rebuild": True, "x": 1}
    assert manifest.build_id == "0" * 32


def test_packages_are_told_from_logs() -> None:
    assert [file.name for file in Manifest.from_json(WIRE).rpm_files] == [
        "time-1.7-45.el7.i386.rpm",
        "time-1.7-45.el7.src.rpm",
    ]


def test_a_leg_belongs_where_its_request_and_header_say() -> None:
    manifest = Manifest.from_json(WIRE)
    assert manifest.place() == "repo/c7.x86_64/time/20170913124500/1.7-45.el7.i386"
    assert manifest.place("20170913124501") == "repo/c7.x86_64/time/20170913124501/1.7-45.el7.i386"
    scratch = Manifest.from_json({**WIRE, "request": {**WIRE["request"], "scratch": True}})
    assert scratch.place().startswith("scratch/c7.x86_64/")


def test_the_longest_names_have_a_place_too() -> None:
    assert Manifest.from_json({**WIRE, "evr": "1" * 200, "arch": "a" * 32}).place()


def test_no_manifest_is_no_fault_of_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path)


@given(strategies.bodies)
def test_anything_in_its_place_is_a_manifest_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = write_manifest(tmp_path_factory.getbasetemp(), content)
    try:
        read = read_manifest(folder)
    except InvalidMessage as error:
        assert str(error).isprintable()  # noqa: PT017  any input is either taken or refused
    else:
        assert read_manifest(write_manifest(folder, read.to_text().encode())) == read


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"request": None}, "request: None is not a request"),
        ({"request": {}}, "is not a request (srpm, arch, target, disttag, submitter)"),
        ({"request": {**WIRE["request"], "build_id": ""}}, "request: it has no build_id or timestamp"),
        ({"status": "Published"}, "status: 'Published' is not one of Success, Failed"),
        ({"schema": 2}, "schema: 2 is not"),
        ({"schema": True}, "schema: True is not"),
        ({"files": {}}, "files: {} is not a list"),
        ({"files": ["build.log"]}, "files: 'build.log' is not a file"),
        ({"files": [{"name": "build.log"}]}, "is not a file (name, size, sha256)"),
        ({"files": [{**WIRE["files"][0], "name": "../build.log"}]}, "files: name: '../build.log' is not a name"),
        ({"files": [{**WIRE["files"][0], "size": -1}]}, "files: size: -1 is not"),
        ({"files": [{**WIRE["files"][0], "sha256": "0"}]}, "files: sha256: '0' is not a sha256"),
        ({"attempt": "../x"}, "attempt: '../x' is not an attempt"),
        ({"pkgname": "-x"}, "pkgname: '-x' is not a name"),
        ({"evr": ".."}, "evr: '..' is not a name"),
    ],
)
def test_what_is_wrong_with_it_is_named(tmp_path: Path, changed: dict[str, Any], fault: str) -> None:
    assert fault in refusal(tmp_path, json.dumps({**WIRE, **changed}).encode())


def test_an_immense_one_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MAX_BYTES", 1000)
    assert "over 1000 bytes" in refusal(tmp_path, b'{"a":"' + b"a" * 1000 + b'"}')


@given(st.binary(max_size=40), st.integers(1, 8))
def test_a_sha256_is_that_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, chunk: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "hashed"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "_CHUNK", chunk)
        assert sha256_of(path) == hashlib.sha256(content).hexdigest()


def test_a_file_that_was_made_here_is_checked_like_one_from_outside() -> None:
    with pytest.raises(ValueError, match="name"):
        File(name="a/b", size=1, sha256="0" * 64)
    with pytest.raises(ValueError, match="pkgname"):
        attr.evolve(Manifest.from_json(WIRE), pkgname="..")
