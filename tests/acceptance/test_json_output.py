# SPDX-License-Identifier: Apache-2.0
"""The JSON of every command on a whole farm, held against docs/schema/. A command without a run here fails."""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from devfarm.farm import Farm
from devfarm.plan import BSTORE, CONTROLLER
from devfarm.processes import own_program
from reimzul.core.beanstalk import PRIORITY
from tests import setuphost, srpms
from tests.acceptance.conftest import TARGET
from tests.schemas import check_output, find_schema_of_line, list_schemas, split_values
from tests.waiting import until


class JsonDay:
    """Commands on a farm, and what each has printed, by schema."""

    def __init__(self, farm: Farm, folder: Path) -> None:
        self.farm, self.folder = farm, folder
        self.printed: defaultdict[str, list[str]] = defaultdict(list)
        self.repo = f"{TARGET}.{farm.arch}"

    def run(self, *words: str, host: str = CONTROLLER) -> Any:
        """Run a command with --json; returns the value that it prints last."""
        program = words[:1] if words[0] == "reimzul-submit" else ("reimzul", *words[:1])
        argv = [own_program(program[0]), *program[1:], *words[1:], "--json"]
        environment = {**os.environ, "REIMZUL_CONFIG": str(self.farm.ini(host))}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout, done.stderr
        values = list(split_values(done.stdout))
        self.printed[find_schema_of_line(words)] += values
        return json.loads(values[-1])

    def submit(self, srpm: Path, *more: str, arch: str = "") -> str:
        """Submit a source rpm; returns the id of its build."""
        about = ("-s", str(srpm), "-a", arch or self.farm.arch, "-t", TARGET, "-d", ".demo")
        return str(self.run("reimzul-submit", *about, *more)["builds"][0]["build_id"])

    def build(self, srpm: Path, *more: str) -> str:
        """Submit a source rpm, and wait for the end of its build."""
        build_id = self.submit(srpm, *more)
        self.run("watch", "--new", build_id)
        return build_id


def _build_some(day: JsonDay) -> None:
    """A build that is published, one that fails for an arch, a scratch build, and one that is built again."""
    hello = day.build(srpms.make_srpm(day.folder, "hello", srpms.compiled("hello")))
    half = day.build(srpms.make_srpm(day.folder, "half", srpms.fails_on("half", "i686")))
    day.build(srpms.make_srpm(day.folder, "tree", srpms.noarch("tree")), "--scratch")
    for build_id in (hello, half):
        assert {each["state"] for each in day.run("show", build_id)["arches"]} <= {"published", "failed"}
        day.run("explain", build_id)
    assert [each["builds"] for each in day.run("causes")["causes"]] == [[{"build_id": half, "arch": "i386"}]]
    assert day.farm.arch in [each["arch"] for each in day.run("targets", "show", TARGET)[0]["arches"]]
    assert {each["build_id"] for each in day.run("packages", "-t", TARGET)} == {hello, half}
    assert not [each for each in day.run("download", hello, "--dest", str(day.folder / "got")) if each["message"]]
    day.run("prune", "--incoming", "--older", "0d", "--dry-run")
    (again,) = day.run("retry", hello, "--yes")
    day.run("watch", "--new", again["build_id"])
    day.run("override", "-s", "half-1.0-1.src.rpm", "-t", day.repo, "-a", "i386", "-c", "not needed")


def _look_at_running_builds(day: JsonDay) -> None:
    """A build that runs and one that waits, with a drained builder."""
    slow = day.submit(srpms.make_srpm(day.folder, "slow", srpms.slow("slow", 600)))
    until(lambda: "rpmbuild" in str([each["build"] for each in day.run("builders")]), 60, "a worker is at rpmbuild")
    waiting = day.submit(day.folder / "hello-1.0-1.src.rpm", "--rebuild", arch="aarch64")
    until(lambda: any(each["build_id"] == waiting for each in day.run("builds")), 30, "the history knows it")
    for build_id in (slow, waiting):
        day.run("show", build_id)
        day.run("explain", build_id)
    day.run("raise", slow, waiting)
    day.run("drain", "builder2", "--why", "new disk")
    flags = [each["drain"] for each in day.run("builders") if each["builder"].startswith("builder2")]
    assert {"reason": "new disk", "quarantined": False}.items() <= flags[0].items()
    day.run("resume", "builder2")
    assert {each["outcome"] for each in day.run("cancel", slow, waiting)} == {"cancelled"}


