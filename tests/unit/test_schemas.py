# SPDX-License-Identifier: Apache-2.0
"""The schemas in docs/ accept whatever is published, and refuse what is not."""

from __future__ import annotations

import json

import attr
import jsonschema
import pytest
from hypothesis import given

from reimzul.core.batch_event import BatchEvent
from reimzul.core.message import BuilderEvent, BuildEvent, Event, Refusal
from reimzul.history.result_rules import Notification, news_kind
from reimzul.notifier.sinks.mqtt import SCHEMA, messages
from tests.events import event, refusal
from tests.schemas import check, schema
from tests.unit.strategies import batch_events, build_events, builder_events, refusals

BATCHES, EVENTS, RESULTS = "reimzul/builds/batches", "reimzul/builds/events", "reimzul/builds/results"


def check_payloads(told: Event) -> None:
    """Every payload of this event is."""
    for topic, payload in messages("reimzul", Notification(told, news_kind(told))):
        check(topic, json.loads(payload))


@given(build_events)
def test_every_event_is_accepted(told: BuildEvent) -> None:
    check_payloads(told)


@given(refusals)
def test_every_refusal_is_accepted(told: Refusal) -> None:
    check_payloads(told)


@given(builder_events)
def test_every_word_on_a_builder_is_accepted(told: BuilderEvent) -> None:
    check_payloads(told)


@given(batch_events)
def test_every_event_of_a_batch_is_accepted(told: BatchEvent) -> None:
    check_payloads(told)


def test_the_topic_of_batches_has_the_events_of_batches() -> None:
    described = {name: value for name, value in schema(BATCHES).items() if not name.startswith("$")}
    assert described == {**schema(EVENTS)["$defs"]["batch"], "title": "<topic>/builds/batches"}


def test_an_event_of_the_originals_worker_is_accepted() -> None:
    check_payloads(BuildEvent(srpm="a-1-1.src.rpm", arch="i386", target="c7.i386", status="Failed", submitter="root"))


@pytest.mark.parametrize("topic", [BATCHES, EVENTS, RESULTS])
def test_a_schema_is_one(topic: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(topic))


def test_every_field_has_a_row_in_the_schema() -> None:
    rows = schema(EVENTS)["$defs"]
    kinds = {"build": BuildEvent, "refusal": Refusal, "builder": BuilderEvent, "batch": BatchEvent}
    for name, kind in kinds.items():
        fields = {field.name for field in attr.fields(kind)} - {"extra", "owed"}
        assert set(rows[name]["properties"]) == fields | {"schema", "id"}
        assert rows[name]["properties"]["schema"]["const"] == SCHEMA


@pytest.mark.parametrize(
    ("topic", "wrong"),
    [
        (RESULTS, {"status": "Building"}),
        (RESULTS, {"schema": 2}),
        (RESULTS, {"owed": {"mqtt": 1}}),
        (EVENTS, {"status": "Exploded"}),
        (EVENTS, {"scratch": "no"}),
        (EVENTS, {"status": "Refused"}),
    ],
)
def test_what_is_not_published_is_refused(topic: str, wrong: dict[str, object]) -> None:
    payloads = dict(messages("reimzul", Notification(event("Failed"), "Failed")))
    with pytest.raises(jsonschema.ValidationError):
        check(topic, {**json.loads(payloads[topic]), **wrong})
    with pytest.raises(jsonschema.ValidationError):
        check(EVENTS, {**json.loads(messages("reimzul", Notification(refusal(), "Refused"))[0][1]), "job": "seven"})
