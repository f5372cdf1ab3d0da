# SPDX-License-Identifier: Apache-2.0
"""The published schemas of what goes over MQTT, by topic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

FOLDER = Path(__file__).parents[1] / "docs" / "schema"


def schema(topic: str) -> dict[str, Any]:
    """The schema of a topic, as `reimzul/builds/results`."""
    text = (FOLDER / f"{topic.rsplit('/', 1)[1]}.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def check(topic: str, payload: Any) -> None:
    """Fail where the schema does not accept it."""
    jsonschema.validate(payload, schema(topic), jsonschema.Draft202012Validator)
