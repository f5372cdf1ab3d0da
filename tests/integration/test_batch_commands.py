# SPDX-License-Identifier: Apache-2.0
"""`reimzul batch` on plans and journals that the test writes; orders go through a real beanstalkd."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attr
import pytest
from click.testing import CliRunner

from reimzul.admin import batch_orders
from reimzul.admin.batch import command
from reimzul.core.batch_message import BatchOrder, OrderKind
from reimzul.core.beanstalk import BATCH, BATCH_ORDER, Broker
from reimzul.core.message import Status
from reimzul.history import open_history
from reimzul.plan.journal import EntryKind
from reimzul.plan.progress import MemberState
from tests import commands, srpms, webserver
from tests.batches import BATCH as BATCH_ID
from tests.batches import ScriptedBatch, key, make_plan, member
from tests.conftest import Beanstalkd
from tests.events import event
from tests.schemas import check_line
from tests.terminal import show_on_terminal
from tests.waiting import until

PROGRAM = Path(sys.executable).with_name("reimzul")
MISSING = "BuildRequires that nobody provides: python3dist(six)"


@pytest.fixture
def incoming(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Path:
    """incoming/ of a controller with a beanstalkd and without daemons."""
    folder = tmp_path / "incoming"
    folder.mkdir(mode=0o755)
    (tmp_path / "reimzul.ini").write_text(
        f"[beanstalkd]\nhost = {beanstalkd.host}\nport = {beanstalkd.port}\n[incoming]\nfolder = {folder}\n"
        f"[history]\nurl = sqlite:///{tmp_path}/history.sqlite\n[notifier]\npresence = {tmp_path}/presence.sqlite\n"
        "[bstore]\nbase_url = http://127.0.0.1:9/bstore/repo/\n"
    )
    monkeypatch.setenv("REIMZUL_CONFIG", str(tmp_path / "reimzul.ini"))
    return folder


def make_batch(incoming: Path, **more: Any) -> ScriptedBatch:
    """gcc <- qt <- app; six <- py; tool. Tool is published, six failed, gcc is built."""
    members = (
        member("gcc"), member("qt", "gcc"), member("app", "qt"), member("six"), member("py", "six"), member("tool"),
    )  # fmt: skip
    batch = ScriptedBatch(make_plan(members, created=time.time() - 3600, **more), incoming)
    batch.put_all()
    batch.build(key("tool"))
    batch.fail(key("six"), "%build failed", "six.c:1:2: error: no bool")
    batch.release(key("gcc"))
    batch.announce(key("gcc"), Status.BUILDING, at=time.time() - 300)
    return batch


def run(*words: str) -> subprocess.CompletedProcess[str]:
    done = commands.run([PROGRAM, *words])
    check_line(words, done.stdout)
    return done


def run_json(*words: str) -> Any:
    done = run(*words, "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@attr.define
class StandInDaemon:
    """Takes orders from the tube `batch` and journals them, as reimzul-batch does."""

    beanstalkd: Beanstalkd
    batch: ScriptedBatch
    orders: list[BatchOrder] = attr.field(factory=list)
    _stop: threading.Event = attr.field(factory=threading.Event)

    def run(self) -> None:
        with self.beanstalkd.connect() as broker:
            broker.watch([BATCH.name])
            while not self._stop.is_set():
                claim = broker.reserve({BATCH.name: BATCH}, 0)
                if claim is None:
                    self._stop.wait(0.02)
                    continue
                order = claim.message
                assert isinstance(order, BatchOrder)
                self.orders.append(order)
                about = {"order": order.order, "id": order.id, "by": order.by, "members": list(order.members)}
                more = {"settle_pass": order.settle_pass, "plan_sha256": order.plan_sha256, "why": order.why}
                self.batch.add(EntryKind.ORDER, **about, **more)
                claim.delete()

    @contextlib.contextmanager
    def running(self) -> Iterator[StandInDaemon]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()


# --- list and show


def test_batches_are_listed_and_the_newest_unfinished_one_is_meant_without_an_id(incoming: Path) -> None:
    old = ScriptedBatch(make_plan((member("bash"),), batch="00000001"), incoming)
    old.put_all()
    old.build(key("bash"))
    old.finish()
    make_batch(incoming)
    listed = {each["batch"]: each for each in run_json("batch", "list")}
    assert (listed[BATCH_ID]["state"], listed[BATCH_ID]["total"], listed[BATCH_ID]["good"]) == ("running", 6, 1)
    assert listed[BATCH_ID]["counts"] == {"published": 1, "failed": 1, "building": 1, "held": 3}
    assert listed["00000001"]["state"] == "over"
    rows = [line.split("\t")[:6] for line in run("batch").stdout.splitlines()]
    assert [BATCH_ID, "running", "c9s", "6", "1", "1"] in rows
    assert run_json("batch", "show")["batch"] == BATCH_ID


def test_a_batch_is_shown_with_why_it_is_as_it_is(incoming: Path) -> None:
    make_batch(incoming)
    shown = run_json("batch", "show", BATCH_ID[:4])
    assert [(each["message"], each["members"], each["blocked"]) for each in shown["causes"]] == [
        ("%build failed: six.c:1:2: error: no bool", ["six.x86_64"], 1)
    ]
    assert (shown["chain"], shown["expected_end"]) == (["gcc.x86_64", "qt.x86_64", "app.x86_64"], None)
    members = {each["member"]: each for each in shown["members"]}
    assert members["app.x86_64"]["waits_for"] == ["qt.x86_64"]
    assert members["app.x86_64"]["message"] == (
        "waits for qt.x86_64 (held); in the end for gcc.x86_64, which is building: 2 members behind it"
    )
    assert members["py.x86_64"]["message"] == "waits for six.x86_64 (failed, with 1 member behind it)"
    assert members["gcc.x86_64"]["message"].startswith("on b7, 5 min 0")
    assert members["gcc.x86_64"]["blocked"] == 2
    lines = run("batch", "show").stdout.splitlines()
    assert lines[0] == f"batch {BATCH_ID}: batch of 6 sources for c9s on x86_64"
    assert "  failed        1 x %build failed: six.c:1:2: error: no bool (six.x86_64); 1 member behind it" in lines
    assert [line.split("\t")[0] for line in lines if "\t" in line] == [
        "gcc.x86_64", "six.x86_64", "app.x86_64", "py.x86_64", "qt.x86_64",
    ]  # fmt: skip


def test_members_are_chosen_by_state_and_cut(incoming: Path) -> None:
    make_batch(incoming)
    assert [each["member"] for each in run_json("batch", "show", "--failed")["members"]] == ["six.x86_64"]
    assert len(run_json("batch", "show", "--held", "--failed")["members"]) == 4
    done = run("batch", "show", "--held", "--limit", "1")
    assert [line for line in done.stdout.splitlines() if "\t" in line][0].startswith("app.x86_64\theld")
    assert done.stderr == "and 2 more: --limit\n"


def test_the_tree_begins_with_whom_others_wait_for(incoming: Path) -> None:
    make_batch(incoming)
    lines = run("batch", "show", "--tree").stdout.split("\n\n", 1)[1].splitlines()
    assert [line.split("  building")[0].split("  failed")[0].rstrip() for line in lines] == [
        "gcc.x86_64", "  qt.x86_64  held", "    app.x86_64  held", "six.x86_64", "  py.x86_64  held",
    ]  # fmt: skip
    assert lines[0].endswith("(2 behind it)")
    assert run("batch", "show", "--tree", "--json").returncode == 2


def test_a_terminal_gets_a_table_of_its_width(incoming: Path) -> None:
    make_batch(incoming)
    shown = show_on_terminal([str(PROGRAM), "batch", "show", "--color", "never"], columns=80)
    assert shown.code == 0
    heads = next(line for line in shown.lines if line.startswith("MEMBER"))
    assert heads.split() == ["MEMBER", "STATE", "BUILD", "BEHIND", "WHY"]
    table = shown.lines[shown.lines.index(heads) :]
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "5f0c12ac"), "is 5f0c12ab meant?"),
        (("show", "ff"), "no batch's id begins with ff; `reimzul batch list` shows which there are"),
        (("show", "gcc"), "'gcc' is no batch id, nor the beginning of one: up to 8 hex digits"),
        (("skip", "5f", "gc", "toolx"), "has no member 'gc'; is gcc meant?\nreimzul: batch 5f0c12ab has no member"),
        (("skip", "5f", "gcc", "--arch", "x86_65"), "has no arch 'x86_65'; is x86_64 meant?"),
        (("retry", "5f", "gcc"), "gcc.x86_64 is building: only failed, rejected, cancelled and skipped members"),
        (("release", "5f", "gcc"), "gcc.x86_64 is building: only held and waiting members can be released"),
        (("skip", "5f", "tool"), "tool.x86_64 is published: it cannot be left out any more"),
        (("resume", "5f"), "is not paused: running"),
        (("settle", "5f"), "is running; settle it when it is over or rests, or give --wait"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_each(incoming: Path, words: tuple[str, ...], says: str) -> None:
    make_batch(incoming)
    done = run("batch", *words)
    assert (done.returncode, done.stdout) == (4, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_without_any_batch_that_is_said(incoming: Path) -> None:
    assert run("batch").stdout == ""
    assert "no batch found" in run("batch").stderr
    done = run("batch", "show")
    assert (done.returncode, done.stderr) == (
        4, "reimzul: no batch is unfinished: `reimzul-submit --batch` makes one\n",
    )  # fmt: skip


def test_a_batch_whose_plan_is_gone_is_named_and_the_others_are_listed(incoming: Path) -> None:
    make_batch(incoming)
    (incoming / ".batches" / "00000002.json").write_text("{}")
    done = run("batch", "list", "--json")
    assert [each["batch"] for each in json.loads(done.stdout)] == [BATCH_ID]
    assert done.returncode == 1
    assert "batch 00000002 cannot be read" in done.stderr
    path = incoming / ".batches" / f"{BATCH_ID}.json"
    path.unlink()
    assert f"batch {BATCH_ID} cannot be read: {path}: no such file or directory\n" in run("batch", "list").stderr
    done = run("batch", "pause", "5f")
    assert (done.returncode, done.stderr) == (
        4, f"reimzul: batch {BATCH_ID} cannot be read: {path}: no such file or directory\n",
    )  # fmt: skip


def test_tab_completes_batches_and_members(incoming: Path) -> None:
    make_batch(incoming)

    def complete(*words: str) -> list[str]:
        asked = {"_REIMZUL_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        done = subprocess.run([str(PROGRAM)], env={**os.environ, **asked}, capture_output=True, text=True, check=False)
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("reimzul", "batch", "pause", "5f") == [BATCH_ID]
    assert complete("reimzul", "batch", "skip", BATCH_ID, "g") == ["gcc"]


# --- a scratch batch


def test_a_scratch_batch_is_compared_with_the_last_results(incoming: Path, tmp_path: Path) -> None:
    names = ("app", "bar", "baz")
    plan = make_plan([member(name) for name in names], created=time.time() - 60, scratch=True, order="none")
    batch = ScriptedBatch(plan, incoming)
    batch.put_all()
    batch.build(key("baz"))
    history = open_history(f"sqlite:///{tmp_path}/history.sqlite")
    for number, (name, before) in enumerate((("app", "Published"), ("bar", "Failed")), 1):
        about: dict[str, Any] = {"pkgname": name, "srpm": f"{name}-1.0-1.src.rpm", "target": "c9s.x86_64"}
        history.record([event(before, number, **about)])
        batch.release(key(name))
        batch.announce(key(name), Status.BUILDING)
        failed = batch.announce(key(name), Status.FAILED, reason="%build failed", timestamp="20261129120000")
        history.record([attr.evolve(failed, scratch=True)])
    history.close()
    assert run_json("batch", "show")["newly_failing"] == ["app.x86_64"]
    text = run("batch", "show").stdout
    assert "newly failing 1 of 3: app.x86_64; 1 failed before too, or were never built" in text


# --- orders


def test_orders_are_obeyed_and_say_what_changed(incoming: Path, beanstalkd: Beanstalkd) -> None:
    batch = make_batch(incoming)
    with StandInDaemon(beanstalkd, batch).running() as daemon:
        assert run("batch", "pause", "--why", "night").stdout == f"batch {BATCH_ID}: paused; 1 build still to end\n"
        assert (daemon.orders[0].why, len(daemon.orders[0].id)) == ("night", 16)
        assert run("batch", "pause").returncode == 4
        (state,) = [line for line in run("batch", "show").stdout.splitlines() if line.startswith("  state ")]
        assert state.startswith("  state         paused: pause by ")
        assert state.endswith(f": night; 1 build still to end (reimzul batch resume {BATCH_ID})")
        assert run_json("batch", "resume")["obeyed"]
        assert run("batch", "retry", "5f", "--failed").stdout == f"batch {BATCH_ID}: retrying 1 member (six.x86_64)\n"
        assert batch.state.members[key("six")].is_wanted
        skipped = run_json("batch", "skip", "5f", "qt", "--arch", "x86_64")
        assert (skipped["members"], skipped["message"]) == (["qt.x86_64"], "skipped 1 member (qt.x86_64)")
        assert run("batch", "cancel", "5f").returncode == 2, "without a terminal --yes is needed"
        assert run("batch", "cancel", "5f", "--yes").returncode == 0
    assert [each.order for each in daemon.orders] == ["pause", "resume", "retry", "skip", "cancel"]


def test_a_member_whose_needs_are_unmet_is_released_only_anyway(incoming: Path, beanstalkd: Beanstalkd) -> None:
    batch = make_batch(incoming)
    done = run("batch", "release", "5f", "py", "qt")
    assert done.returncode == 4
    assert done.stderr.splitlines()[0] == (
        "reimzul: py.x86_64 waits for six.x86_64 (failed, with 1 member behind it); --anyway builds it without"
    )
    with StandInDaemon(beanstalkd, batch).running():
        done = run("batch", "release", "5f", "py", "--anyway")
    assert done.stdout == f"batch {BATCH_ID}: released 1 member (py.x86_64)\n"
    assert batch.state.members[key("py")].is_forced


def test_a_member_that_misses_a_requirement_is_released_only_anyway(incoming: Path) -> None:
    batch = ScriptedBatch(make_plan((member("app"),)), incoming)
    batch.put_all()
    batch.release(key("app"))
    batch.announce(key("app"), Status.BUILDING)
    batch.announce(key("app"), Status.QUEUED, held=True, missing=("no-such-devel",), job=7)
    assert "app.x86_64 nobody provides no-such-devel; --anyway" in run("batch", "release", "5f", "app").stderr
    assert run_json("batch", "show", "--waiting")["members"][0]["missing"] == ["no-such-devel"]


def test_what_a_follower_waits_for_or_came_to_is_shown(incoming: Path) -> None:
    batch = ScriptedBatch(make_plan((member("app"), member("lib"))), incoming)
    batch.put_all()
    for name in ("app", "lib"):
        batch.release(key(name))
        for arch in ("x86_64", "i386"):
            batch.announce(key(name), Status.BUILDING, arch=arch)
        batch.announce(key(name), Status.PUBLISHED)
    members = {each["member"]: each for each in run_json("batch", "show")["members"]}
    assert members[key("app")]["message"] == "i386 is still being built"
    assert members[key("app")]["followers"] == {"i386": "building"}
    batch.announce(key("app"), Status.QUEUED, arch="i386", held=True, missing=("no-such-devel",), job=7)
    batch.announce(key("lib"), Status.FAILED, arch="i386")
    members = {each["member"]: each for each in run_json("batch", "show")["members"]}
    assert {each: (members[each]["message"], members[each]["followers"]) for each in members} == {
        key("app"): ("nobody provides no-such-devel; only for i386: those that need it go on", {"i386": "waiting"}),
        key("lib"): ("i386 failed", {"i386": "failed"}),
    }


def test_an_order_that_nobody_obeys_stays_queued(
    incoming: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_batch(incoming)
    monkeypatch.setattr(batch_orders, "OBEY_TIMEOUT_SECONDS", 0.2)
    done = CliRunner().invoke(command, ["pause", "--json"], standalone_mode=False)
    assert (done.return_value, json.loads(done.stdout)["obeyed"]) == (1, False)
    found = broker.first_ready(BATCH.name)
    assert found
    order = BATCH.decode(found[1])
    assert isinstance(order, BatchOrder)
    assert (order.order, order.batch, broker.job_stats(found[0]).priority) == (OrderKind.PAUSE, BATCH_ID, BATCH_ORDER)


def test_an_order_for_very_many_members_is_sent_in_parts_that_fit(incoming: Path, beanstalkd: Beanstalkd) -> None:
    names = [f"a-rather-long-name-of-a-package-{number}" for number in range(2_500)]
    batch = ScriptedBatch(make_plan([member(name) for name in names]), incoming)
    batch.put_all()
    with StandInDaemon(beanstalkd, batch).running() as daemon:
        assert len(run_json("batch", "skip", "5f", *names)["ids"]) == len(daemon.orders) > 1
    assert sorted(each for order in daemon.orders for each in order.members) == sorted(map(key, names))


# --- watch


def test_a_pipe_gets_a_line_for_each_change_until_the_batch_is_over(incoming: Path) -> None:
    batch = make_batch(incoming)
    with subprocess.Popen([str(PROGRAM), "batch", "watch"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = [process.stdout.readline().split("\t")[1:3] for _ in range(4)]
        assert ["gcc.x86_64", "building"] in first
        assert first[-1] == [f"batch {BATCH_ID}", "running"]
        batch.announce(key("gcc"), Status.SUCCESS)
        assert process.stdout.readline().split("\t")[1:3] == ["gcc.x86_64", "built"]
        batch.finish()
        last = process.stdout.readline().rstrip().split("\t")
        assert last[1:3] == [f"batch {BATCH_ID}", "over"]
        assert last[-1] == "over; 1 of 6 (16 %) done"
        assert process.wait(30) == 1


def test_a_batch_that_rests_ends_the_watch(incoming: Path) -> None:
    make_batch(incoming).rest()
    done = run("batch", "watch", "--json")
    assert done.returncode == 1
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["state"], last["over"], last["member"]) == ("resting", True, None)


def test_a_batch_that_went_well_ends_the_watch_with_0(incoming: Path) -> None:
    batch = ScriptedBatch(make_plan((member("app"), member("old"))), incoming)
    batch.put_all()
    batch.build(key("app"))
    batch.order(OrderKind.SKIP, key("old"))
    batch.add(EntryKind.ENDED, member=key("old"), build=batch.state.members[key("old")].build_id,
              state=MemberState.SKIPPED, reason="skip by johnny")  # fmt: skip
    batch.finish()
    assert run("batch", "watch", BATCH_ID).returncode == 0


def test_a_terminal_shows_a_batch_as_it_goes_on(incoming: Path) -> None:
    make_batch(incoming)
    shown = show_on_terminal([str(PROGRAM), "batch", "watch", "--timeout", "1"], columns=90)
    assert shown.code == 1
    assert "longest chain" in shown.text
    assert "\x1b[J\x1b[" in shown.text, "it was drawn again in its place"
    assert "not over after 1.0 s; the batch goes on" in shown.errors


# --- among builds


@pytest.fixture
def recorded(incoming: Path, tmp_path: Path) -> ScriptedBatch:
    """The batch, whose builds the history knows, and a build by itself."""
    batch = make_batch(incoming)
    stamp = time.strftime("%Y%m%d%H%M%S", time.gmtime(batch.plan.created + 1))
    history = open_history(f"sqlite:///{tmp_path}/history.sqlite")
    more: dict[str, Any]
    for name, status in (("tool", "Published"), ("six", "Failed"), ("gcc", "Building"), ("app", "Queued")):
        progress = batch.state.members[key(name)]
        more = {"held": True, "job": progress.job, "tube": "x86_64"} if status == "Queued" else {}
        more.update(srpm=progress.member.srpm, pkgname=name, build_id=progress.build_id, batch=BATCH_ID)
        more.update(reason="%build failed" if status == "Failed" else "", target="c9s.x86_64")
        history.record([event(status, timestamp=stamp, at=batch.at, **more)])
    history.record([event("Failed", 77, reason="%build failed")])
    history.close()
    return batch


def test_a_batch_is_one_line_among_builds(recorded: ScriptedBatch) -> None:
    rows = [line.split("\t") for line in run("builds").stdout.splitlines()]
    assert [row[:3] for row in rows] == [
        [BATCH_ID, "running", "batch of 6 members: 3 held, 1 building, 1 published, 1 failed"],
        [rows[1][0], "failed", "time-1.7-45.el7.src.rpm"],
    ]
    assert len(run("builds", "--state", "failed").stdout.splitlines()) == 2, "what is asked for is not folded"
    assert len(run("builds", "--batch", BATCH_ID).stdout.splitlines()) == 4
    assert len(run_json("builds")) == 5
    assert run("builds", "--target", "c9s").stdout.count("batch of") == 1
    assert run("builds", "--until", "30d").stdout.count("batch of") == 0


def test_a_batch_is_one_line_where_all_builds_are_watched(recorded: ScriptedBatch) -> None:
    with subprocess.Popen([str(PROGRAM), "watch", "--json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        check_line(("watch", "--json"), line)
        seen = json.loads(line)
        recorded.announce(key("gcc"), Status.FAILED, reason="%build failed")
        again = json.loads(process.stdout.readline())
        process.kill()
    assert (seen["batch"], seen["build_id"], seen["state"], seen["over"]) == (BATCH_ID, None, "running", False)
    assert again["message"] == "running: 3 held, 1 published, 2 failed"


def test_explain_names_who_holds_a_member_up_in_the_end(recorded: ScriptedBatch) -> None:
    text = run("explain", recorded.state.members[key("app")].build_id).stdout
    assert f"It is a build of app.x86_64 of batch {BATCH_ID}, which is running." in text
    assert "It waits for qt.x86_64 (held); in the end for gcc.x86_64, which is building: 2 members behind it." in text
    text = run("explain", recorded.state.members[key("six")].build_id).stdout
    assert f"To go on: reimzul batch retry, replace or skip {BATCH_ID} six" in text


def test_a_batch_whose_files_are_gone_does_not_keep_its_builds_from_being_explained(recorded: ScriptedBatch) -> None:
    assert recorded.folder
    (recorded.folder / ".batches" / f"{BATCH_ID}.json").unlink()
    text = run("explain", recorded.state.members[key("six")].build_id).stdout
    assert f"It belongs to batch {BATCH_ID}, whose files cannot be read." in text


def test_show_names_the_batch_and_causes_are_those_of_a_batch(recorded: ScriptedBatch) -> None:
    text = run("show", recorded.state.members[key("six")].build_id).stdout
    assert f"  batch         {BATCH_ID}: reimzul batch show {BATCH_ID}" in text
    assert run_json("causes", "--batch", BATCH_ID)["failed"] == 1
    assert run_json("causes", "--since", "2000-01-01")["failed"] == 2


# --- replace


def test_a_member_is_replaced_by_another_release(incoming: Path, beanstalkd: Beanstalkd, tmp_path: Path) -> None:
    plan = make_plan((member("app", "lib"), member("lib"), member("other")))
    batch = ScriptedBatch(plan, incoming)
    batch.put_all()
    batch.fail(key("app"), "%build failed")
    srpm = srpms.make_srpm(tmp_path, "app", srpms.noarch("app", version="2.0"))
    with StandInDaemon(beanstalkd, batch).running() as daemon:
        batch.state._load_plan = lambda sha256: read_later_plan(incoming, sha256)
        done = run("batch", "replace", "5f", str(srpm))
    assert done.stdout == f"batch {BATCH_ID}: replaced 1 member (app.x86_64) by app-2.0-1.src.rpm\n", done.stderr
    assert [each.order for each in daemon.orders] == ["replace"], "its build had failed: nothing to cancel"
    replaced = batch.state.members[key("app")]
    assert (replaced.member.evr, replaced.is_wanted, replaced.state) == ("2.0-1", True, MemberState.HELD)
    assert (incoming / "app-2.0-1.src.rpm").exists()
    again = run("batch", "replace", "5f", str(srpm))
    assert again.returncode == 4
    assert "has the same release as the member that it is to replace: 2.0-1" in again.stderr


def read_later_plan(incoming: Path, sha256: str) -> Any:
    from reimzul.plan.document import plan_path, read_plan

    return read_plan(plan_path(incoming, BATCH_ID, sha256), sha256)


def test_a_package_that_is_no_member_replaces_nothing(incoming: Path, tmp_path: Path) -> None:
    make_batch(incoming)
    done = run("batch", "replace", "5f", str(srpms.make_srpm(tmp_path, "nobody", srpms.noarch("nobody"))))
    assert (done.returncode, done.stderr) == (4, f"reimzul: batch {BATCH_ID} has no member nobody\n")
    assert not (incoming / "nobody-1.0-1.src.rpm").exists()


# --- settle


PACKAGE = """<package type="rpm"><name>{name}</name><arch>x86_64</arch>
<version epoch="0" ver="1.0" rel="{release}"/><checksum type="sha256" pkgid="YES">{name}</checksum>
<time file="1" build="{built}"/><size package="1" installed="1" archive="1"/>
<location href="{source}/20260101000000/1.0-{release}.x86_64/{name}-1.0-{release}.x86_64.rpm"/>
<format><rpm:sourcerpm>{source}-1.0-{release}.src.rpm</rpm:sourcerpm>
<rpm:provides><rpm:entry name="{name}" flags="EQ" epoch="0" ver="1.0" rel="{release}"/>
<rpm:entry name="{soname}"/></rpm:provides></format></package>"""


@attr.frozen
class Store:
    """The store as a web server shows it."""

    root: Path

    def publish(self, *packages: tuple[str, str, int, str]) -> None:
        """Let the target list packages of lib: name, release, build time, soname."""
        rows = [
            PACKAGE.format(name=name, source="lib", release=release, built=built, soname=soname)
            for name, release, built, soname in packages
        ]
        folder = self.root / "repo" / "c9s.x86_64" / "repodata"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "primary.xml").write_text(f'<metadata packages="{len(rows)}">\n' + "\n".join(rows) + "\n</metadata>")
        (folder / "repomd.xml").write_text('<data type="primary"><location href="repodata/primary.xml"/></data>')

    def install(self, batch: ScriptedBatch, name: str, release: str, built: int) -> None:
        """Let a member's buildroot have had lib-devel of that release, and publish the member's build."""
        place = f"repo/c9s.x86_64/{name}/20260101000000/1.0-1.x86_64"
        (self.root / place).mkdir(parents=True, exist_ok=True)
        log = f"bash-5.1-1.x86_64 1 1 x installed\nlib-devel-1.0-{release}.x86_64 {built} 1 x installed\n"
        (self.root / place / "installed_pkgs.log").write_text(log)
        batch.release(key(name))
        batch.announce(key(name), Status.BUILDING)
        batch.announce(key(name), Status.PUBLISHED, place=place)


@pytest.fixture
def store(incoming: Path, tmp_path: Path) -> Iterator[Store]:
    root = tmp_path / "store"
    (root / "repo").mkdir(parents=True)
    server = webserver.serve(root)
    ini = tmp_path / "reimzul.ini"
    ini.write_text(ini.read_text().replace("127.0.0.1:9/bstore/", f"127.0.0.1:{server.server_port}/"))
    yield Store(root)
    webserver.close(server)


def make_published(incoming: Path, store: Store, release: str, built: int) -> ScriptedBatch:
    """lib <- app, where app's buildroot had lib-devel of that release."""
    batch = ScriptedBatch(make_plan((member("lib"), member("app", "lib"))), incoming)
    batch.put_all()
    store.install(batch, "lib", "0", 1)
    store.install(batch, "app", release, built)
    batch.finish()
    return batch


