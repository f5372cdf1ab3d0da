# SPDX-License-Identifier: Apache-2.0
"""The files that take refused messages when beanstalkd holds enough of them."""

from __future__ import annotations

import base64
import json
import logging
import threading
from pathlib import Path

import pytest

from reimzul.core.message import first_bytes
from reimzul.core.refused import SAY_EVERY, Overflow
from tests.events import refusal


@pytest.fixture
def overflow(tmp_path: Path) -> Overflow:
    """A folder that is not there yet."""
    return Overflow(tmp_path / "log" / "refused")


def lines(overflow: Overflow, tube: str = "x86_64") -> list[dict[str, object]]:
    """What a tube's file says."""
    return [json.loads(line) for line in overflow.path(tube).read_text().splitlines()]


def test_a_line_has_the_whole_body_and_why_it_was_refused(overflow: Overflow) -> None:
    body = b"\x00\xff\n{]" * 9000
    overflow.keep(refusal(17, host="builder1.example.org"), body)
    (line,) = lines(overflow)
    assert base64.b64decode(str(line.pop("body"))) == body
    assert line == {
        "tube": "x86_64", "job": 17, "reason": "not JSON", "host": "builder1.example.org", "at": refusal().at,
    }  # fmt: skip


@pytest.mark.parametrize("tube", ["x86_64", "cancel.0123", "a/b", "..", "../../etc/passwd"])
def test_a_tube_has_one_file_in_the_folder_whatever_its_name(overflow: Overflow, tube: str) -> None:
    overflow.keep(refusal(tube=tube), b"{]")
    assert list(overflow.files()) == [overflow.path(tube)]
    assert overflow.path(tube).resolve().parent == overflow.folder.resolve()


def test_half_a_line_of_one_that_was_killed_spoils_no_other(overflow: Overflow) -> None:
    overflow.keep(refusal(1), b"{]")
    with overflow.path("x86_64").open("a") as file:
        file.write('{"tube": "x86')
    overflow.keep(refusal(2), b"{]")
    first, half, second = overflow.path("x86_64").read_text().splitlines()
    assert (json.loads(first)["job"], half, json.loads(second)["job"]) == (1, '{"tube": "x86', 2)


def test_many_may_write_at_once(overflow: Overflow) -> None:
    def write(begin: int) -> None:
        mine = Overflow(overflow.folder)
        for number in range(begin, begin + 25):
            mine.keep(refusal(number), b"x" * 5000)

    writers = [threading.Thread(target=write, args=(begin,)) for begin in range(0, 100, 25)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(int(str(line["job"])) for line in lines(overflow)) == list(range(100))


def test_a_full_disk_is_said(overflow: Overflow) -> None:
    overflow.folder.mkdir(parents=True)
    overflow.path("x86_64").symlink_to("/dev/full")
    with pytest.raises(OSError):
        overflow.keep(refusal(), b"{]")


def test_it_is_said_once_a_thousand(overflow: Overflow, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for number in range(SAY_EVERY + 1):
            overflow.keep(refusal(number), b"{]")
    assert len(caplog.records) == 2
    assert str(overflow.path("x86_64")) in caplog.text


def test_no_folder_is_no_files(overflow: Overflow) -> None:
    assert list(overflow.files()) == []


@pytest.mark.parametrize("body", [b"", b"{]", b"\xff\x00\x1b[2J", "é".encode() * 1000, b"x" * 65_000])
def test_a_refusal_that_has_travelled_begins_as_its_body_does(body: bytes) -> None:
    told = refusal(begins=first_bytes(body))
    assert type(told).decode(told.encode()).begins == first_bytes(body)
