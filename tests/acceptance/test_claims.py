# SPDX-License-Identifier: Apache-2.0
"""What a builder's key is worth in `notify`: a build that it calls published is shown as claimed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Callable

import attr

from devfarm.farm import Farm
from devfarm.processes import own_program
from reimzul.core.message import BuildEvent, Status
from tests import srpms
from tests.acceptance.conftest import Witness, submit
from tests.events import event
from tests.schemas import check_output


def recorded(farm: Farm, srpm: str) -> dict[str, dict[str, Any]]:
    """What `reimzul builds` has of a source rpm, by arch."""
    argv = [own_program("reimzul"), "builds", "--config", str(farm.ini()), "--srpm", srpm, "--json"]
    text = subprocess.run(argv, capture_output=True, check=True, timeout=30).stdout
    return {leg["arch"]: leg for leg in check_output("builds", text.decode())}


def announce_as_builder(farm: Farm, witness: Witness, forged: BuildEvent) -> BuildEvent:
    """Put an event into `notify` by a builder's key, and listen to what becomes of it."""
    with farm.broker("builder1") as broker:
        broker.announce(forged)
    witness.until(lambda: bool(witness.of(forged.srpm, forged.status)), 20, "the forged event")
    return witness.of(forged.srpm, forged.status)[-1]


def test_a_build_that_never_was_is_claimed(farm: Farm, witness: Witness) -> None:
    forged = event("Published", 7, srpm="ghost-1-1.src.rpm", claimed=False, signature="1:" + "0" * 64)
    assert announce_as_builder(farm, witness, forged).claimed is True
    assert [each.status for each in witness.of(forged.srpm)] == [Status.PUBLISHED], "it implies no Success"
    leg = recorded(farm, forged.srpm)["x86_64"]
    assert (leg["state"], leg["claimed"], leg["published"]) == ("claimed", True, None)


def test_what_bstore_published_is_no_claim_and_its_signature_fits_nothing_else(
    farm: Farm, witness: Witness, package: Callable[[str, str], Path]
) -> None:
    srpm = package("honest", srpms.noarch("honest"))
    submit(farm, srpm)
    (published,) = witness.published(srpm.name, "x86_64")
    assert published.claimed is False
    leg = recorded(farm, srpm.name)["x86_64"]
    assert (leg["state"], leg["claimed"], bool(leg["published"])) == ("published", False, True)
    copied = attr.evolve(published, arch="i386", srpm="copied-1-1.src.rpm")
    assert announce_as_builder(farm, witness, copied).claimed is True
