# SPDX-License-Identifier: Apache-2.0
"""`reimzul-submit` as its installed program: real source rpms, a real beanstalkd."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import resource
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attr
import pytest

from reimzul.core.beanstalk import NOTIFY, Broker, ReservedJob, arch_tube, heartbeat_tube
from reimzul.core.message import BuildEvent, BuildRequest, Feature, WorkerHeartbeat
from reimzul.core.targets import TargetList
from reimzul.history.workers import WorkerRecord, WorkerStore
from tests import commands, srpms, uploads, webserver
from tests.conftest import Beanstalkd, free_port
from tests.schemas import check_line
from tests.terminal import run_on_terminal

PROGRAM = Path(sys.executable).parent / "reimzul-submit"
#: The tubes of the fixture's workers, and the arches that each builds.
TUBES = {
    "x86_64": ["x86_64"],
    "aarch64": ["aarch64"],
    "armv7l": ["armhfp"],
    "i386": ["i386", "i686"],
    "ppc64le": ["ppc64le"],
    "ppc64": ["ppc64"],
    "noarch": ["noarch"],
}


@attr.frozen
class Ended:
    """A run of the program."""

    code: int
    out: str
    err: list[str]  #: lines


@attr.define
class Controller:
    """An incoming/ of its own, and settings that name it."""

    folder: Path
    broker: Broker
    port: int
    store: str  #: the URL of its store, in which lies what is in `bstore/`

    @property
    def incoming(self) -> Path:
        return self.folder / "incoming"

    @property
    def ini(self) -> Path:
        return self.folder / "reimzul.ini"

    def configure(self, more: str = "", *, port: int = 0) -> None:
        """Write the settings."""
        self.incoming.mkdir(exist_ok=True)
        where = f"[beanstalkd]\nhost = 127.0.0.1\nport = {port or self.port}\n[bstore]\nbase_url = {self.store}\n"
        workers = "" if "[notifier]" in more else f"[notifier]\npresence = {self.presence}\n"
        self.ini.write_text(f"{where}{workers}[incoming]\nfolder = {self.incoming}\n{more}")

    @property
    def presence(self) -> Path:
        return self.folder / "presence.sqlite"

    def report(self, arch: str, *targets: str, host: str = "b1.example.org", **more: Any) -> None:
        """Record the heartbeat of a worker of an arch that has mock configurations for these targets."""
        listed = TargetList.from_names(targets)
        given = {"targets": listed.names, "targets_fingerprint": listed.fingerprint, "features": Feature.ALL}
        given["version"] = "0.2.0"
        sent = WorkerHeartbeat(**{"host": host, "instance": arch, "state": "idle", "arches": (arch,), **given, **more})
        store = WorkerStore(self.presence)
        store.save([WorkerRecord(heartbeat=sent, last_seen=time.time())])
        store.close()

    def submit(
        self,
        *words: str | Path,
        limit: int | None = None,
        user: str = "",
        stdin: str = "",
        cwd: Path | None = None,
        program: Path = PROGRAM,
        **environ: str,
    ) -> Ended:
        """Run the program; `limit` is the largest file it may write, in bytes."""

        def confine() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        user = user or getpass.getuser()
        environment = {"PATH": os.environ["PATH"], "LOGNAME": user, "REIMZUL_CONFIG": str(self.ini), **environ}
        where = cwd or self.folder
        if program is PROGRAM and limit is None:
            done = commands.run([program, *words], env=environment, cwd=where, input=stdin)
        else:
            done = subprocess.run(
                [program, *words], env=environment, cwd=where, input=stdin, capture_output=True, text=True,
                check=False, preexec_fn=confine, timeout=60,
            )  # fmt: skip
        assert "Traceback" not in done.stderr
        check_line([PROGRAM.name, *words], done.stdout)
        return Ended(done.returncode, done.stdout, done.stderr.splitlines())

    def on_a_terminal(self, *words: str) -> tuple[list[str], int]:
        """Run it on a terminal of 80 columns; return the lines, and its exit code."""
        environment = {**os.environ, "REIMZUL_CONFIG": str(self.ini), "TERM": "dumb"}
        code, said = run_on_terminal([str(PROGRAM), *words], self.folder, environment, columns=80)
        return said.splitlines(), code

    def build(self, srpm: str | Path, *more: str, arch: str = "x86_64", **run: Any) -> Ended:
        """Run it with all it needs."""
        return self.submit("-s", srpm, "-a", arch, "-t", "c7.1708.u", "-d", ".el7", *more, **run)

    def queued(self, tube: str) -> list[ReservedJob[BuildRequest]]:
        """The requests that lie in an arch's tube, most urgent first."""
        found = arch_tube(tube)
        self.broker.watch([tube])
        return list(iter(lambda: self.broker.reserve({tube: found}, 0), None))

    def told(self) -> list[BuildEvent]:
        """What was announced."""
        self.broker.watch([NOTIFY.name])
        claims = iter(lambda: self.broker.reserve({NOTIFY.name: NOTIFY}, 0), None)
        return [claim.message for claim in claims]  # type: ignore[misc]

    def files(self) -> list[str]:
        """All that lies in incoming/."""
        return sorted(path.name for path in self.incoming.iterdir())

    def untouched(self) -> bool:
        """Whether nothing was queued or announced."""
        jobs = [self.broker.tube_stats(tube) for tube in self.broker.list_tubes()]
        return not any(tube.ready + tube.delayed + tube.reserved for tube in jobs)


