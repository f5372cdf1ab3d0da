# SPDX-License-Identifier: Apache-2.0
"""A target's metadata with real createrepo_c: slow readers, what a person added, and the hook that signs."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attr
import pytest

from reimzul.admin.build_facts import BuildFacts
from reimzul.admin.explain import explain
from reimzul.core import control, fs
from reimzul.core.beanstalk import NOTIFY, Broker
from reimzul.core.message import RepogenRequest
from reimzul.core.retry import CancelToken
from reimzul.core.settings import RepogenSettings as RepogenSettings
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StorePaths
from reimzul.history import BuildRecord
from reimzul.repogen.cli import make_daemon
from reimzul.repogen.daemon import Repogen
from reimzul.repogen.publish import store_upload
from reimzul.store import createrepo, repodata
from reimzul.store import listing as listing_module
from reimzul.store.createrepo import CreaterepoRunner, HookFailed, read_failure
from reimzul.store.repodata import read_records
from reimzul.submit.submission import request_repodata
from tests import uploads, webserver
from tests.conftest import Beanstalkd
from tests.repogen import Rpms, ask, index, make_settings, take_messages, work
from tests.schemas import check_line
from tests.uploads import TARGET
from tests.waiting import until

REIMZUL = Path(sys.executable).with_name("reimzul")
Place = Callable[[int], None]
COMPS = "<comps><group><id>core</id></group></comps>"
UPDATES = "<updates><update><id>FEDORA-1</id></update></updates>"
MODULES = "---\ndocument: modulemd\n"
#: A signature that says which repomd.xml it is of.
SIGN = 'sha256sum < "$1/repomd.xml" > "$1/repomd.xml.asc"'


pytestmark = pytest.mark.usefixtures("no_rest")


@pytest.fixture
def settings(tmp_path: Path, beanstalkd: Beanstalkd, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("REIMZUL_CONFIG", str(tmp_path / "reimzul.ini"))
    return make_settings(tmp_path, beanstalkd)


@pytest.fixture
def place(store: StorePaths, rpms: Rpms) -> Place:
    """Brings the build of a second to its place."""

    def laid(second: int) -> None:
        asked = uploads.request(timestamp=f"2024010200{second // 60:02}{second % 60:02}")
        assert store_upload(uploads.copier_of(store), uploads.upload(store, rpms, of=asked), CancelToken())

    return laid


class Clock:
    """The time that repogen believes in."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = time.time()
        patch.setattr(createrepo, "time", SimpleNamespace(time=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def live(store: StorePaths, target: str = TARGET) -> Path:
    return store.target(target) / "repodata"


def types(store: StorePaths) -> set[str]:
    return {record.type for record in read_records(live(store))} - {"primary", "filelists", "other"}


def content(store: StorePaths, type_: str) -> str:
    (record,) = [record for record in read_records(live(store)) if record.type == type_]
    return gzip.decompress((live(store) / record.file).read_bytes()).decode()


def reimzul(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [REIMZUL, *words], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
    )
    check_line(words, done.stdout)
    return done


# --- slow readers


def test_who_read_repomd_right_before_a_run_fetches_every_file_for_two_minutes(
    store: StorePaths, runner: CreaterepoRunner, place: Place, clock: Clock
) -> None:
    place(0)
    index(runner)
    clock.now += 3600
    named = {record.file: (live(store) / record.file).read_bytes() for record in read_records(live(store))}
    began = clock.now
    for second in (0, 2, 5, 30, 90, 120):
        clock.now = began + second
        place(second + 1)
        index(runner)
        assert {name: (live(store) / name).read_bytes() for name in named} == named, f"after {second} s"
    clock.now = began + 121
    place(200)
    index(runner)
    assert not any((live(store) / name).exists() for name in named)


@pytest.mark.parametrize("argument", ["--retain-old-md=3", "--retain-old-md-by-age=1h", "--simple-md-filenames"])
def test_arguments_that_take_old_metadata_away_are_one_clear_line(
    settings: Settings, store: StorePaths, tmp_path: Path, argument: str
) -> None:
    with (tmp_path / "reimzul.ini").open("a") as ini:
        ini.write(f"[repogen]\narguments = {argument}\n")
    program = Path(sys.executable).with_name("reimzul-repogen")
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3
    assert line.endswith(f"[repogen] arguments: {argument} does not go with how repogen keeps old metadata")


def test_what_createrepo_c_of_before_made_is_taken_up(
    store: StorePaths, runner: CreaterepoRunner, place: Place
) -> None:
    """An upgrade: the repodata was made right in the target, and nothing of ours is there yet."""
    place(0)
    subprocess.run(["createrepo_c", "-q", store.target(TARGET)], check=True)
    place(1)
    argv = [str(word) for word in runner.argv(TARGET)]
    assert argv[argv.index("--update-md-path") + 1] == str(store.target(TARGET))
    index(runner)
    assert len(listing_module.read_listing(live(store))) == 2
    assert "--update-md-path" not in runner.argv(TARGET)


# --- what a person added


@pytest.fixture
def enriched(store: StorePaths, runner: CreaterepoRunner, place: Place, tmp_path: Path) -> None:
    """A target to which a person has added metadata by modifyrepo_c."""
    place(0)
    index(runner)
    for name, text, type_ in (
        ("comps.xml", COMPS, "group"),
        ("updateinfo.xml", UPDATES, "updateinfo"),
        ("modules.yaml", MODULES, "modules"),
        ("productid", "-----BEGIN CERTIFICATE-----", "productid"),
    ):
        (tmp_path / name).write_text(text)
        argv: list[str | Path] = [
            "modifyrepo_c",
            "--compress-type=gz",
            f"--mdtype={type_}",
            tmp_path / name,
            live(store),
        ]
        subprocess.run(argv, check=True, capture_output=True)


ALL = {"group", "updateinfo", "modules", "productid"}


@pytest.mark.parametrize("kind", ["update", "full", "empty"])
def test_what_a_person_added_survives_every_kind_of_run(
    store: StorePaths, runner: CreaterepoRunner, place: Place, enriched: None, clock: Clock, kind: str
) -> None:
    for second in range(1, 4):
        clock.now += 200
        place(second)
        packages: list[str] | None = [] if kind == "empty" else None
        index(runner, full_rebuild=kind == "full", packages=packages)
    assert types(store) == ALL
    assert (content(store, "group"), content(store, "updateinfo")) == (COMPS, UPDATES)
    assert content(store, "modules") == MODULES
    assert len(listing_module.read_listing(live(store))) == (0 if kind == "empty" else 4)


def test_metadata_whose_file_is_gone_is_dropped_and_logged(
    store: StorePaths, runner: CreaterepoRunner, enriched: None, caplog: pytest.LogCaptureFixture
) -> None:
    for path in live(store).glob("*updateinfo*"):
        path.unlink()
    index(runner)
    assert types(store) == ALL - {"updateinfo"}
    assert f"{TARGET}: its metadata updateinfo is dropped" in caplog.text
    caplog.clear()
    index(runner)
    assert caplog.text == ""


def test_a_person_adds_and_removes_metadata_by_one_command(
    store: StorePaths, runner: CreaterepoRunner, place: Place, tmp_path: Path
) -> None:
    place(0)
    index(runner)
    (tmp_path / "comps-hello.xml").write_text(COMPS)
    (tmp_path / "news.xml").write_text(UPDATES)
    done = reimzul("repogen", TARGET, "--add-metadata", str(tmp_path / "comps-hello.xml"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{TARGET} has {tmp_path}/comps-hello.xml as group now, and keeps it\n"
    words = ["--add-metadata", str(tmp_path / "news.xml"), "--type", "updateinfo", "--json"]
    told = json.loads(reimzul("repogen", TARGET, *words).stdout)
    assert told == {"target": TARGET, "added": "updateinfo", "removed": None}
    place(1)
    index(runner)
    assert (content(store, "group"), content(store, "updateinfo")) == (COMPS, UPDATES)
    (tmp_path / "comps.xml").write_text("<comps/>")
    reimzul("repogen", TARGET, "--add-metadata", str(tmp_path / "comps.xml"))
    assert (content(store, "group"), types(store)) == ("<comps/>", {"group", "updateinfo"})
    assert reimzul("repogen", TARGET, "--remove-metadata", "group").stdout == f"{TARGET} has no group any more\n"
    index(runner)
    assert types(store) == {"updateinfo"}
    assert len(listing_module.read_listing(live(store))) == 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--type", "group"], 2, "there is no --add-metadata"),
        (["--add-metadata", "/nowhere/comps.xml"], 2, "does not exist"),
        (["--add-metadata", "{bad}/comps.xml"], 4, "comps.xml is not well-formed XML"),
        (["--add-metadata", "{bad}/primary.xml"], 4, "primary is made by createrepo_c itself"),
        (["--add-metadata", "{bad}/a.xml", "--type", "a b"], 4, "'a b' is not a type of metadata"),
        (["--remove-metadata", "group"], 4, "has no metadata group; added to it: nothing"),
        (["--remove-metadata", "primary"], 4, "primary is made by createrepo_c itself"),
    ],
)
def test_wrong_words_are_one_clear_line(
    store: StorePaths,
    runner: CreaterepoRunner,
    place: Place,
    tmp_path: Path,
    words: list[str],
    code: int,
    says: str,
) -> None:
    place(0)
    index(runner)
    before = {path.name: path.read_bytes() for path in live(store).iterdir()}
    for name, text in (("comps.xml", "<comps>"), ("primary.xml", "<a/>"), ("a.xml", "<a/>")):
        (tmp_path / name).write_text(text)
    done = reimzul("repogen", TARGET, *(word.format(bad=tmp_path) for word in words))
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in live(store).iterdir()} == before
    done = reimzul("repogen", "c9.x86_64", "--remove-metadata", "group")
    assert done.returncode == 4
    assert "there is no target 'c9.x86_64'" in done.stderr


def test_a_damaged_repomd_is_one_clear_line_and_nothing_is_changed(
    store: StorePaths, runner: CreaterepoRunner, place: Place
) -> None:
    place(0)
    index(runner)
    (live(store) / "repomd.xml").write_text("<repomd>")
    done = reimzul("repogen", TARGET, "--remove-metadata", "group")
    assert done.returncode == 1
    assert "cannot be read" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (live(store) / "repomd.xml").read_text() == "<repomd>"


# --- the hook


def script(folder: Path, body: str) -> tuple[str, ...]:
    """A hook that does something."""
    program = folder / "hook"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return (str(program),)


def make_hooked_daemon(settings: Settings, hook: tuple[str, ...], seconds: int = 20) -> Repogen:
    """A repogen whose settings have a hook."""
    changed = attr.evolve(settings.repogen, after_createrepo=hook, after_createrepo_timeout=seconds)
    return make_daemon(attr.evolve(settings, repogen=changed))


def take_published_targets(broker: Broker) -> list[str]:
    return [event.target for event in take_messages(broker, NOTIFY)]


def is_signed(store: StorePaths, target: str = TARGET) -> bool:
    """Whether the signature is of the repomd.xml that is there."""
    sha256 = hashlib.sha256((live(store, target) / "repomd.xml").read_bytes()).hexdigest()
    return (live(store, target) / "repomd.xml.asc").read_text().startswith(sha256)


def upload(store: StorePaths, rpms: Rpms, second: int, target: str = TARGET) -> RepogenRequest:
    return uploads.upload(store, rpms, of=uploads.request(timestamp=f"202401020000{second:02}", target=target))


def test_the_hook_signs_each_repomd_before_anybody_sees_it(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path
) -> None:
    seen = 'test ! -e "$1/repomd.xml.asc" && [ "$PWD" = "$1" ] && echo $REIMZUL_TARGET >> ' + str(tmp_path / "runs")
    daemon = make_hooked_daemon(settings, script(tmp_path, f"{seen} || exit 7\n{SIGN}"))
    for second in range(3):
        ask(broker, upload(store, rpms, second))
        work(daemon)
        assert is_signed(store)
        assert take_published_targets(broker) == [TARGET]
    assert (tmp_path / "runs").read_text() == f"{TARGET}\n" * 3


def test_without_the_hook_no_signature_of_before_is_left(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path, runner: CreaterepoRunner
) -> None:
    ask(broker, upload(store, rpms, 0))
    work(make_hooked_daemon(settings, script(tmp_path, SIGN + '\necho key > "$1/repomd.xml.key"')))
    assert is_signed(store)
    index(runner)
    assert not list(live(store).glob("repomd.xml.*"))


def test_metadata_that_is_added_is_signed_too(
    settings: Settings, store: StorePaths, place: Place, runner: CreaterepoRunner, tmp_path: Path
) -> None:
    place(0)
    index(runner)
    (tmp_path / "comps.xml").write_text(COMPS)
    with (tmp_path / "reimzul.ini").open("a") as ini:
        ini.write(f"[repogen]\nafter_createrepo = {script(tmp_path, SIGN)[0]}\n")
    assert reimzul("repogen", TARGET, "--add-metadata", str(tmp_path / "comps.xml")).returncode == 0
    assert is_signed(store)
    assert types(store) == {"group"}
    script(tmp_path, "echo no key; exit 3")
    done = reimzul("repogen", TARGET, "--remove-metadata", "group")
    assert (done.returncode, done.stderr) == (1, "reimzul: hook exited with 3: no key\n")
    assert is_signed(store)
    assert types(store) == {"group"}


def test_a_hook_that_adds_metadata_itself_harms_nothing_that_is_visible(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path
) -> None:
    (tmp_path / "comps.xml").write_text(COMPS)
    add = f'modifyrepo_c --compress-type=gz --mdtype=group {tmp_path}/comps.xml "$1" > /dev/null'
    daemon = make_hooked_daemon(settings, script(tmp_path, f"{add}\n{SIGN}"))
    inodes = set()
    for second in range(3):
        ask(broker, upload(store, rpms, second))
        work(daemon)
        assert is_signed(store)
        assert types(store) == {"group"}
        assert content(store, "group") == COMPS
        inodes |= {path.stat().st_ino for path in live(store).glob("*comps*")}
    assert len(take_published_targets(broker)) == 3
    assert len(inodes) > 1, "it writes through no link to what is visible"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("echo one; echo no secret key >&2; exit 2", "hook exited with 2: one / no secret key"),
        ("exec sleep 600", "hook was ended after 1 s"),
        ("trap '' TERM; while :; do sleep 1; done", "hook was ended after 1 s"),
        ("kill -9 $$", "hook was ended by signal 9"),
        ('rm "$1"/*-primary.xml.gz', "its repomd.xml names files that are not there: primary"),
        (': > "$1/repomd.xml"', "its repomd.xml cannot be read any more"),
    ],
)
def test_a_hook_that_fails_or_hangs_leaves_the_old_repodata_and_is_tried_again(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path, body: str, says: str
) -> None:
    daemon = make_hooked_daemon(settings, script(tmp_path, SIGN), 1)
    ask(broker, upload(store, rpms, 0))
    work(daemon)
    before = {path.name: path.read_bytes() for path in live(store).iterdir()}
    take_published_targets(broker)
    script(tmp_path, body)
    late = upload(store, rpms, 1)
    ask(broker, late)
    work(daemon)
    assert {path.name: path.read_bytes() for path in live(store).iterdir()} == before
    assert is_signed(store)
    assert [path.name for path in store.target(TARGET).iterdir() if path.name.startswith(".")] == []
    assert take_published_targets(broker) == []
    assert broker.tube_stats("createrepo").delayed == 1
    failure = read_failure(store.hook(TARGET))
    assert failure
    assert failure.count == 1
    assert says in failure.reason
    runs = createrepo.read_run(store.runs(TARGET))
    ask(broker, late)  # while it rests, nothing is tried
    work(daemon)
    assert createrepo.read_run(store.runs(TARGET)) == runs
    assert broker.tube_stats("createrepo").delayed == 2
    check_explained(broker, says)
    script(tmp_path, SIGN)
    ask(broker, RepogenRequest(target=TARGET))  # a person has repaired it
    work(daemon)
    assert is_signed(store)
    assert read_failure(store.hook(TARGET)) is None
    assert control.stuck_flag(broker, TARGET) is None
    ask(broker, late)
    work(daemon)
    assert is_signed(store)
    assert len(listing_module.read_listing(live(store))) == 2


