# SPDX-License-Identifier: Apache-2.0
"""The first real error: in logs that mock really left, and in what compilers, linkers and test runners say."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reimzul.core.error_extractor import EXCERPT_CHARS, FirstError, find_first_error
from reimzul.core.error_patterns import BUILD_LOG, BUILD_WORDS, ROOT_LOG, ROOT_WORDS
from reimzul.core.log_reader import BLOCK_BYTES
from reimzul.core.retry import CancelToken
from tests.unit.test_mock_result import MISSING, UNINSTALLABLE

SAMPLES = Path(__file__).parents[1] / "samples"
MOCK = SAMPLES / "mock-logs"
NOWHERE = Path("/nowhere/build.log")

Logs = Callable[..., str]


@pytest.fixture
def error_in(tmp_path: Path) -> Logs:
    """The first error of a build whose logs are these."""

    def look(build: str | bytes, root: str = "") -> str:
        (tmp_path / "build.log").write_bytes(build if isinstance(build, bytes) else build.encode())
        (tmp_path / "root.log").write_text(root)
        return find_first_error(tmp_path / "build.log", tmp_path / "root.log").text

    return look


def step(name: str, said: str) -> str:
    """A build.log in which one step failed, after one that only looked as if it would."""
    return (
        "Executing(%prep): /bin/sh -e /var/tmp/rpm-tmp.aaaaaa\n"
        "old.c:1:1: error: this was in a step that went well\n"
        "+ exit 0\n"
        f"Executing({name}): /bin/sh -e /var/tmp/rpm-tmp.bbbbbb\n+ umask 022\n"
        f"{said}\n"
        f"error: Bad exit status from /var/tmp/rpm-tmp.bbbbbb ({name})\n"
        "RPM build errors:\n"
        f"    Bad exit status from /var/tmp/rpm-tmp.bbbbbb ({name})\n"
        "Child return code was: 1\n"
    )


# --- logs that mock left


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("failprep", "+ false"),
        ("failbuild", "cc1: fatal error: nosuch.c: No such file or directory"),
        ("failcheck", "+ false"),
        ("failfiles", "error: File not found: /builddir/build/BUILDROOT/failfiles-1.0-1.el7.x86_64/usr/bin/nothere"),
        ("dynfail", "+ exit 3"),
        ("dynmissing", "No matching package to install: 'no-such-dyn-dep'"),
        ("missingbr", "No matching package to install: 'no-such-devel >= 3'"),
        ("wrongarch", "error: Architecture is not included: x86_64"),
        ("bitflip", "error: unpacking of archive failed: cpio: Bad magic"),
        ("tmo", "tick 5"),
        ("repo404", "Error: Failed to download metadata for repo 'mini': Cannot download repomd.xml: "),
        ("nospace", "   At least 159MB more space needed on the / filesystem."),
    ],
)
def test_what_mock_left_shows_the_cause_in_its_first_screen(case: str, line: str) -> None:
    shown = find_first_error(MOCK / case / "build.log", MOCK / case / "root.log").text.splitlines()
    assert any(each.startswith(line) for each in shown), "\n".join(shown)
    assert len(shown) <= 25
    assert not any("umount" in each or "util.py" in each for each in shown)


@pytest.mark.parametrize(
    ("case", "log", "line"),
    [
        ("failbuild", "build.log", "cc1: fatal error: nosuch.c: No such file or directory"),
        ("missingbr", "root.log", "No matching package to install: 'no-such-devel >= 3'"),
        ("dynmissing", "root.log", "No matching package to install: 'no-such-dyn-dep'"),
        ("skippedrepo", "root.log", "No matching package to install: 'libfoo-devel >= 1.0'"),
        ("specerror", "build.log", "error: this target has no okhere macro package"),
        ("nospace", "root.log", "At least 159MB more space needed on the / filesystem."),
        ("bitflip", "root.log", "error: unpacking of archive failed: cpio: Bad magic"),
    ],
)
def test_the_line_that_is_the_cause_is_known_and_where_it_stands(case: str, log: str, line: str) -> None:
    found = find_first_error(MOCK / case / "build.log", MOCK / case / "root.log")
    assert (found.log, found.line) == (log, line)
    assert line in found.text


SAID_LINES = {
    "make: cc: No such file or directory\nmake: *** [Makefile:2: all] Error 127": "make: cc: No such file or directory",
    "+ echo error: no\n+ false\na.c:1:2: error: no such thing": "a.c:1:2: error: no such thing",
    "+ echo 'a.c:1:2: error: x'\ncp: cannot stat 'x': No such file": "cp: cannot stat 'x': No such file",
    "error:\n   this target has no macro": "error: this target has no macro",
    "error: Building target platforms: x86_64\nBuilding for target x86_64\nline 9: Unclosed %if": (
        "error: line 9: Unclosed %if"
    ),
    "error: \n\nthis target has no macro\nmake: *** [all] Error 1": "error: this target has no macro",
    "tool: error:\n  no such file\nerror: later": "error: later",
    'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\nValueError: no': "ValueError: no",
    'File "a.ml", line 3, characters 2-5:\n3 | x\nError: Unbound value x': "Error: Unbound value x",
}


@pytest.mark.parametrize(("said", "line"), SAID_LINES.items())
def test_the_line_that_is_the_cause_in_a_build_log(tmp_path: Path, said: str, line: str) -> None:
    (tmp_path / "build.log").write_text(step("%build", said))
    found = find_first_error(tmp_path / "build.log", NOWHERE)
    assert (found.line, found.log) == (line, "build.log")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("Error: \n Problem: conflicting requests\n  - nothing provides foo needed by a-1-1", "nothing provides foo"),
        ("Error: \n Problem: conflicting requests\n  - package a-1 conflicts with b provided by b-1", "package a-1"),
        ("Error: Failed to download metadata for repo 'x': y\nIgnoring repositories: x\nNo provider of 'foo' found.",
         "No provider of 'foo' found."),
        ("Error:\n  something that nobody knows", "Error: something that nobody knows"),
    ],
)  # fmt: skip
def test_the_line_that_is_the_cause_in_a_root_log(tmp_path: Path, said: str, line: str) -> None:
    text = "".join(f"DEBUG util.py:460:  {each}\n" for each in [*said.split("\n"), "Child return code was: 1"])
    (tmp_path / "root.log").write_text(text)
    found = find_first_error(NOWHERE, tmp_path / "root.log")
    assert found.line.startswith(line)
    assert found.log == "root.log"


def test_every_line_that_a_rule_of_root_log_knows_has_a_word_that_is_looked_for() -> None:
    for said in (*MISSING.values(), *(words for words, _ in UNINSTALLABLE.values())):
        for line in said.encode().splitlines():
            if any(rule.pattern.search(line.decode()) for rule in ROOT_LOG):
                assert any(word in line for word in ROOT_WORDS), line


# --- what programs say


def said_by(path: Path) -> tuple[str, str, str]:
    """A sample: the step, what was written in it, and how the line begins that is the cause."""
    head, _, said = path.read_text(encoding="utf-8").partition("\n\n")
    rows = dict(row.split(": ", 1) for row in head.splitlines())
    return rows["step"], said.rstrip("\n"), rows["cause"]


SAID = [pytest.param(*said_by(path), id=path.stem) for path in sorted((SAMPLES / "first-errors").glob("*.log"))]


@pytest.mark.parametrize(("name", "said", "line"), SAID)
def test_what_programs_say_is_found(error_in: Logs, name: str, said: str, line: str) -> None:
    shown = error_in(step(name, said)).splitlines()
    assert any(each.startswith(line) for each in shown[:10]), "\n".join(shown)
    assert not any("in a step that went well" in each for each in shown)


@pytest.mark.parametrize(
    ("before", "cause"),
    [
        ("a.s: Assembler messages:\na.s:3: Warning: ignoring changed section type", "b.c:1:2: error: no such thing"),
        ("ok 1 - write fails with No space left on device", "b.c:1:2: error: no such thing"),
        ("ok 1 - write fails: No space left on device", "b.c:1:2: error: no such thing"),
        ("_configtest.c:1:10: error: no such thing", "b.c:1:2: error: no such thing"),
        ("_configtest.c:1:10: fatal error: a.h: No such file or directory", "make: x: command not found"),
        ("/b/conftest.c:(.text+0x5): undefined reference to `main'", "b.c:1:2: error: no such thing"),
    ],
)
def test_what_only_looks_like_it_does_not_hide_the_cause(error_in: Logs, before: str, cause: str) -> None:
    filling = "went on\n" * 30
    shown = error_in(step("%build", f"{before}\n{filling}{cause}"))
    assert cause in shown
    assert before not in shown


@pytest.mark.parametrize(
    "cause",
    [
        "a.c:1:10: fatal error: foo.h: No such file or directory",
        "    [javac] /b/A.java:3: error: cannot find symbol",
        "cp: error writing 'x': No space left on device",
    ],
)
def test_the_first_of_two_causes_is_shown(error_in: Logs, cause: str) -> None:
    filling = "went on\n" * 30
    shown = error_in(step("%build", f"{cause}\n{filling}b.c:9:9: error: follows"))
    assert cause in shown
    assert "follows" not in shown


def test_colours_hide_nothing_and_are_not_shown(error_in: Logs) -> None:
    coloured = "\x1b[01m\x1b[Ka.c:1:2:\x1b[m\x1b[K \x1b[01;31m\x1b[Kerror: \x1b[m\x1b[Kno such thing"
    filling = "went on\n" * 30
    shown = error_in(step("%build", f"{coloured}\n{filling}b.c:9:9: error: follows"))
    assert "a.c:1:2: error: no such thing" in shown
    assert "\x1b" not in shown
    assert "follows" not in shown


@pytest.mark.parametrize(
    "line",
    [
        "error: Installed (but unpackaged) file(s) found:\n   /usr/bin/frob\n   /usr/share/man/man1/frob.1",
        "error: Arch dependent binaries in noarch package",
        "error: File not found: /builddir/build/BUILDROOT/x/usr/bin/frob",
        "error: Could not open %files file /builddir/build/BUILD/x/frob.lang: No such file or directory",
    ],
)
def test_a_mismatch_of_files_is_found(error_in: Logs, line: str) -> None:
    log = f"Executing(%install): x\n+ exit 0\nProcessing files: x-1-1.x86_64\n{line}\n\nRPM build errors:\n    {line}\n"
    shown = error_in(log + "Child return code was: 1\n")
    assert line in shown
    assert len(shown.splitlines()) < 12


@pytest.mark.parametrize(
    "said",
    [
        "DEBUG util.py:460:  Error: \nDEBUG util.py:460:   Problem: nothing provides libfoo.so.1 needed by bar-1-1",
        "DEBUG util.py:444:  Error: No Package found for foo-devel >= 2",  # yum, on EL7
        "DEBUG util.py:460:   Problem 1: conflicting requests\nDEBUG util.py:460:    - nothing provides foo",
        "DEBUG util.py:460:  Failed to resolve the transaction:\nDEBUG util.py:460:  No match for argument: foo-devel",
    ],
    ids=["dnf", "yum", "dnf with a choice", "dnf5"],
)
def test_a_buildrequires_that_cannot_be_had_is_found_in_root_log(error_in: Logs, said: str) -> None:
    build = "Building target platforms: x86_64\nChild return code was: 0\n"
    shown = error_in(build, f"INFO x.py:1:  Start\n{said}\nDEBUG util.py:609:  Child return code was: 1\n")
    assert "foo" in shown
    assert "util.py" not in shown


# --- logs of any kind


def test_no_log_is_no_error() -> None:
    assert find_first_error(NOWHERE, NOWHERE) == FirstError()


def test_where_no_rule_matches_the_end_stands_in(error_in: Logs) -> None:
    assert error_in("\n".join(f"line {number}" for number in range(1000))).splitlines()[-1] == "line 999"
    assert error_in("", "no rpm\nanywhere") == "no rpm\nanywhere"


def test_an_error_on_the_edge_of_two_blocks_is_seen_whole(error_in: Logs) -> None:
    for shift in range(-40, 5, 4):
        filling = b"".join(b"%099d\n" % number for number in range((BLOCK_BYTES + shift) // 100))
        filling += b"y" * (BLOCK_BYTES + shift - len(filling) - 1) + b"\n"
        shown = error_in(filling + b"frob.c:17:14: error: no such thing\nand so on\n" * 2)
        assert "frob.c:17:14: error: no such thing" in shown


def test_a_line_without_an_end_is_cut(error_in: Logs) -> None:
    shown = error_in(b"x" * (3 * BLOCK_BYTES) + b"\na.c:1:2: error: " + b"z" * 50_000)
    assert "a.c:1:2: error: zz" in shown
    assert len(shown) <= EXCERPT_CHARS


def test_any_encoding_is_shown(error_in: Logs) -> None:
    assert "a.c:1:2: error: �t� is undeclared" in error_in(b"a.c:1:2: error: \xe9t\xe9 is undeclared\r\n")


@settings(max_examples=200)
@given(st.binary(max_size=400), st.binary(max_size=200))
def test_no_log_is_too_strange(tmp_path_factory: pytest.TempPathFactory, build: bytes, root: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "strange.log").write_bytes(build + b"\nerror: " + root)
    assert len(find_first_error(folder / "strange.log", NOWHERE).text) <= EXCERPT_CHARS


def test_every_line_that_a_rule_knows_has_a_word_that_is_looked_for() -> None:
    for sample in SAID:
        for line in step(*map(str, sample.values[:2])).encode().splitlines():
            if any(rule.pattern.search(line.decode()) for rule in BUILD_LOG):
                assert any(word in line for word in BUILD_WORDS), line
    for case in MOCK.iterdir():
        for line in (case / "root.log").read_bytes().splitlines() if (case / "root.log").exists() else []:
            if any(rule.pattern.search(line.decode()) for rule in ROOT_LOG):
                assert any(word in line for word in ROOT_WORDS), line


def test_it_ends_when_told_to(tmp_path: Path) -> None:
    (tmp_path / "build.log").write_bytes(b"line\n" * BLOCK_BYTES)

    def check() -> None:
        raise InterruptedError("told to stop")

    with pytest.raises(InterruptedError):
        find_first_error(tmp_path / "build.log", NOWHERE, CancelToken(check))
