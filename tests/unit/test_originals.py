# SPDX-License-Identifier: Apache-2.0
"""What tells the original's workers from ours: in messages, in the history, and what follows from their events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reimzul.core.beanstalk import CREATEREPO, TOSIGN
from reimzul.core.config import parse_settings
from reimzul.core.errors import InvalidMessage
from reimzul.core.message import ORIGINAL_ATTEMPT_SUFFIX, BuildEvent, RepogenRequest, SignRequest, Status, new_attempt
from reimzul.history.result_rules import with_implied
from reimzul.notifier.sinks import wanted
from reimzul.notifier.sinks.originals import OriginalsSink, requests

SAID = {
    "srpm": "time-1.7-45.el7.src.rpm", "arch": "i386", "target": "c7.1708.u.x86_64", "disttag": ".el7",
    "scratch": False, "submitter": "arrfab", "status": "Success", "builder_fqdn": "b7.example.org",
    "evr": "1.7-45.el7", "pkgname": "time", "timestamp": "20180410120000",
}  # fmt: skip
#: What travels along where a request of ours fell into their hands.
OURS = {"build_id": "a" * 32, "srpm_sha256": "b" * 64, "tries": [{"builder": "x", "when": 1, "words": "y"}]}


def event(**changed: Any) -> BuildEvent:
    return BuildEvent.from_json({**SAID, **changed})


@pytest.mark.parametrize("more", [{}, OURS], ids=["theirs", "ours"])
def test_their_whole_event_in_createrepo_is_a_request_for_the_target(more: dict[str, Any]) -> None:
    request = RepogenRequest.decode(json.dumps({**SAID, **more}).encode())
    assert request.is_bare and request.target == SAID["target"]
    assert request.original_event == event(**more)
    assert json.loads(request.encode()) == {**SAID, **more}
    assert RepogenRequest.decode(request.encode()) == request


def test_a_bare_target_is_no_event() -> None:
    assert RepogenRequest.decode(b'{"target": "c7.x86_64"}').original_event is None


def test_ours_is_none_whatever_else_it_says() -> None:
    leg = {"target": "c7.x86_64", "build_id": "a" * 32, "arch": "i386", "attempt": new_attempt(),
           "place": "repo/c7.x86_64/time/20180410120000/1-1.i386", "status": "Success"}  # fmt: skip
    assert RepogenRequest.from_json(leg).original_event is None
    with pytest.raises(InvalidMessage, match="come together"):
        RepogenRequest.from_json({**leg, "place": ""})


def test_too_much_of_it_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="unknown keys"):
        RepogenRequest.from_json({**SAID, "noise": "x" * 17_000})


@pytest.mark.parametrize("status", Status.BUILD)
def test_only_a_worker_of_the_original_knows_no_attempts(status: str) -> None:
    assert event(status=status).by_original == (status in ("Building", "Success", "Failed"))
    assert not event(status=status, attempt=new_attempt()).by_original


def test_what_follows_from_a_success_has_the_originals_keys() -> None:
    (createrepo, asked), (tosign, sign) = requests(event(**OURS), ())
    assert (createrepo, tosign) == (CREATEREPO, TOSIGN)
    assert isinstance(asked, RepogenRequest) and asked.original_event == event(**OURS)
    assert isinstance(sign, SignRequest) and not sign.build_id
    assert sign.place == "repo/c7.1708.u.x86_64/time/20180410120000/1.7-45.el7.i386"
    keys = {"pkgname", "status", "target", "arch", "timestamp"}
    assert {key: sign.to_json()[key] for key in keys} == {key: SAID[key] for key in keys}


@pytest.mark.parametrize("changed", [{"status": "Failed"}, {"scratch": True}], ids=str)
def test_nothing_is_signed_of_what_failed_or_is_scratch(changed: dict[str, Any]) -> None:
    assert [tube for tube, _ in requests(event(**changed), ())] == [CREATEREPO]


def test_there_is_to_be_room_for_a_target_before_its_first_upload() -> None:
    building = event(status="Building")
    assert list(requests(building, ())) == [(CREATEREPO, RepogenRequest(target=building.target))]
    assert list(requests(building, {building.target})) == []


def test_an_event_without_a_place_is_said_to_be_none() -> None:
    with pytest.raises(InvalidMessage, match="is not"):
        list(requests(event(pkgname=""), ()))


def test_the_sink_is_there_only_by_the_setting() -> None:
    assert not any(isinstance(sink, OriginalsSink) for sink in wanted(parse_settings("", "test")))
    on = [
        sink
        for sink in wanted(parse_settings("[farm]\noriginal_workers = yes\n", "test"))
        if isinstance(sink, OriginalsSink)
    ]
    assert [sink.name for sink in on] == ["originals"]
    (sink,) = on
    assert [status for status in Status.BUILD if sink.wants(event(status=status))] == ["Building", "Success", "Failed"]
    published = event(status="Published", attempt=f"1523361600{ORIGINAL_ATTEMPT_SUFFIX}")
    assert not any(map(sink.wants, with_implied(published)))