@pytest.fixture(scope="session")
def made_packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real packages, and files that are none."""
    folder = tmp_path_factory.mktemp("made")
    other = srpms.make_srpm(folder / "other", "hello", srpms.compiled("hello", requires="gcc, make"))
    hello = srpms.make_srpm(folder, "hello", srpms.compiled("hello"))
    garbage, empty = folder / "garbage-1-1.src.rpm", folder / "empty-1-1.src.rpm"
    garbage.write_bytes(b"<html>404</html>" * 99)
    empty.touch()
    binary = srpms.make_rpm(folder, "plain", srpms.noarch("plain"))
    renamed = folder / "plain-1.0-1.src.rpm"
    renamed.write_bytes(binary.read_bytes())
    return {
        "hello": hello,
        "other": other,
        "only": srpms.make_srpm(folder, "only", srpms.compiled("only", exclusive_arch="x86_64 aarch64")),
        "not32": srpms.make_srpm(folder, "not32", srpms.compiled("not32", exclude_arch="%{ix86}")),
        "just64": srpms.make_srpm(folder, "just64", srpms.compiled("just64", build_arch="x86_64")),
        "zig": srpms.make_srpm(folder, "zig", srpms.compiled("zig", exclusive_arch="%{zig_arches}")),
        "truncated": srpms.truncate(hello, folder / "short-1-1.src.rpm"),
        "payload": srpms.truncate(hello, folder / "shorter-1-1.src.rpm", hello.stat().st_size - 1),
        "binary": binary,
        "renamed": renamed,
        "garbage": garbage,
        "empty": empty,
        "nameless": srpms.forge_srpm(
            folder / "nameless-1-1.src.rpm", {"version": "1", "release": "1", "arch": "noarch"}
        ),
        "archless": srpms.forge_srpm(
            folder / "archless-1-1.src.rpm", {"name": "a", "version": "1", "release": "1", "arch": "../x"}
        ),
    }


@pytest.fixture
def controller(
    tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, made_packages: dict[str, Path]
) -> Iterator[Controller]:
    """A controller with one source rpm uploaded, and a store in which nothing was published."""
    server = webserver.serve(tmp_path)
    here = Controller(tmp_path, broker, beanstalkd.port, f"http://127.0.0.1:{server.server_port}/bstore/repo/")
    here.configure()
    (here.incoming / made_packages["hello"].name).write_bytes(made_packages["hello"].read_bytes())
    for tube, arches in TUBES.items():
        here.report(tube, *(f"{target}.{arch}" for target in ("c7.1708.u", "c7.1803.u", "c9s") for arch in arches))
    yield here
    webserver.close(server)


HELLO = "hello-1.0-1.src.rpm"


# --- what it is for


def test_no_arguments_print_the_help_on_stderr(controller: Controller) -> None:
    ended = controller.submit()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err[0].startswith("Usage: reimzul-submit")
    for option in ("--srpm", "--arch", "--target", "--disttag", "--now", "--scratch", "--json", "--config"):
        assert option in "\n".join(ended.err)
    asked = controller.submit("--help")
    assert (asked.code, asked.out.splitlines(), asked.err) == (0, ended.err, [])


def test_the_readmes_loop_over_arches(controller: Controller) -> None:
    program = shlex.quote(str(PROGRAM))
    loop = f"for arch in x86_64 aarch64 armhfp ; do {program} -s {HELLO} -d .el7 -a $arch -t c7.1708.u ; done"
    environment = {"PATH": os.environ["PATH"], "LOGNAME": "johnny", "REIMZUL_CONFIG": str(controller.ini)}
    subprocess.run(["bash", "-ec", loop], env=environment, check=True, capture_output=True)
    for arch, tube in (("x86_64", "x86_64"), ("aarch64", "aarch64"), ("armhfp", "armv7l")):
        (claim,) = controller.queued(tube)
        request = claim.message
        assert (request.srpm, request.arch, request.target) == (HELLO, arch, f"c7.1708.u.{arch}")
        assert (request.disttag, request.scratch, request.submitter) == (".el7", False, "johnny")
        assert request.has_id


def test_it_says_what_was_queued_where(controller: Controller) -> None:
    ended = controller.build(HELLO)
    (claim,) = controller.queued("x86_64")
    assert ended.code == 0
    assert ended.out == f"{claim.message.build_id}\tx86_64\tc7.1708.u.x86_64\t{HELLO}\n"


def test_it_is_announced_as_queued(controller: Controller) -> None:
    controller.build(HELLO)
    (claim,) = controller.queued("x86_64")
    (event,) = controller.told()
    assert (event.status, event.build_id, event.arch) == ("Queued", claim.message.build_id, "x86_64")
    assert (event.pkgname, event.evr, event.target) == ("hello", "1.0-1", "c7.1708.u.x86_64")


@pytest.mark.parametrize(("more", "priority"), [((), 8192), (("--now",), 1024)])
def test_the_priorities_are_the_originals(controller: Controller, more: tuple[str, ...], priority: int) -> None:
    controller.build(HELLO, *more)
    (claim,) = controller.queued("x86_64")
    assert claim.stats.priority == priority


def test_a_scratch_build_says_so(controller: Controller) -> None:
    ended = controller.build(HELLO, "--scratch", "--json")
    assert json.loads(ended.out)["scratch"] is True
    assert controller.queued("x86_64")[0].message.scratch is True


@pytest.mark.parametrize(
    "arches",
    [["-a", "aarch64,ppc64le,i686"], ["-a", "aarch64", "-a", "ppc64le,i686"], ["-a", "aarch64,ppc64le,i686,aarch64,"]],
)
def test_several_arches_are_one_submission(controller: Controller, arches: list[str]) -> None:
    ended = controller.submit("-s", HELLO, *arches, "-t", "c9s", "-d", ".el9")
    requests = [claim.message for tube in ("aarch64", "ppc64le", "i386") for claim in controller.queued(tube)]
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 3
    assert [request.arch for request in requests] == ["aarch64", "ppc64le", "i686"]
    assert len({request.timestamp for request in requests}) == 1
    assert len({request.build_id for request in requests}) == 3


def test_json_says_the_same(controller: Controller) -> None:
    ended = controller.build(HELLO, "--json", arch="x86_64,aarch64")
    said = json.loads(ended.out)
    assert (said["scratch"], said["refused"]) == (False, [])
    for row, tube in zip(said["builds"], ("x86_64", "aarch64")):
        (claim,) = controller.queued(tube)
        assert (row["srpm"], row["copied"]) == (HELLO, False)
        assert (row["job"], row["build_id"]) == (claim.id, claim.message.build_id)
        assert (row["tube"], row["target"], row["message"], row["watchers"]) == (tube, f"c7.1708.u.{tube}", None, 0)


def test_a_tube_nobody_watches_is_warned_of(controller: Controller, beanstalkd: Beanstalkd) -> None:
    with beanstalkd.connect() as builder:
        builder.watch(["x86_64"])
        ended = controller.build(HELLO, arch="x86_64,aarch64")
    assert ended.code == 0
    assert ended.err == [
        "reimzul-submit: warning: no builder watches the tube aarch64; builds wait there until one does"
    ]


def test_a_build_is_waited_for_no_longer_than_the_timeout(controller: Controller) -> None:
    controller.configure(f"[history]\nurl = sqlite:///{controller.folder}/history.sqlite\n")
    ended = controller.build(HELLO, "--wait", "--timeout", "0")
    assert ended.code == 1
    assert "submitted; not recorded by the notifier yet" in ended.out
    assert ended.err[-1].startswith("not over after 0.0 s; the builds go on; to follow them again: reimzul watch ")
    assert "--timeout is for --wait" in controller.build(HELLO, "--timeout", "1").err[-1]


# --- who submits


NAMES = ["CORP\\jdoe", "John Doe", "José Núñez", "山田 太郎"]


@pytest.mark.parametrize("name", NAMES)
def test_a_submitter_may_have_any_name(controller: Controller, name: str) -> None:
    ended = controller.build(HELLO, user=name)
    assert ended.code == 0
    assert [claim.message.submitter for claim in controller.queued("x86_64")] == [name]
    assert [event.submitter for event in controller.told()] == [name]


@pytest.mark.parametrize("name", ["-o", "a\x1b[2Jb", "a\nb", "a\u202eb", "x" * 65])
def test_a_name_that_could_harm_submits_nothing(controller: Controller, name: str) -> None:
    assert_refused(controller, controller.build(HELLO, user=name), "the name of the submitting user cannot be used")


@pytest.mark.parametrize(("version", "written"), [("", "CORP_jdoe"), ("0.1.0", "CORP_jdoe"), ("0.2.0", "CORP\\jdoe")])
def test_a_worker_of_0_1_is_spared_a_name_it_would_bury(controller: Controller, version: str, written: str) -> None:
    presence = controller.folder / "presence.sqlite"
    controller.configure(f"[notifier]\npresence = {presence}\n")
    said = WorkerHeartbeat(host="b1", instance="1", state="idle", arches=("x86_64",), version=version)
    file = WorkerStore(presence)
    file.save([WorkerRecord(heartbeat=said, last_seen=time.time())])
    file.close()
    ended = controller.build(HELLO, user="CORP\\jdoe")
    assert [claim.message.submitter for claim in controller.queued("x86_64")] == [written]
    warned = [line for line in ended.err if "submitted as CORP_jdoe, not as CORP\\jdoe: a worker is older" in line]
    assert ended.code == 0
    assert bool(warned) is (written == "CORP_jdoe")


def test_a_worker_without_heartbeats_is_spared_it_too(controller: Controller, beanstalkd: Beanstalkd) -> None:
    with beanstalkd.connect() as builder:
        builder.watch([heartbeat_tube("b7.example.org")])
        ended = controller.build(HELLO, user="John Doe")
    assert [claim.message.submitter for claim in controller.queued("x86_64")] == ["John_Doe"]
    assert "sends no heartbeats" in ended.err[0]


# --- incoming/


def test_the_request_carries_the_files_sha256(controller: Controller, made_packages: dict[str, Path]) -> None:
    controller.build(HELLO)
    sha256 = hashlib.sha256(made_packages["hello"].read_bytes()).hexdigest()
    assert controller.queued("x86_64")[0].message.srpm_sha256 == sha256


def test_a_file_from_elsewhere_is_copied_in(controller: Controller, made_packages: dict[str, Path]) -> None:
    ended = controller.build(made_packages["only"])
    there = controller.incoming / made_packages["only"].name
    assert ended.code == 0
    assert there.read_bytes() == made_packages["only"].read_bytes()
    assert there.stat().st_mode & 0o777 == 0o644, "the http server reads it as another user"
    assert controller.queued("x86_64")[0].message.srpm == made_packages["only"].name
    assert controller.files() == sorted([HELLO, made_packages["only"].name])


def test_a_file_of_this_folder_needs_no_slash(controller: Controller, made_packages: dict[str, Path]) -> None:
    (controller.folder / made_packages["only"].name).write_bytes(made_packages["only"].read_bytes())
    assert controller.build(made_packages["only"].name).code == 0
    assert made_packages["only"].name in controller.files()


def test_the_same_file_again_is_fine(controller: Controller, made_packages: dict[str, Path]) -> None:
    before = (controller.incoming / HELLO).stat()
    for _ in range(2):
        assert controller.build(made_packages["hello"]).code == 0
    assert controller.files() == [HELLO]
    assert (controller.incoming / HELLO).stat().st_ino == before.st_ino
    assert controller.build(controller.incoming / HELLO).code == 0


def test_a_different_file_of_that_name_is_never_replaced(
    controller: Controller, made_packages: dict[str, Path]
) -> None:
    assert made_packages["other"].name == HELLO
    ended = controller.build(made_packages["other"])
    assert_refused(controller, ended, f"{HELLO}: a different file of that name is there already")
    assert (controller.incoming / HELLO).read_bytes() == made_packages["hello"].read_bytes()


@pytest.mark.parametrize("copied", [False, True], ids=["by its name", "the same file again"])
def test_a_file_the_web_server_may_not_read_is_refused(
    controller: Controller, made_packages: dict[str, Path], copied: bool
) -> None:
    place = controller.incoming / HELLO
    place.chmod(0o600)
    ended = controller.build(made_packages["hello"] if copied else HELLO)
    why = f"no builder can download it: {place} has mode 0600, and other users cannot read it: chmod o+r {place}"
    assert_refused(controller, ended, why)


def test_a_link_the_web_server_may_not_follow_is_refused(
    controller: Controller, made_packages: dict[str, Path]
) -> None:
    home = controller.folder / "home"
    home.mkdir(mode=0o700)
    (home / made_packages["only"].name).write_bytes(made_packages["only"].read_bytes())
    (controller.incoming / made_packages["only"].name).symlink_to(home / made_packages["only"].name)
    ended = controller.build(made_packages["only"].name)
    assert ended.code == 4
    assert controller.untouched()
    assert f"{home} has mode 0700, and other users cannot enter it: chmod o+x {home}" in ended.err[-1]
    home.chmod(0o711)
    assert controller.build(made_packages["only"].name).code == 0


def test_an_incoming_that_others_may_not_enter_takes_nothing(
    controller: Controller, made_packages: dict[str, Path]
) -> None:
    controller.incoming.chmod(0o750)
    ended = controller.build(made_packages["only"])
    assert_refused(controller, ended, f"other users cannot enter it: chmod o+x {controller.incoming}")


def test_a_copy_that_fails_half_way_leaves_nothing(controller: Controller, made_packages: dict[str, Path]) -> None:
    ended = controller.build(made_packages["only"], limit=1000)
    assert_refused(controller, ended, "only-1.0-1.src.rpm cannot be copied in: file too large")


def test_what_killed_submissions_left_is_swept(controller: Controller, made_packages: dict[str, Path]) -> None:
    old, new = controller.incoming / ".incoming-old", controller.incoming / ".incoming-new"
    for left in (old, new):
        left.write_bytes(b"half a file")
    os.utime(old, (0, 0))
    assert controller.build(made_packages["only"]).code == 0
    assert not old.exists()
    assert new.exists()


def test_an_incoming_that_is_not_there(controller: Controller, made_packages: dict[str, Path]) -> None:
    (controller.incoming / HELLO).unlink()
    controller.incoming.rmdir()
    ended = controller.build(made_packages["hello"])
    assert (ended.code, len(ended.err)) == (4, 1)
    assert "no such file or directory" in ended.err[0]
    assert controller.untouched()


# --- bad input: one line, exit code 4, nothing queued, nothing copied


def assert_refused(controller: Controller, ended: Ended, *words: str) -> None:
    assert ended.code == 4
    assert not ended.out
    assert len(ended.err) == len(words), ended.err
    for line, said in zip(ended.err, words):
        assert line.startswith("reimzul-submit: ")
        assert said in line
    assert controller.untouched()
    assert controller.files() == [HELLO]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("truncated", "truncated or damaged"),
        ("payload", "truncated: "),
        ("binary", "a binary rpm (plain-1.0-1.noarch), not a source rpm"),
        ("renamed", "a binary rpm (plain-1.0-1.noarch), not a source rpm"),
        ("garbage", "not an rpm package"),
        ("empty", "not an rpm package"),
        ("nameless", "its header cannot be used: it has no name"),
        ("archless", "its header cannot be used: '../x' is not an arch"),
    ],
)
def test_a_file_that_is_no_source_rpm(
    controller: Controller, made_packages: dict[str, Path], file: str, said: str
) -> None:
    assert_refused(controller, controller.build(made_packages[file]), said)


@pytest.mark.parametrize("file", ["truncated", "renamed", "garbage"])
def test_one_that_lies_in_incoming_is_no_better(
    controller: Controller, made_packages: dict[str, Path], file: str
) -> None:
    there = controller.incoming / made_packages[file].name
    there.write_bytes(made_packages[file].read_bytes())
    ended = controller.build(made_packages[file].name)
    assert (ended.code, len(ended.err)) == (4, 1)
    assert str(there) in ended.err[0]
    assert controller.untouched()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("none-1-1.src.rpm", "none-1-1.src.rpm: not in "),
        ("./none-1-1.src.rpm", "./none-1-1.src.rpm: no such file"),
        ("/etc", "/etc: no such file"),
        ("../x", "../x: no such file"),
        ("x; touch y", "x; touch y: not in "),
        ("$(touch y)", "$(touch y): not in "),
        ("a" * 5000, "not in "),
        ("", "not in "),
        ("a\nb.src.rpm", "is not accepted as a file name"),
        ("/etc/hostname", "/etc/hostname: not an rpm package"),
    ],
    ids=lambda value: value[:12],
)
def test_a_file_that_is_not_there(controller: Controller, given: str, said: str) -> None:
    assert_refused(controller, controller.build(given), said)
    assert not (controller.folder / "y").exists()


def test_a_source_rpm_of_a_name_that_cannot_travel(controller: Controller, made_packages: dict[str, Path]) -> None:
    odd = controller.folder / "hello world.src.rpm"
    odd.write_bytes(made_packages["hello"].read_bytes())
    assert_refused(controller, controller.build(odd), "'hello world.src.rpm' is not a name")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-a", "z80", "-t", "c7", "-d", ".el7"], ["unknown arch 'z80'; known arches: x86_64, "]),
        (["-a", "../x", "-t", "c7", "-d", ".el7"], ["unknown arch '../x'"]),
        (["-a", ",", "-t", "c7", "-d", ".el7"], ["no arch is given"]),
        (["-a", "x86_64", "-t", "../x", "-d", ".el7"], ["target '../x' is not a target"]),
        (["-a", "x86_64", "-t", "x; touch y", "-d", ".el7"], ["target 'x; touch y' is not a target"]),
        (["-a", "x86_64", "-t", "c7.x86_64", "-d", ".el7"], ["give it without, as c7"]),
        (["-a", "x86_64", "-t", "c" * 125, "-d", ".el7"], ["longer than 128"]),
        (["-a", "x86_64", "-t", "c7\nx", "-d", ".el7"], [r"target 'c7\nx' is not a target"]),
        (["-a", "x86_64", "-t", "c7", "-d", ".el 7"], ["disttag '.el 7' is not a disttag"]),
        (["-a", "x86_64", "-t", "c7", "-d", "el7"], ["is .el7 meant?"]),
        (["-a", "x86_64", "-t", "c7", "-d", "%{lua:os.exit()}"], ["is not a disttag"]),
        (["-a", "z80,x86_64", "-t", "../x", "-d", ""], ["arch 'z80'", "target '../x'", "disttag ''"]),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_a_word_that_is_none(controller: Controller, words: list[str], said: list[str]) -> None:
    assert_refused(controller, controller.submit("-s", HELLO, *words), *said)
    assert not (controller.folder / "y").exists()


@pytest.mark.parametrize(
    ("file", "arch", "said"),
    [
        ("only", "x86_64,i386,ppc64le", ["i386: ExclusiveArch is x86_64 aarch64; only-1.0-1.src.rpm is not built for"]),
        ("not32", "aarch64,i386", ["not32-1.0-1.src.rpm is not built for i386: ExcludeArch is i"]),
        ("just64", "x86_64,i386", ["just64-1.0-1.src.rpm is not built for i386: BuildArch is x86_64"]),
    ],
)
def test_an_arch_the_package_rules_out(
    controller: Controller, made_packages: dict[str, Path], file: str, arch: str, said: list[str]
) -> None:
    assert_refused(controller, controller.build(made_packages[file], arch=arch), *said)


def test_a_macro_nobody_expanded_is_left_to_mock(controller: Controller, made_packages: dict[str, Path]) -> None:
    ended = controller.build(made_packages["zig"])
    why = "ExclusiveArch has %{zig_arches}, unexpanded"
    warning = f"warning: mock decides whether zig-1.0-1.src.rpm is built for x86_64: {why}"
    assert ended.code == 0
    assert f"reimzul-submit: {warning}" in ended.err
    assert [claim.message.srpm for claim in controller.queued("x86_64")] == ["zig-1.0-1.src.rpm"]


def test_reimzul_without_arguments_does_so_too(controller: Controller) -> None:
    program = PROGRAM.with_name("reimzul")
    ended, asked = controller.submit(program=program), controller.submit("--help", program=program)
    assert (ended.code, ended.out, ended.err) == (2, "", asked.out.splitlines())


# --- several source rpms in one call


@pytest.fixture
def uploaded(controller: Controller, made_packages: dict[str, Path]) -> list[str]:
    """Names of three source rpms in incoming/ that can be built for x86_64."""
    for each in ("only", "just64"):
        (controller.incoming / made_packages[each].name).write_bytes(made_packages[each].read_bytes())
    return [HELLO, made_packages["just64"].name, made_packages["only"].name]


AS = ("-a", "x86_64", "-t", "c7.1708.u", "-d", ".el7")


def rows_of(ended: Ended) -> list[list[str]]:
    return [line.split("\t") for line in ended.out.splitlines()]


@pytest.mark.parametrize(
    "given",
    [
        ["-s", HELLO, "-s", "just64-1.0-1.src.rpm", "-s", "only-1.0-1.src.rpm"],
        [HELLO, "just64-1.0-1.src.rpm", "only-1.0-1.src.rpm"],
        ["-s", HELLO, "just64-1.0-1.src.rpm", "-s", "only-1.0-1.src.rpm"],
        ["-s", "*.src.rpm"],
        ["-s", "[hjo]*"],
        ["-s", "h*", "-s", "[jo]*", "-s", HELLO],
    ],
    ids=" ".join,
)
def test_all_that_are_given_are_queued(controller: Controller, uploaded: list[str], given: list[str]) -> None:
    ended = controller.submit(*given, *AS)
    queued = {claim.message.build_id: claim.message.srpm for claim in controller.queued("x86_64")}
    assert ended.code == 0
    assert sorted(queued.values()) == uploaded
    assert {row[0]: row[3] for row in rows_of(ended)} == queued
    assert len(rows_of(ended)) == len(uploaded)


def test_a_pattern_is_for_incoming_and_for_this_folder(controller: Controller, made_packages: dict[str, Path]) -> None:
    (controller.folder / made_packages["only"].name).write_bytes(made_packages["only"].read_bytes())
    (controller.folder / "only-notes.txt").touch()
    (controller.folder / HELLO).write_bytes(made_packages["hello"].read_bytes())  # the same as in incoming/
    ended = controller.submit("-s", "*", *AS)
    assert ended.code == 0
    assert [row[3] for row in rows_of(ended)] == [HELLO, made_packages["only"].name]
    assert controller.files() == sorted([HELLO, made_packages["only"].name])


def test_a_pattern_with_a_slash_is_for_that_folder_alone(
    controller: Controller, made_packages: dict[str, Path]
) -> None:
    folder = controller.folder / "SRPMS"
    folder.mkdir()
    (folder / made_packages["only"].name).write_bytes(made_packages["only"].read_bytes())
    ended = controller.submit("-s", "SRPMS/*.src.rpm", *AS)
    assert [row[3] for row in rows_of(ended)] == [made_packages["only"].name]


def test_a_pattern_that_matches_nothing_is_refused(controller: Controller) -> None:
    why = f"'python-*.src.rpm': no source rpm in {controller.incoming} or here matches it"
    assert_refused(controller, controller.submit("-s", "python-*.src.rpm", *AS), why)
    assert_refused(controller, controller.submit("-s", "/x/*.src.rpm", *AS), "'/x/*.src.rpm': no source rpm matches it")


def test_a_list_comes_on_stdin(controller: Controller, uploaded: list[str]) -> None:
    listed = f"{uploaded[1]}\n\n  {uploaded[2]}  \n{uploaded[1]}\n"
    ended = controller.submit("-s", HELLO, "-s", "-", *AS, stdin=listed)
    assert ended.code == 0
    assert [row[3] for row in rows_of(ended)] == uploaded


def test_an_empty_list_is_refused(controller: Controller) -> None:
    assert_refused(controller, controller.submit("-s", "-", *AS, stdin="\n\n"), "stdin lists no source rpm")


def test_one_bad_source_rpm_holds_up_no_other(
    controller: Controller, made_packages: dict[str, Path], uploaded: list[str]
) -> None:
    given: list[str | Path] = [
        HELLO,
        made_packages["garbage"],
        "none-1-1.src.rpm",
        made_packages["only"].name,
        made_packages["not32"],
    ]
    ended = controller.submit(*given, "-a", "x86_64,aarch64", "-a", "i386", *AS[2:])
    assert ended.code == 1
    assert [row[3] for row in rows_of(ended)] == [HELLO] * 3
    refusals = [line for line in ended.err if "warning" not in line]
    for line, why in zip(
        refusals, ("not an rpm package", "none-1-1.src.rpm: not in ", "only-1.0-1.src.rpm is not built for i386")
    ):
        assert why in line
    assert len(refusals) == 4
    assert controller.files() == uploaded, "what is refused is not copied"


def test_json_is_one_object_for_many(
    controller: Controller, made_packages: dict[str, Path], uploaded: list[str]
) -> None:
    ended = controller.submit(*uploaded, made_packages["garbage"], "--json", "-a", "aarch64", *AS)
    said = json.loads(ended.out)
    assert ended.code == 1
    assert [(row["srpm"], row["arch"]) for row in said["builds"]] == [
        (name, arch) for name in (HELLO, made_packages["only"].name) for arch in ("aarch64", "x86_64")
    ]
    assert [row["srpm"] for row in said["refused"]] == [made_packages["just64"].name, str(made_packages["garbage"])]


def test_json_tells_that_all_are_refused(controller: Controller, made_packages: dict[str, Path]) -> None:
    ended = controller.build(made_packages["garbage"], "--json")
    said = json.loads(ended.out)
    assert (ended.code, said["builds"]) == (4, [])
    assert "not an rpm package" in said["refused"][0]["message"]
    assert controller.untouched()


def test_the_same_file_given_by_two_paths_is_one(controller: Controller, made_packages: dict[str, Path]) -> None:
    ended = controller.submit(HELLO, made_packages["hello"], *AS)
    assert (ended.code, len(rows_of(ended))) == (0, 1)


def test_another_file_of_the_same_package_is_refused(controller: Controller, made_packages: dict[str, Path]) -> None:
    ended = controller.submit(HELLO, made_packages["other"], *AS)
    assert (ended.code, len(rows_of(ended))) == (1, 1)
    assert f"{made_packages['other']}: hello-1.0-1 is given twice, as {controller.incoming / HELLO} too" in ended.err[0]


def test_a_terminal_shows_short_ids_in_columns_and_a_sum(controller: Controller, uploaded: list[str]) -> None:
    lines, code = controller.on_a_terminal("-s", "*.src.rpm", "-s", "no.src.rpm", "-a", "aarch64", *AS)
    ids = {claim.message.build_id[:8] for tube in ("x86_64", "aarch64") for claim in controller.queued(tube)}
    assert code == 1
    assert all(len(line) <= 80 for line in lines if "reimzul-submit: " not in line)
    assert {line.split()[0] for line in lines[:4]} == ids
    assert lines[0][10:] == f"aarch64  c7.1708.u.aarch64  {HELLO}"
    assert lines[1][10:] == f"x86_64   c7.1708.u.x86_64   {HELLO}"
    assert lines[-1] == "4 builds of 2 source rpms queued, 2 refused"


def test_one_source_rpm_has_no_sum(controller: Controller) -> None:
    lines, code = controller.on_a_terminal(HELLO, *AS)
    (claim,) = controller.queued("x86_64")
    assert code == 0
    assert lines[0] == f"{claim.message.build_id[:8]}  x86_64  c7.1708.u.x86_64  {HELLO}"
    assert len(lines) == 2, "the other is the warning that nobody watches"


def test_wait_follows_all_and_tells_of_those_refused(controller: Controller, uploaded: list[str]) -> None:
    called = controller.folder / "called"
    programs = controller.folder / "programs"
    programs.mkdir()
    (programs / "reimzul-submit").write_bytes(PROGRAM.read_bytes())
    (programs / "reimzul-submit").chmod(0o755)
    for code, given, expected in ((0, uploaded, 0), (0, [*uploaded, "no.src.rpm"], 1), (5, [HELLO, "no.src.rpm"], 5)):
        (programs / "reimzul").write_text(f'#!/bin/sh\necho "$@" >{called}\nexit {code}\n')
        (programs / "reimzul").chmod(0o755)
        ended = controller.submit(*given, "--wait", *AS, program=programs / "reimzul-submit")
        assert ended.code == expected
        assert called.read_text().split() == ["watch", "--new", *(row[0] for row in rows_of(ended))]


def test_many_cost_one_connection_and_one_look_at_what_a_target_lists(
    controller: Controller, published_build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = controller.folder / "many"
    folder.mkdir()
    for number in range(40):
        srpms.forge_srpm(
            folder / f"p{number}-1-1.src.rpm", {"name": f"p{number}", "version": "1", "release": "1", "arch": "noarch"}
        )
    asked: list[str] = []
    monkeypatch.setattr(webserver._Quiet, "log_message", lambda served, *_: asked.append(served.path))
    before = controller.broker.client.stats()["total-connections"]
    ended = controller.submit("-s", f"{folder}/*.src.rpm", "-s", HELLO, *AS)
    assert controller.broker.client.stats()["total-connections"] == before + 2, (
        "one for all targets, one for all builds"
    )
    assert ended.code == 1, "hello is listed"
    assert f"of build {published_build[:8]} already" in ended.err[0]
    assert len(rows_of(ended)) == len(controller.queued("x86_64")) == 40
    assert len([path for path in asked if "primary" in path]) == 1
    assert len([path for path in asked if "repomd" in path]) == 2, "the other is for a target that has no repodata"


# --- of which file a name is


def test_a_name_of_two_different_files_is_refused(controller: Controller, made_packages: dict[str, Path]) -> None:
    (controller.folder / HELLO).write_bytes(made_packages["other"].read_bytes())
    inside = controller.incoming / HELLO
    why = f"give ./{HELLO} for the one here, {inside} for the other"
    assert_refused(controller, controller.build(HELLO), why)
    assert_refused(controller, controller.build("hello-*"), why)
    assert_refused(controller, controller.build(f"./{HELLO}"), "submit that one by this path")
    assert controller.build(inside).code == 0
    (claim,) = controller.queued("x86_64")
    assert claim.message.srpm_sha256 == hashlib.sha256(made_packages["hello"].read_bytes()).hexdigest()


def test_a_name_of_two_equal_files_is_no_question(controller: Controller, made_packages: dict[str, Path]) -> None:
    (controller.folder / HELLO).write_bytes(made_packages["hello"].read_bytes())
    ended = controller.build(HELLO)
    assert (ended.code, controller.files()) == (0, [HELLO])
    assert len(controller.queued("x86_64")) == 1


def test_a_name_in_incoming_itself_is_no_question(controller: Controller) -> None:
    assert controller.build(HELLO, cwd=controller.incoming).code == 0


def test_a_file_that_cannot_be_compared_is_refused(controller: Controller) -> None:
    (controller.incoming / HELLO).unlink()
    (controller.incoming / HELLO).symlink_to("/proc/self/mem")
    (controller.folder / HELLO).write_bytes(b"x")
    ended = controller.build(HELLO)
    assert (ended.code, len(ended.err)) == (4, 1)


# --- usage, settings, beanstalkd


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-s", HELLO], "Missing option '-a'"),
        (["--quux"], "No such option"),
        (["-a", "x86_64", "-t", "c7", "-d", ".el7"], "no source rpm is given"),
    ],
)
def test_wrong_usage(controller: Controller, words: list[str], said: str) -> None:
    ended = controller.submit(*words)
    assert ended.code == 2
    assert said in ended.err[-1]
    assert not ended.out
    assert controller.untouched()


def test_misspelt_settings_are_told_one_a_line(controller: Controller) -> None:
    controller.configure("foldr = /x\n[beanstalk]\n")
    ended = controller.build(HELLO)
    assert ended.code == 3
    assert controller.untouched()
    assert ended.err == [
        f"reimzul-submit: {controller.ini}: [beanstalk] is not a section; is [beanstalkd] meant?",
        f"reimzul-submit: {controller.ini}: [incoming] foldr is not a setting; is folder meant?",
    ]


def test_a_configuration_that_is_not_there(controller: Controller) -> None:
    ended = controller.build(HELLO, "--config", "/no/such/reimzul.ini")
    assert (ended.code, ended.err) == (3, ["reimzul-submit: /no/such/reimzul.ini: no such file or directory"])


def test_nobody_answers_where_beanstalkd_should_be(controller: Controller) -> None:
    controller.configure(port=free_port())
    ended = controller.build(HELLO)
    assert ended.code == 5
    assert len(ended.err) == 1
    assert "onnection refused" in ended.err[0]


class Frail:
    """A way to beanstalkd that breaks when so many jobs were put through it, requests to repogen apart."""

    def __init__(self, port: int, jobs: int) -> None:
        self.target = port
        self.left = jobs
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while self._serve_one(self.listener.accept()[0]):
                pass

    def _serve_one(self, client: socket.socket) -> bool:
        """Serve a connection; return whether it ended before the link broke."""
        with contextlib.suppress(OSError):
            used = b""
            with client, socket.create_connection(("127.0.0.1", self.target)) as server:
                while said := client.recv(65_536):
                    used = said if said.startswith(b"use ") else used
                    if said.startswith(b"put "):
                        if not self.left:
                            return False  # with the command unanswered and unheard
                        self.left -= b"createrepo" not in used
                    server.sendall(said)
                    client.sendall(server.recv(65_536))
        return True

    def close(self) -> None:
        """End it."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()


