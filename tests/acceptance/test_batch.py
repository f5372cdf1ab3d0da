# SPDX-License-Identifier: Apache-2.0
"""A batch of source rpms that require each other, submitted in an order in which they cannot be built."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from devfarm.farm import Farm
from devfarm.processes import own_program
from reimzul.core.message import BuildEvent, Status
from tests import batch_sources
from tests.acceptance.conftest import Witness
from tests.schemas import check_line

TARGET = "batch.1"
#: What each was built against, as its buildroot has to have it.
BUILT_AGAINST = {
    "batchmid": ["batchlib-devel"],
    "batchpc": ["batchlib-devel"],
    "batchfile": ["batchlib"],
    "batchtop": ["batchmid-devel", "batchpc"],
    "batchdyn": ["batchtop"],
    "batchfar": ["batchtop"],
    "batchhen": ["batchegg"],
    "batchegg": ["batchhen"],
    batch_sources.BEHIND: ["batchbroken-devel"],
}
#: Those whose requirements no source rpm shows: they begin at once, and may find what is listed a moment before it is
#: announced.
UNPLANNED = ("batchpc", "batchfile", "batchdyn")

#: Whose requirements no source rpm's header provides: they are built at once, and again once they are provided.
UNPLANNED = ("batchpc", "batchfile", "batchdyn")


def run(farm: Farm, *argv: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    command = [own_program(argv[0]), *argv[1:], "--config", str(farm.ini())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    check_line(argv[argv[0] == "reimzul" :], done.stdout)
    return done


def submit_batch(farm: Farm, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    shared = ("-t", TARGET, "-d", ".b", "-a", farm.arch)
    return run(farm, "reimzul-submit", "--batch", str(folder), *shared, *more)


def find_states(farm: Farm, batch: str) -> dict[str, str]:
    shown = json.loads(run(farm, "reimzul", "batch", "show", batch, "--json").stdout)
    return {each["name"]: each["state"] for each in shown["members"]}


def buildroot_of(farm: Farm, event: BuildEvent) -> dict[str, str]:
    """The packages that a build was made against: name -> version-release.arch."""
    log = farm.layout.store.place(event.place) / "installed_pkgs.log"
    rows = [line.split()[0] for line in log.read_text().splitlines() if line.startswith("batch")]
    return {nevra.rsplit("-", 2)[0]: nevra.split("-", nevra.rsplit("-", 2)[0].count("-") + 1)[-1] for nevra in rows}


def check_buildroots(farm: Farm, events: Sequence[BuildEvent]) -> None:
    """Each was built against what had been published before its attempt began, and nothing older."""
    published: dict[str, tuple[float, str]] = {}
    for event in sorted(events, key=lambda each: each.at):
        root = buildroot_of(farm, event)
        for name in BUILT_AGAINST.get(event.pkgname, []):
            if event.pkgname == batch_sources.SEED and name not in root:
                assert "~bootstrap" in event.disttag, "only the seed is built without the other half of the cycle"
                continue
            source = name.removesuffix("-devel")
            assert source in published, f"{event.pkgname} was built before {source} was published"
            at, evr = published[source]
            # repodata show a package a moment before it is announced
            assert at < (event.finished if event.pkgname in UNPLANNED else event.started)
            assert root[name].startswith(f"{evr}."), f"{event.pkgname} was built against {name} {root[name]}, not {evr}"
        published[event.pkgname] = (event.at, event.evr)


def published_events(witness: Witness) -> list[BuildEvent]:
    told = [each for each in witness.events if isinstance(each, BuildEvent) and each.target.startswith(f"{TARGET}.")]
    return [each for each in told if each.status == Status.PUBLISHED and each.arch == "x86_64"]


def test_a_batch_is_built_in_the_order_of_its_requirements(farm: Farm, witness: Witness, tmp_path: Path) -> None:
    batch_sources.make_batch_srpms(tmp_path)
    refused = submit_batch(farm, tmp_path, "--plan")
    assert refused.returncode == 1
    assert "batchegg requires batchhen, batchhen requires batchegg" in refused.stderr
    submitted = submit_batch(farm, tmp_path, "--seed", batch_sources.SEED, "--json")
    assert (submitted.returncode, submitted.stderr) == (0, "")
    batch: str = json.loads(submitted.stdout)["batch"]
    watched = run(farm, "reimzul", "batch", "watch", batch, seconds=300)
    assert watched.returncode == 1, "two have failed"
    states = find_states(farm, batch)
    assert {name for name, state in states.items() if state == "published"} == {
        *batch_sources.BUILDABLE, f"{batch_sources.SEED}~seed",
    }  # fmt: skip
    assert [states[name] for name in (batch_sources.MISSPELT, batch_sources.BROKEN, batch_sources.BEHIND)] == [
        "failed", "failed", "held",
    ]  # fmt: skip
    explained = run(farm, "reimzul", "explain", find_build(farm, batch, batch_sources.BEHIND)).stdout
    assert batch_sources.BROKEN in explained

    mended = batch_sources.make_mended(tmp_path)
    assert run(farm, "reimzul", "batch", "replace", batch, str(mended)).returncode == 0
    assert run(farm, "reimzul", "batch", "watch", batch, seconds=120).returncode == 1, "the misspelt one has failed"
    assert find_states(farm, batch)[batch_sources.BEHIND] == "published"
    count = len(batch_sources.BUILDABLE) + 3  # the seed, the mended one and that behind it
    witness.until(lambda: len(published_events(witness)) == count, 30, "all are announced")
    check_buildroots(farm, published_events(witness))


def find_build(farm: Farm, batch: str, name: str) -> str:
    shown: dict[str, Any] = json.loads(run(farm, "reimzul", "batch", "show", batch, "--json").stdout)
    return next(str(each["build_id"]) for each in shown["members"] if each["name"] == name)
