# SPDX-License-Identifier: Apache-2.0
"""A certificate authority and a mosquitto, for all who publish or listen by MQTT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mosquitto import Authority, Mosquitto


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom all trust."""
    return Authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture
def mosquitto(tmp_path: Path, authority: Authority) -> Iterator[Mosquitto]:
    """A broker that runs."""
    server = Mosquitto(tmp_path, authority)
    server.start()
    yield server
    server.stop()
