# SPDX-License-Identifier: Apache-2.0
"""What all lists have in common: columns, colours, filters, states, and the answer to an unknown name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from reimzul.core.beanstalk import PRIORITY, Broker, arch_tube, cancel_tube, drain_tube
from reimzul.core.control import new_flag
from reimzul.core.message import BuildRequest, WorkerHeartbeat
from reimzul.core.targets import TargetList
from reimzul.history import open_history
from reimzul.history.build_record import BuildState
from reimzul.history.workers import WorkerRecord, WorkerStore
from tests import commands
from tests.conftest import Beanstalkd
from tests.events import build_id, event
from tests.terminal import Shown, show_on_terminal

PROGRAM = str(Path(sys.executable).parent / "reimzul")
RED, GREEN, YELLOW = "\x1b[31m", "\x1b[32m", "\x1b[33m"


@pytest.fixture(autouse=True)
def ini(tmp_path: Path, beanstalkd: Beanstalkd, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration in use: of a farm without builds, builders and a store."""
    path = tmp_path / "reimzul.ini"
    path.write_text(
        f"[beanstalkd]\nhost = {beanstalkd.host}\nport = {beanstalkd.port}\n"
        f"[history]\nurl = sqlite:///{tmp_path}/history.sqlite\n"
        f"[notifier]\nledger = {tmp_path}/outbox.sqlite\npresence = {tmp_path}/workers.sqlite\n"
        f"[bstore]\nroot = {tmp_path}/store\nbase_url = http://127.0.0.1:9/repo/\n"
    )
    monkeypatch.setenv("REIMZUL_CONFIG", str(path))
    monkeypatch.delenv("NO_COLOR", raising=False)
    return path


@pytest.fixture
def recorded(ini: Path, tmp_path: Path) -> None:
    """A build in most states, of three targets."""
    history = open_history(f"sqlite:///{tmp_path}/history.sqlite")
    hello = {"srpm": "hello-2.10-1.el9.src.rpm", "pkgname": "hello", "evr": "2.10-1.el9"}
    history.record(
        [
            event("Failed", 1),
            event("Published", 2, skipped={"i386": "a noarch package is built once"}),
            event("Building", 3, arch="i386", submitter="karanbir"),
            event("Success", 4, target="c9s.x86_64", **hello),
            event("Queued", 5, target="c9s.aarch64", arch="aarch64", timestamp="20260101000000", **hello),
        ]
    )
    history.close()


