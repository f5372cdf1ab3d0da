# SPDX-License-Identifier: Apache-2.0
"""`reimzul targets`, `packages` and `download`: a real store over HTTP with repodata of createrepo_c, real workers."""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import http.server
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attr
import pytest

from reimzul.core.beanstalk import NOTIFY, Broker
from reimzul.core.message import BuildEvent, BuildRequest, WorkerHeartbeat
from reimzul.core.store_paths import StorePaths, leg_key
from reimzul.core.targets import TargetList
from reimzul.history import open_history
from reimzul.history.workers import WorkerRecord, WorkerStore
from tests import commands, srpms, uploads, webserver
from tests.builder import Host
from tests.conftest import Beanstalkd, free_port
from tests.events import build_id, event
from tests.waiting import until

PROGRAM = Path(sys.executable).parent / "reimzul"
NEWEST, OLDER, FAILED = build_id(2), build_id(1), build_id(3)


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; a file has ranges, and the connection ends after `limit` bytes of one."""

    limit = sys.maxsize
    has_ranges = True
    asked: list[tuple[str, str]] = []

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_dir() or not path.exists():
            super().do_GET()
            return
        given = re.fullmatch(r"bytes=([0-9]+)-", self.headers.get("Range") or "") if self.has_ranges else None
        start, content = int(given[1]) if given else 0, path.read_bytes()
        type(self).asked.append((path.name, self.headers.get("Range") or ""))
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if given:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        limit = type(self).limit if path.suffix == ".rpm" else sys.maxsize
        self.wfile.write(content[start : start + limit])
        self.close_connection = len(content) - start > limit

    def log_message(self, format: str, *args: Any) -> None:
        pass


@attr.define
class Controller:
    """A controller: its settings, and a store with an older and the newest build of hello, one failed one of plain."""

    folder: Path
    store: StorePaths
    server: http.server.ThreadingHTTPServer
    handler: type[Ranges]
    rpms: dict[str, Path] = attr.field(factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/bstore/repo/"

    @property
    def presence(self) -> Path:
        return self.folder / "presence.sqlite"

    def run(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `reimzul` in a pipe, in a folder of its own."""
        (self.folder / "here").mkdir(exist_ok=True)
        done = commands.run([PROGRAM, *arguments], cwd=self.folder / "here")
        assert "Traceback" not in done.stderr
        assert done.returncode == code, done
        return done

    def files(self) -> list[str]:
        """What lies in that folder."""
        top = self.folder / "here"
        return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())

    def publish(
        self, number: int, version: str, *, status: str = "Success", name: str = "hello", target: str = "c9s.x86_64",
        rpms: Mapping[str, Path] | None = None,
    ) -> BuildRequest:  # fmt: skip
        """Put a build with its legs x86_64 and i386 into the store, and record it in the history."""
        published = event("Published" if status == "Success" else status, number)
        request = uploads.request(
            srpm=f"{name}-{version}-1.src.rpm", target=target, build_id=published.build_id,
            timestamp=published.timestamp, submitter="jdoe",
        )  # fmt: skip
        for arch in ("x86_64", "i386"):
            rpm = (rpms or {}).get(arch, self.rpms[f"{name}-{version}"]) if status == "Success" else None
            given = {rpm.name: (rpm.read_bytes(), rpm.name[: -len(".rpm")])} if rpm else {}
            asked = uploads.upload(
                self.store, given, of=request, arch=arch, status=status, pkgname=name, evr=f"{version}-1"
            )
            place = self.store.place(asked.place)
            place.parent.mkdir(parents=True, exist_ok=True)
            uploads.spool_of(self.store, asked).rename(place)
            (self.store.index / leg_key(request.build_id, arch)).symlink_to(f"../{asked.place}")
            about: dict[str, Any] = {"pkgname": name, "evr": f"{version}-1", "place": asked.place, "arch": arch}
            self.record(attr.evolve(published, srpm=request.srpm, target=target, submitter="jdoe", **about))
        return request

    def record(self, *events: BuildEvent) -> None:
        history = open_history(f"sqlite:///{self.folder}/history.sqlite")
        history.record(events)
        history.close()

    def index(self, target: str = "c9s.x86_64") -> None:
        folder = self.store.target(target)
        subprocess.run(["createrepo_c", "-q", "--general-compress-type=gz", folder], check=True)

    def report(self, host: str, arch: str, *targets: str) -> None:
        """Record the heartbeat of a worker that has mock configurations for these targets."""
        listed = TargetList.from_names(targets)
        about: dict[str, Any] = {"targets": listed.names, "targets_fingerprint": listed.fingerprint}
        sent = WorkerHeartbeat(host=host, instance="1", state="idle", arches=(arch,), **about)
        store = WorkerStore(self.presence)
        store.save([WorkerRecord(heartbeat=sent, last_seen=time.time())])
        store.close()


