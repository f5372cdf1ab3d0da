# SPDX-License-Identifier: Apache-2.0
"""The demo's sources: what a registry says of a file is believed of no other file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from devfarm import demo_sources
from reimzul.core.errors import ReimzulError

DESCRIPTION = """\
Source: hello
Checksums-Sha1:
 f7bebf6f9c62a2295e889f66e05ce9bfaed9ace3 725946 hello_2.10.orig.tar.gz
Checksums-Sha256:
 31e066137a962676e89f69d1b65382de95a7ef7d914b8cb956f41ea72e0f516b 725946 hello_2.10.orig.tar.gz
 4ea69de913428a4034d30dcdcb34ab84f5c4a76acf9040f3091f0d3fac411b60 819 hello_2.10.orig.tar.gz.asc
Files:
 6cd0ffea3884a4e79330338dcc2987d6 725946 hello_2.10.orig.tar.gz
"""


def test_a_description_gives_a_files_own_sha256(tmp_path: Path) -> None:
    described = tmp_path / "hello.dsc"
    described.write_text(DESCRIPTION)

    found = demo_sources._read_sha256(described, "hello_2.10.orig.tar.gz")
    assert found == "31e066137a962676e89f69d1b65382de95a7ef7d914b8cb956f41ea72e0f516b"
    with pytest.raises(ReimzulError, match="no SHA-256 of another"):
        demo_sources._read_sha256(described, "another.tar.gz")


def test_another_file_than_described_is_refused(tmp_path: Path) -> None:
    tarball = tmp_path / "six.tar.gz"
    tarball.write_bytes(b"not six")

    with pytest.raises(ReimzulError, match=r"six\.tar\.gz is not what its registry describes"):
        demo_sources._check_sha256(tarball, "0" * 64)
    assert demo_sources._check_sha256(tarball, hashlib.sha256(b"not six").hexdigest()) == tarball


def test_every_source_failing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(work: Path) -> demo_sources.Tarball:
        raise ReimzulError("no network")

    monkeypatch.setattr(demo_sources, "fetch_hello", offline)
    monkeypatch.setattr(demo_sources, "fetch_six", offline)
    monkeypatch.setattr(demo_sources, "CHECKOUT", tmp_path)
    said: list[str] = []

    with pytest.raises(ReimzulError, match="no source for the demo: hello: no network; python-six: no network"):
        demo_sources.demo_srpms(tmp_path / "cache", said.append)
    assert list((tmp_path / "cache").iterdir()) == []
    assert "hello: left out, no network" in said


def test_a_checkout_that_makes_no_source_rpm_is_left_out_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_sources, "_make_cached", lambda name, *_: tmp_path / name)
    program = tmp_path / "tools/rpm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'rpm: greenstalk cannot be fetched' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(demo_sources, "CHECKOUT", tmp_path)
    said: list[str] = []
    assert demo_sources.demo_srpms(tmp_path, said.append) == [tmp_path / "hello", tmp_path / "python-six"]
    assert len(said) == 1
    assert said[0].startswith("reimzul: left out, ")
    assert "greenstalk cannot be fetched" in said[0]


def test_a_checkouts_source_rpm_is_where_tools_rpm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tools/rpm"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ntest "$1 $2" = "--source-only --out" && echo "rpm: $3/reimzul-1-1.src.rpm"\n')
    program.chmod(0o755)
    monkeypatch.setattr(demo_sources, "CHECKOUT", tmp_path)
    folder = tmp_path / "my cache"
    assert demo_sources.make_own_srpm(folder) == folder / "reimzul-1-1.src.rpm"
