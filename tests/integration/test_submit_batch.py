# SPDX-License-Identifier: Apache-2.0
"""`reimzul-submit --batch`, `--plan`, `--dependents-of`, `--after`: real source rpms, repodata and beanstalkd."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import attr
import pytest

from reimzul.core.batch_message import BatchRequest
from reimzul.core.beanstalk import BATCH, Broker
from reimzul.core.message import BuildEvent, BuildRequest, Status, event_for, new_build_id
from reimzul.history import open_history
from reimzul.plan.document import FOLDER, Plan, journal_path, plan_path, read_plan
from reimzul.plan.journal import EntryKind, Journal
from tests import srpms, webserver
from tests.conftest import Beanstalkd
from tests.integration.test_submit import Controller, Ended

ENABLED = "[batch]\nenabled = true\n"


def library(
    name: str, requires: Iterable[str] = (), *, version: str = "2.0", provides: str = "", arch: str = ""
) -> str:
    """A package with a -devel package; `arch`: its ExclusiveArch, else it is noarch."""
    tags = "".join(f"BuildRequires: {each}\n" for each in requires)
    spec = srpms.noarch(name, version=version).replace("License:", f"{tags}License:", 1)
    if arch:
        spec = spec.replace("BuildArch: noarch", f"ExclusiveArch: {arch}")
    more = f"Provides: {provides}\n" if provides else ""
    return srpms.with_subpackage(spec, f"{name}-devel", tags=more)


@attr.define
class Farm:
    """A controller, a folder of source rpms, and what targets list."""

    controller: Controller

    @property
    def folder(self) -> Path:
        return self.controller.folder / "sources"

    def add(self, name: str, *requires: str, **more: Any) -> Path:
        """Make a source rpm in the folder."""
        return srpms.make_srpm(self.folder, name, library(name, requires, **more))

    def publish(self, name: str, *requires: str, arch: str = "x86_64", **more: Any) -> None:
        """Put the packages of a build into a target."""
        target = self.controller.folder / f"bstore/repo/c9s.{arch}"
        place = target / name / "20260101000000" / f"{more.get('version', '1.0')}-1.el9.{arch}"
        spec = library(name, requires, **{"version": "1.0", **more})
        srpms.make_rpms(place, name, spec, stage="-ba", dist=".el9")
        shutil.rmtree(target / "repodata", ignore_errors=True)
        subprocess.run(["createrepo_c", "-q", "--general-compress-type=gz", target], check=True)

    def batch(self, *more: str, arch: str = "x86_64", **run: Any) -> Ended:
        return self.controller.submit(
            "--batch", self.folder, "-a", arch, "-t", "c9s", "-d", ".el9", *more, **run
        )  # fmt: skip

    def plan_json(self, *more: str, **run: Any) -> dict[str, Any]:
        ended = self.batch("--plan", "--json", *more, **run)
        assert ended.code == (0 if json.loads(ended.out)["possible"] else 1), ended.err
        found: dict[str, Any] = json.loads(ended.out)
        return found

    def requested(self) -> list[Any]:
        """The messages in `batch`."""
        self.controller.broker.watch([BATCH.name])
        claims = iter(lambda: self.controller.broker.reserve({BATCH.name: BATCH}, 0), None)
        return [claim.message for claim in claims]

    def plans(self) -> list[Plan]:
        return [read_plan(path) for path in sorted((self.controller.incoming / FOLDER).glob("*.json"))]


@pytest.fixture
def farm(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker) -> Iterator[Farm]:
    server = webserver.serve(tmp_path)
    controller = Controller(tmp_path, broker, beanstalkd.port, f"http://127.0.0.1:{server.server_port}/bstore/repo/")
    controller.configure(f"{ENABLED}[history]\nurl = sqlite:///{tmp_path}/history.sqlite\n")
    for arch in ("x86_64", "aarch64"):
        controller.report(arch, f"c9s.{arch}", host=f"{arch}.example.org")
    (tmp_path / "sources").mkdir()
    yield Farm(controller)
    webserver.close(server)


def needs_of(plan: dict[str, Any]) -> dict[str, list[str]]:
    return {each["key"]: each["needs"] for each in plan["facts"]["builds"]}


def messages_of(plan: dict[str, Any]) -> list[str]:
    return [each["message"] for each in plan["problems"]]


# --- submitting


def test_a_batch_is_a_plan_in_incoming_and_one_request(farm: Farm) -> None:
    farm.add("app", "lib-devel >= 2.0", "pkgconfig(zlib)")
    lib = farm.add("lib")
    ended = farm.batch("--now", user="johnny")
    assert ended.code == 0, ended.err
    (request,) = farm.requested()
    (plan,) = farm.plans()
    assert ended.out == f"{plan.batch}\tc9s\t2\n"
    assert isinstance(request, BatchRequest)
    assert (request.batch, request.target, request.submitter) == (plan.batch, "c9s", "johnny")
    assert read_plan(plan_path(farm.controller.incoming, plan.batch), request.plan_sha256) == plan
    assert (plan.priority, plan.order, plan.arches, plan.last_resort) == (1024, "rebuilt", ("x86_64",), True)
    members = {each.key: each for each in plan.members}
    assert members["app.x86_64"].needs == ("lib.x86_64",)
    assert members["lib.x86_64"].packages == ("lib", "lib-devel")
    assert (members["lib.x86_64"].rank, members["app.x86_64"].rank) == (0, 2048)
    assert members["lib.x86_64"].srpm == lib.name
    assert members["lib.x86_64"].srpm_sha256 == sha256(lib.read_bytes()).hexdigest()
    assert (farm.controller.incoming / lib.name).read_bytes() == lib.read_bytes()
    assert ended.err == ["reimzul-submit: warning: reimzul-batch does not run; the batch waits until it does"]


def test_a_list_may_name_files_in_incoming_and_have_comments(farm: Farm) -> None:
    app, lib = farm.add("app", "lib-devel"), farm.add("lib")
    farm.controller.incoming.joinpath(lib.name).write_bytes(lib.read_bytes())
    lines = f"# those of today\n\n{app}\n{lib.name}\n"
    ended = farm.controller.submit(
        "--batch", "-", "-a", "x86_64", "-t", "c9s", "-d", ".el9", "--json", "--order", "listed", stdin=lines
    )
    assert ended.code == 0, ended.err
    (plan,) = farm.plans()
    said = json.loads(ended.out)
    assert (said["batch"], said["builds"], said["problems"]) == (plan.batch, 2, [])
    assert {each.key: each.needs for each in plan.members} == {"app.x86_64": (), "lib.x86_64": ("app.x86_64",)}
    assert plan.order == "listed"


def test_on_a_terminal_the_next_commands_are_printed(farm: Farm) -> None:
    farm.add("lib")
    lines, code = farm.controller.on_a_terminal(
        "--batch", str(farm.folder), "-a", "x86_64,aarch64", "-t", "c9s", "-d", ".el9"
    )
    (plan,) = farm.plans()
    assert code == 0
    assert f"Batch {plan.batch}: 2 builds of 1 source rpm for c9s on x86_64, aarch64" in lines
    assert any(line.strip().startswith(f"reimzul batch watch {plan.batch}") for line in lines)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--after", "0" * 32), "--after and --dep-wait are for single builds"),
        (("--wait",), "--wait is for single builds"),
        (("--scratch", "--order", "listed"), "members of a scratch batch do not wait for each other"),
        (("--background", "--now"), "--background and --now exclude each other"),
        (("-s", "a-1-1.src.rpm"), "give source rpms by --batch, or without it"),
    ],
)
def test_options_that_do_not_go_together_are_refused(farm: Farm, more: tuple[str, ...], reason: str) -> None:
    farm.add("lib")
    ended = farm.batch(*more)
    assert (ended.code, farm.plans()) == (2, [])
    assert reason in ended.err[-1]


@pytest.mark.parametrize("option", [["--batch", "."], ["--dependents-of", "lib"], ["-s", "x", "--dep-wait"]])
def test_a_farm_without_reimzul_batch_refuses_what_has_to_wait(farm: Farm, option: list[str]) -> None:
    farm.controller.configure()
    ended = farm.controller.submit(*option, "-a", "x86_64", "-t", "c9s", "-d", ".el9")
    assert ended.code == 3
    assert "needs reimzul-batch: set enabled = true in [batch]" in ended.err[0]


def test_nothing_is_left_where_beanstalkd_is_away(farm: Farm) -> None:
    farm.add("lib")
    farm.controller.configure(ENABLED, port=1)
    assert farm.batch().code == 5
    assert farm.plans() == []


# --- edges and arches


def test_edges_never_cross_arches(farm: Farm) -> None:
    farm.add("app", "lib-devel", "tool")
    farm.add("lib", arch="x86_64")
    farm.add("tool")
    farm.publish("lib", arch="aarch64", provides="tool")
    plan = farm.plan_json(arch="x86_64,aarch64")
    assert needs_of(plan) == {
        "app.x86_64": ["lib.x86_64", "tool.x86_64"], "lib.x86_64": [], "tool.x86_64": [],
        "app.aarch64": ["tool.aarch64"], "tool.aarch64": [],
    }  # fmt: skip
    assert plan["facts"]["excluded"] == [{"name": "lib", "arch": "aarch64", "reason": "ExclusiveArch is x86_64"}]
    configured = {each["target"]: each["workers"] for each in plan["facts"]["configured"]}
    assert configured == {"c9s.x86_64": 1, "c9s.aarch64": 1}


def test_automatic_provides_and_files_are_those_of_the_last_builds(farm: Farm) -> None:
    farm.add("app", "pkgconfig(lib)", "/usr/share/tool/greeting")
    farm.add("lib")
    farm.add("tool")
    farm.publish("lib", provides="pkgconfig(lib)")
    farm.publish("tool")
    assert needs_of(farm.plan_json())["app.x86_64"] == ["lib.x86_64"]  # that file is not in primary.xml
    listed = {each["name"]: each["is_listed"] for each in farm.plan_json()["facts"]["builds"]}
    assert listed == {"app": False, "lib": True, "tool": True}


def test_needed_waits_only_for_what_the_target_lacks(farm: Farm) -> None:
    farm.add("app", "lib-devel", "tool-devel >= 2.0")
    farm.add("lib")
    farm.add("tool")
    for name in ("lib", "tool"):
        farm.publish(name)
    assert needs_of(farm.plan_json())["app.x86_64"] == ["lib.x86_64", "tool.x86_64"]
    assert needs_of(farm.plan_json("--order", "needed"))["app.x86_64"] == ["tool.x86_64"]
    assert needs_of(farm.plan_json("--order", "none"))["app.x86_64"] == []


# --- what makes it impossible


def test_what_the_target_lists_already_is_left_out_or_replaced_if_that_is_meant(farm: Farm) -> None:
    farm.add("app", "lib-devel")
    farm.add("lib", version="1.0")
    farm.publish("lib")
    ended = farm.batch()
    assert (ended.code, farm.plans(), farm.requested()) == (1, [], [])
    assert "c9s.x86_64 lists lib-1.0-1.el9 already" in ended.err[0]
    assert farm.controller.files() == []
    assert needs_of(farm.plan_json("--skip-built")) == {"app.x86_64": []}
    assert needs_of(farm.plan_json("--rebuild")) == {"app.x86_64": ["lib.x86_64"], "lib.x86_64": []}
    shutil.rmtree(farm.folder)
    farm.add("lib", version="1.0")
    assert farm.batch("--skip-built").code == 4


def test_a_newer_listed_build_is_a_problem_unless_anyway(farm: Farm) -> None:
    farm.add("lib", version="2.0")
    farm.publish("lib", version="10.0")
    assert messages_of(farm.plan_json()) == [
        "c9s.x86_64 lists a newer lib, 10.0-1.el9; --anyway builds 2.0-1.el9 all the same"
    ]
    assert farm.plan_json("--anyway")["possible"]


def test_a_member_of_another_unfinished_batch_is_a_problem_unless_anyway(farm: Farm) -> None:
    farm.add("lib")
    assert farm.batch().code == 0
    (plan,) = farm.plans()
    ended = farm.batch("--json")
    assert ended.code == 1
    (problem,) = json.loads(ended.out)["problems"]
    assert (problem["kind"], problem["name"], problem["arch"]) == ("batch", "lib", "x86_64")
    assert f"batch {plan.batch} is to build lib for c9s.x86_64 too" in problem["message"]
    assert farm.plan_json("--anyway")["possible"]
    journal = Journal(journal_path(farm.controller.incoming, plan.batch))
    journal.append(
        [{"kind": EntryKind.ACCEPTED, "at": 1.0, "plan_sha256": "0" * 64}, {"kind": EntryKind.OVER, "at": 2.0}]
    )
    journal.close()


def test_a_batch_is_refused_for_one_bad_source_rpm(farm: Farm) -> None:
    lib = farm.add("lib")
    srpms.truncate(lib, farm.folder / "short-1-1.src.rpm")
    farm.add("lib", version="3.0")
    ended = farm.batch()
    assert (ended.code, farm.plans()) == (1, [])
    assert any("short-1-1.src.rpm" in line for line in ended.err)
    assert any("lib is in the batch twice" in line for line in ended.err)


def test_an_empty_folder_and_a_missing_list_are_bad_input(farm: Farm) -> None:
    assert farm.batch().code == 4
    ended = farm.controller.submit("--batch", "no-such.list", "-a", "x86_64", "-t", "c9s", "-d", ".el9")
    assert (ended.code, ended.err) == (4, ["reimzul-submit: --batch no-such.list: no such file or directory"])


# --- cycles


def add_ring(farm: Farm) -> None:
    farm.add("a", "b-devel")
    farm.add("b", "c-devel")
    farm.add("c", "a-devel", "b-devel")


def test_a_cycle_that_the_target_satisfies_is_broken(farm: Farm) -> None:
    add_ring(farm)
    for name in "abc":
        farm.publish(name)
    plan = farm.plan_json()
    (cycle,) = plan["facts"]["cycles"]
    assert (cycle["names"], cycle["blocking"], cycle["arch"]) == (["a", "b", "c"], [], "x86_64")
    assert cycle["dropped"]
    assert plan == {**farm.plan_json(), "estimates": plan["estimates"]}


def test_a_cycle_that_nobody_satisfies_needs_seeds(farm: Farm) -> None:
    add_ring(farm)
    (message,) = messages_of(farm.plan_json())
    assert "the shortest in it: b requires c-devel, c requires b-devel;" in message
    assert farm.batch().code == 1
    assert farm.plan_json("--anyway")["possible"]
    assert farm.plan_json("--seed", "c")["possible"]
    ended = farm.batch("--seed", "a", "--bcond", "stage1=c", "--background")
    assert ended.code == 0, ended.err
    (plan,) = farm.plans()
    members = {each.key: each for each in plan.members}
    assert (members["c~seed.x86_64"].bconds, members["c~seed.x86_64"].disttag) == (("stage1",), ".el9~bootstrap")
    assert members["a~seed.x86_64"].bconds == ("bootstrap",)
    assert members["b.x86_64"].needs == ("c~seed.x86_64",)
    assert members["a.x86_64"].needs == ("b.x86_64",)
    assert members["c.x86_64"].needs == ("a~seed.x86_64", "b.x86_64")
    assert plan.priority == 16_384


def test_seeds_that_are_none_are_refused(farm: Farm) -> None:
    add_ring(farm)
    farm.add("lonely")
    assert "the batch has no source package of that name" in farm.batch("--seed", "nobody").err[0]
    ended = farm.batch("--seed", "lonely")
    assert (ended.code, ended.err) == (4, ["reimzul-submit: seed lonely: it is in no cycle of the batch; leave it out"])
    assert farm.batch("--bcond", "x").code == 4


def test_seeds_need_workers_that_know_bconds(farm: Farm) -> None:
    add_ring(farm)
    farm.controller.report("x86_64", "c9s.x86_64", host="old.example.org", version="0.1.0", features=())
    (message,) = messages_of(farm.plan_json("--seed", "c"))
    assert message.startswith("the worker of old.example.org is older than 0.2 and ignores bconds")


# --- plans


def test_a_plan_changes_nothing_and_keeps_facts_apart_from_estimates(farm: Farm) -> None:
    farm.add("app", "lib-devel", "gcc", "lib-develop")
    farm.add("lib")
    farm.add("late", "lib-devel")
    plan = farm.plan_json()
    assert farm.controller.untouched()
    assert farm.controller.files() == []
    unprovided = {each["requirement"]: each for each in plan["facts"]["unprovided"]}
    assert unprovided["lib-develop"]["nearest"] == "lib-devel"
    assert (unprovided["gcc"]["nearest"], unprovided["gcc"]["names"]) == (None, ["app"])
    estimates = plan["estimates"]
    assert (estimates["work_seconds"], estimates["chain_seconds"], estimates["seconds"]) == (900.0, 600.0, 900.0)
    assert estimates["longest_chain"] == ["lib.x86_64", "app.x86_64"]
    assert estimates["builders"] == 2


def test_requirements_that_only_the_build_computes_are_announced(farm: Farm) -> None:
    farm.add("lib")
    srpms.make_srpm(farm.folder, "dynamic", srpms.dynamic("dynamic"))
    assert farm.plan_json()["facts"]["dynamic"] == ["dynamic"]


def test_a_plan_needs_no_reimzul_batch(farm: Farm) -> None:
    farm.add("lib")
    farm.controller.configure()
    ended = farm.batch("--plan")
    assert (ended.code, ended.out) == (0, "lib.x86_64\tc9s.x86_64\tlib-2.0-1.src.rpm\t0\t300\t\n")


def test_durations_come_from_the_history_and_what_waits_comes_first(farm: Farm) -> None:
    farm.add("app", "lib-devel")
    lib = farm.add("lib")
    record_builds(farm, lib.name, [100.0, 200.0, 600.0])
    record_queued(farm, lib.name)
    plan = farm.plan_json()
    seconds = {each["key"]: each["seconds"] for each in plan["estimates"]["builds"]}
    assert seconds == {"app.x86_64": 200.0, "lib.x86_64": 200.0}
    assert plan["estimates"]["seconds"] == pytest.approx(300.0 + 400.0)  # the mean of what waits, and then both


def record_builds(farm: Farm, srpm: str, durations: Iterable[float]) -> None:
    """Successful builds, each of some seconds."""
    record(farm, [make_event(srpm, Status.PUBLISHED, attempt=f"1-{number:08x}", started=1000.0, finished=1000.0 + took)
                  for number, took in enumerate(durations)])  # fmt: skip


def record_queued(farm: Farm, srpm: str) -> None:
    record(farm, [make_event(srpm, Status.QUEUED, tube="x86_64", job=1, priority=8192)])


def make_event(srpm: str, status: str, **more: Any) -> BuildEvent:
    request = BuildRequest(
        srpm=srpm, arch="x86_64", target="c9s.x86_64", disttag=".el9", submitter="j", build_id=new_build_id(),
        timestamp="20260101000000",
    )  # fmt: skip
    return event_for(request, status, pkgname=srpm.rsplit("-", 2)[0], evr="2.0-1", **more)


def record(farm: Farm, events: list[BuildEvent]) -> None:
    history = open_history(f"sqlite:///{farm.controller.folder}/history.sqlite")
    history.record(events)
    history.close()


def test_a_plan_on_a_terminal_has_facts_estimates_and_a_table(farm: Farm) -> None:
    add_ring(farm)
    farm.add("app", "c-devel", "c-devil")
    farm.add("here", arch="x86_64")
    farm.publish("c", provides="a-devel, b-devel")
    lines, code = farm.controller.on_a_terminal(
        "--batch", str(farm.folder), "-a", "x86_64,aarch64", "-t", "c9s", "-d", ".el9", "--plan"
    )
    text = " ".join(" ".join(lines).split())
    assert code == 1
    assert "Facts: 9 builds of 5 source packages" in text
    assert "c9s.x86_64: 1 worker with a mock configuration" in text
    assert "here is not built for aarch64: ExclusiveArch is x86_64" in text
    assert "x86_64: a cycle of 3 source packages: a, b, c;" in text
    assert "met by the builds that c9s.x86_64 lists" in text
    assert "x86_64: app requires c-devil, which nothing here provides; is c-devel meant?" in text
    assert "Estimates, with 2 builders:" in text
    assert "reimzul-submit: a cycle that c9s.aarch64 does not satisfy" in text
    assert [line.split()[0] for line in lines if line.startswith("here.")] == ["here.x86_64"]


def test_a_single_build_can_be_planned_too(farm: Farm) -> None:
    app, lib = farm.add("app", "lib-devel"), farm.add("lib", version="1.0")
    farm.publish("lib")
    ended = farm.controller.submit("-s", app, "-s", lib, "-a", "x86_64", "-t", "c9s", "-d", ".el9", "--plan", "--json")
    plan = json.loads(ended.out)
    assert ended.code == 1
    assert needs_of(plan) == {"app.x86_64": [], "lib.x86_64": []}
    assert ["c9s.x86_64 lists lib-1.0-1.el9 already" in each for each in messages_of(plan)] == [True]
    ended = farm.controller.submit("-s", app, "-a", "x86_64", "-t", "c9s", "-d", ".el9", "--plan")
    assert ended.out.split("\t")[:1] + ended.out.split("\t")[3:5] == ["app.x86_64", "0", "300"]
    assert farm.controller.untouched()


def test_a_store_that_does_not_answer_is_an_error(farm: Farm) -> None:
    farm.add("lib")
    farm.controller.store = "http://127.0.0.1:1/bstore/repo/"
    farm.controller.configure(ENABLED)
    ended = farm.batch("--plan")
    assert ended.code == 1
    assert ended.err[-1].startswith(
        "reimzul-submit: nothing can be planned while it is unknown what c9s.x86_64 lists: bstore: repo/"
    )


# --- dependents


def submit_dependents(farm: Farm, package: str, *more: str) -> Ended:
    return farm.controller.submit("--dependents-of", package, "-a", "x86_64", "-t", "c9s", "-d", ".el9", *more)


def test_dependents_are_built_as_a_scratch_batch_from_the_store(farm: Farm) -> None:
    farm.publish("lib", provides="pkgconfig(lib)")
    farm.publish("app", "pkgconfig(lib) >= 0")
    farm.publish("tool", "lib-devel")
    farm.publish("other", "gcc")
    shown = json.loads(submit_dependents(farm, "lib", "--plan", "--json").out)
    assert needs_of(shown) == {"app.x86_64": [], "tool.x86_64": []}
    assert farm.controller.files() == []
    ended = submit_dependents(farm, "lib")
    assert ended.code == 0, ended.err
    (plan,) = farm.plans()
    assert (plan.scratch, plan.order) == (True, "none")
    assert sorted(each.srpm for each in plan.members) == ["app-1.0-1.el9.src.rpm", "tool-1.0-1.el9.src.rpm"]
    for each in plan.members:
        assert (farm.controller.incoming / each.srpm).is_file()
        assert each.needs == ()


def test_dependents_of_what_is_not_listed_are_bad_input(farm: Farm) -> None:
    farm.publish("library")
    ended = submit_dependents(farm, "libary")
    assert ended.code == 4
    assert "the target lists no build of a source package of that name; is library meant?" in ended.err[0]
    ended = submit_dependents(farm, "library")
    assert (ended.code, "is built against it" in ended.err[0]) == (4, True)


# --- builds that wait


def submit_after(farm: Farm, *after: str) -> Ended:
    words = [word for each in after for word in ("--after", each)]
    return farm.controller.submit("-s", farm.add("app"), "-a", "x86_64", "-t", "c9s", "-d", ".el9", *words)


def test_a_build_after_others_goes_to_reimzul_batch(farm: Farm) -> None:
    waiting = make_event("lib-1-1.src.rpm", Status.BUILDING, attempt="1-00000000", started=time.time())
    done = make_event("tool-1-1.src.rpm", Status.PUBLISHED, attempt="1-00000000", started=1.0, finished=2.0)
    record(farm, [waiting, done])
    ended = submit_after(farm, waiting.build_id[:8], f"{done.build_id},{waiting.build_id}")
    assert ended.code == 0, ended.err
    (request,) = farm.requested()
    assert isinstance(request, BuildRequest)
    assert request.after == (waiting.build_id,)
    (event,) = farm.controller.told()
    assert (event.status, event.build_id, event.held, event.tube) == ("Queued", request.build_id, True, "batch")
    assert event.waits_for == f"the builds {waiting.build_id[:8]}"


def test_a_build_after_published_ones_goes_to_its_arch(farm: Farm) -> None:
    done = make_event("tool-1-1.src.rpm", Status.PUBLISHED, attempt="1-00000000", started=1.0, finished=2.0)
    record(farm, [done])
    assert submit_after(farm, done.build_id).code == 0
    (claim,) = farm.controller.queued("x86_64")
    assert claim.message.after == ()


def test_a_build_after_failed_or_unknown_ones_is_refused(farm: Farm) -> None:
    failed = make_event("lib-1-1.src.rpm", Status.FAILED, attempt="1-00000000", reason="make died")
    record(farm, [failed])
    ended = submit_after(farm, failed.build_id[:8], "fade" * 8, "xyz")
    assert ended.code == 4
    assert ended.err == [
        f"reimzul-submit: --after {failed.build_id[:8]}: lib-1-1.src.rpm for c9s.x86_64 is failed: make died",
        f"reimzul-submit: --after {'fade' * 8}: no such build",
        "reimzul-submit: --after xyz: give the id of a build, or its first digits, as `reimzul builds` prints them",
    ]
    assert farm.controller.untouched()


def test_dep_wait_is_the_settings_and_the_job_is_not_held(farm: Farm) -> None:
    ended = farm.controller.submit("-s", farm.add("app"), "-a", "x86_64", "-t", "c9s", "-d", ".el9", "--dep-wait")
    assert ended.code == 0, ended.err
    (claim,) = farm.controller.queued("x86_64")
    assert claim.message.dep_wait == 172_800