def check_explained(broker: Broker, says: str) -> None:
    stuck = control.stuck_flag(broker, TARGET)
    leg = BuildRecord(status="Success", target=TARGET, finished=time.time() - 5, build_id="x", arch="x86_64")
    tube, repogen, tosign = map(broker.tube_stats, ("x86_64", "createrepo", "tosign"))
    facts = BuildFacts(now=time.time(), leg=leg, tube=tube, stuck=stuck, createrepo=repogen, tosign=tosign)
    told = explain(facts)
    text = "\n".join(told.sentences)
    assert f"The repodata of {TARGET} is unchanged: [repogen] after_createrepo failed" in text
    assert f"Its message: {says}"[:40] in text


def test_a_hook_that_cannot_be_started_is_a_failure_too(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms
) -> None:
    ask(broker, upload(store, rpms, 0))
    work(make_hooked_daemon(settings, ("/nowhere/sign",)))
    failure = read_failure(store.hook(TARGET))
    assert failure
    assert failure.reason == "cannot run /nowhere/sign: No such file or directory"
    assert not live(store).exists()
    assert broker.tube_stats("createrepo").delayed == 1


def test_a_full_disk_buries_no_job_whose_hook_fails(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    ask(broker, upload(store, rpms, 0))
    daemon = make_hooked_daemon(settings, script(tmp_path, "exit 1"))
    monkeypatch.setattr("reimzul.core.fs.write_atomic", raise_disk_full)
    work(daemon)
    stats = broker.tube_stats("createrepo")
    assert (stats.delayed, stats.buried) == (1, 0)
    assert not live(store).exists()


def test_the_pause_grows_and_no_more_is_said_than_once(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path
) -> None:
    daemon = make_hooked_daemon(settings, script(tmp_path, "exit 1"))
    ask(broker, upload(store, rpms, 0))
    with daemon.connect() as own:
        own.watch(daemon.tubes)
        claims = daemon.reserve_jobs(own)
        for pause in (5, 10, 20):
            ((_, outcome),) = daemon.handle(own, claims)
            failed: Any = outcome
            assert failed.pause == pause
            failure = read_failure(store.hook(TARGET))
            assert failure
            store.hook(TARGET).write_text(json.dumps({**attr.asdict(failure), "at": failure.at - 1000}))
    assert broker.tube_stats(f"target.{TARGET}").ready == 1


def test_a_hook_that_hangs_holds_no_other_target(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path
) -> None:
    body = f"touch {tmp_path}/begun\ncase $1 in *a.x86_64*) exec sleep 600;; esac"
    daemon = make_hooked_daemon(settings, script(tmp_path, body), 60)
    ask(broker, upload(store, rpms, 0, "a.x86_64"))

    def work_once() -> None:
        with daemon.connect() as own:
            own.watch(daemon.tubes)
            daemon.settle_all(own, daemon.reserve_jobs(own))

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work_once)
        try:
            until((tmp_path / "begun").exists, 20, "the hook runs")
            ask(broker, upload(store, rpms, 0, "b.x86_64"))
            until((live(store, "b.x86_64") / "repomd.xml").exists, 20, "another target is published")
            assert not done.done()
            assert not live(store, "a.x86_64").exists()
            with fs.file_lock(store.lock("a.x86_64")) as lock:
                assert lock is None, "nobody else begins on it"
        finally:
            daemon.stop.now.set()
            done.result(20)
    assert take_published_targets(broker) == ["b.x86_64"]
    assert broker.tube_stats("createrepo").ready == 1
    with fs.file_lock(store.lock("a.x86_64")) as lock:
        assert lock is not None


