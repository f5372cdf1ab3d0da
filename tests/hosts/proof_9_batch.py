# SPDX-License-Identifier: Apache-2.0
"""A batch over two builders, whose controller is rebooted in the middle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests import srpms
from tests.hosts.farm import ARCH, TARGET, Farm, Tell
from tests.waiting import until

#: Each member and what it requires; those in the middle are built side by side, one on each builder.
_REQUIRES: Mapping[str, tuple[str, ...]] = {
    "batchtop": ("batchleft", "batchright"),
    "batchright": ("batchbase",),
    "batchleft": ("batchbase",),
    "batchbase": (),
}
_UNITS = ("stunnel@reimzul", "beanstalkd", "nginx", "reimzul-notifier", "reimzul-batch")
#: Seconds: a batch of four slow builds, and a reboot.
_BATCH = 300


def _show(farm: Farm, batch: str) -> dict[str, Any]:
    shown = farm.controller.json(f"reimzul batch show {batch} --json")
    assert isinstance(shown, dict)
    return {each["name"]: each for each in shown["members"]}


def test_batch_survives_a_reboot_of_the_controller(farm: Farm, tell: Tell) -> None:
    """A batch is built over two builders in its order, and goes on by itself when the controller was rebooted."""
    for builder in farm.builders:
        builder.run("systemctl stop reimzul-worker@2")  # so that each builds one of those in the middle
    paths = []
    for name, requires in _REQUIRES.items():
        lines = "".join(f"\nBuildRequires: {each}" for each in requires)
        seconds = 15 if len(requires) == 1 else 2
        spec = srpms.slow(name, seconds).replace("BuildArch: noarch", f"BuildArch: noarch{lines}", 1)
        paths.append(farm.srpm(name, spec))
    farm.controller.write("/root/batch.list", "".join(f"{path}\n" for path in paths))
    done = farm.controller.run(
        f"reimzul-submit --batch /root/batch.list -t {TARGET} -d .el9 -a {ARCH} --json", timeout=120
    )
    batch = json.loads(done.out)["batch"]

    def middle() -> bool:
        members = _show(farm, batch)
        return {members[name]["state"] for name in ("batchleft", "batchright")} == {"building"}

    until(middle, _BATCH, f"both in the middle are being built: {_show(farm, batch)}")
    builders = {farm.building_on(_show(farm, batch)[name]["build_id"]).name for name in ("batchleft", "batchright")}
    assert len(builders) == 2
    tell(f"  batchleft and batchright were built on {' and '.join(sorted(builders))}")
    farm.controller.reboot()
    farm.controller.wait_up()
    farm.controller.wait_active(*_UNITS)

    def is_published() -> bool:
        return {each["state"] for each in _show(farm, batch).values()} == {"published"}

    until(is_published, _BATCH, "all members are published")
    ends = {name: farm.published(each["build_id"])[0] for name, each in _show(farm, batch).items()}
    for name, requires in _REQUIRES.items():
        assert all(ends[each]["published"] <= ends[name]["started"] for each in requires), ends
    for each in _show(farm, batch).values():
        farm.once(each["build_id"])
    farm.wait_idle()
    diagnosis = farm.doctor("controller")
    assert {diagnosis.level(name) for name in ("batch", "batch.plans", "batch.held")} == {"ok"}, diagnosis.text
    for builder in farm.builders:
        builder.run("systemctl start reimzul-worker@2")
