# SPDX-License-Identifier: Apache-2.0
"""Signed events: what a signature covers, which keys are valid when, and that nobody else can make one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attr
import pytest

from reimzul.core.errors import ConfigError
from reimzul.core.event_signature import NO_KEYS, EventKey, EventKeys, add_new_key, parse_event_keys
from reimzul.core.message import BuildEvent, decode_event
from tests.events import OTHER_ATTEMPT, build_id, event, refusal

NOW = 1_800_000_000.0
OLD, NEW = (EventKey(number=number, secret=bytes([number]) * 32) for number in (1, 2))
PLACE = "repo/c7.1708.u.x86_64/time/20251122000001/1.7-45.el7.x86_64"


def sign_event(folder: Path, *keys: EventKey, status: str = "Published") -> BuildEvent:
    """An event as repogen signs it, after its way through a tube."""
    (folder / "build.json").write_text("{}")
    made = EventKeys(keys or (OLD,)).sign(event(status, place=PLACE), folder)
    read = decode_event(made.encode())
    assert isinstance(read, BuildEvent)
    return read


def claimed(given: BuildEvent, *keys: EventKey, now: float = NOW) -> bool | None:
    verified = EventKeys(keys or (OLD,)).verify(given, now)
    assert isinstance(verified, BuildEvent)
    return verified.claimed


def test_an_event_that_repogen_signed_is_no_claim(tmp_path: Path) -> None:
    assert claimed(sign_event(tmp_path)) is False
    assert sign_event(tmp_path).manifest_sha256.startswith("44136fa3")  # of build.json


@pytest.mark.parametrize("status", ["Published", "Rejected"])
def test_an_event_without_signature_is_a_claim(status: str) -> None:
    assert claimed(event(status)) is True


@pytest.mark.parametrize("status", ["Queued", "Building", "Success", "Failed", "Cancelled", "Override"])
def test_nothing_else_is_signed_by_bstore(status: str) -> None:
    assert claimed(event(status, claimed=True)) is None
    assert EventKeys((OLD,)).verify(refusal(), NOW) == refusal()


@pytest.mark.parametrize(
    "change",
    [
        {"build_id": build_id(7)},
        {"arch": "i386"},
        {"attempt": OTHER_ATTEMPT},
        {"target": "c7.x86_64"},
        {"place": PLACE.replace("time", "bash")},
        {"manifest_sha256": "0" * 64},
        {"status": "Rejected"},
        {"signature": ""},
        {"signature": "1:" + "0" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_signature_is_worth_nothing_for_another_event(tmp_path: Path, change: dict[str, Any]) -> None:
    assert claimed(attr.evolve(sign_event(tmp_path), **change)) is True


def test_the_sender_decides_nothing(tmp_path: Path) -> None:
    assert claimed(event("Published", claimed=False)) is True
    assert claimed(attr.evolve(sign_event(tmp_path), claimed=True)) is False


def test_the_number_in_a_signature_is_that_of_its_key(tmp_path: Path) -> None:
    (number, _, code) = sign_event(tmp_path).signature.partition(":")
    assert number == "1"
    assert claimed(attr.evolve(sign_event(tmp_path), signature=f"2:{code}"), OLD, NEW) is True


def test_two_keys_are_valid_while_one_is_replaced(tmp_path: Path) -> None:
    day = time.strftime("%Y-%m-%d", time.gmtime(NOW))
    ending = attr.evolve(OLD, until=day)
    assert claimed(sign_event(tmp_path, OLD), ending, NEW) is False
    assert claimed(sign_event(tmp_path, OLD, NEW), ending, NEW) is False
    assert sign_event(tmp_path, OLD, NEW).signature.startswith("2:")
    assert claimed(sign_event(tmp_path, OLD), ending, NEW, now=NOW + 86400) is True
    assert claimed(sign_event(tmp_path, NEW), ending, NEW, now=NOW + 86400) is False


def test_without_keys_all_is_as_it_was(tmp_path: Path) -> None:
    assert NO_KEYS.sign(event("Published"), tmp_path) == event("Published")
    assert NO_KEYS.verify(event("Published", claimed=True), NOW) == event("Published")


def test_a_new_key_has_the_next_number_and_ends_the_others() -> None:
    first = add_new_key([], NOW, 7)
    second = add_new_key(first, NOW, 7)
    third = add_new_key(second, NOW + 30 * 86400, 7)
    assert [[key.number for key in keys] for keys in (first, second, third)] == [[1], [1, 2], [2, 3]]
    assert [key.until for key in second] == ["2027-01-22", ""]
    assert second[0].secret == first[0].secret != second[1].secret


def test_a_key_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    keys = add_new_key([OLD], NOW, 7)
    path = tmp_path / "event-keys"
    path.write_text("".join(f"{key.to_line()}\n" for key in keys) + "\n")
    assert EventKeys.load(path) == EventKeys(keys)
    assert EventKeys.load(None) == NO_KEYS


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "has no key; `reimzul setup controller` makes one"),
        ("1:abcd\n", "line 1 is not of the form number:hex or number:hex:YYYY-MM-DD, with 64 hex digits"),
        (f"0:{'ab' * 32}\n", "line 1 is not of the form"),
        (f"1:{'ab' * 32}:soon\n", "line 1 is not of the form"),
        (f"1:{'ab' * 32}\n\n1:{'cd' * 32}\n", "line 3 is a second key of number 1"),
        ("1:é\n", "line 1 is not of the form"),
    ],
)
def test_a_wrong_key_file_is_one_clear_line_without_a_key(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "event-keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        EventKeys.load(path)
    assert f"[farm] event_keys: {path}: " in str(error.value)
    assert fault in str(error.value)
    assert "abab" not in str(error.value)


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="event-keys: no such file or directory"):
        EventKeys.load(tmp_path / "event-keys")


def test_a_key_is_never_shown() -> None:
    assert "0101" not in repr(parse_event_keys([OLD.to_line()]))
