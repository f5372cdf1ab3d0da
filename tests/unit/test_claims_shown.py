# SPDX-License-Identifier: Apache-2.0
"""A claim is shown as one by `reimzul builds`, `reimzul show` and the log."""

from __future__ import annotations

import pytest

from reimzul.admin.builds import _row, format_build
from reimzul.admin.lookup import group_by_build
from reimzul.history.build_record import apply_events
from reimzul.notifier.sinks.logfile import format_line
from reimzul.notifier.sinks.mail import MailSink
from tests.events import event

CLAIM = "published (claimed: not signed by bstore)"


@pytest.mark.parametrize(
    ("before", "claimed", "state"),
    [
        ("Building", True, f"building, {CLAIM}"),
        ("Success", True, f"built, {CLAIM}"),
        ("", True, f"claimed, {CLAIM}"),
        ("Success", False, "published"),
        ("Success", None, "published"),
    ],
)
def test_a_claim_is_not_shown_as_a_fact(before: str, claimed: bool | None, state: str) -> None:
    events = [event(each) for each in (before,) if each] + [event("Published", claimed=claimed)]
    (record,) = apply_events({}, events).values()
    assert _row(record)[1] == state
    (build,) = group_by_build([record])
    assert f"x86_64: {state}" in "\n".join(format_build(build, {"x86_64": "no manifest"}, {}))


def test_the_log_names_a_claim() -> None:
    assert "status Published (claimed: not signed by bstore) [" in format_line(event("Published", claimed=True))
    assert "status Published [" in format_line(event("Published", claimed=False))


def test_a_claimed_rejection_is_mailed_to_nobody() -> None:
    accepts = MailSink.accepts
    assert accepts(object.__new__(MailSink), event("Rejected"))
    assert not accepts(object.__new__(MailSink), event("Rejected", claimed=True))