def test_what_a_hook_leaves_behind_ends_before_the_repodata_is_visible(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path
) -> None:
    late = f"(sleep 0.4; echo stale > repomd.xml.asc; touch {tmp_path}/late) > /dev/null 2>&1 &"
    ask(broker, upload(store, rpms, 0))
    work(make_hooked_daemon(settings, script(tmp_path, f"{late}\n{SIGN}")))
    with pytest.raises(AssertionError):
        until((tmp_path / "late").exists, 1.0, "it writes late")
    assert is_signed(store)


@pytest.mark.parametrize("fallback", [False, True])
def test_killed_before_the_swap_the_folder_is_made_again_and_the_hook_runs_again(
    broker: Broker, settings: Settings, store: StorePaths, rpms: Rpms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fallback: bool,
) -> None:  # fmt: skip
    daemon = make_hooked_daemon(settings, script(tmp_path, f"echo run >> {tmp_path}/runs\n{SIGN}"))
    ask(broker, upload(store, rpms, 0))
    work(daemon)
    before = (live(store) / "repomd.xml").read_bytes()
    take_published_targets(broker)
    rename = os.rename

    def dies(one: Path, other: Path) -> None:
        if fallback and other == live(store):
            raise uploads.Died
        rename(one, other)

    def no_exchange(one: Path, other: Path) -> None:
        if not fallback:
            raise uploads.Died
        raise OSError(22, "the file system cannot")

    ask(broker, upload(store, rpms, 1))
    with monkeypatch.context() as patch:
        patch.setattr(repodata, "exchange_names", no_exchange)
        patch.setattr(os, "rename", dies)
        with pytest.raises(uploads.Died):
            work(daemon)
    assert live(store).exists() != fallback
    if not fallback:
        assert (live(store) / "repomd.xml").read_bytes() == before
        assert is_signed(store)
    assert take_published_targets(broker) == []
    work(make_hooked_daemon(settings, daemon.context.createrepo.settings.after_createrepo))
    assert take_published_targets(broker) == [TARGET]
    assert is_signed(store)
    assert len(listing_module.read_listing(live(store))) == 2
    assert (tmp_path / "runs").read_text().count("run") == 3
    assert sorted(path.name for path in store.target(TARGET).iterdir()) == ["hello", "repodata"]