@pytest.fixture
def frail(controller: Controller, request: pytest.FixtureRequest) -> Iterator[Frail]:
    """Beanstalkd behind a link that breaks, as the settings have it."""
    link = Frail(controller.port, request.param)
    controller.configure(port=link.port)
    yield link
    link.close()


@pytest.mark.parametrize("frail", [2], indirect=True)  # one arch is two jobs: its request and its event
def test_a_link_that_breaks_between_arches_says_which_were_queued(controller: Controller, frail: Frail) -> None:
    ended = controller.build(HELLO, arch="x86_64,aarch64,ppc64le")
    assert ended.code == 1
    assert len(ended.out.splitlines()) == 1
    assert "\tx86_64\t" in ended.out
    assert len(ended.err) == 2
    assert ended.err[0].startswith(
        f"reimzul-submit: {HELLO} is not queued for aarch64: beanstalkd did not confirm it: "
    )
    assert ended.err[1].startswith(f"reimzul-submit: {HELLO} is not queued for ppc64le: ")
    assert [len(controller.queued(tube)) for tube in ("x86_64", "aarch64", "ppc64le")] == [1, 0, 0]


@pytest.mark.parametrize("frail", [2], indirect=True)
def test_json_says_which_were_queued(controller: Controller, frail: Frail) -> None:
    ended = controller.build(HELLO, "--json", arch="x86_64,aarch64")
    first, second = json.loads(ended.out)["builds"]
    assert ended.code == 1
    assert (first["message"], second["job"]) == (None, None)
    assert first["job"]
    assert second["message"]