def reimzul(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it, its output in a pipe."""
    return commands.run([PROGRAM, *arguments])


def on_terminal(*arguments: str, columns: int = 80, **environment: str) -> Shown:
    return show_on_terminal([PROGRAM, *arguments], columns, **environment)


def list_numbers(*options: str) -> list[int]:
    """The numbers of the builds that `reimzul builds` lists in a pipe, which are those that it has in JSON."""
    numbers = {build_id(number)[:8]: number for number in range(10)}
    ids = [line.split("\t")[0] for line in reimzul("builds", *options).stdout.splitlines()]
    assert [each["build_id"][:8] for each in json.loads(reimzul("builds", "--json", *options).stdout)] == ids
    return [numbers[each] for each in ids]


# --- columns and colours


@pytest.mark.parametrize("columns", [80, 140])
def test_a_build_is_named_by_its_id_however_narrow_the_terminal_is(recorded: None, columns: int) -> None:
    lines = [click.unstyle(line) for line in on_terminal("builds", columns=columns).lines]
    heads, rows = lines[0].split(), lines[1:6]
    assert heads[:3] == ["ID", "STATE", "SRPM"]
    assert [row[:8] for row in rows] == [build_id(number)[:8] for number in (5, 4, 3, 2, 1)]
    assert max(map(len, lines)) <= columns
    left_out = {"SUBMITTER", "BUILDER", "SUBMITTED", "TARGET"} - set(heads)
    assert ("BUILDER" in heads) == (columns == 140)
    if left_out:
        (note,) = lines[6:]
        assert note.startswith("left out for lack of room: ")
        assert left_out == set(note.partition(": ")[2].partition(" (")[0].split(", "))
    else:
        assert len(lines) == 6


def test_columns_are_chosen_by_their_names(recorded: None) -> None:
    for shown in (on_terminal("builds", "--columns", "state,id", "--limit", "5").lines, None):
        lines = shown[1:] if shown else reimzul("builds", "--columns", "state,id").stdout.splitlines()
        cells = [re.split(r"\s+", click.unstyle(line)) for line in lines]
        assert cells[0] == ["queued", build_id(5)[:8]]
    wide = on_terminal("builds", "--wide").lines
    assert len(wide) == 6
    assert "BUILDER" in wide[0]
    refused = reimzul("builds", "--columns", "id,stat")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "there is no column 'stat'; is state meant?" in refused.stderr


def test_states_are_coloured_on_a_terminal(recorded: None) -> None:
    text = on_terminal("builds").text
    for colour, state in ((RED, "failed"), (GREEN, "published"), (YELLOW, "building")):
        assert f"{colour}{state}" in text
    assert "\x1b[" not in on_terminal("builds", NO_COLOR="1").text
    assert "\x1b[" not in on_terminal("builds", "--color", "never").text
    assert f"{RED}failed" in on_terminal("builds", "--color", "always", NO_COLOR="1").text
    assert "\x1b[" not in reimzul("builds").stdout
    assert f"\t{RED}failed\x1b[0m\t" in reimzul("builds", "--color", "always").stdout


def test_watch_redraws_its_table_without_colours_too(recorded: None) -> None:
    shown = on_terminal("watch", build_id(2)[:8])
    assert f"{GREEN}published" in shown.text
    plain = on_terminal("watch", build_id(2)[:8], NO_COLOR="1")
    assert (shown.code, plain.code) == (0, 0)
    assert not re.search(r"\x1b\[[0-9;]*m", plain.text)
    assert "\x1b[K" in plain.text, "the ends of lines are cleared all the same"
    assert "left out for lack of room: TARGET" in plain.text
    assert "left out" not in on_terminal("watch", build_id(2)[:8], columns=140).text
    assert f"\t{GREEN}published\x1b[0m\t" in reimzul("watch", build_id(2)[:8], "--color", "always").stdout


def test_doctor_respects_the_same_options() -> None:
    words = ("doctor", "--role", "controller")
    assert "\x1b[" in on_terminal(*words).text
    assert "\x1b[" not in on_terminal(*words, NO_COLOR="1").text
    assert "\x1b[" not in on_terminal(*words, "--color", "never").text


# --- filters


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (("--state", "failed"), [1]),
        (("--state", "BUILT", "--state", "queued"), [5, 4]),
        (("--state", "published"), [2]),
        (("--status", "Success"), [4, 2]),
        (("--status", "Published"), [2]),
        (("--target", "c9s"), [5, 4]),
        (("--target", "c9s.x86_64"), [4]),
        (("--target", "c9*"), [5, 4]),
        (("--target", "c9?", "--arch", "aarch64"), [5]),
        (("--srpm", "time-*.el7*"), [3, 2, 1]),
        (("--srpm", "hello"), [5, 4]),
        (("--srpm", "*.el9.src.rpm", "--submitter", "j*"), [5, 4]),
        (("--submitter", "karan?ir"), [3]),
        (("--since", "2026-01-01"), [5]),
        (("--until", "2026-01-01"), [4, 3, 2, 1]),
        (("--since", "2025-11-22T00:00:02Z", "--until", "2025-11-22T00:00:04Z"), [3, 2]),
        (("--since", "1d"), []),
    ],
)
def test_builds_are_narrowed_down(recorded: None, options: tuple[str, ...], numbers: list[int]) -> None:
    assert list_numbers(*options) == numbers


def test_old_builds_are_listed_unless_since_is_given(recorded: None) -> None:
    assert list_numbers() == [5, 4, 3, 2, 1]


def test_a_limit_says_that_there_are_more(recorded: None) -> None:
    note = "2 shown, there are more: --limit\n"
    shown = reimzul("builds", "--limit", "2")
    assert (len(shown.stdout.splitlines()), shown.stderr) == (2, note)
    in_json = reimzul("builds", "--limit", "2", "--json")
    assert (len(json.loads(in_json.stdout)), in_json.stderr) == (2, note)
    assert click.unstyle(on_terminal("builds", "--limit", "2").lines[-1]) == note.strip()
    assert reimzul("builds", "--limit", "5").stderr == ""


def test_stats_count_the_builds_of_a_period_and_a_target(recorded: None) -> None:
    def count(*options: str) -> int:
        results: dict[str, int] = json.loads(reimzul("stats", "--json", *options).stdout)["results"]
        return sum(results.values())

    assert count("--since", "2025-11-22") == 5
    assert count("--since", "2025-11-22", "--until", "2026-01-01") == 4
    assert count("--since", "2025-11-22", "--target", "c9s") == 2
    assert count("--since", "2025-11-22", "--target", "c9s.aarch64") == 1
    stats = json.loads(reimzul("stats", "--json", "--since", "2025-11-22", "--until", "2026-01-01").stdout)
    assert (stats["since"], stats["until"]) == ("2025-11-22T00:00:00Z", "2026-01-01T00:00:00Z")
    lines = reimzul("stats", "--since", "2025-11-22").stdout.splitlines()
    assert "result\tpublished\t1" in lines
    assert on_terminal("stats", "--since", "2025-11-22", "--until", "2026-01-01").lines[0] == (
        "since 2025-11-22 00:00:00Z, until 2026-01-01 00:00:00Z"
    )


def test_builders_count_the_attempts_of_a_period(recorded: None, broker: Broker, tmp_path: Path) -> None:
    heartbeat = WorkerHeartbeat(host="builder1.example.org", instance="1", state="idle", arches=("x86_64",))
    WorkerStore(tmp_path / "workers.sqlite").save([WorkerRecord(heartbeat=heartbeat, last_seen=time.time())])

    def count(*options: str) -> int:
        (builder,) = json.loads(reimzul("builders", "--json", *options).stdout)
        return int(builder["attempts"])

    assert count("--since", "2025-11-22") == 3, "one of four is still under way"
    assert count("--since", "2025-11-22", "--until", "2025-11-22T00:00:02Z") == 1
    assert count() == 0


@pytest.mark.parametrize(
    ("words", "thing"),
    [
        (("builds", "--srpm", "tar"), "build"),
        (("stats", "--since", "2019-01-01", "--until", "2020-01-01"), "build"),
        (("buried",), "buried job"),
        (("builders",), "worker"),
    ],
)
def test_an_empty_list_is_said_in_the_same_words(
    recorded: None, broker: Broker, tmp_path: Path, words: tuple[str, ...], thing: str
) -> None:
    WorkerStore(tmp_path / "workers.sqlite").save([])
    in_pipe = reimzul(*words)
    assert (in_pipe.returncode, in_pipe.stdout, in_pipe.stderr) == (0, "", f"no {thing} found\n")
    shown = on_terminal(*words)
    assert (click.unstyle(shown.text).strip(), shown.errors) == (f"no {thing} found", "")
    in_json = reimzul(*words, "--json")
    assert in_json.stderr == ""
    json.loads(in_json.stdout)


@pytest.mark.parametrize("option", ["--build", "--batch"])
def test_a_build_or_a_batch_that_nobody_knows_is_refused(recorded: None, option: str) -> None:
    done = reimzul("builds", option, "ffff")
    assert (done.returncode, done.stdout) == (4, "")
    assert re.fullmatch(
        f"reimzul: no {option[2:]}'s id begins with ffff; `reimzul .+` shows which there are\n", done.stderr
    )
    assert "is no b" in reimzul("builds", option, "xy").stderr
    recorded_soon = reimzul("builds", "--build", "f" * 32, "--json")
    assert (recorded_soon.returncode, recorded_soon.stdout) == (0, "[]\n"), "it may have been submitted just now"


def test_states_are_separated_by_commas_too(recorded: None) -> None:
    assert list_numbers("--state", "failed, building") == list_numbers("--state", "failed", "--state", "building") != []
    assert "'qeued' is no state of a build; is queued meant?" in reimzul("builds", "--state", "failed,qeued").stderr


def test_the_heads_of_queues_are_never_cut(ini: Path, broker: Broker) -> None:
    broker.put_raw(f"host.{'x' * 10}.example.org", new_flag("root").encode(), priority=PRIORITY)
    broker.put_raw(arch_tube("aarch64").name, b"a job that nobody watches", priority=PRIORITY)
    lines = [click.unstyle(line) for line in on_terminal("queues", "--all").lines]
    assert lines[0].split() == ["TUBE", "READY", "HELD", "BURIED", "WATCHERS", "NOTE"]
    assert lines[-1] == "left out for lack of room: DELAYED, RESERVED (--wide, or --columns)"


@pytest.mark.parametrize("words", [("builds",), ("watch",), ("causes",), ("stats",)], ids=lambda words: words[0])
def test_a_farm_that_has_built_nothing_yet_is_no_error(ini: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    reason = f"no builds are known yet: the notifier has not made {tmp_path}/history.sqlite\n"
    in_pipe = reimzul(*words)
    assert (in_pipe.returncode, in_pipe.stdout, in_pipe.stderr) == (0, "", reason)
    in_json = reimzul(*words, "--json")
    assert (in_json.returncode, in_json.stderr) == (0, reason)


def test_every_line_on_stderr_begins_with_the_name_of_the_program(ini: Path) -> None:
    for words in (("targets",), ("targets", "show", "c9s"), ("builders",), ("show", "12345678"), ("prune",)):
        done = reimzul(*words)
        assert done.returncode in (0, 1, 4, 5)
        errors = [line for line in done.stderr.splitlines() if not re.fullmatch("no (target|worker) found", line)]
        assert [line for line in errors if not line.startswith("reimzul: ")] == []


@pytest.mark.parametrize("command", ["builds", "stats", "causes", "builders"])
def test_a_period_that_ends_before_it_begins_is_refused(recorded: None, command: str) -> None:
    done = reimzul(command, "--since", "2026-01-02", "--until", "2026-01-01")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "Error: --until is before --since")
    done = reimzul(command, "--until", "2000-01-01")
    if command == "builds":  # from the beginning on
        assert (done.returncode, done.stderr) == (0, "no build found\n")
    else:
        fault = "Error: --until is before --since, which is 7d unless it is given"
        assert (done.returncode, done.stderr.splitlines()[-1]) == (2, fault)


def test_watch_ends_where_nothing_waits_or_runs(ini: Path, tmp_path: Path) -> None:
    nothing = reimzul("watch")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "no builds are known yet" in nothing.stderr
    history = open_history(f"sqlite:///{tmp_path}/history.sqlite")
    history.record([event("Published", 2)])
    history.close()
    over = reimzul("watch")
    assert (over.returncode, over.stdout, over.stderr) == (0, "", "no waiting or running build found\n")


def test_watch_gives_up_after_its_timeout(recorded: None) -> None:
    shown = reimzul("watch", "--timeout", "0", build_id(5)[:8])
    assert (shown.returncode, len(shown.stdout.splitlines())) == (1, 1)
    assert shown.stderr == (
        f"not over after 0.0 s; the builds go on; to follow them again: reimzul watch {build_id(5)[:8]}\n"
    )


# --- states


def test_every_command_has_the_same_states(recorded: None, broker: Broker) -> None:
    builds = json.loads(reimzul("builds", "--json").stdout)
    assert [each["state"] for each in builds] == ["queued", "built", "building", "published", "failed"]
    assert [each["attempts"][0]["state"] for each in builds[1:]] == ["built", "building", "published", "failed"]
    for build in builds:
        short, state = build["build_id"][:8], build["state"]
        for command in ("show", "explain"):
            assert [each["state"] for each in json.loads(reimzul(command, short, "--json").stdout)["arches"]] == [state]
            assert re.search(rf"^{build['arch']}: {state}\b", reimzul(command, short).stdout, re.MULTILINE)
        first = reimzul("watch", "--timeout", "0", "--json", short).stdout.splitlines()[0]
        assert json.loads(first)["state"] == state
        assert re.match(r"2\d{3}-\d\d-\d\dT", json.loads(first)["at"])
    assert set(json.loads(reimzul("stats", "--since", "2025-11-22", "--json").stdout)["results"]) < set(BuildState.ALL)
    glossary = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8")
    row = next(line for line in glossary.splitlines() if line.startswith("| **state**"))
    assert all(f"`{state}`" in row for state in BuildState.ALL)


# --- names


def put_request(broker: Broker) -> None:
    request = BuildRequest(srpm="a-1-1.src.rpm", arch="x86_64", target="c9.x86_64", disttag=".el9", submitter="johnny")
    broker.put(arch_tube("x86_64"), request, priority=PRIORITY)


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (("build",), "there is no command 'build'; is builds meant?", 2),
        (("scratch", "lst"), "there is no command 'lst'; is list meant?", 2),
        (("config", "chek"), "there is no command 'chek'; is check meant?", 2),
        (("builds", "--state", "publishd"), "'publishd' is no state of a build; is published meant?", 2),
        (("builds", "--target", "c9t"), "there is no target 'c9t'; is c9s meant?", 4),
        (("builds", "--target", "c9s.x86-64"), "there is no target 'c9s.x86-64'; is c9s.x86_64 meant?", 4),
        (("builds", "--arch", "x86"), "there is no arch 'x86'; is x86_64 meant?", 4),
        (("stats", "--target", "c8s"), "there is no target 'c8s'; is c9s meant?", 4),
        (("causes", "-t", "c8*"), "there is no target 'c8*'; there are c7.1708.u, c9s", 4),
        (("repogen", "c9t.x86_64"), "there is no target 'c9t.x86_64'; is c9s.x86_64 meant?", 4),
        (("repogen", "c9s"), "more than one target is called 'c9s': c9s.aarch64, c9s.x86_64", 4),
        (("override", "-s", "a-1-1.src.rpm", "-t", "c9t", "-a", "x86_64", "--why", "x"), "is c9s meant?", 4),
        (("log", build_id(1)[:8], "biuld"), "'biuld' is unknown; is build meant?", 2),
        (("doctor", "--role", "controler"), "'controler' is unknown; is controller meant?", 2),
        (("resume", "biulder1"), "no builder biulder1 has been heard of; is builder1 meant?", 4),
        (("drain", "builder2.example.org"), "is builder1.example.org meant?", 4),
        (("buried", "--tube", "x86-64"), "there is no tube 'x86-64'; is x86_64 meant?", 4),
        (("kick", "--tube", "notfy", "--yes"), "there is no tube 'notfy'; is notify meant?", 4),
    ],
)
def test_an_unknown_name_is_answered_by_the_nearest(
    recorded: None, broker: Broker, tmp_path: Path, words: tuple[str, ...], message: str, code: int
) -> None:
    heartbeat = WorkerHeartbeat(host="builder1.example.org", instance="1", state="idle", arches=("x86_64",))
    WorkerStore(tmp_path / "workers.sqlite").save([WorkerRecord(heartbeat=heartbeat, last_seen=1.0)])
    refused = reimzul(*words)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert message in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("builds --json --columns id --wide", "--columns and --wide have no effect with --json: leave them out"),
        ("scratch list --json --wide", "--wide has no effect with --json: leave it out"),
        ("prune --incoming --older 9d --columns id", "--columns has no effect with --incoming"),
        ("stats --json --top 3", "--top has no effect with --json"),
        ("targets --refresh --json", "--json has no effect with --refresh"),
        ("targets show c9s --refresh --wide", "and --wide have no effect with --refresh"),
        ("targets show c9s --wide", "--wide has no effect with show"),
        ("builders --forget b1 --since 7d", "--since has no effect with --forget"),
        ("retry 72b893f8 --since 7d --until 1d", "--since and --until have no effect without --cause"),
        ("cancel 72b893f8 --no-wait --timeout 3", "--timeout has no effect with --no-wait"),
        ("watch --new", "--new has no effect without IDs"),
        ("repogen c9s.x86_64 --remove-metadata group --now --force", "--now and --force have no effect"),
        ("doctor --timeout 9 --arch x86_64 --target c9s", "--arch, --target and --timeout have no effect without --ca"),
        ("setup builder --remove --dry-run --workers 3 --psk-file -", "and --workers have no effect with --remove"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused(recorded: None, words: str, message: str) -> None:
    refused = reimzul(*words.split())
    assert (refused.returncode, refused.stdout) == (2, "")
    assert message in refused.stderr


def test_a_target_that_nothing_was_built_for_is_known_if_a_worker_has_it(recorded: None, tmp_path: Path) -> None:
    listed = TargetList.from_names(["c10s.x86_64"])
    heartbeat = WorkerHeartbeat(
        host="b1", instance="1", state="idle", arches=("x86_64",), targets=listed.names,
        targets_fingerprint=listed.fingerprint,
    )  # fmt: skip
    for command in ("builds", "stats", "causes"):
        assert "there is no target 'c10s'" in reimzul(command, "--target", "c10s").stderr
    WorkerStore(tmp_path / "workers.sqlite").save([WorkerRecord(heartbeat=heartbeat, last_seen=time.time())])
    for command in ("builds", "stats", "causes"):
        done = reimzul(command, "--target", "c10s")
        assert (done.returncode, done.stdout) == (0, ""), done


def test_a_builder_that_was_never_heard_of_can_be_resumed_if_it_is_drained(broker: Broker, tmp_path: Path) -> None:
    WorkerStore(tmp_path / "workers.sqlite").save([])
    assert reimzul("drain", "gone.example.org", "--force").returncode == 0
    assert reimzul("resume", "gone").stdout == "gone.example.org: takes jobs again; it was drained by root\n"
    assert reimzul("resume", "gone.example.org").returncode == 4
    assert reimzul("resume", "gone.example.org", "--force").returncode == 0


def test_control_flags_are_no_queues(broker: Broker) -> None:
    put_request(broker)
    for tube in (cancel_tube(build_id(1)), drain_tube("b1"), "host.b1"):
        broker.put_raw(tube, new_flag("root").encode(), priority=PRIORITY)

    def names(*options: str) -> set[str]:
        printed = {line.split("\t")[0] for line in reimzul("queues", *options).stdout.splitlines()}
        in_json = {each["name"] for each in json.loads(reimzul("queues", "--json", *options).stdout)["tubes"]}
        assert printed == in_json
        return printed

    assert names("--all") - names() >= {cancel_tube(build_id(1)), drain_tube("b1"), "host.b1"}
    assert "x86_64" in names()
    assert not [name for name in names() if "." in name]


# --- override


def test_a_build_is_overridden_by_its_id(recorded: None) -> None:
    short = build_id(1)[:8]
    done = reimzul("override", short, "--why", "by hand")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{short}  time-1.7-45.el7.src.rpm for c7.1708.u.x86_64 on x86_64: override\n"
    (build,) = json.loads(reimzul("builds", "--state", "override", "--json").stdout)
    assert (build["build_id"], build["comment"]) == (build_id(1), "by hand")
    (again,) = json.loads(reimzul("override", short, "--arch", "x86_64", "--comment", "again", "--json").stdout)
    assert (again["state"], again["comment"]) == ("override", "again")


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        ((build_id(1)[:8],), "give a reason: --why TEXT", 2),
        ((build_id(1)[:8], "--why", " "), "give a reason: --why TEXT", 2),
        (("--why", "x"), "say which build", 2),
        ((build_id(1)[:8], "-s", "a-1-1.src.rpm", "--why", "x"), "say which build", 2),
        (("-s", "a-1-1.src.rpm", "--why", "x"), "say which build", 2),
        ((build_id(1)[:8], "--arch", "i386", "--why", "x"), "was not built for i386; it was for x86_64", 4),
        ((build_id(3)[:8], "--why", "x"), "has not ended yet on i386", 4),
    ],
)
def test_an_override_needs_a_build_that_is_over_and_a_reason(
    recorded: None, words: tuple[str, ...], message: str, code: int
) -> None:
    refused = reimzul("override", *words)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert message in refused.stderr
    assert list_numbers("--state", "override") == []


def test_the_originals_options_of_an_override_stay(recorded: None) -> None:
    words = ("override", "-s", "time-1.7-45.el7.src.rpm", "-t", "c7.1708.u", "-a", "x86_64", "-c", "by hand")
    assert reimzul(*words).returncode == 0
    assert list_numbers("--state", "override") == [2], "the latest"
    assert "--comment" not in reimzul("override", "--help").stdout
