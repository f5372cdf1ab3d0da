# SPDX-License-Identifier: Apache-2.0
"""Records of builds and the documents they are stored as."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reimzul.core.formatting import to_output
from reimzul.core.message import Phase
from reimzul.history.build_record import BuildRecord, BuildState, RecordedAttempt, apply_events, with_override
from tests.events import ATTEMPT, BEGINNING, event
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


def stored(found: BuildRecord) -> str:
    return json.dumps(found.to_document())


def test_a_record_is_read_back_from_its_document() -> None:
    phases = (Phase(name="source", start=1.0, end=2.5),)
    found = record("Queued", "Building", "Success", attempt=ATTEMPT, phases=phases, rpms=("a.rpm",), job=7)
    again = BuildRecord.from_document(json.loads(stored(found)))
    assert again == found
    assert again.source is None
    assert isinstance(again.attempts[0], RecordedAttempt)
    assert stored(again) == stored(found)


def test_keys_of_later_versions_are_kept_also_after_an_event() -> None:
    found = record("Queued").to_document()
    assert "source" not in found
    document = {**found, "held": "by johnny", "missing": ["libfoo"]}
    again = BuildRecord.from_document(document)
    assert again.to_document() == document
    (later,) = apply_events({event("Queued").key: again}, [event("Building")]).values()
    assert later.to_document() == {
        **record("Queued", "Building").to_document(), "held": "by johnny", "missing": ["libfoo"],
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