@pytest.mark.parametrize("frail", [0], indirect=True)
def test_a_link_that_breaks_before_all_says_that_nothing_was_queued(controller: Controller, frail: Frail) -> None:
    ended = controller.build(HELLO, arch="x86_64,aarch64")
    assert ended.code == 5
    assert len(ended.err) == 1
    assert not ended.out
    assert controller.untouched()


@pytest.mark.parametrize("frail", [1], indirect=True)
def test_a_build_that_is_queued_and_not_announced_is_queued(controller: Controller, frail: Frail) -> None:
    ended = controller.build(HELLO)
    assert ended.code == 0
    assert "\tx86_64\t" in ended.out
    assert len(controller.queued("x86_64")) == 1


# --- misspelt targets


def test_a_misspelt_target_is_refused_with_the_nearest(controller: Controller) -> None:
    ended = controller.submit("-s", HELLO, "-a", "x86_64,aarch64", "-t", "c7.1708", "-d", ".el7")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err == [
        f"reimzul-submit: no worker of {arch} has a mock configuration for c7.1708; is c7.1708.u meant? "
        "(--new-target if neither)"
        for arch in ("x86_64", "aarch64")
    ]
    assert controller.untouched()
    assert controller.files() == [HELLO]


def test_an_arch_without_a_configuration_is_refused_with_those_that_have_one(controller: Controller) -> None:
    controller.report("s390x", "c9s.s390x")
    ended = controller.build(HELLO, arch="x86_64,s390x")
    (line,) = ended.err
    assert ended.code == 4
    assert "no worker of s390x has a mock configuration for c7.1708.u; c7.1708.u is built on aarch64, armhfp, " in line
    assert controller.untouched()