def test_a_member_that_was_built_against_an_old_build_is_built_again(
    incoming: Path, beanstalkd: Beanstalkd, store: Store
) -> None:
    store.publish(("lib-devel", "2", 50, "libx.so.2"), ("lib-devel", "1", 40, "libx.so.1"))
    batch = make_published(incoming, store, "1", 40)
    with StandInDaemon(beanstalkd, batch).running() as daemon:
        found = run_json("batch", "settle", BATCH_ID)
    reason = "built against lib-devel-1.0-1.x86_64, and lib-devel-1.0-2.x86_64 is published now"
    assert found["stale"] == [{"member": "app.x86_64", "reason": reason}]
    assert (found["pass"], found["settled"], found["obeyed"]) == (1, False, True)
    assert (daemon.orders[0].settle_pass, daemon.orders[0].members) == (1, ("app.x86_64",))
    assert batch.state.members[key("app")].disttag == ".el9.1"


def test_a_batch_is_settled_when_no_member_is_stale(incoming: Path, store: Store) -> None:
    store.publish(("lib-devel", "2", 50, "libx.so.2"))
    make_published(incoming, store, "2", 50)
    done = run("batch", "settle", BATCH_ID)
    assert (done.returncode, done.stdout) == (0, f"batch {BATCH_ID}: settled: no member is stale\n"), done.stderr


