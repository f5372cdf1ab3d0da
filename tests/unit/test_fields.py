# SPDX-License-Identifier: Apache-2.0
"""What a field may be: each check takes what is right, refuses what is not in one line, and changes nothing else."""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core import validators
from tests.unit import strategies

CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": validators.name,
    "target": validators.target,
    "disttag": validators.disttag,
    "arch": validators.arch,
    "submitter": validators.submitter,
    "host": validators.host,
    "build_id": validators.build_id,
    "sha256": validators.sha256,
    "attempt": validators.attempt,
    "srpm": validators.srpm,
    "timestamp": validators.timestamp,
    "place": validators.place,
    "flag": validators.flag,
    "whole": validators.integer(0, 10),
    "moment": validators.unix_time,
    "text": validators.text(10),
    "line": validators.line(10),
    "one_of": validators.one_of("a", "b"),
    "absent_or": validators.optional(validators.name),
    "many": validators.list_of(validators.name, 3),
    "table": validators.dict_of(validators.name, validators.flag, 3),
}


@given(strategies.strange)
def test_a_check_takes_a_value_or_says_why_not_in_one_line(value: Any) -> None:
    for check in CHECKS.values():
        try:
            taken = check(value)
        except ValueError as error:
            assert str(error).isprintable()  # noqa: PT017  any input is either taken or refused
            assert len(str(error)) < 300  # noqa: PT017  any input is either taken or refused
        else:
            assert check(taken) == taken


@given(st.sampled_from(["name", "target", "disttag", "arch", "host", "srpm", "place"]), st.text())
def test_a_word_stays_as_it_is_or_is_refused(check: str, value: str) -> None:
    try:
        assert CHECKS[check](value) == value
    except ValueError:
        return
    assert value[0] != "-"
    assert value.isascii()
    assert value.isprintable()
    assert " " not in value


@given(st.text())
def test_a_submitter_stays_as_it_is_or_is_refused(value: str) -> None:
    try:
        assert validators.submitter(value) == value
    except ValueError:
        return
    assert value.strip()
    assert value[0] != "-"
    assert len(value) <= 64
    assert len(value.splitlines()) == 1
    assert validators.line(99)(value) == " ".join(value.split()), "nothing in it moves a terminal"


@given(st.text())
def test_a_restricted_submitter_is_one_of_before(value: str) -> None:
    plain = validators.restrict_submitter(value)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._@+$-]{0,63}", plain, re.ASCII)
    assert validators.submitter(plain) == plain == validators.restrict_submitter(plain)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("johnny", "johnny"),
        ("CORP\\jdoe", "CORP_jdoe"),
        ("John Doe", "John_Doe"),
        ("José Núñez", "Jose_Nunez"),
        ("山田", "__"),
        ("@home", "_home"),
        ("DOMAIN$build+1@example.org", "DOMAIN$build+1@example.org"),
    ],
)
def test_a_name_in_the_old_characters_is_still_known(name: str, plain: str) -> None:
    assert validators.submitter(name) == name
    assert validators.restrict_submitter(name) == plain


