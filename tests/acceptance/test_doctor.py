# SPDX-License-Identifier: Apache-2.0
"""`reimzul doctor` on a whole farm: no failures if it works, the broken link named if not, and canaries."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devfarm.farm import Farm
from devfarm.processes import own_program
from reimzul.admin.doctor import FAIL, OK, Finding, run_checks
from reimzul.admin.doctor.cli import collect_checks
from reimzul.admin.doctor.host import find_host
from reimzul.core.config import load_file
from reimzul.core.message import Status
from reimzul.history import BuildFilter, open_history
from tests.schemas import check_line
from tests.waiting import until

BUILDER = "builder1"
HOSTS = ("controller", "bstore", BUILDER)


@pytest.fixture(scope="module")
def sick_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """A farm of our own, whose parts come to harm."""
    with Farm(tmp_path_factory.mktemp("doctor") / "state", builders=1) as farm:
        yield farm


@contextlib.contextmanager
def hold_part(farm: Farm, part: str) -> Iterator[None]:
    """A farm that lacks a part; when the block is left it is whole again."""
    farm.hold(part)
    try:
        yield
    finally:
        farm.release(part)
        farm.wait_until_ready()


def doctor(farm: Farm, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run it as a person does."""
    argv = [own_program("reimzul"), "doctor", "--config", str(farm.ini(name)), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    check_line(["doctor", *words], done.stdout)
    return done


def failing(farm: Farm, name: str) -> dict[str, Finding]:
    """What fails on a host."""
    ini = farm.ini(name)
    found = run_checks(collect_checks(find_host(load_file(ini), ini, (), None)))
    return {finding.name: finding for finding in found if finding.level == FAIL}


@pytest.mark.parametrize("name", HOSTS)
def test_a_farm_that_is_well_has_nothing_that_fails(sick_farm: Farm, name: str) -> None:
    done = doctor(sick_farm, name, "--json")
    told = json.loads(done.stdout)
    ill = [check for check in told["checks"] if check["level"] == FAIL]
    assert (done.returncode, ill, told["failed"]) == (0, [], 0)
    assert told["roles"] == ["builder" if name == BUILDER else name]
    assert all(set(check) == {"name", "level", "message", "remedy", "seconds"} for check in told["checks"])
    assert done.stderr == ""


def test_one_machine_with_all_roles_is_looked_at_from_its_controller(sick_farm: Farm) -> None:
    done = doctor(sick_farm, "controller", "--role", "all")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert {len(row) for row in rows} == {4}
    levels = {row[1]: row[0] for row in rows}
    for name in ("link.rsyncd", "beanstalkd", "mqtt", "rsync.elsewhere", "configs", "store", "store.http", "spool"):
        assert levels[name] == OK, name
    assert len(rows) == len(levels), "each check once"
    assert done.returncode == 0


ALL_LINKS = {"link.beanstalkd", "link.incoming", "link.rsyncd", "link.store"}
BEHIND, FAR, NEAR = "behind it does not answer", "cannot be reached: connection refused", "does not run on this host"


@pytest.mark.parametrize(
    ("part", "name", "names", "words"),
    [
        ("beanstalkd", BUILDER, {"link.beanstalkd"}, BEHIND),
        ("beanstalkd", "controller", {"link.beanstalkd", "offer.beanstalkd"}, "beanstalkd"),
        ("nginx", BUILDER, {"link.incoming", "link.store"}, BEHIND),
        ("nginx", "bstore", {"link.store", "offer.store", "store.http"}, ""),
        ("rsyncd", BUILDER, {"link.rsyncd"}, BEHIND),
        ("rsyncd", "bstore", {"offer.rsyncd"}, "connection refused"),
        ("mosquitto", "controller", {"mqtt"}, "refused"),
        ("stunnel-controller", BUILDER, {"link.beanstalkd", "link.incoming"}, FAR),
        ("stunnel-controller", "bstore", {"link.beanstalkd"}, FAR),
        ("stunnel-bstore", "controller", {"link.rsyncd", "link.store"}, FAR),
        ("stunnel-bstore", BUILDER, {"link.rsyncd", "link.store"}, FAR),
        ("stunnel-bstore", "bstore", {"link.beanstalkd", "link.store", "offer.rsyncd", "offer.store"}, NEAR),
        (f"stunnel-{BUILDER}", BUILDER, ALL_LINKS, NEAR),
    ],
)
def test_each_broken_part_is_named_and_nothing_else(
    sick_farm: Farm, part: str, name: str, names: set[str], words: str
) -> None:
    with hold_part(sick_farm, part):
        found = failing(sick_farm, name)
    if name == "bstore" and part.startswith("stunnel"):
        found.pop("store.http", None)  # its own nginx answers; only its way to itself is gone
    assert set(found) == names
    assert all(words in each.message for each in found.values()), found
    assert all(each.hint for each in found.values()), found


def test_a_service_that_hangs_is_told_from_a_key_that_is_refused(sick_farm: Farm) -> None:
    pid = sick_farm.kill("beanstalkd", signal.SIGSTOP)
    try:
        found = failing(sick_farm, BUILDER)
    finally:
        os.kill(pid, signal.SIGCONT)
        sick_farm.wait_until_ready()
    assert set(found) == {"link.beanstalkd"}
    assert "accepts the key of builder1" in found["link.beanstalkd"].message


@contextlib.contextmanager
def keys_changed(farm: Farm, file: Path, text: str, stunnel: str) -> Iterator[None]:
    """Replace the text of a file of keys, and restart the stunnel that reads it."""
    before = file.read_text()
    try:
        file.write_text(text)
        restart(farm, stunnel)
        yield
    finally:
        file.write_text(before)
        restart(farm, stunnel)


def restart(farm: Farm, part: str) -> None:
    farm.hold(part)
    farm.release(part)
    until(lambda: failing_to_listen(farm, part) is None, 30, f"{part} listens")


def failing_to_listen(farm: Farm, part: str) -> str | None:
    """Which port of a part nobody listens on."""
    from devfarm.processes import listeners

    ports = next(each.listens for each in farm.parts if each.name == part)
    return next((str(port) for port in ports if port not in listeners()), None)


def test_a_key_that_was_revoked_is_named(sick_farm: Farm) -> None:
    accepted = sick_farm.keys.all_psks
    others = "".join(line for line in accepted.read_text().splitlines(True) if not line.startswith(BUILDER))
    with keys_changed(sick_farm, accepted, others, "stunnel-controller"):
        found = failing(sick_farm, BUILDER)
    assert set(found) == {"link.beanstalkd", "link.incoming"}
    assert all("refuses the key of builder1" in each.message for each in found.values())
    sick_farm.wait_until_ready()


def test_a_key_with_another_secret_is_named_and_its_secret_is_told_nobody(sick_farm: Farm) -> None:
    secret = "ab" * 32
    with keys_changed(sick_farm, sick_farm.keys.psk(BUILDER), f"{BUILDER}:{secret}\n", f"stunnel-{BUILDER}"):
        found = failing(sick_farm, BUILDER)
        said = doctor(sick_farm, BUILDER)
    assert set(found) == ALL_LINKS
    assert all("refuses the key of builder1" in each.message for each in found.values())
    assert said.returncode == 1
    assert secret not in said.stdout + said.stderr
    sick_farm.wait_until_ready()


def test_a_stunnel_that_has_not_read_its_new_key_is_named(sick_farm: Farm) -> None:
    file, stunnel = sick_farm.keys.psk(BUILDER), f"stunnel-{BUILDER}"
    right = file.read_text()
    with keys_changed(sick_farm, file, f"{BUILDER}:{'cd' * 32}\n", stunnel):
        file.write_text(right)
        found = failing(sick_farm, BUILDER)
    assert set(found) == ALL_LINKS
    assert all("stunnel has not read its files since they changed" in each.message for each in found.values())
    sick_farm.wait_until_ready()


def test_a_name_that_nobody_knows_and_a_way_that_is_not_there_are_named(sick_farm: Farm, tmp_path: Path) -> None:
    ini = tmp_path / "reimzul.ini"
    ini.write_text(sick_farm.ini(BUILDER).read_text())
    stunnel = sick_farm.ini(BUILDER).with_name(f"stunnel-{BUILDER}.conf").read_text()
    section = stunnel.index("[store]")
    with hold_part(sick_farm, "nginx"):
        changed = stunnel[:section] + stunnel[section:].replace("connect = 127.0.0.1", "connect = nowhere.invalid")
        assert "the name nowhere.invalid is not known" in words_of(ini, tmp_path, changed, "link.store")
    port = sick_farm.plan.local(BUILDER, "store")
    ini.write_text(ini.read_text().replace(f":{port}/", ":1/"))
    words = words_of(ini, tmp_path, stunnel[:section], "link.store")
    assert words.startswith("nothing listens on 127.0.0.1:1, and no section of")


def test_a_controller_without_a_way_to_the_store_is_told_how_it_gets_one(sick_farm: Farm, tmp_path: Path) -> None:
    ini = tmp_path / "reimzul.ini"
    port = sick_farm.plan.local("controller", "store")
    ini.write_text(sick_farm.ini("controller").read_text().replace(f":{port}/", ":1/"))
    stunnel = sick_farm.ini("controller").with_name("stunnel-controller.conf").read_text()
    assert words_of(ini, tmp_path, stunnel, "link.beanstalkd").startswith("127.0.0.1:")
    assert "no section of" in words_of(ini, tmp_path, stunnel, "link.store")
    found = run_checks(collect_checks(find_host(load_file(ini), ini, (), tmp_path / "stunnel.conf")))
    remedies = {each.name: each.hint for each in found}
    assert remedies["link.store"] == "reimzul setup controller --add-bstore NAME, or correct [bstore] base_url"


def words_of(ini: Path, folder: Path, stunnel: str, name: str) -> str:
    conf = folder / "stunnel.conf"
    conf.write_text(stunnel)
    found = run_checks(collect_checks(find_host(load_file(ini), ini, (), conf)))
    return next(each.message for each in found if each.name == name)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_who_may_not_read_keys_is_told_to_be_root(sick_farm: Farm) -> None:
    section = sick_farm.ini(BUILDER).with_name(f"stunnel-{BUILDER}.conf").read_text()
    with open_folder() as folder, hold_part(sick_farm, "beanstalkd"):
        ini = folder / "reimzul.ini"
        ini.write_text(sick_farm.ini(BUILDER).read_text())
        (folder / "stunnel-reimzul.conf").write_text(section)
        for file in folder.iterdir():
            file.chmod(0o644)
        program = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", own_program("reimzul"), "doctor"]
        done = subprocess.run(
            [*program, "--config", ini], capture_output=True, text=True, timeout=120, cwd="/", check=False
        )
    assert done.stdout, done.stderr
    rows = {line.split("\t")[1]: line.split("\t") for line in done.stdout.splitlines()}
    assert rows["link.beanstalkd"][0] == FAIL
    assert "it refuses our key, or its beanstalkd is down" in rows["link.beanstalkd"][2]
    assert rows["link.beanstalkd"][3] == "run reimzul doctor as root to learn which"
    assert rows["keys"][3] == "run reimzul doctor as root"


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="reimzul-tests-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


# --- the canary


def canary(farm: Farm, *words: str) -> tuple[int, dict[str, dict[str, Any]], dict[str, Any]]:
    """Send a canary; return the exit code, its hops by name, and what doctor prints about it."""
    done = doctor(farm, "controller", "--canary", "--json", *words)
    told = json.loads(done.stdout)
    hops = {check["name"]: check for check in told["checks"] if check["name"].startswith("canary")}
    assert list(farm.layout.incoming.glob("*.rpm")) == [], "its source rpm is gone"
    return done.returncode, hops, told["canary"]


def status(farm: Farm, build_id: str) -> str:
    history = open_history(f"sqlite:///{farm.layout.history}", reading=True)
    try:
        return "".join(document.status for document in history.find_builds(BuildFilter(build_id=build_id), 1))
    finally:
        history.close()


def test_a_canary_makes_its_way_and_says_how_long_each_hop_took(sick_farm: Farm) -> None:
    code, hops, told = canary(sick_farm)
    assert (code, {hop["level"] for hop in hops.values()}) == (0, {OK}), hops
    assert [name.removeprefix("canary.") for name in hops] == [
        "submit", "x86_64.queue", "x86_64.build", "x86_64.upload", "x86_64.placed", "x86_64.total",
    ]  # fmt: skip
    assert hops["canary.x86_64.total"]["seconds"] >= sum(
        hops[f"canary.x86_64.{hop}"]["seconds"] for hop in ("build", "upload", "placed")
    )
    (build,) = told["builds"]
    assert (build["state"], build["builder"]) == ("built", "builder1.farm.test")
    place = sick_farm.layout.store.place(build["place"])
    assert build["place"].startswith("scratch/demo.1.x86_64/reimzul-canary/")
    assert list(place.glob("*.noarch.rpm"))
    published = sick_farm.layout.store.target("demo.1.x86_64").iterdir()
    assert [path.name for path in published] == ["repodata"], "nothing is published"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "hop", "words"),
    [
        (f"worker-{BUILDER}-1", "queue", "nobody watches x86_64"),
        ("notifier", "queue", "nobody watches notify"),
        ("repogen-1", "placed", "nobody watches createrepo"),
    ],
)
def test_the_hop_that_hangs_is_named(sick_farm: Farm, part: str, hop: str, words: str) -> None:
    with hold_part(sick_farm, part):
        code, hops, told = canary(sick_farm, "--arch", "x86_64")
    last = hops[f"canary.x86_64.{hop}"]
    assert (code, last["level"], list(hops)[-1]) == (1, FAIL, f"canary.x86_64.{hop}")
    assert words in last["message"]
    assert last["remedy"]
    (build,) = told["builds"]
    if hop == "queue":
        until(lambda: status(sick_farm, build["build_id"]) in Status.FINAL, 60, "it is over")
        with sick_farm.broker() as broker:
            assert broker.tube_stats("x86_64").ready == 0


