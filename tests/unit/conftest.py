# SPDX-License-Identifier: Apache-2.0
"""How hypothesis tries things: by number and never by time, which is the machine's and not the code's."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "reimzul", deadline=None, max_examples=60, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("reimzul")