def test_a_new_target_is_accepted_as_such(controller: Controller) -> None:
    ended = controller.build(HELLO, "-t", "c7.1708", "--new-target")
    assert (ended.code, [line for line in ended.err if "watches" not in line]) == (0, [])
    assert controller.queued("x86_64")[0].message.target == "c7.1708.x86_64"


@pytest.mark.parametrize("doubt", ["unreported", "no heartbeats", "cut", "published", "not alike", "nobody", "away"])
def test_a_target_that_may_be_right_is_accepted(controller: Controller, beanstalkd: Beanstalkd, doubt: str) -> None:
    warned, target = "warning: no worker of x86_64 has a mock configuration for c7.1708; is c7.1708.u meant?", "c7.1708"
    with contextlib.ExitStack() as stack:
        if doubt == "unreported":
            controller.report("x86_64", host="b2.example.org", targets_fingerprint="")
        elif doubt == "no heartbeats":
            for _ in range(2):
                stack.enter_context(beanstalkd.connect()).watch(["x86_64"])
        elif doubt == "cut":
            listed = TargetList(("c9s.x86_64",), 9)
            controller.report(
                "x86_64", *listed.names, targets_left_out=9, targets_fingerprint=listed.fingerprint, host="b2"
            )
            warned = ""
        elif doubt == "published":
            repodata = controller.folder / "bstore" / "repo" / "c7.1708.x86_64" / "repodata"
            repodata.mkdir(parents=True)
            (repodata / "repomd.xml").write_text("<repomd/>")
        elif doubt == "not alike":
            warned, target = "warning: no worker of x86_64 has a mock configuration for zebra", "zebra"
        elif doubt == "nobody":
            controller.presence.unlink()
            warned = (
                "warning: whether c7.1708.x86_64 can be built is unknown: no worker of x86_64 has reported its targets"
            )
        else:
            controller.store = f"http://127.0.0.1:{free_port()}/bstore/repo/"
            controller.configure()
        ended = controller.build(HELLO, "-t", target, "--rebuild")
    assert ended.code == 0
    assert [line for line in ended.err if "watches" not in line] == ([f"reimzul-submit: {warned}"] if warned else [])
    assert controller.queued("x86_64")[0].message.target == f"{target}.x86_64"


