# SPDX-License-Identifier: Apache-2.0
"""Each command with --json has a schema, each schema a command and a section of docs/json.md, with the same keys."""

from __future__ import annotations

from collections.abc import Iterator

import jsonschema
import pytest

from reimzul.core.message import Status, WorkerState
from reimzul.history.build_record import CLAIMED, OVER, BuildState
from reimzul.history.workers import BUSY, SILENT, VANISHED
from tests import jsonpage
from tests.schemas import (
    FOLDER,
    SHARED,
    TOPICS,
    Schema,
    check_line,
    check_output,
    find_schema,
    list_json_commands,
    list_schemas,
    load,
    resolve,
)

_SECTIONS, _TITLED = jsonpage.read_sections(), jsonpage.titled_schemas()


@pytest.mark.parametrize("words", list_json_commands(), ids=" ".join)
def test_a_command_with_json_has_a_schema(words: tuple[str, ...]) -> None:
    assert find_schema(words), f"docs/schema/{'-'.join(words)}.json is missing"


def test_a_schema_has_a_command() -> None:
    assert set(list_schemas()) == {find_schema(words) for words in list_json_commands()}


@pytest.mark.parametrize("name", [*list_schemas(), SHARED])
def test_a_schema_is_one_and_goes_by_its_file_name(name: str) -> None:
    schema = load(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert (schema["title"], schema["$id"]) == (name, f"urn:reimzul:schema:{name}:1")


def _list_objects(part: object) -> Iterator[Schema]:
    if isinstance(part, dict):
        if "properties" in part:
            yield part
        for each in part.values():
            yield from _list_objects(each)
    elif isinstance(part, list):
        for each in part:
            yield from _list_objects(each)


@pytest.mark.parametrize("name", [*list_schemas(), SHARED])
def test_every_key_is_required_and_has_a_type(name: str) -> None:
    for each in _list_objects(load(name)):
        assert set(each["required"]) == set(each["properties"])
        for key, value in each["properties"].items():
            assert value.keys() & {"type", "enum", "$ref", "anyOf"}, key


def test_every_section_has_a_schema_and_every_schema_a_section() -> None:
    assert set(_SECTIONS) == set(_TITLED)


@pytest.mark.parametrize("title", sorted(_TITLED))
def test_a_section_has_the_keys_of_its_schema(title: str) -> None:
    keys = dict(jsonpage.list_keys(_TITLED[title]))
    rows = jsonpage.read_rows(_SECTIONS.get(title, ""))
    assert sorted(rows) == sorted(keys)
    for key, value in keys.items():
        words = set(jsonpage.list_words(value))
        assert {word for word in words if f"`{word}`" not in rows[key]} == set(), key


@pytest.mark.parametrize("title", sorted(_TITLED))
def test_a_section_links_to_the_sections_whose_keys_it_has_too(title: str) -> None:
    sections = {jsonpage.anchor(each) for each in jsonpage.list_references(_TITLED[title])}
    assert sections <= jsonpage.read_links(_SECTIONS.get(title, ""))


def test_the_states_are_those_of_the_code() -> None:
    shared = load(SHARED)["$defs"]
    build, worker = shared["build_on_arch"]["properties"], shared["worker"]["properties"]
    assert build["state"]["enum"] == [*BuildState.ALL, None]
    page = jsonpage.read_rows(_SECTIONS["A build on one arch"])["status"]
    assert {status for status in (Status.QUEUED, Status.BUILDING, *OVER, CLAIMED) if f"`{status}`" not in page} == set()
    assert set(worker["state"]["enum"]) == {*WorkerState.ALL, SILENT, VANISHED, BUSY}


@pytest.mark.parametrize(
    "text",
    [
        '{"builder": "b", "drained": true, "changed": true, "message": "m"}',
        '{"builder": "b", "drained": 1, "changed": true, "message": "m", "building": []}',
    ],
)
def test_what_a_command_does_not_print_is_refused(text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check_output("drain", text)


def test_a_key_that_no_schema_lists_is_refused() -> None:
    whole = '{"builder": "b", "drained": true, "changed": true, "message": "m", "building": [], "words": "x"}'
    with pytest.raises(AssertionError, match="words"):
        check_output("resume", whole)


def test_what_a_command_line_prints_is_held_against_the_schemas() -> None:
    check_line(["drain", "b"], "b: takes no more jobs\n")
    check_line(["reimzul-submit", "--json", "--wait"], "")
    with pytest.raises(jsonschema.ValidationError):
        check_line(["setup", "controller", "--json"], '{"x": 1}\n')
    with pytest.raises(jsonschema.ValidationError, match="urn:reimzul:schema:watch:1"):
        check_line(["kick", "--json"], '{"done": [], "left": []}\n{"build_id": null}\n')


def test_no_file_lies_in_the_folder_that_no_test_holds() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == {*TOPICS, SHARED, *list_schemas()}
    assert resolve("urn:reimzul:schema:shared:1#/$defs/worker")["title"] == "A worker"
