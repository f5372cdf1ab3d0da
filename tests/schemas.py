# SPDX-License-Identifier: Apache-2.0
"""The published schemas: of what goes over MQTT, by topic, and of what commands print with --json, by command."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import jsonschema
import referencing

from reimzul.admin.main import COMMANDS
from reimzul.submit.cli import command as submit_command

FOLDER = Path(__file__).parents[1] / "docs" / "schema"
#: The schemas of MQTT's topics, and the one with what the commands' schemas have in common.
TOPICS, SHARED = ("batches", "events", "results"), "shared"
#: Options by which a command prints something else than without.
_VARIANTS = {
    "--incoming": ("prune", "incoming"),
    "--forget": ("builders", "forget"),
    "--plan": ("reimzul-submit", "plan"),
    "--batch": ("reimzul-submit", "batch"),
    "--dependents-of": ("reimzul-submit", "batch"),
}

Schema = Mapping[str, Any]


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def schema(topic: str) -> dict[str, Any]:
    """The schema of a topic, as `reimzul/builds/results`."""
    return load(topic.rsplit("/", 1)[1])


def check(topic: str, payload: Any) -> None:
    """Fail where the schema does not accept it."""
    _make_validator(topic.rsplit("/", 1)[1]).validate(payload)


@functools.cache
def _make_validator(name: str) -> jsonschema.Draft202012Validator:
    given = load(name)
    jsonschema.Draft202012Validator.check_schema(given)
    registry = referencing.Registry().with_resources(
        (each["$id"], referencing.Resource.from_contents(each)) for each in _ALL.values()
    )
    return jsonschema.Draft202012Validator(given, registry=registry)


# --- commands


def list_json_commands() -> list[tuple[str, ...]]:
    """Every command with --json, as the words that a person types."""
    found: list[tuple[str, ...]] = [("reimzul-submit",)] if _has_json(submit_command) else []
    for name, (module, attribute, _) in COMMANDS.items():
        command = getattr(importlib.import_module(f"reimzul.admin.{module}"), attribute)
        found += [(name, *rest) for rest in _walk_commands(command)]
    return [*found, *_VARIANTS.values()]


def _walk_commands(command: click.Command) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from ((name, *rest) for rest in _walk_commands(each))
    elif _has_json(command):
        yield ()


def _has_json(command: click.Command) -> bool:
    return any("--json" in option.opts for option in command.params)


def find_schema(words: Sequence[str]) -> str:
    """The name of a command's schema: `targets-show` if there is one, else that of its group; "" without any."""
    names = ("-".join(words[:count]) for count in range(len(words), 0, -1))
    return next((name for name in names if (FOLDER / f"{name}.json").exists()), "")


def find_schema_of_line(typed: Sequence[str]) -> str:
    """The name of the schema of what a command line prints."""
    variants = (words for option, words in _VARIANTS.items() if option in typed and words[0] == typed[0])
    return find_schema(next(variants, tuple(typed[:2])))


def list_schemas() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.json") if file.stem not in (*TOPICS, SHARED))


def check_output(name: str, text: str) -> Any:
    """Fail unless text is what a command with this schema prints: all keys of the right type, and no others."""
    value = json.loads(text)
    _make_validator(name).validate(value)
    unlisted = sorted(set(_find_unlisted(value, [load(name)], "")))
    assert not unlisted, f"docs/schema/{name}.json does not list {unlisted}"
    return value


def check_line(words: Sequence[object], text: str) -> None:
    """The same of what a command line has printed, if it asks for JSON; after the first value `watch` may go on."""
    typed = [str(word) for word in words]
    if "--json" in typed and text:
        name = find_schema_of_line(typed)
        assert name, typed
        for each in split_values(text):
            check_output(name, each)
            name = name if name == "batch-watch" else "watch"


def split_values(text: str) -> Iterator[str]:
    """Yield each of the JSON values that stand one behind the other in a text."""
    rest = text.strip()
    while rest:
        _, end = json.JSONDecoder().raw_decode(rest)
        yield rest[:end]
        rest = rest[end:].lstrip()


def _find_unlisted(value: Any, schemas: Sequence[Schema], path: str) -> Iterator[str]:
    """Yield the path of each key that no schema lists."""
    every = [part for each in schemas for part in list_parts(each)]
    if isinstance(value, list):
        items = [part["items"] for part in every if "items" in part]
        for each in value:
            yield from _find_unlisted(each, items, f"{path}[]")
    elif isinstance(value, dict):
        values = [part["additionalProperties"] for part in every if "additionalProperties" in part]
        for key, each in value.items():
            known = [part["properties"][key] for part in every if key in part.get("properties", {})] or values
            if known:
                yield from _find_unlisted(each, known, f"{path}.{key}")
            else:
                yield f"{path}.{key}"


def list_parts(part: Schema, *, titled: bool = True) -> Iterator[Schema]:
    """Yield a schema and all that it refers to or combines; without `titled`, nothing that has a title of its own."""
    yield part
    combined = [each for name in ("allOf", "anyOf", "oneOf") for each in part.get(name, ())]
    if "$ref" in part:
        combined.append(resolve(part["$ref"]))
    for each in combined:
        if titled or "title" not in each:
            yield from list_parts(each, titled=titled)


def resolve(reference: str) -> Schema:
    """The schema that a reference names, as `urn:reimzul:schema:shared:1#/$defs/worker`."""
    whole, _, pointer = reference.partition("#/")
    part: Any = next(each for each in _ALL.values() if each["$id"] == whole)
    for name in pointer.split("/") if pointer else ():
        part = part[name]
    found: Schema = part
    return found


_ALL = {file.stem: load(file.stem) for file in sorted(FOLDER.glob("*.json"))}
