# SPDX-License-Identifier: Apache-2.0
"""Records of builds and the documents they are stored as."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import attr
import pytest

from reimzul.core.formatting import to_output
from reimzul.core.message import BuildEvent, Phase
from reimzul.history.build_record import BuildRecord, BuildState, RecordedAttempt, apply_events, with_override
from reimzul.history.result_rules import news_kind
from tests.events import ATTEMPT, BEGINNING, OTHER_ATTEMPT, event
from tests.schemas import check_output

#: A document as the original's notifier wrote it: keys of its own, others missing, and a null.
ORIGINAL: dict[str, Any] = {
    "srpm": "time-1.7-45.el7.src.rpm", "arch": "x86_64", "target": "c7.1708.u.x86_64", "status": "Success",
    "timestamp": "20181105101010", "builder_fqdn": None, "latest_build": True, "own": {"key": 1},
}  # fmt: skip


def record(*statuses: str, **more: Any) -> BuildRecord:
    events = [event(status, 1, at=BEGINNING + second, **more) for second, status in enumerate(statuses)]
    (found,) = apply_events({}, events).values()
    return found


def to_stored(found: BuildRecord) -> str:
    return json.dumps(found.to_document())


def test_a_record_is_read_back_from_its_document() -> None:
    phases = (Phase(name="source", start=1.0, end=2.5),)
    found = record("Queued", "Building", "Success", attempt=ATTEMPT, phases=phases, rpms=("a.rpm",), job=7)
    again = BuildRecord.from_document(json.loads(to_stored(found)))
    assert again == found
    assert again.source is None
    assert isinstance(again.attempts[0], RecordedAttempt)
    assert to_stored(again) == to_stored(found)


def test_keys_of_later_versions_are_kept_also_after_an_event() -> None:
    found = record("Queued").to_document()
    assert "source" not in found
    document = {**found, "colour": "blue", "shades": ["navy"]}
    again = BuildRecord.from_document(document)
    assert again.to_document() == document
    (later,) = apply_events({event("Queued").key: again}, [event("Building")]).values()
    assert later.to_document() == {
        **record("Queued", "Building").to_document(), "colour": "blue", "shades": ["navy"],
    }  # fmt: skip


def test_a_document_of_the_original_is_written_back_as_it_was() -> None:
    found = BuildRecord.from_document(ORIGINAL)
    assert found.to_document() == ORIGINAL
    assert (found.builder_fqdn, found.attempts, found.published) == ("", (), 0.0)
    overridden = with_override(found, "it is fine").to_document()
    assert overridden == {**ORIGINAL, "status": "Override", "comment": "it is fine"}


@pytest.mark.parametrize(("status", "state"), [("Success", "built"), ("Done", None)])
def test_a_document_of_the_original_is_printed_with_all_keys(status: str, state: str | None) -> None:
    document = {**ORIGINAL, "status": status}
    assert BuildRecord.from_document(document).to_output()["own"] == document.pop("own")
    (printed,) = check_output("builds", json.dumps([to_output(BuildRecord.from_document(document).to_output())]))
    assert (printed["status"], printed["state"], printed["builder"], printed["attempts"]) == (status, state, None, [])


def test_an_attempt_of_another_version_keeps_its_keys() -> None:
    attempt = {"attempt": ATTEMPT, "status": "Building", "at": 5.0, "cause": "unknown here"}
    document = {**record("Building").to_document(), "attempts": [attempt]}
    assert BuildRecord.from_document(document).to_document() == document


@pytest.mark.parametrize(
    ("statuses", "state"),
    [
        (["Queued"], BuildState.QUEUED),
        (["Building"], BuildState.BUILDING),
        (["Success"], BuildState.BUILT),
        (["Success", "Published"], BuildState.PUBLISHED),
        (["Failed"], BuildState.FAILED),
        (["Cancelled"], BuildState.CANCELLED),
        (["Success", "Rejected"], BuildState.REJECTED),
        (["Failed", "Override"], BuildState.OVERRIDE),
    ],
)
def test_every_build_is_in_one_state(statuses: list[str], state: str) -> None:
    found = record(*statuses)
    assert found.state == state
    assert state in BuildState.ALL
    assert found.is_unfinished == (state in (BuildState.QUEUED, BuildState.BUILDING))
    assert found.is_over != found.is_unfinished


def make_held(at: float, *, attempt: str = "", **more: Any) -> BuildEvent:
    return event("Queued", 1, at=BEGINNING + at, job=17, tube="x86_64", held=True, attempt=attempt, **more)


def make_released(at: float) -> BuildEvent:
    return event("Queued", 1, at=BEGINNING + at, job=17, tube="x86_64", held=False)


#: A member's build: held by the batch, released, held by its worker for want of b-devel, released again, and built.
HELD_TWICE = [
    make_held(0, due=BEGINNING + 3e8),
    make_released(10),
    event("Building", 1, at=BEGINNING + 12, started=BEGINNING + 12),
    make_held(
        20, attempt=ATTEMPT, missing=("b-devel >= 2",), waits_for="b-devel >= 2", reason="waits for b-devel >= 2"
    ),
    make_released(50),
    event("Building", 1, at=BEGINNING + 53, started=BEGINNING + 53, attempt=OTHER_ATTEMPT),
]


@pytest.mark.parametrize(
    ("count", "state", "missing", "released_at", "wait"),
    [
        (1, "held", (), 0.0, None),
        (2, "queued", (), 10.0, None),
        (3, "building", (), 10.0, 2.0),
        (4, "held", ("b-devel >= 2",), 10.0, None),
        (5, "queued", (), 50.0, None),
        (6, "building", (), 50.0, 3.0),
    ],
)
def test_a_held_build_waits_from_its_last_release(
    count: int, state: str, missing: Sequence[str], released_at: float, wait: float | None
) -> None:
    for order in itertools.permutations(HELD_TWICE[:count]):
        (found,) = apply_events({}, [*order, *order]).values()
        assert found.state == state
        assert (found.held, found.missing) == (state == "held", missing)
        assert found.released_at == (BEGINNING + released_at if released_at else 0.0)
        assert found.wait == wait


def test_an_attempt_that_waits_is_nobodys_fault() -> None:
    (found,) = apply_events({}, HELD_TWICE).values()
    assert [each.status for each in found.attempts] == ["Waiting", "Building"]
    assert found.attempts[0].state == "waiting"


def test_each_time_a_job_is_held_or_released_is_news_once() -> None:
    kinds = [news_kind(each) for each in HELD_TWICE]
    assert len(set(kinds)) == len(kinds)
    corrected = attr.evolve(HELD_TWICE[3], at=BEGINNING + 21)  # the notifier corrects a worker's clock to some second
    assert news_kind(corrected) == kinds[3]
    assert news_kind(make_released(51)) not in kinds
