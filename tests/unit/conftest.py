# SPDX-License-Identifier: Apache-2.0
"""How hypothesis tries things: by number and never by time, which is the machine's and not the code's."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "reimzul", deadline=None, max_examples=60, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
#: For other Pythons than the system's: what is to be found there is what differs, not what is rare.
settings.register_profile("reimzul-few", settings.get_profile("reimzul"), max_examples=20)
settings.load_profile("reimzul")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that lock a file: SQLite waits for others a moment, not five seconds. Before a connection is made."""
    monkeypatch.setattr("reimzul.core.sqlite.BUSY_TIMEOUT_SECONDS", 0.1)
