# SPDX-License-Identifier: Apache-2.0
"""Messages of the original's programs, which are still read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reimzul.core.errors import InvalidMessage
from reimzul.core.message import RepogenRequest, new_attempt

SAID = {
    "srpm": "time-1.7-45.el7.src.rpm", "arch": "i386", "target": "c7.1708.u.x86_64", "disttag": ".el7",
    "scratch": False, "submitter": "arrfab", "status": "Success", "builder_fqdn": "b7.example.org",
    "evr": "1.7-45.el7", "pkgname": "time", "timestamp": "20180410120000",
}  # fmt: skip
#: What travels along where a request of ours fell into their hands.
OURS = {"build_id": "a" * 32, "srpm_sha256": "b" * 64, "tries": [{"builder": "x", "when": 1, "words": "y"}]}


@pytest.mark.parametrize("more", [{}, OURS], ids=["theirs", "ours"])
def test_their_whole_event_in_createrepo_is_a_request_for_the_target(more: dict[str, Any]) -> None:
    request = RepogenRequest.decode(json.dumps({**SAID, **more}).encode())
    assert request.is_bare
    assert request.target == SAID["target"]
    assert json.loads(request.encode()) == {**SAID, **more}
    assert RepogenRequest.decode(request.encode()) == request


def test_ours_is_a_request_for_its_leg_whatever_else_it_says() -> None:
    leg = {"target": "c7.x86_64", "build_id": "a" * 32, "arch": "i386", "attempt": new_attempt(),
           "place": "repo/c7.x86_64/time/20180410120000/1-1.i386", "status": "Success"}  # fmt: skip
    assert not RepogenRequest.from_json(leg).is_bare
    with pytest.raises(InvalidMessage, match="come together"):
        RepogenRequest.from_json({**leg, "place": ""})


def test_too_much_of_it_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="unknown keys"):
        RepogenRequest.from_json({**SAID, "noise": "x" * 17_000})
