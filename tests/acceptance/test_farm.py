# SPDX-License-Identifier: Apache-2.0
"""What the farm owes its users, seen from outside: source rpms go in, packages that dnf finds come out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Callable

import pytest

from devfarm.demo import Dnf, check_digests
from devfarm.farm import Farm
from devfarm.plan import CONTROLLER
from devfarm.processes import own_program
from reimzul.core import message
from reimzul.core.errors import InvalidMessage
from reimzul.core.manifest import read_manifest
from reimzul.core.message import Status
from reimzul.history.workers import WorkerStore
from tests import srpms
from tests.acceptance.conftest import TARGET, Witness, submit
from tests.waiting import until

Package = Callable[[str, str], Path]
X86_64 = f"{TARGET}.x86_64"


def dnf(farm: Farm, folder: Path, target: str = X86_64) -> Dnf:
    return Dnf(folder / "dnf", farm.repository(target), "x86_64")


def list_staged(farm: Farm, name: str) -> list[str]:
    return [path.name for path in farm.layout.store.tosign.glob(f"*/{name}-*")]


def original(srpm: str, **more: object) -> bytes:
    """A job as the original's submit command puts it, with its keys and no other."""
    job = {"srpm": srpm, "arch": "x86_64", "target": X86_64, "disttag": ".old", "scratch": False, "submitter": "johnny"}
    return json.dumps({**job, **more}).encode()


def test_a_package_goes_in_and_dnf_finds_it(farm: Farm, witness: Witness, package: Package, tmp_path: Path) -> None:
    srpm = package("greeter", srpms.compiled("greeter"))
    assert submit(farm, srpm).returncode == 0
    witness.published(srpm.name, "x86_64", "i386")
    customer = dnf(farm, tmp_path)
    assert {"greeter-1.0-1.demo.x86_64", "greeter-1.0-1.demo.i686"} <= set(customer.list_nevras())
    packages = customer.download(tmp_path / "downloaded")
    assert {"greeter-1.0-1.demo.x86_64.rpm", "greeter-1.0-1.demo.i686.rpm"} <= {path.name for path in packages}
    check_digests(packages)
    until(lambda: len(list_staged(farm, "greeter")) == 2, 20, "both legs wait for the signer")


def test_a_target_is_known_and_its_packages_are_downloaded(
    farm: Farm, witness: Witness, package: Package, tmp_path: Path
) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [own_program("reimzul"), *arguments, "--config", str(farm.ini())]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    def is_reported() -> bool:
        return len(json.loads(run("targets", "show", X86_64, "--json").stdout)[0]["arches"][0]["builders"]) == 2

    srpm = package("fetched", srpms.noarch("fetched"))
    assert submit(farm, srpm).returncode == 0
    witness.published(srpm.name, "x86_64")
    until(is_reported, 60, "both builders report the target")
    refused = submit(farm, srpm, "--rebuild", target=TARGET.replace("demo", "dmo"))
    assert (refused.returncode, refused.stdout) == (4, "")
    assert f"is {TARGET} meant?" in refused.stderr
    (line,) = run("packages", "-t", X86_64, "fetched").stdout.splitlines()
    assert line.split("\t")[1:4] == ["fetched", "1.0-1", "x86_64"]
    downloaded = run("download", line.split("\t")[0], "--dest", str(tmp_path))
    assert (downloaded.returncode, downloaded.stderr) == (0, "")
    paths = [Path(path) for path in downloaded.stdout.splitlines()]
    assert {path.name for path in paths} == {"fetched-1.0-1.demo.noarch.rpm", "fetched-1.0-1.demo.src.rpm"}
    check_digests(paths)


def test_a_job_of_the_original_is_built_and_published(farm: Farm, witness: Witness, package: Package) -> None:
    srpm = package("heirloom", srpms.noarch("heirloom"))
    shutil.copy(srpm, farm.layout.incoming)
    with farm.broker() as broker:
        broker.put_raw("x86_64", original(srpm.name), priority=8192)
    (event,) = witness.published(srpm.name, "x86_64")
    assert event.submitter == "johnny"
    assert re.fullmatch("[0-9a-f]{32}", event.build_id)
    assert re.fullmatch("[0-9]{14}", event.timestamp)
    until(lambda: list_staged(farm, "heirloom"), 20, "it waits for the signer")