def test_the_passes_wait_for_each_other_and_end_when_packages_come_out_equal(
    incoming: Path, beanstalkd: Beanstalkd, store: Store
) -> None:
    store.publish(("lib-devel", "2", 50, "libx.so.2"), ("lib-devel", "1", 40, "libx.so.1"))
    batch = make_published(incoming, store, "1", 40)
    now, words = int(batch.plan.created) + 1000, [str(PROGRAM), "batch", "settle", BATCH_ID, "--wait"]
    with (
        StandInDaemon(beanstalkd, batch).running() as daemon,
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process,
    ):
        until(lambda: bool(daemon.orders), 30, "pass 1 is ordered")
        batch.put(key("app"))
        store.publish(("lib-devel", "2.1", now + 9, "libx.so.2"), ("lib-devel", "2", now, "libx.so.2"))
        store.install(batch, "app", "2", now)
        batch.finish()
        text, _ = process.communicate(timeout=60)
    assert (process.returncode, text) == (0, f"batch {BATCH_ID}: settled after pass 1: no member is stale\n")
    assert len(daemon.orders) == 1


def test_no_more_passes_are_ordered_than_allowed(incoming: Path, store: Store) -> None:
    store.publish(("lib-devel", "2", 50, "libx.so.2"))
    batch = make_published(incoming, store, "1", 40)
    batch.order(OrderKind.SETTLE, key("app"), settle_pass=1)
    batch.put(key("app"))
    store.install(batch, "app", "1", 40)
    batch.finish()
    done = run("batch", "settle", BATCH_ID, "--passes", "1")
    assert done.returncode == 1
    assert "not settled after pass 1: 1 member still stale (--passes allows no more)" in done.stdout


def test_a_member_whose_buildroot_is_not_known_is_named(incoming: Path, store: Store) -> None:
    store.publish()
    batch = ScriptedBatch(make_plan((member("lib"),)), incoming)
    batch.put_all()
    batch.build(key("lib"))
    batch.finish()
    found = run_json("batch", "settle", BATCH_ID)
    assert found["unread"] == [{"member": "lib.x86_64", "reason": "the place of its build is not known"}]
    assert (found["settled"], found["stale"]) == (False, [])


def test_a_batch_that_rests_is_closed(incoming: Path, beanstalkd: Beanstalkd) -> None:
    batch = make_batch(incoming)
    assert "only one that rests is closed" in run("batch", "settle", BATCH_ID, "--close").stderr
    assert run("batch", "settle", BATCH_ID, "--close", "--wait").returncode == 2
    batch.announce(key("gcc"), Status.FAILED, reason="%build failed")
    batch.rest()
    with StandInDaemon(beanstalkd, batch).running() as daemon:
        done = run("batch", "settle", BATCH_ID, "--close")
    assert done.stdout.startswith(f"batch {BATCH_ID}: closed: 3 members (")
    assert (daemon.orders[0].order, len(daemon.orders[0].members)) == ("cancel", 3)
