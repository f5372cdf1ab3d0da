# SPDX-License-Identifier: Apache-2.0
"""The man pages as they are made: by the program, read by groff, which finds nothing wrong with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_manpages import TREE


def make(*words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tools.manpages", *words]
    environment = {**os.environ, **({"PATH": path} if path else {})}
    return subprocess.run(argv, cwd=TREE, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man pages")
    done = make(str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder


def test_groff_has_nothing_to_say_about_any_page(pages: Path) -> None:
    files = sorted(pages.glob("man?/*"))
    assert len(files) > 18
    for file in files:
        argv = ["groff", "-man", "-Tutf8", "-ww", "-z", str(file)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), file


def render_page(page: Path) -> str:
    argv = ["groff", "-man", "-Tascii", "-P-cbou", "-rLL=200n", str(page)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    return " ".join(done.stdout.split())


def test_a_page_reads_as_it_was_meant(pages: Path) -> None:
    text = render_page(pages / "man1/reimzul-submit.1")
    assert text.startswith("REIMZUL-SUBMIT(1) Reimzul REIMZUL-SUBMIT(1) NAME reimzul-submit - ")
    assert "reimzul-submit -s time-1.7-45.el7.src.rpm -d .el7 -a x86_64 -t c7.1708.u" in text
    assert "reimzul-submit -s ~/rpmbuild/SRPMS/time-1.9-1.src.rpm" in text
    text = render_page(pages / "man5/reimzul.ini.5")
    assert "port = 11300" in text


def test_the_wire_formats_page_has_its_sections_its_fields_and_its_examples(pages: Path) -> None:
    text = render_page(pages / "man7/reimzul-wire.7")
    assert "NAME reimzul-wire - messages in the tubes DESCRIPTION" in text
    assert "srpm_sha256 64 hex digits; the worker checks its download against it" in text
    assert '"build_id": "72b893f8a184418d84b59b138dc8e7ad"' in text
    assert "**" not in text
    assert "](" not in text


def test_without_the_converter_its_page_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    done = make(str(tmp_path / "man"), path=str(tmp_path))
    assert done.returncode == 0
    assert done.stderr == "man: reimzul-wire(7) is left out: cannot run go-md2man: No such file or directory\n"
    assert (tmp_path / "man/man5/reimzul.ini.5").exists()
    assert not (tmp_path / "man/man7").exists()


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "man").write_text("in the way")
    done = make(str(tmp_path / "man"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize("words", [[], ["--fast"], ["one", "two"]], ids=str)
def test_wrong_usage_is_one_line(words: list[str]) -> None:
    done = make(*words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