@pytest.mark.parametrize("state", ["gone", "quarantined", "drained"])
def test_only_workers_that_take_jobs_count(controller: Controller, state: str) -> None:
    more = {"session": "0123456789abcdef"} if state == "gone" else {"state": state}
    controller.report("x86_64", "c7.1708.x86_64", host="b2.example.org", **more)
    ended = controller.build(HELLO, "-t", "c7.1708", "--rebuild")
    if state == "gone":
        assert ended.code == 4
        assert "is c7.1708.u meant?" in ended.err[0]
        return
    assert ended.code == 0
    assert ended.err[0] == (
        "reimzul-submit: warning: only builders that take no jobs now can build c7.1708.x86_64: b2.example.org"
    )
    assert controller.queued("x86_64")[0].message.target == "c7.1708.x86_64"


@pytest.mark.parametrize("state", ["idle", "quarantined"])
def test_a_worker_that_takes_no_jobs_stands_for_no_silent_one(
    controller: Controller, beanstalkd: Beanstalkd, state: str
) -> None:
    """Two watch the tube, of which one sends no heartbeats: it may have the target."""
    controller.report("x86_64", "c9s.x86_64", host="b2.example.org", state=state)
    with beanstalkd.connect() as one, beanstalkd.connect() as other:
        for client in (one, other):
            client.watch(["x86_64"])
        ended = controller.build(HELLO, "-t", "c7.1708", "--rebuild")
    assert ended.code == (4 if state == "idle" else 0)
    assert "is c7.1708.u meant?" in ended.err[0]