@pytest.mark.parametrize(
    "name",
    ["", "  ", "-o", "a\nb", "a\x1b[31m", "a\u202eb", "a\u2066b", "a\u200bb", "a\u2028b", "\udcf6", "a" * 65, None, 7],
)
def test_a_name_that_could_harm_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="submitter|longer than 64"):
        validators.submitter(name)


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (validators.name, "gcc-c++"),
        (validators.name, "_wrapped"),
        (validators.name, "1.0~rc1^git-1.el9_4"),
        (validators.name, "a" * 200),
        (validators.target, "c7.1708.u.x86_64"),
        (validators.target, "epel-9+next_x86_64"),
        (validators.disttag, ".el7_4"),
        (validators.disttag, "el7"),
        (validators.arch, "x86_64"),
        (validators.submitter, "DOMAIN$build+1@example.org"),
        (validators.host, "builder-1.example.org"),
        (validators.attempt, "1763800001-0000000a"),
        (validators.srpm, "kernel-3.10-1.el7.nosrc.rpm"),
        (validators.timestamp, "20240229235959"),
        (validators.place, "repo/c7.x86_64/time/20170913124500/1.7-45.el7.x86_64"),
        (validators.place, f"scratch/{'t' * 128}/{'n' * 200}/20170913124500/{'e' * 200}.{'a' * 32}"),
        (validators.unix_time, 253402300799),
    ],
)
def test_what_farms_really_have_is_taken(check: Callable[[Any], Any], right: Any) -> None:
    assert check(right) == right


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (validators.name, "a" * 201),
        (validators.name, "name\n"),
        (validators.name, ".hidden"),
        (validators.target, "_x"),
        (validators.target, "t" * 129),
        (validators.disttag, "."),
        (validators.disttag, "..el7"),
        (validators.attempt, "1763800001-0000000A"),
        (validators.srpm, "time-1-1.rpm"),
        (validators.srpm, ".src.rpm"),
        (validators.timestamp, "20230229000000"),
        (validators.timestamp, "00000101000000"),
        (validators.timestamp, "2017091312450\u0660"),
        (validators.place, "spool/c7.x86_64/time/20170913124500/1.7-45"),
        (validators.place, "repo/c7.x86_64/time/20170913124500/1.7-45/"),
        (validators.place, "repo/c7.x86_64/time/20170913124500/.."),
        (validators.place, "repo//time/20170913124500/1.7-45"),
        (validators.place, "/repo/c7/time/20170913124500/1.7-45"),
        (validators.flag, 1),
        (validators.flag, "true"),
        (validators.flag, None),
        (validators.integer(0, 10), True),
        (validators.integer(0, 10), 1.0),
        (validators.integer(0, 10), 11),
        (validators.integer(0, 10), -1),
        (validators.unix_time, True),
        (validators.unix_time, float("nan")),
        (validators.unix_time, float("inf")),
        (validators.unix_time, "1"),
        (validators.text(10), 7),
        (validators.line(10), b"x"),
        (validators.one_of("a", "b"), "c"),
        (validators.one_of("a", "b"), ["a"]),
        (validators.list_of(validators.name, 3), "abc"),
        (validators.list_of(validators.name, 3), ["a", "b", "c", "d"]),
        (validators.list_of(validators.name, 3), ["a", "/"]),
        (validators.dict_of(validators.name, validators.flag, 3), [("a", True)]),
        (validators.dict_of(validators.name, validators.flag, 3), {"/": True}),
        (validators.dict_of(validators.name, validators.flag, 3), {"a": 1}),
        (validators.dict_of(validators.name, validators.flag, 3), dict.fromkeys("abcd", True)),
    ],
)
def test_what_could_harm_is_refused(check: Callable[[Any], Any], wrong: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  each check has a message of its own
        check(wrong)


@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize("wrong", ["", ".", "..", "...", "-x", ".hidden", "a b", "a\n", "20230229000000 "])
def test_each_part_of_a_place_is_checked(part: int, wrong: str) -> None:
    parts = ["repo", "c7.x86_64", "time", "20170913124500", "1.7-45.el7.x86_64"]
    assert validators.place("/".join(parts))
    parts[part] = wrong
    with pytest.raises(ValueError, match=r" is not |begins with"):
        validators.place("/".join(parts))


@pytest.mark.parametrize("wrong", ["time", "2017091312450", "20230229000000", "00000101000000"])
def test_the_timestamp_of_a_place_is_a_date(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not a (timestamp|date)"):
        validators.place(f"repo/c7.x86_64/time/{wrong}/1.7-45.el7.x86_64")


def test_a_refusal_tells_too_long_from_wrong() -> None:
    with pytest.raises(ValueError, match="longer than 200"):
        validators.name("a" * 201)
    with pytest.raises(ValueError, match="begins with a letter"):
        validators.name("-a")


def test_a_text_keeps_its_end_and_its_lines() -> None:
    assert validators.text(6)("one\ntwo\nend") == "wo\nend"
    assert validators.text(99)("a\tb\nc\x1b[31m\r\x00\ud800\u2028\u202e") == "a\tb\nc?[31m?????"


def test_a_line_keeps_its_beginning_and_is_one() -> None:
    assert validators.line(9)(" one\n two\tthree ") == "one two t"
    assert validators.line(99)("a\x1b\x07b\u0085c") == "a??b c"


@given(st.text())
def test_words_for_people_hold_nothing_that_moves_a_terminal(value: str) -> None:
    text = validators.text(100)(value)
    line = validators.line(100)(value)
    assert not any(ord(letter) < 32 and letter not in "\t\n" or 127 <= ord(letter) < 160 for letter in text)
    assert len(line.splitlines()) <= 1
    assert not any(ord(letter) < 32 for letter in line)
    assert text.encode() is not None
    assert line.encode() is not None


@given(strategies.strange)
def test_what_is_shown_is_short_and_plain(value: Any) -> None:
    shown = validators.quoted(value, 40)
    assert len(shown) <= 40
    assert shown.isascii()
    assert shown.isprintable()


def test_now_is_a_timestamp() -> None:
    assert validators.timestamp(validators.now_timestamp())


def test_no_character_that_is_invisible_or_turns_text_around_passes_in_any_text() -> None:
    """Every field for people, and `make_printable`, which what is printed of a log goes through."""
    hidden = [
        letter
        for letter in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in "\t\n"
    ]
    assert len(hidden) > 2000
    for letter in hidden:
        assert validators.make_printable(f"a{letter}b") == "a?b", ascii(letter)
        assert validators.text(9)(f"a{letter}b") == "a?b", ascii(letter)
        assert validators.line(9)(f"a{letter}b") in ("a?b", "a b"), ascii(letter)
        with pytest.raises(ValueError, match="cannot be shown"):
            validators.submitter(f"a{letter}b")
        with pytest.raises(ValueError, match="is not a name"):
            validators.name(f"a{letter}b")


def test_what_is_readable_stays_as_it_is() -> None:
    readable = "J\xf6rg \u05e9\u05dc\u05d5\u05dd \u65e5\u672c \U0001f600 e\u0301\tx\n"
    assert validators.text(99)(readable) == validators.make_printable(readable) == readable
