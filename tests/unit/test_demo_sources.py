# SPDX-License-Identifier: Apache-2.0
"""The demo's sources: a source that cannot be had is left out, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from devfarm import demo
from reimzul.core.errors import ReimzulError


def test_every_source_failing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(work: Path) -> None:
        raise ReimzulError("no network")

    monkeypatch.setattr(demo, "fetch_hello", offline)
    monkeypatch.setattr(demo, "CHECKOUT", tmp_path)
    said: list[str] = []

    with pytest.raises(ReimzulError, match="no source for the demo: hello: no network; reimzul: "):
        demo.demo_srpms(tmp_path / "cache", said.append)
    assert list((tmp_path / "cache").iterdir()) == []
    assert "hello: left out, no network" in said


def test_a_checkout_that_makes_no_source_rpm_is_left_out_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "make_hello_srpm", lambda *_: tmp_path / "hello")
    program = tmp_path / "tools/rpm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'rpm: greenstalk cannot be fetched' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(demo, "CHECKOUT", tmp_path)
    said: list[str] = []
    assert demo.demo_srpms(tmp_path, said.append) == [tmp_path / "hello"]
    assert len(said) == 1
    assert said[0].startswith("reimzul: left out, ")
    assert "greenstalk cannot be fetched" in said[0]


def test_a_checkouts_source_rpm_is_where_tools_rpm_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tools/rpm"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ntest "$1 $2" = "--source-only --out" && echo "rpm: $3/reimzul-1-1.src.rpm"\n')
    program.chmod(0o755)
    monkeypatch.setattr(demo, "CHECKOUT", tmp_path)
    folder = tmp_path / "my cache"
    assert demo.make_own_srpm(folder) == folder / "reimzul-1-1.src.rpm"
