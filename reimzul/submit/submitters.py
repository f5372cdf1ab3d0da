# SPDX-License-Identifier: Apache-2.0
"""The name that a submission is written under: as it is, once every worker takes it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from reimzul.core import validators
from reimzul.core.beanstalk import Broker
from reimzul.core.errors import ReimzulError
from reimzul.core.process import output_of
from reimzul.core.submitters import SeenWorker, all_accept_any_name, is_plain

log = logging.getLogger(__name__)

#: Seconds `reimzul builders` may take.
PATIENCE = 20.0


def name_for_workers(broker: Broker, name: str, options: Sequence[str], *, originals: bool) -> str:
    """The submitter's name, or one in the old characters where a worker may not take it; that is said.

    Only an unusual name costs the question, which the operator's program answers: rooms do not look into each other.
    `options` are the ones of this program that it needs too; `originals`: workers of the original build here as well.
    """
    if is_plain(name):
        return name
    why = "workers of the original are in this farm"
    try:
        if not originals and all_accept_any_name(broker, _workers(options)):
            return name
        why = why if originals else "a worker is older than 0.2, or says nothing of itself"
    except (ReimzulError, ValueError, LookupError, TypeError) as error:
        why = f"the workers' versions are not known: {error}"
    plain = validators.restrict_submitter(name)
    log.warning("submitted as %s, not as %s: %s", plain, name, why)
    return plain


def _workers(options: Sequence[str]) -> list[SeenWorker]:
    program = Path(sys.argv[0]).resolve().with_name("reimzul")
    rows = json.loads(output_of([program, "builders", "--json", "--since", "1h", *options], timeout=PATIENCE))
    return [SeenWorker(host=row["host"], version=row["version"], features=row["features"]) for row in rows]
