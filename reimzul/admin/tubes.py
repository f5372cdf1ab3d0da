# SPDX-License-Identifier: Apache-2.0
"""The tubes a person can mean, and how many buried jobs each has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from reimzul.core import validators
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import CREATEREPO, NOTIFY, TOSIGN, Broker
from reimzul.core.config import Settings
from reimzul.core.errors import InputError


def the_farms(settings: Settings) -> list[str]:
    """The arches' tubes and the farm's own, whether beanstalkd has them now or not."""
    return [*read_arches(settings.farm.arches).tubes(), CREATEREPO.name, TOSIGN.name, NOTIFY.name]


def all_there_are(broker: Broker, settings: Settings) -> list[str]:
    """The farm's, then all others that there are."""
    known = the_farms(settings)
    return [*known, *(name for name in broker.list_tubes() if name not in known)]


def named(broker: Broker, settings: Settings, tube: str | None) -> list[str]:
    """The tube a person named, or all. Raises `InputError` for one that is neither there nor the farm's."""
    tubes = all_there_are(broker, settings)
    if tube is None:
        return tubes
    if tube not in tubes:
        close = difflib.get_close_matches(tube, tubes, 1)
        raise InputError(f"there is no tube {validators.quoted(tube)}" + (f"; is {close[0]} meant?" if close else ""))
    return [tube]


def with_buried(broker: Broker, tubes: Iterable[str]) -> dict[str, int]:
    """Those of them that have buried jobs, and how many."""
    counts = {tube: broker.tube_stats(tube).buried for tube in tubes}
    return {tube: count for tube, count in counts.items() if count}
