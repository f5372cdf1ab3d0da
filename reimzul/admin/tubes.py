# SPDX-License-Identifier: Apache-2.0
"""Lists the farm's tubes, and counts the buried jobs in them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from reimzul.core import validators
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, TOSIGN, Broker
from reimzul.core.errors import InputError
from reimzul.core.settings import Settings


def farm_tubes(settings: Settings) -> list[str]:
    """The arches' tubes and the daemons', whether beanstalkd has them now or not."""
    return [*read_arches(settings.farm.arches).tubes(), CREATEREPO.name, TOSIGN.name, NOTIFY.name]


def all_tubes(broker: Broker, settings: Settings) -> list[str]:
    """The farm's tubes, then all others that beanstalkd has."""
    known = farm_tubes(settings)
    return [*known, *(name for name in broker.list_tubes() if name not in known)]


def select_tubes(broker: Broker, settings: Settings, tube: str | None) -> list[str]:
    """The given tube, or all. Raises `InputError` for a tube that neither beanstalkd nor the farm has."""
    tubes = all_tubes(broker, settings)
    if tube is None:
        return tubes
    if tube not in tubes:
        close = difflib.get_close_matches(tube, tubes, 1)
        raise InputError(f"there is no tube {validators.quoted(tube)}" + (f"; is {close[0]} meant?" if close else ""))
    return [tube]


def count_buried(broker: Broker, tubes: Iterable[str]) -> dict[str, int]:
    counts = {tube: broker.tube_stats(tube).buried for tube in tubes}
    return {tube: count for tube, count in counts.items() if count}