def test_a_submitter_of_a_directory_is_known_by_the_whole_name(
    farm: Farm, witness: Witness, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = package("mine", srpms.noarch("mine")), package("theirs", srpms.noarch("theirs"))
    workers = sum(host.is_builder for host in farm.hosts) * farm.workers
    presences = WorkerStore(farm.layout.notifier / "presence.sqlite")
    until(lambda: len(presences.load_workers()) >= workers, 30, "every worker has said what it takes")
    monkeypatch.setenv("LOGNAME", "CORP\\José")
    assert submit(farm, mine).returncode == 0
    shutil.copy(theirs, farm.layout.incoming)
    with farm.broker() as broker:
        broker.put_raw("x86_64", original(theirs.name, submitter="CORP\\jdoe"), priority=8192)
    assert witness.published(mine.name, "x86_64")[0].submitter == "CORP\\José"
    assert witness.published(theirs.name, "x86_64")[0].submitter == "CORP\\jdoe"


def test_a_bare_target_in_createrepo_regenerates(
    farm: Farm, witness: Witness, package: Package, tmp_path: Path
) -> None:
    srpm = package("wiped", srpms.noarch("wiped"))
    submit(farm, srpm)
    witness.published(srpm.name, "x86_64")
    repodata = farm.layout.store.target(X86_64) / "repodata"
    shutil.rmtree(repodata)
    with farm.broker() as broker:
        broker.put_raw("createrepo", json.dumps({"target": X86_64}).encode(), priority=1024)
    until((repodata / "repomd.xml").exists, 20, "the repodata is there again")
    assert "wiped-1.0-1.demo.noarch" in dnf(farm, tmp_path).list_nevras()


def test_legs_run_at_the_same_time_and_have_one_timestamp(farm: Farm, witness: Witness, package: Package) -> None:
    pause = "sleep 2\n"
    srpm = package("pair", srpms.compiled("pair").replace("%build\n", f"%build\n{pause}", 1))
    submit(farm, srpm)
    witness.published(srpm.name, "x86_64", "i386")
    first, second = (event for event in witness.of(srpm.name, Status.SUCCESS))
    assert first.timestamp == second.timestamp
    assert first.builder_fqdn == second.builder_fqdn
    assert max(first.started, second.started) < min(first.finished, second.finished)
    assert {event.target for event in (first, second)} == {X86_64}
    places = sorted(path.name for path in (farm.layout.store.repo / X86_64 / "pair" / first.timestamp).iterdir())
    assert places == ["1.0-1.i386", "1.0-1.x86_64"]


@pytest.mark.parametrize(("machine", "lost", "kept"), [("i686", "i386", "x86_64"), ("x86_64", "x86_64", "i386")])
def test_one_leg_that_fails_does_not_touch_the_other(
    farm: Farm, witness: Witness, package: Package, tmp_path: Path, machine: str, lost: str, kept: str
) -> None:
    name = f"half{machine.replace('_', '')}"
    srpm = package(name, srpms.fails_on(name, machine))
    submit(farm, srpm)
    witness.published(srpm.name, kept)
    witness.failed(srpm.name, lost)
    rpm_arch = {"i386": "i686"}.get(kept, kept)
    found = [
        nevra for nevra in dnf(farm, tmp_path).list_nevras() if nevra.startswith(name) and not nevra.endswith(".src")
    ]
    assert found == [f"{name}-1.0-1.demo.{rpm_arch}"]


def test_a_noarch_package_is_built_once(farm: Farm, witness: Witness, package: Package, tmp_path: Path) -> None:
    srpm = package("everywhere", srpms.noarch("everywhere"))
    submit(farm, srpm)
    witness.published(srpm.name, "x86_64")
    assert witness.arches(srpm.name) == {"x86_64"}
    (built,) = witness.of(srpm.name, Status.SUCCESS)
    assert "noarch" in built.skipped["i386"]
    found = [nevra for nevra in dnf(farm, tmp_path).list_nevras() if nevra.startswith("everywhere")]
    assert found == ["everywhere-1.0-1.demo.noarch", "everywhere-1.0-1.demo.src"]


def test_the_first_build_of_a_target_that_never_was(
    farm: Farm, witness: Witness, package: Package, tmp_path: Path
) -> None:
    farm.configs.add_target("brand.new", farm.arches)
    srpm = package("pioneer", srpms.noarch("pioneer"))
    submit(farm, srpm, target="brand.new")
    witness.published(srpm.name, "x86_64")
    assert "pioneer-1.0-1.demo.noarch" in dnf(farm, tmp_path, "brand.new.x86_64").list_nevras()


def test_a_failing_build_ends_as_failed_with_its_logs_in_reach(
    farm: Farm, witness: Witness, package: Package, tmp_path: Path
) -> None:
    srpm = package("broken", srpms.failing_build("broken"))
    submit(farm, srpm)
    event = witness.failed(srpm.name, "x86_64")
    assert "broken cannot do this" in event.build_log
    until(lambda: "broken cannot do this" in read(event.url + "build.log"), 20, "its log is at the URL the event names")
    assert "Start: rpmbuild" in read(event.url + "state.log")
    assert event.url.startswith("http://")
    assert not [nevra for nevra in dnf(farm, tmp_path).list_nevras() if nevra.startswith("broken")]
    assert list_staged(farm, "broken") == []
    place = farm.layout.store.place(event.place)
    assert read_manifest(place).status == Status.FAILED
    assert not list(place.glob("*.rpm"))


def read(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return ""


def test_a_scratch_build_is_not_published(farm: Farm, witness: Witness, package: Package, tmp_path: Path) -> None:
    srpm = package("sketch", srpms.noarch("sketch"))
    submit(farm, srpm, "--scratch")
    witness.until(lambda: bool(witness.of(srpm.name, Status.SUCCESS)), 60, "it is built")
    (event,) = witness.of(srpm.name, Status.SUCCESS)
    assert event.url == "", "the public port does not serve scratch/"
    folder = f"{farm.plan.store_url(CONTROLLER)}{event.place}/"
    until(lambda: read(folder + "build.log"), 20, "its log is in its place")
    assert not [nevra for nevra in dnf(farm, tmp_path).list_nevras() if nevra.startswith("sketch")]
    assert list_staged(farm, "sketch") == []


HOSTILE = {
    "not JSON": b"\xff\xfe no JSON",
    "a number": b"42",
    "a list": b"[1, 2]",
    "nothing in it": b"{}",
    "keys missing": b'{"srpm": "a-1-1.src.rpm", "target": "demo.1.x86_64"}',
    "60 KB of noise": bytes(range(256)) * 234,
    "a path": original("../../etc/passwd.src.rpm"),
    "a target that climbs": original("a-1-1.src.rpm", target="../x"),
    "a target that is a command": original("a-1-1.src.rpm", target="x; touch y"),
    "a disttag with a space": original("a-1-1.src.rpm", disttag=".el7 x"),
    "an arch nobody knows": original("a-1-1.src.rpm", arch="vax"),
    "scratch that only looks false": original("a-1-1.src.rpm", scratch="False"),
    "nested without end": b"[" * 30_000,
}


def test_hostile_messages_are_refused_and_buried_and_the_farm_goes_on(
    farm: Farm, witness: Witness, package: Package, tmp_path: Path
) -> None:
    tubes = ("x86_64", "createrepo", "tosign", "notify")
    with farm.broker() as broker:
        before = {tube: broker.tube_stats(tube).buried for tube in tubes}
        jobs = {broker.put_raw(tube, body, priority=0) for tube in tubes for body in HOSTILE.values()}
        # a request for a target is right for createrepo, whatever else is in it
        wanted = {tube: len(HOSTILE) - (tube == "createrepo") * len(only_bad_elsewhere()) for tube in tubes}
        for tube in tubes:
            until(
                lambda tube=tube: broker.tube_stats(tube).buried - before[tube] >= wanted[tube],  # type: ignore[misc]
                30,
                f"all of {tube} is buried",
            )
    known = tuple(tube for tube in tubes if tube != "notify")
    witness.until(
        lambda: (
            len([refusal for refusal in witness.refusals() if refusal.tube in known and refusal.job in jobs])
            >= sum(wanted[tube] for tube in known)
        ),
        30,
        "all are announced",
    )
    srpm = package("survivor", srpms.noarch("survivor"))
    submit(farm, srpm)
    witness.published(srpm.name, "x86_64")
    assert not list(farm.layout.state.rglob("y"))
    assert not (farm.layout.store.root / "x").exists()


def only_bad_elsewhere() -> list[str]:
    """Those that mean something to createrepo, which wants no more than a target."""
    meant = []
    for name, body in HOSTILE.items():
        try:
            message.RepogenRequest.decode(body)
        except InvalidMessage:
            continue
        meant.append(name)
    return meant


def binary(folder: Path) -> Path:
    rpm = srpms.make_rpm(folder, "binary", srpms.noarch("binary"))
    return rpm.rename(folder / "binary-1.0-1.src.rpm")


def truncated(folder: Path) -> Path:
    return srpms.truncate(srpms.make_srpm(folder, "cut", srpms.noarch("cut")), folder / "short-1.0-1.src.rpm")


def make_whole_srpm(folder: Path) -> Path:
    return srpms.make_srpm(folder, "fine", srpms.noarch("fine"))


@pytest.mark.parametrize(
    ("make", "words", "code", "says"),
    [
        (lambda folder: folder / "absent-1-1.src.rpm", [], 4, "absent"),
        (binary, [], 4, "binary rpm"),
        (truncated, [], 4, "truncated"),
        (make_whole_srpm, ["-a", "vax"], 4, "vax"),
        (make_whole_srpm, ["-t", "../x"], 4, "target"),
        (make_whole_srpm, ["-t", "x; touch y"], 4, "target"),
        (make_whole_srpm, ["-d", ".el7 x"], 4, "disttag"),
    ],
)
def test_bad_input_is_one_clear_line_and_its_exit_code(
    farm: Farm, tmp_path: Path, make: Callable[[Path], Path], words: list[str], code: int, says: str
) -> None:
    done = submit(farm, make(tmp_path), *words)
    assert done.returncode == code
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_setting_misspelt_is_one_clear_line_and_its_exit_code(farm: Farm, tmp_path: Path) -> None:
    ini = tmp_path / "reimzul.ini"
    ini.write_text(farm.ini().read_text().replace("base_url", "base_ulr"))
    for program in ("reimzul-submit", "reimzul-worker", "reimzul-repogen", "reimzul-tosign", "reimzul-notifier"):
        words = ["-s", "x", "-a", "x86_64", "-t", "t", "-d", ".d"] if program == "reimzul-submit" else []
        done = subprocess.run(
            [own_program(program), "--config", ini, *words], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 3, program
        assert len(done.stderr.splitlines()) == 1
        assert "base_ulr is not a setting; is base_url meant?" in done.stderr


def test_the_history_knows_what_became_of_it(farm: Farm, witness: Witness, package: Package) -> None:
    srpm = package("chronicle", srpms.noarch("chronicle"))
    submit(farm, srpm)
    witness.published(srpm.name, "x86_64")

    def read_builds() -> list[dict[str, object]]:
        argv = [own_program("reimzul"), "builds", "--config", str(farm.ini()), "--srpm", srpm.name, "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    until(lambda: [row.get("state") for row in read_builds()] in (["built"], ["published"]), 20, "it is in the history")
    assert srpm.name in (farm.layout.log / "reimzul.log").read_text()