def test_heartbeats_that_cannot_be_read_are_a_warning(controller: Controller) -> None:
    controller.presence.write_text("no database" * 99)
    ended = controller.build(HELLO)
    assert ended.code == 0
    assert "warning: whether a worker can build for c7.1708.u is unknown" in ended.err[0]


# --- what a target lists already


@pytest.fixture
def published_build(controller: Controller) -> str:
    """The store lists hello-1.0-1.el7 for x86_64; the id of its build."""
    package = srpms.make_rpm(controller.folder / "rpms", "hello", srpms.noarch("hello"))
    store = uploads.make_store(controller.folder / "bstore")
    asked = uploads.request(srpm=HELLO)
    made_packages = {package.name: (package.read_bytes(), package.name[: -len(".rpm")])}
    upload = uploads.upload(store, made_packages, of=asked, evr="1.0-1.el7")
    store.place(upload.place).parent.mkdir(parents=True)
    uploads.spool_of(store, upload).rename(store.place(upload.place))
    subprocess.run(["createrepo_c", "-q", "--general-compress-type=gz", store.target(asked.target)], check=True)
    return asked.build_id


def test_what_a_target_lists_already_is_refused(controller: Controller, published_build: str) -> None:
    ended = controller.build(HELLO, arch="aarch64,x86_64")
    (line,) = ended.err
    assert (ended.code, ended.out) == (4, "")
    assert controller.untouched()
    assert f"c7.1708.u.x86_64 lists hello-1.0-1.el7 of build {published_build[:8]} already (an estimate" in line
    assert "--rebuild" in line


