# SPDX-License-Identifier: Apache-2.0
"""What other programs read of ours stays byte for byte as it is."""

from __future__ import annotations

import pytest

from tests import golden


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return golden.texts()


@pytest.mark.parametrize("name", sorted(path.name for path in golden.FOLDER.iterdir()))
def test_what_others_read_has_not_changed(name: str, texts: dict[str, str]) -> None:
    assert texts[name] == (golden.FOLDER / name).read_text(encoding="utf-8")


def test_every_text_has_its_file(texts: dict[str, str]) -> None:
    assert {path.name for path in golden.FOLDER.iterdir()} == set(texts)