def test_a_canary_without_a_configuration_of_mocks_fails_and_says_where_its_logs_are(sick_farm: Farm) -> None:
    code, hops, _ = canary(sick_farm, "--target", "no.such")
    last = hops["canary.x86_64.build"]
    assert (code, last["level"]) == (1, FAIL)
    assert "mock has no configuration for no.such.x86_64" in last["message"]
    assert last["remedy"].startswith("reimzul log ")


@pytest.mark.slow
def test_a_canary_of_an_arch_that_nobody_has_does_not_keep_the_other(sick_farm: Farm) -> None:
    code, hops, _ = canary(sick_farm, "--arch", "x86_64", "--arch", "aarch64", "--timeout", "600")
    assert (code, hops["canary.x86_64.total"]["level"], hops["canary.aarch64.queue"]["level"]) == (1, OK, FAIL)


def test_no_canary_is_sent_where_what_it_stands_on_fails(sick_farm: Farm) -> None:
    with hold_part(sick_farm, "stunnel-controller"):
        code, hops, told = canary(sick_farm)
    assert code == 1
    assert hops["canary"]["message"] == "not sent because link.beanstalkd fails"
    assert told["builds"] == []


def test_an_interrupted_canary_leaves_nothing_in_incoming(sick_farm: Farm) -> None:
    with hold_part(sick_farm, f"worker-{BUILDER}-1"):
        argv = [own_program("reimzul"), "doctor", "--config", str(sick_farm.ini()), "--canary", "--arch", "x86_64"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            until(lambda: list(sick_farm.layout.incoming.glob("reimzul-canary-*.src.rpm")), 60, "it is submitted")
            with sick_farm.broker() as broker:
                until(lambda: broker.tube_stats("x86_64").ready, 60, "it waits")
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=60)
                assert process.returncode == 130
                assert broker.tube_stats("x86_64").ready == 0
    assert list(sick_farm.layout.incoming.glob("*.rpm")) == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--canary", "--arch", "vax"], 4, "unknown arch 'vax'"),
        (["--canary", "--target", "../x"], 4, "target '../x' is not a target"),
        (["--arch", "x86_64"], 2, "--arch has no effect without --canary"),
        (["--role", "nurse"], 2, "nurse"),
    ],
)
def test_wrong_words_are_refused_at_once(sick_farm: Farm, words: list[str], code: int, says: str) -> None:
    done = doctor(sick_farm, "controller", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr


def test_a_canary_is_sent_from_the_controller_alone(sick_farm: Farm) -> None:
    done = doctor(sick_farm, BUILDER, "--canary", "--target", "demo.1")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "from the controller" in done.stderr
