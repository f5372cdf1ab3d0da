# SPDX-License-Identifier: Apache-2.0
"""`reimzul discard`: delete buried jobs."""

from __future__ import annotations

import logging
from typing import Any

import click

from reimzul.admin import cancel, lookup, selection
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import EXIT_CODES, current_user, shared_options
from reimzul.core.config import Settings
from reimzul.core.errors import InvalidMessage, ReimzulError
from reimzul.core.message import BuildRequest, Status
from reimzul.history import BuildFilter, NoHistory

log = logging.getLogger(__name__)

#: Legs of one build that are read.
_READ = 50


def _tell(broker: Broker, settings: Settings, tube: str, body: bytes) -> None:
    """Say of a build whose request is deleted that nothing comes of it: it would be waiting for ever."""
    try:
        if tube not in read_arches(settings.farm.arches).tubes():
            return
        build_id = BuildRequest.decode(body).build_id
        with lookup.reading_history(settings.history.url) as history:
            found = (
                lookup.group_by_build(history.find_builds(BuildFilter(build_id=build_id), _READ)) if build_id else []
            )
        for build in found:
            if lookup.find_job(broker, build.main) is not None:  # it was put anew, and this was left behind
                continue
            for leg in build.legs:
                if leg.status in (Status.QUEUED, Status.BUILDING):
                    broker.announce(cancel.event(leg, f"discarded by {current_user()}"))
    except (InvalidMessage, NoHistory):  # no build, or nobody who keeps any
        return
    except ReimzulError as error:  # it is deleted all the same
        log.warning("a build's request is deleted, but that is not announced: %s", error)


_DEED = selection.Deed(verb="Delete", past="deleted", act=Broker.delete, then=_tell)


@click.command("discard", epilog=EXIT_CODES)
@selection.options
@shared_options
def command(**given: Any) -> int:
    """Delete buried jobs for good; which there are and why, `reimzul buried` tells.

    Asks first. A build whose request is deleted is never built, and said to be cancelled: submit it again.

    \b
    Examples:
      reimzul discard 17 23
      reimzul discard --tube x86_64
      reimzul discard --all --yes
    """
    return selection.run(_DEED, **given)