def _bury_a_job(day: JsonDay) -> None:
    def is_buried() -> bool:
        return bool(day.run("buried")["jobs"]) and day.run("buried")["jobs"][0]["recorded"]

    with day.farm.broker() as broker:
        job = str(broker.put_raw(day.farm.arch, b"{]", priority=PRIORITY))
    until(is_buried, 30, "a worker has refused it")
    assert [each["job"] for each in day.run("kick", job, "999999", "--yes")["left"]] == [999999]
    until(is_buried, 30, "a worker has refused it again")
    day.run("discard", "--all", "--yes")


def _change_the_store(day: JsonDay) -> None:
    comps = day.folder / "comps.xml"
    comps.write_text("<comps/>")
    day.run("repogen", day.repo, "--add-metadata", str(comps), host=BSTORE)
    day.run("repogen", day.repo)
    until(lambda: day.run("queues")["pending"] == [], 30, "all sinks have all events")
    for more in (("--dry-run",), ("--yes",)):
        day.run("prune", "--keep", "1", "--unsigned", *more, host=BSTORE)
    scratch = day.run("scratch", "list", host=BSTORE)
    assert day.run("scratch", "rm", "--all", "--yes", host=BSTORE) == scratch != []


def _check_the_hosts(day: JsonDay) -> None:
    assert day.run("stats")["results"]["published"]
    assert day.run("doctor", "--canary")["canary"]["builds"][0]["state"] == "built"
    assert day.run("doctor", host=BSTORE)["canary"] is None
    assert day.run("config", "check")["errors"] == []
    with pytest.MonkeyPatch.context() as patch:
        host = setuphost.Host(day.folder / "host", day.folder / "host.state", patch)
        host.systemd()
        for words in (("--dry-run",), ("--list",)):
            day.printed["setup"].append(host.done("controller", *words, "--json"))


def _build_a_batch(day: JsonDay) -> None:
    sources = day.folder / "batch"
    for name in ("first", "second"):
        srpms.make_srpm(sources, name, srpms.noarch(name))
    about = ("--batch", str(sources), "-a", day.farm.arch, "-t", TARGET, "-d", ".demo")
    day.run("reimzul-submit", *about, "--plan")
    builders = sorted({each["builder"] for each in day.run("builders") if each["builder"].startswith("builder")})
    for builder in builders:  # a batch that is over cannot be paused
        day.run("drain", builder)
    batch: str = day.run("reimzul-submit", *about)["batch"]
    day.run("batch", "pause", batch)
    day.run("batch", "resume", batch)
    for builder in builders:
        day.run("resume", builder)
    day.run("batch", "watch", batch)
    assert {each["state"] for each in day.run("batch", "show", batch)["members"]} == {"published"}
    day.run("batch", "list")
    day.run("batch", "settle", batch)


@pytest.fixture(scope="module")
def printed_lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each command has printed in the course of a day, by schema."""
    folder = tmp_path_factory.mktemp("json")
    with Farm(folder / "state", targets=(TARGET,)) as farm:
        day = JsonDay(farm, folder)
        _build_some(day)
        _look_at_running_builds(day)
        _bury_a_job(day)
        _change_the_store(day)
        _check_the_hosts(day)
        _build_a_batch(day)
    return day.printed


#: Of a host that vanished: tests/integration/test_health.py holds it against its schema.
_ELSEWHERE = ("builders-forget",)


@pytest.mark.parametrize("name", [each for each in list_schemas() if each not in _ELSEWHERE])
def test_a_command_prints_what_its_schema_says(printed_lines: dict[str, list[str]], name: str) -> None:
    assert printed_lines.get(name), f"no step of this file runs a command whose schema is {name}.json"
    for text in printed_lines[name]:
        check_output(name, text)
