# SPDX-License-Identifier: Apache-2.0
"""What docs/json.md says of the JSON that commands print: a section for each schema, with a table of its keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.schemas import SHARED, Schema, list_parts, list_schemas, load, resolve

_PAGE = Path(__file__).parents[1] / "docs" / "json.md"


def read_sections() -> dict[str, str]:
    """The text of each section by its title, without the introduction."""
    parts = _PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    return {title: text for title, _, text in (part.partition("\n") for part in parts)}


def read_rows(section: str) -> dict[str, str]:
    """The keys in a section's table, each with its description."""
    cells = [row.split("|", 2) for row in section.splitlines() if row.startswith("| `")]
    return {key: about for _, keys, about in cells for key in re.findall("`([^`]+)`", keys)}


def read_links(section: str) -> set[str]:
    """The sections of this page that a section links to."""
    return set(re.findall(r"\]\(#([^)]+)\)", section))


def titled_schemas() -> dict[str, Schema]:
    """All that has to have a section: the schemas of commands, and those parts of the shared one that have a title."""
    shared = load(SHARED)["$defs"].values()
    return {each["title"]: each for each in (*map(load, list_schemas()), *shared) if "title" in each}


def anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def list_keys(schema: Schema, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield each key of a schema, as `tubes[].name`, with its value's schema; titled parts have other sections."""
    for part in list_parts(schema, titled=False):
        for name, value in part.get("properties", {}).items():
            yield prefix + name, value
            yield from list_keys(value, f"{prefix}{name}.")
        for name, mark in (("items", "[]."), ("additionalProperties", ".*.")):
            if name in part:
                yield from list_keys(part[name], prefix[:-1] + mark if prefix else "")


def list_references(schema: Schema) -> Iterator[str]:
    """Yield the titles of the other sections' schemas that a schema has parts of."""
    for part in list_parts(schema, titled=False):
        if "title" in (target := resolve(part["$ref"]) if "$ref" in part else {}):
            yield target["title"]
        values = [*part.get("properties", {}).values(), part.get("items"), part.get("additionalProperties")]
        for each in filter(None, values):
            yield from list_references(each)


def list_words(schema: Schema) -> Iterator[str]:
    """Yield the words that a value, or one in a list, may be; those of another section's key are listed there."""
    yield from filter(None, schema.get("enum", ()))
    if "items" in schema:
        yield from list_words(schema["items"])