@pytest.fixture(scope="session")
def hellos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hellos")
    return {
        f"hello-{version}": srpms.make_rpm(folder, "hello", srpms.noarch("hello", version=version))
        for version in ("1.0", "2.0")
    }


@pytest.fixture
def controller(
    tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, hellos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Controller]:
    handler = type("Handler", (Ranges,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: handler(*given, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = Controller(tmp_path, uploads.make_store(tmp_path / "bstore"), server, handler, hellos)
    (tmp_path / "reimzul.ini").write_text(
        f"[beanstalkd]\nhost = 127.0.0.1\nport = {beanstalkd.port}\n[bstore]\nbase_url = {here.url}\n"
        f"[notifier]\npresence = {here.presence}\n[history]\nurl = sqlite:///{tmp_path}/history.sqlite\n"
    )
    monkeypatch.setenv("REIMZUL_CONFIG", str(tmp_path / "reimzul.ini"))
    monkeypatch.setenv("LOGNAME", "jdoe")
    here.publish(2, "2.0")
    here.publish(1, "1.0")
    here.publish(3, "3.0", status="Failed", name="plain")
    here.index()
    here.report("b1.example.org", "x86_64", "c9s.x86_64", "c9s.i386", "c10s.x86_64")
    here.report("b2.example.org", "aarch64", "c9s.aarch64")
    yield here
    webserver.close(server)


def on_a_terminal(*arguments: str, columns: int = 80) -> str:
    """What a command shows on a terminal of that width."""
    ours, its = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "dumb", "NO_COLOR": "1"}
    shown = b""
    with subprocess.Popen([str(PROGRAM), *arguments], stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # Linux says so when the other end is closed and all is read
            os.close(ours)
        assert process.wait(30) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).replace("\r\n", "\n")


# --- targets


def sizes(controller: Controller) -> int:
    return 2 * sum(path.stat().st_size for path in controller.rpms.values())


def test_targets_come_from_the_workers_and_from_the_store(controller: Controller) -> None:
    (controller.store.target("old.x86_64")).mkdir()
    rows = {row[0]: row[1:] for row in (line.split("\t") for line in controller.run("targets").stdout.splitlines())}
    assert rows.keys() == {"c9s", "c10s", "old"}
    assert rows["c9s"][:3] == ["aarch64, i386, x86_64", "2", "4"]
    assert rows["c9s"][4].endswith("Z"), "when it was published last"
    assert rows["c10s"] == ["x86_64", "1", "0", "0 bytes", "-"]
    assert rows["old"][1] == "0"


def test_targets_fit_a_terminal(controller: Controller) -> None:
    lines = on_a_terminal("targets").splitlines()
    assert lines[0].split() == ["TARGET", "ARCHES", "BUILDERS", "PACKAGES", "SIZE", "PUBLISHED"]
    assert all(len(line) <= 80 for line in lines)


def test_targets_in_json(controller: Controller) -> None:
    found = {each["name"]: each["arches"] for each in json.loads(controller.run("targets", "--json").stdout)}
    x86_64 = next(each for each in found["c9s"] if each["arch"] == "x86_64")
    assert x86_64.pop("last_published").endswith("Z")
    assert x86_64 == {
        "target": "c9s.x86_64", "arch": "x86_64", "builders": ["b1.example.org"], "package_count": 4,
        "package_bytes": sizes(controller), "repository": None, "message": None,
    }  # fmt: skip
    assert found["c10s"][0]["last_published"] is None


def test_show_prints_a_repo_file_that_is_valid(controller: Controller) -> None:
    shown = controller.run("targets", "show", "c9s").stdout
    facts, _, repo = shown.partition("# for dnf: /etc/yum.repos.d/c9s.repo\n")
    assert "c9s.x86_64\n  built by    b1.example.org\n  packages    4 packages, " in facts
    assert "c9s.aarch64\n  built by    b2.example.org\n  packages    0 packages" in facts
    parsed = configparser.ConfigParser()
    parsed.read_string(repo)
    assert parsed.sections() == ["c9s.x86_64"], "the others have no packages"
    assert dict(parsed["c9s.x86_64"]) == {
        "name": "c9s.x86_64", "baseurl": f"{controller.url}c9s.x86_64/", "enabled": "1", "gpgcheck": "0",
    }  # fmt: skip


@pytest.mark.skipif(shutil.which("dnf") is None, reason="there is no dnf here")
def test_dnf_reads_that_repo_file(controller: Controller, tmp_path: Path) -> None:
    folder = tmp_path / "yum.repos.d"
    folder.mkdir()
    shown = controller.run("targets", "show", "c9s.x86_64").stdout
    (folder / "c9s.repo").write_text(shown.partition("# for dnf")[2].partition("\n")[2])
    done = subprocess.run(
        ["dnf", "-q", f"--setopt=reposdir={folder}", f"--setopt=cachedir={tmp_path}/cache", f"--installroot={tmp_path}",
         f"--setopt=logdir={tmp_path}", "--releasever=9", "--forcearch=x86_64", "list", "--available", "hello"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "hello.noarch" in done.stdout, done


def test_an_unknown_target_is_refused_with_the_nearest(controller: Controller) -> None:
    for arguments in (["targets", "show", "c9"], ["packages", "-t", "c9"], ["download", "-t", "c9", "*"]):
        assert controller.run(*arguments, code=4).stderr == "reimzul: there is no target 'c9'; is c9s meant?\n"


def test_a_pattern_names_several_targets(controller: Controller) -> None:
    target = controller.store.target("c9s-extras.x86_64")
    shutil.copytree(controller.store.target("c9s.x86_64"), target)
    shown = controller.run("targets", "show", "c9*").stdout
    assert re.findall("^# for dnf: (.*)$", shown, re.MULTILINE) == [
        "/etc/yum.repos.d/c9s-extras.x86_64.repo", "/etc/yum.repos.d/c9s.repo",
    ]  # fmt: skip
    listed = controller.run("packages", "-t", "c9*.x86_64", "hello").stdout.splitlines()
    assert [line.split("\t")[4] for line in listed] == ["c9s-extras.x86_64"] * 2 + ["c9s.x86_64"] * 2
    assert controller.run("download", "-t", "c?s.x86_64", "hello").stdout == f"{RPM}\n"


def test_a_store_that_is_away_leaves_what_the_workers_know(controller: Controller) -> None:
    ini = controller.folder / "reimzul.ini"
    ini.write_text(ini.read_text().replace(str(controller.server.server_port), str(free_port())))
    done = controller.run("targets", code=1)
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} == {"c9s", "c10s"}
    assert "reimzul: which targets the store has is unknown: " in done.stderr


def test_damaged_repodata_are_named(controller: Controller) -> None:
    for primary in controller.store.target("c9s.x86_64").glob("repodata/*primary.xml.gz"):
        primary.write_bytes(b"damaged")
    done = controller.run("targets", code=1)
    assert "reimzul: c9s.x86_64: " in done.stderr
    assert next(line for line in done.stdout.splitlines() if line.startswith("c9s\t")).split("\t")[3:5] == ["?", "?"]
    assert "cannot be read" in controller.run("packages", "-t", "c9s", code=1).stderr


def test_list_and_show_take_what_they_need(controller: Controller) -> None:
    assert "name a target: reimzul targets show TARGET" in controller.run("targets", "show", code=2).stderr
    assert "`list` takes no target" in controller.run("targets", "list", "c9s", code=2).stderr


# --- packages


def test_packages_are_the_latest_builds(controller: Controller) -> None:
    lines = controller.run("packages", "-t", "c9s").stdout.splitlines()
    assert [line.split("\t")[:4] for line in lines] == [
        [NEWEST[:8], "hello", "2.0-1", "i386"], [NEWEST[:8], "hello", "2.0-1", "x86_64"],
    ]  # fmt: skip
    assert lines[0].split("\t")[4] == "c9s.x86_64"
    assert lines[0].split("\t")[6] == "jdoe"


@pytest.mark.parametrize(
    ("pattern", "count"), [("hel*", 2), ("hello-2.0*", 2), ("hello-1.0*", 2), ("*", 2), ("plain", 0), ("HELLO", 0)]
)
def test_a_pattern_has_wildcards(controller: Controller, pattern: str, count: int) -> None:
    assert len(controller.run("packages", "-t", "c9s.x86_64", pattern).stdout.splitlines()) == count


def test_packages_on_a_terminal_and_in_json(controller: Controller) -> None:
    shown = on_a_terminal("packages", "-t", "c9s")
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert shown.startswith("ID        PACKAGE  VERSION-RELEASE  ARCH")
    assert on_a_terminal("packages", "-t", "c9s", "nothing") == "no package found\n"
    first = json.loads(controller.run("packages", "-t", "c9s", "--json").stdout)[0]
    assert first.pop("published").endswith("Z")
    timestamp = event("Published", 2).timestamp
    assert first == {
        "build_id": NEWEST, "pkgname": "hello", "evr": "2.0-1", "arch": "i386", "target": "c9s.x86_64",
        "submitter": "jdoe", "timestamp": timestamp, "place": f"repo/c9s.x86_64/hello/{timestamp}/2.0-1.i386",
    }  # fmt: skip


def test_what_the_history_does_not_know_is_listed_all_the_same(controller: Controller) -> None:
    (controller.folder / "history.sqlite").unlink()
    assert controller.run("packages", "-t", "c9s").stdout.splitlines()[0].split("\t") == [
        "-", "hello", "2.0-1", "i386", "c9s.x86_64", "-", "-",
    ]  # fmt: skip
    assert json.loads(controller.run("packages", "-t", "c9s", "--json").stdout)[0]["build_id"] is None


# --- download


RPM = "hello-2.0-1.noarch.rpm"


def test_the_packages_of_a_build_are_downloaded_and_checked(controller: Controller) -> None:
    done = controller.run("download", NEWEST[:8])
    assert (done.stdout, done.stderr) == (f"{RPM}\n", ""), "a path, and nothing else in a pipe"
    assert controller.files() == [RPM]
    content = (controller.folder / "here" / RPM).read_bytes()
    assert content == controller.rpms["hello-2.0"].read_bytes()


def test_the_latest_builds_of_a_target_are_downloaded_to_a_folder(controller: Controller) -> None:
    done = controller.run("download", "-t", "c9s", "hel*", "--dest", "new/folder", "--json")
    (file,) = json.loads(done.stdout)
    assert controller.files() == [f"new/folder/{RPM}"]
    assert (file["build_id"], file["path"], file["name"]) == (NEWEST, f"new/folder/{RPM}", RPM)
    assert file["sha256"] == hashlib.sha256(controller.rpms["hello-2.0"].read_bytes()).hexdigest()
    assert (file["bytes"], file["message"]) == (controller.rpms["hello-2.0"].stat().st_size, None)


def test_logs_have_a_folder_for_each_arch(controller: Controller) -> None:
    controller.run("download", FAILED, "--logs")
    logs = ("build.log", "root.log", "state.log")
    assert controller.files() == [f"plain-3.0-1.{arch}/{log}" for arch in ("i386", "x86_64") for log in logs]


def test_files_of_one_name_that_differ_are_all_kept(controller: Controller, tmp_path: Path) -> None:
    spec = f"{srpms.noarch('hello', version='2.0')}%changelog\n* Thu Jan 01 2026 M <m@example.org>\n- Another.\n"
    rpm = srpms.make_rpm(tmp_path, "hello", spec)
    controller.publish(4, "2.0", target="c10s.x86_64", rpms=dict.fromkeys(("x86_64", "i386"), rpm))
    controller.index("c10s.x86_64")
    done = controller.run("download", "-t", "c*s.x86_64", "hello")
    there = [f"{target}/{RPM}" for target in ("c10s.x86_64", "c9s.x86_64")]
    assert (done.stdout.split(), controller.files()) == (there, there)
    assert f"several files that differ are called {RPM}: each is in a folder of its own\n" in done.stderr
    contents = [(controller.folder / "here" / path).read_bytes() for path in there]
    assert contents == [rpm.read_bytes(), controller.rpms["hello-2.0"].read_bytes()]
    controller.publish(5, "2.0", target="c10s.x86_64", rpms={"i386": rpm})
    done = controller.run("download", build_id(5), "--dest", "legs", "--json")
    paths = [each["path"] for each in json.loads(done.stdout)]
    assert paths == [f"legs/c10s.x86_64/{arch}/{RPM}" for arch in ("x86_64", "i386")]


def test_one_arch_can_be_chosen(controller: Controller) -> None:
    controller.run("download", FAILED, "--logs", "--arch", "i386")
    assert {name.split("/")[0] for name in controller.files()} == {"plain-3.0-1.i386"}


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((FAILED,), f"{FAILED} has no packages in the store (x86_64: failed, i386: failed)"),
        ((NEWEST, "--arch", "s390x"), f"build {NEWEST[:8]} was not built for s390x, but for x86_64, i386"),
        (("ffffffff",), "no build's id begins with ffffffff"),
        (("-t", "c9s", "no*"), "c9s lists no package that matches 'no*'; `reimzul packages -t c9s` lists all"),
        (("-t", "c9s", "hello", "--arch", "s390x"), "hello has no packages in the store for s390x"),
    ],
)
def test_what_cannot_be_downloaded_is_named(controller: Controller, arguments: tuple[str, ...], fault: str) -> None:
    done = controller.run("download", *arguments, code=4)
    assert fault in done.stderr
    assert controller.files() == []


def test_a_download_that_breaks_is_continued(controller: Controller) -> None:
    whole = controller.rpms["hello-2.0"].read_bytes()
    controller.handler.limit = 1000
    done = controller.run("download", NEWEST, code=1)
    assert "the connection ended early; run it again to continue" in done.stderr
    assert controller.files() == [f".{RPM}.part"], "never a half file under its name"
    assert (controller.folder / "here" / f".{RPM}.part").read_bytes() == whole[:1000]
    controller.handler.limit = sys.maxsize
    controller.handler.asked.clear()
    controller.run("download", NEWEST)
    assert (RPM, "bytes=1000-") in controller.handler.asked
    assert controller.files() == [RPM]
    assert (controller.folder / "here" / RPM).read_bytes() == whole


def test_a_download_is_continued_from_a_server_without_ranges(controller: Controller) -> None:
    whole = controller.rpms["hello-2.0"].read_bytes()
    controller.handler.has_ranges = False
    (controller.folder / "here").mkdir()
    (controller.folder / "here" / f".{RPM}.part").write_bytes(whole[:1000])
    controller.run("download", NEWEST)
    assert (controller.folder / "here" / RPM).read_bytes() == whole
    assert [name for name, _ in controller.handler.asked].count(RPM) == 1, "in one request"


@pytest.mark.parametrize("part", [b"of another file", b"x" * 100_000])
def test_a_part_of_another_file_is_not_continued(controller: Controller, part: bytes) -> None:
    (controller.folder / "here").mkdir()
    (controller.folder / "here" / f".{RPM}.part").write_bytes(part)
    controller.run("download", NEWEST)
    assert (controller.folder / "here" / RPM).read_bytes() == controller.rpms["hello-2.0"].read_bytes()
    assert controller.files() == [RPM]


def test_a_file_with_a_wrong_checksum_gets_no_name(controller: Controller) -> None:
    for path in controller.store.repo.rglob(RPM):
        path.write_bytes(bytes(path.stat().st_size))
    done = controller.run("download", NEWEST, code=1)
    assert f"{RPM} is not the file that was built: its sha256 is not " in done.stderr
    assert controller.files() == []


def test_the_others_are_downloaded_where_one_is_missing(controller: Controller) -> None:
    for path in controller.store.repo.glob("*/plain/*/*.i386/root.log"):
        path.unlink()
    done = controller.run("download", FAILED, "--logs", code=1)
    assert "root.log does not exist (HTTP 404)" in done.stderr
    assert len(controller.files()) == 5
    assert not list((controller.folder / "here").rglob("*.part"))


def test_a_file_that_is_there_is_kept(controller: Controller) -> None:
    controller.run("download", NEWEST)
    controller.handler.asked.clear()
    controller.run("download", NEWEST)
    assert RPM not in [name for name, _ in controller.handler.asked]
    (controller.folder / "here" / RPM).write_bytes(b"mine")
    done = controller.run("download", NEWEST, code=1)
    assert f"{RPM} is another file already: remove it, or give another --dest" in done.stderr
    assert (controller.folder / "here" / RPM).read_bytes() == b"mine"


def test_two_downloads_of_one_file_do_not_mix(controller: Controller) -> None:
    (controller.folder / "here").mkdir()
    with (controller.folder / "here" / f".{RPM}.part").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = controller.run("download", NEWEST, code=1)
    assert f"{RPM}: another download of it is running" in done.stderr


def test_a_terminal_shows_the_progress(controller: Controller) -> None:
    shown = on_a_terminal("download", NEWEST, "--dest", str(controller.folder / "here"))
    assert "100%" in shown
    assert str(controller.folder / "here" / RPM) in shown


# --- completion


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("reimzul targets show c9", {"c9s", "c9s.x86_64", "c9s.i386", "c9s.aarch64"}),
        ("reimzul targets sh", {"show"}),
        ("reimzul packages -t c10s", {"c10s", "c10s.x86_64"}),
        ("reimzul packages -t c9s he", {"hello"}),
        ("reimzul download -t c9s.x86_64 he", {"hello"}),
        ("reimzul packages -t c9* he", {"hello"}),
        ("reimzul builds --target c10s", {"c10s", "c10s.x86_64"}),
        (f"reimzul download {NEWEST[:6]}", {NEWEST}),
        ("reimzul repogen c10s", {"c10s.x86_64"}),
        ("reimzul-submit -t c", {"c9s", "c10s"}),
    ],
)
def test_targets_packages_and_builds_are_completed(controller: Controller, line: str, offered: set[str]) -> None:
    program = line.split()[0]
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    asked = {variable: "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run(
        [PROGRAM.with_name(program)], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert {each.split(",", 1)[1] for each in done.stdout.splitlines()} == offered


# --- from a worker's configurations to the command


def heartbeats(broker: Broker) -> list[WorkerHeartbeat]:
    """Take the heartbeats that lie in `notify`."""
    broker.watch([NOTIFY.name])
    found = []
    while claim := broker.reserve({NOTIFY.name: NOTIFY}, 0):
        assert isinstance(claim.message, WorkerHeartbeat)
        found.append((claim, claim.message))
        claim.delete()
    return [message for _, message in found]


def test_a_worker_reports_a_configuration_that_is_pulled_on_refresh(
    host: Host, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, checkout, presence = tmp_path / "upstream", host.configs.parent, tmp_path / "presence.sqlite"

    def git(folder: Path, *arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, "-C", folder, *arguments], check=True, capture_output=True)

    shutil.move(checkout, upstream)
    git(upstream, "init", "-q")
    git(upstream, "add", "-A")
    git(upstream, "commit", "-qm", "targets")
    git(tmp_path, "clone", "-q", str(upstream), str(checkout))
    host.start()
    monkeypatch.setenv("REIMZUL_CONFIG", str(tmp_path / "b1.ini"))

    def read_reported() -> set[str]:
        for heartbeat in heartbeats(broker):
            store = WorkerStore(presence)
            store.save([WorkerRecord(heartbeat=heartbeat, last_seen=time.time())])
            store.close()
        records = WorkerStore(presence).load_all()
        return {name for each in records if each.targets for name in each.targets.names}

    until(lambda: read_reported() == {"c9.x86_64", "c9.i386"}, 60, "the worker reports its targets")
    (upstream / "mock" / "c11.x86_64.cfg").write_text("config_opts['root'] = 'c11'\n")
    (upstream / "mock" / "time-1.7-45.el7.x86_64.cfg").write_text("config_opts['root'] = 'time'\n")
    git(upstream, "add", "-A")
    git(upstream, "commit", "-qm", "a target more")
    asked = subprocess.run([PROGRAM, "targets", "--refresh"], capture_output=True, text=True, check=True)
    assert "idle workers pull their mock configurations" in asked.stderr
    until(lambda: "c11.x86_64" in read_reported(), 60, "the new target is reported")
    assert read_reported() == {"c9.x86_64", "c9.i386", "c11.x86_64"}
    queues = subprocess.run([PROGRAM, "queues", "--json"], capture_output=True, text=True, check=True)
    assert not [tube for tube in json.loads(queues.stdout)["tubes"] if tube["unwatched"]], "a flag is no work"
