# SPDX-License-Identifier: Apache-2.0
"""What doctor says of batches: whether reimzul-batch works, which plans nobody touches, and what nobody releases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.admin.doctor import FAIL, OK, WARN, Finding, controller, host, run_checks
from reimzul.core.beanstalk import HELD_SECONDS, Broker, arch_tube
from reimzul.core.config import load_file
from reimzul.core.message import BuildRequest, Status, event_for
from reimzul.plan.document import plan_path
from tests.batch import ARCH, FakeFarm, Stand, make_plan, member
from tests.conftest import Beanstalkd
from tests.waiting import until


@pytest.fixture
def stand(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker) -> Iterator[Stand]:
    made = Stand(tmp_path, beanstalkd)
    made.ini.write_text(f"{made.ini.read_text()}\n[batch]\nenabled = true\n")
    yield made
    made.kill()


def look(stand: Stand) -> dict[str, Finding]:
    examined = host.find_host(load_file(stand.ini), stand.ini, ["controller"], stand.folder / "none")
    checks = controller.batch_checks(examined)
    return {finding.name: finding for finding in run_checks(checks)}


def test_a_working_daemon_and_its_batches_are_all_right(stand: Stand, broker: Broker) -> None:
    without = look(stand)["batch"]
    assert (without.level, without.hint.partition(";")[0]) == ("FAIL", "systemctl restart reimzul-batch")
    stand.start()
    with FakeFarm(stand) as farm:
        farm.is_building.clear()
        stand.submit(broker, make_plan(member("base"), member("app", "base")))
        stand.wait_until_put(["base", "app"])
        until(lambda: farm.of("app", Status.QUEUED), 10, "it is recorded")
        found = look(stand)
    assert {name: finding.level for name, finding in found.items()} == {
        "batch": OK, "batch.plans": OK, "batch.held": OK,
    }  # fmt: skip


def test_a_plan_that_was_changed_and_one_that_nobody_accepted_are_reported(stand: Stand, broker: Broker) -> None:
    stand.start()
    stand.submit(broker, make_plan(member("base")))
    stand.wait_until_put(["base"])
    path = plan_path(stand.incoming, "5f0c12ab")
    path.write_text(path.read_text().replace("johnny", "mallory"))
    late = path.with_name("00000009.json")
    late.write_text("{}")
    os.utime(late, (1, 1))
    found = look(stand)["batch.plans"]
    assert found.level == FAIL
    assert "not the plan that was accepted" in found.message
    assert "00000009 was never accepted" in found.message


def test_a_held_job_that_no_batch_knows_is_reported(stand: Stand, broker: Broker) -> None:
    request = BuildRequest(
        srpm="lost-1-1.src.rpm", arch=ARCH, target=f"c9s.{ARCH}", disttag=".el9", submitter="johnny",
        build_id="3" * 32, timestamp="20261130000000",
    )  # fmt: skip
    job = broker.put(arch_tube(ARCH), request, priority=1, delay=HELD_SECONDS)
    FakeFarm(stand).record([event_for(request, Status.QUEUED, tube=ARCH, job=job, priority=1, held=True)])
    found = look(stand)["batch.held"]
    assert (found.level, found.message) == (
        WARN, f"held, and no batch knows of them: job {job} (lost-1-1.src.rpm)",
    )  # fmt: skip
    assert "reimzul kick --held" in found.hint