def test_a_prune_whose_hook_fails_removes_nothing(
    store: StorePaths, runner: CreaterepoRunner, place: Place, tmp_path: Path
) -> None:
    from reimzul.core.setting_parsers import Pruning
    from reimzul.store.cleanup import prune

    for second in (0, 1):
        place(second)
    index(runner)
    failing = CreaterepoRunner(store=store, settings=RepogenSettings(after_createrepo=script(tmp_path, "exit 1")))
    with pytest.raises(HookFailed):
        prune(store, failing, TARGET, Pruning(keep=1, unsigned=True), CancelToken(), dry_run=False)
    assert len(listing_module.read_listing(live(store))) == 2 == len(list((store.target(TARGET) / "hello").iterdir()))


# --- a target's first request


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if "known" in self.path else int(self.path.split("/")[1]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def web() -> Iterator[str]:
    from http.server import ThreadingHTTPServer

    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        webserver.start_serving(server)
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_target_gets_empty_repodata_at_its_first_submission(
    broker: Broker, settings: Settings, store: StorePaths, web: str
) -> None:
    from reimzul.core.store_paths import StoreUrls

    def ask_for_runs(status: int, *targets: str) -> int:
        request_repodata(broker, StoreUrls.from_settings(f"{web}/{status}/repo/", "rsync://x/y/"), targets)
        return broker.tube_stats("createrepo").ready

    assert ask_for_runs(503, "new.x86_64") == ask_for_runs(403, "new.x86_64") == ask_for_runs(404, "known.x86_64") == 0
    request_repodata(broker, StoreUrls.from_settings("http://127.0.0.1:9/repo/", "rsync://x/y/"), ["new.x86_64"])
    assert ask_for_runs(404, "new.x86_64", "known.x86_64", "new.x86_64") == 1
    work(make_daemon(settings))
    assert listing_module.read_listing(live(store, "new.x86_64")) == {}
    assert createrepo.read_run(store.runs("new.x86_64")) == createrepo.RunRecord(), "its first build waits for nothing"