def test_a_rebuild_that_is_meant_says_so(controller: Controller, published_build: str) -> None:
    assert controller.build(HELLO, "--rebuild").code == 0
    (claim,) = controller.queued("x86_64")
    assert claim.message.rebuild
    assert BuildRequest.decode(claim.message.encode()).rebuild


@pytest.mark.parametrize("more", [("--scratch",), ("-d", ".el7_4"), ("-t", "c7.1803.u")])
def test_what_is_no_duplicate_is_queued_as_no_rebuild(
    controller: Controller, published_build: str, more: tuple[str, ...]
) -> None:
    ended = controller.build(HELLO, *more)
    assert ended.code == 0
    assert not [line for line in ended.err if "watches" not in line]
    (claim,) = controller.queued("x86_64")
    assert claim.message.rebuild is False


def test_the_rule_can_be_turned_off_for_a_target(controller: Controller, published_build: str) -> None:
    controller.configure("[duplicates]\nc7.1708.u = builds\n")
    assert controller.build(HELLO).code == 0


@pytest.mark.parametrize("harm", ["away", "no gzip", "no repomd"])
def test_a_store_that_says_nothing_is_a_warning(controller: Controller, published_build: str, harm: str) -> None:
    repodata = controller.folder / "bstore" / "repo" / "c7.1708.u.x86_64" / "repodata"
    if harm == "away":
        controller.store = f"http://127.0.0.1:{free_port()}/bstore/repo/"
        controller.configure()
    for path in repodata.glob("*primary.xml.gz" if harm == "no gzip" else "repomd.xml"):
        path.write_bytes(b"harmed")
    ended = controller.build(HELLO)
    assert ended.code == 0
    assert len(controller.queued("x86_64")) == 1
    assert ended.err[0].startswith("reimzul-submit: warning: it is unknown what c7.1708.u.x86_64 lists (")
