# SPDX-License-Identifier: Apache-2.0
"""The farm on one machine, on the real programs: its ports, its keys, what it lets nobody do, and that it ends."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from devfarm import subreaper
from devfarm.farm import Farm
from devfarm.plan import ADDRESS, BSTORE, CONTROLLER, Layout, check_state, claim_ports
from devfarm.processes import (
    GRACE,
    GRACE_OF_ALL,
    Part,
    PartFailed,
    PortTaken,
    Supervisor,
    find_program,
    listeners,
)
from reimzul.core import config
from reimzul.core.errors import InputError
from tests.waiting import until

#: The command line, from any folder.
DEVFARM = (sys.executable, str(Path(__file__).parents[2] / "devfarm"))


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """What our daemons stand on, without them, in a folder with a space in its name."""
    with Farm(tmp_path_factory.mktemp("a farm"), own_daemons=False) as farm:
        yield farm


# --- ports and folders -----------------------------------------------------------------------------------------------


def test_two_farms_get_different_ports() -> None:
    first, second = claim_ports(), claim_ports()
    names = [str(number) for number in range(40)]
    assert not {first[name] for name in names} & {second[name] for name in names}
    assert first["7"] == first["7"]
    first.close()
    second.close()


def test_a_port_in_use_is_passed_over() -> None:
    ports = claim_ports()
    with socket.socket() as stranger:
        stranger.bind((ADDRESS, ports["first"] + 1))
        assert ports["second"] == ports["first"] + 2
    ports.close()


def test_a_stranger_on_a_port_of_ours_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(Layout(tmp_path))
    with socket.socket() as stranger:
        stranger.bind((ADDRESS, 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        assert listeners()[port] == {os.getpid()}
        part = Part(name="beanstalkd", host=CONTROLLER, argv=("beanstalkd",), listens=(port,))
        monkeypatch.setattr(supervisor, "pids", lambda _: [os.getpid()])
        assert supervisor.is_listening(part)
        monkeypatch.setattr(supervisor, "pids", lambda _: [1])
        with pytest.raises(PortTaken, match=f"port {port} of beanstalkd"):
            supervisor.is_listening(part)


@pytest.mark.parametrize("name", ["it's", 'a"b', "a;b", "a$b", "50%", "a#b", "line\nfeed", "ends with a space "])
def test_a_folder_no_program_could_be_told_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="state folder"):
        check_state(tmp_path / name)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="not a farm's"):
        Farm(tmp_path).launch()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_whose_farm_is_up_is_refused(farm: Farm) -> None:
    with pytest.raises(InputError, match="a farm is up in this folder"):
        Farm(farm.layout.state).launch()


# --- configurations --------------------------------------------------------------------------------------------------


def test_every_host_speaks_to_its_own_stunnel_only(farm: Farm) -> None:
    for host in farm.hosts:
        settings = config.load_file(farm.ini(host.name))
        assert settings.beanstalkd.port == farm.plan.local(host.name, "beanstalkd")
        assert f":{farm.plan.local(host.name, 'store')}/" in settings.bstore.base_url
        if host.is_builder:
            assert f":{farm.plan.local(host.name, 'rsyncd')}/" in settings.bstore.upload_url
            assert f":{farm.plan.local(host.name, 'incoming')}/" in settings.incoming.url


def test_only_its_owner_can_enter_the_folder(farm: Farm) -> None:
    assert farm.layout.state.stat().st_mode & 0o777 == 0o700
    for path in [*farm.layout.keys.glob("psk*"), *farm.layout.keys.glob("*.key"), *farm.layout.conf.iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path


# --- what it lets nobody do ------------------------------------------------------------------------------------------


def test_a_client_without_tls_gets_nowhere(farm: Farm) -> None:
    with socket.create_connection((ADDRESS, farm.plan.tls("beanstalkd")), 5) as connection:
        connection.sendall(b"list-tubes\r\n")
        assert b"OK" not in answer(connection)


def test_a_tls_client_without_a_psk_gets_nowhere(farm: Farm) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = (ADDRESS, farm.plan.tls("rsyncd"))
    with socket.create_connection(address, 5) as connection, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(connection)


@pytest.mark.parametrize(("name", "right"), [("builder1", True), ("builder1", False), ("stranger", True)])
def test_only_the_right_psk_of_a_known_host_opens_the_way(farm: Farm, tmp_path: Path, name: str, right: bool) -> None:
    secret = farm.keys.psk("builder1").read_text().strip().partition(":")[2]
    psk = tmp_path / "psk.txt"
    psk.write_text(f"{name}:{secret if right else 'ab' * 32}\n")
    psk.chmod(0o600)
    ports = claim_ports()
    conf = tmp_path / "stunnel.conf"
    conf.write_text(
        f"foreground = yes\npid =\nsyslog = no\n[x]\nclient = yes\naccept = {ADDRESS}:{ports['x']}\n"
        f"connect = {ADDRESS}:{farm.plan.tls('beanstalkd')}\nciphers = PSK\nPSKsecrets = {psk}\n"
    )
    with subprocess.Popen([find_program("stunnel"), conf], stderr=subprocess.DEVNULL) as tunnel:
        until(lambda: ports["x"] in listeners(), 10, "stunnel listens")
        with socket.create_connection((ADDRESS, ports["x"]), 5) as connection:
            connection.sendall(b"list-tubes\r\n")
            assert (b"OK" in answer(connection)) is (right and name == "builder1")
        tunnel.terminate()
    ports.close()


def answer(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1024)
    except OSError:
        return b""


def rsync(*words: str | Path) -> int:
    return subprocess.run(
        [find_program("rsync"), "--recursive", *words], capture_output=True, timeout=20, check=False
    ).returncode


def test_builders_write_to_spool(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    (tmp_path / "result/build.log").write_text("built\n")
    assert rsync("--times", "--partial", f"{tmp_path}/result/", farm.plan.upload_url("builder1") + "spool/one/") == 0
    assert (farm.layout.store.spool / "one/build.log").read_text() == "built\n"


@pytest.mark.parametrize(
    "place",
    ["", "repo/", "repo/x/", "tosign/x/", "state/", "index/", "spool/../repo/x/", "../outside/", "new-folder/"],
)
def test_builders_write_nowhere_else(farm: Farm, tmp_path: Path, place: str) -> None:
    (tmp_path / "evil.rpm").write_text("evil\n")
    rsync(tmp_path / "evil.rpm", farm.plan.upload_url("builder1") + place)
    assert not list(farm.layout.state.rglob("evil.rpm"))
    assert not (farm.layout.store.root / "new-folder").exists()


def test_builders_send_no_links_and_delete_nothing(farm: Farm, tmp_path: Path) -> None:
    store = farm.layout.store
    (store.spool / "kept").mkdir()
    (store.spool / "kept/build.log").touch()
    (tmp_path / "link").symlink_to("/etc/passwd")
    upload = farm.plan.upload_url("builder1") + "spool/kept/"
    assert rsync("--links", f"{tmp_path}/", upload) != 0
    assert rsync("--delete", f"{tmp_path}/", upload) != 0
    assert [path.name for path in (store.spool / "kept").iterdir()] == ["build.log"]


def test_nobody_reads_by_rsync(farm: Farm, tmp_path: Path) -> None:
    (farm.layout.store.spool / "secret").mkdir()
    (farm.layout.store.spool / "secret/build.json").write_text("{}")
    upload = farm.plan.upload_url("builder1")
    assert rsync(upload + "spool/secret/", tmp_path / "got") != 0
    assert rsync(upload) != 0
    assert not (tmp_path / "got").exists()


def get(url: str) -> tuple[int, str, bytes]:
    """Status, content type and content."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", b""


def test_the_store_serves_what_is_published(farm: Farm) -> None:
    store = farm.layout.store
    place = store.place("repo/c9/hello/20260101000000/1-1.x86_64")
    place.mkdir(parents=True)
    (place / "build.log").write_text("all well: \u00fc\n")
    (store.index / "one.x86_64").symlink_to("../repo/c9/hello/20260101000000/1-1.x86_64")
    base = farm.plan.store_url("builder2")
    for path in ("repo/c9/hello/20260101000000/1-1.x86_64/build.log", "index/one.x86_64/build.log"):
        status, kind, content = get(base + path)
        assert (status, kind, content.decode()) == (200, "text/plain; charset=utf-8", "all well: \u00fc\n")


@pytest.mark.parametrize(
    "path", ["", "spool/", "state/", "tosign/", "rejected/", "cache/", "repo/../spool/", "repo/..%2fstate/", "repo../"]
)
def test_the_store_serves_nothing_else(farm: Farm, path: str) -> None:
    (farm.layout.store.spool / "index.html").touch()
    assert get(farm.plan.store_url("builder1") + path)[0] in (400, 403, 404)


def test_incoming_is_served_to_builders(farm: Farm) -> None:
    (farm.layout.incoming / "a+b-1-1.src.rpm").write_bytes(b"rpm")
    url = farm.plan.incoming_url("builder1")
    assert get(url + "a+b-1-1.src.rpm") == (200, "application/x-rpm", b"rpm")
    assert get(url.replace("/reimzul-incoming/", "/conf/controller.ini"))[0] == 404


def mqtt(farm: Farm, program: str, who: str, *words: str) -> list[str]:
    keys = farm.keys
    certificate = ["--cert", str(keys.certificate(who)), "--key", str(keys.key(who))] if who else []
    where = ["-h", ADDRESS, "-p", str(farm.plan.plain("mqtt")), "--cafile", str(keys.authority)]
    return [find_program(program), *where, *certificate, "-q", "1", "-t", "reimzul/builds/events", *words]


def test_only_the_notifier_publishes(farm: Farm) -> None:
    command = mqtt(farm, "mosquitto_sub", "listener", "-i", "test", "-c")
    subprocess.run([*command, "-E"], check=True, timeout=10)
    for who in ("listener", "notifier"):
        subprocess.run(mqtt(farm, "mosquitto_pub", who, "-m", f"by the {who}"), timeout=10, check=False)
    heard = subprocess.run([*command, "-C", "1", "-W", "10"], capture_output=True, text=True, timeout=20, check=False)
    assert heard.stdout == "by the notifier\n"


def test_without_a_certificate_mqtt_says_nothing(farm: Farm) -> None:
    assert (
        subprocess.run(mqtt(farm, "mosquitto_sub", "", "-E"), capture_output=True, timeout=10, check=False).returncode
        != 0
    )


# --- parts that end, and that are held -------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["beanstalkd", "nginx", "rsyncd", "mosquitto", "stunnel-builder1", "stunnel-bstore"])
def test_a_killed_part_comes_back(farm: Farm, part: str) -> None:
    killed = farm.kill(part)
    until(lambda: first_pid(farm, part) not in (None, killed), 10, f"{part} is started again")
    farm.wait_until_ready()


def test_a_held_part_stays_away_until_it_is_released(farm: Farm) -> None:
    farm.hold("rsyncd")
    assert first_pid(farm, "rsyncd") is None
    assert farm.plan.plain("rsyncd") not in listeners()
    farm.release("rsyncd")
    farm.wait_until_ready()


def first_pid(farm: Farm, part: str) -> int | None:
    try:
        return farm.pids(part)[0]
    except PartFailed:
        return None


def test_a_part_that_does_not_come_up_is_said_with_its_own_words(tmp_path: Path) -> None:
    with Farm(tmp_path / "state", own_daemons=False) as farm:
        farm.hold("mosquitto")
        (farm.layout.conf / "mosquitto.conf").write_text("no such setting\n")
        farm.release("mosquitto")
        with pytest.raises(PartFailed, match=r"not ready: .*\nmosquitto: .*configuration"):
            farm.wait_until_ready(within=2)


# --- nothing is left -------------------------------------------------------------------------------------------------


def alive(mark: str) -> list[str]:
    """The command lines of all processes that have `mark` in theirs, or work below such a folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = os.readlink(folder / "cwd")
        except OSError:
            continue
        if folder.name != str(os.getpid()) and (mark in words or mark in where):
            found.append(f"{folder.name} {words}")
    return found


ORPHANS = (
    "import subprocess, sys, time; [subprocess.Popen(['sleep', sys.argv[1]], start_new_session=True) for _ in 'abc']"
)


def test_what_a_program_leaves_behind_ends_with_it() -> None:
    mark = f"{random.randrange(10**6, 10**7)}.25"
    argv = subreaper.wrap_command([sys.executable, "-c", f"{ORPHANS}; sys.exit(7)", mark], grace=5)
    assert subprocess.run(argv, timeout=20, check=False).returncode == 7
    assert alive(mark) == []


def test_a_signal_reaches_the_program_and_its_end_is_told() -> None:
    argv = subreaper.wrap_command(
        [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"], grace=5
    )
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGUSR1)
    assert process.returncode == 128 + signal.SIGUSR1


def test_a_program_that_does_not_heed_sigterm_is_killed_in_the_end() -> None:
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
    with subprocess.Popen(
        subreaper.wrap_command([sys.executable, "-c", deaf], grace=0.3), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        process.terminate()
    assert process.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("whom", ["starter", "reaper", "program"])
def test_a_kill_anywhere_ends_the_whole_chain(whom: str) -> None:
    mark = f"{random.randrange(10**6, 10**7)}.5"
    argv = subreaper.wrap_command([sys.executable, "-c", f"{ORPHANS}; time.sleep(float(sys.argv[1]))", mark], grace=1)
    starter = f"import subprocess, sys; subprocess.run({argv!r})"
    outer = subreaper.wrap_command([sys.executable, "-c", starter], grace=1)
    with subprocess.Popen(outer) as process:
        until(lambda: sum("sleep" in words for words in alive(mark)) >= 5, 10, "all of it runs")
        lines = alive(mark)
        kinds = {
            "starter": "import subprocess, sys; subprocess",
            "reaper": "reaper.py",
            "program": "-c import subprocess",
        }
        wanted = [line for line in lines if kinds[whom] in line and str(process.pid) != line.split()[0]]
        if whom != "starter":
            wanted = [line for line in wanted if "subprocess.run(" not in line]
        if whom == "program":
            wanted = [line for line in wanted if "reaper.py" not in line]
        os.kill(int(wanted[0].split()[0]), signal.SIGKILL)
        until(lambda: alive(mark) == [], 10, "nothing is left")


#: Whom to send what, once the farm is up.
ENDS = {
    "Ctrl-C": ("group", signal.SIGINT),
    "SIGTERM": ("outer", signal.SIGTERM),
    "SIGHUP": ("outer", signal.SIGHUP),
    "kill -9": ("outer", signal.SIGKILL),
    "kill -9 of what works": ("inner", signal.SIGKILL),
    "kill -9 of both": ("group", signal.SIGKILL),
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_outlives_a_farm(tmp_path: Path, end: str) -> None:
    state = tmp_path / "state"
    with start_farm(state) as command:
        assert "reimzul-submit" in until(lambda: read_instructions(command, state), 30, "the farm is up")
        ports = ports_of(state)
        assert len(ports) > 20
        send(command, *ENDS[end])
        command.wait(30)
        until(lambda: alive(str(state)) == [], GRACE_OF_ALL + GRACE, "every process has ended")
    assert [port for port in ports if port in listeners()] == []


@pytest.mark.parametrize("seed", range(4))
def test_nothing_outlives_a_farm_killed_while_it_starts(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    state = tmp_path / "state"
    with start_farm(state) as command:
        with pytest.raises(subprocess.TimeoutExpired):
            command.wait(chance.uniform(0.1, 2.0))
        send(command, chance.choice(["outer", "inner", "group"]), chance.choice([signal.SIGKILL, signal.SIGINT]))
        command.wait(30)
        until(lambda: alive(str(state)) == [], GRACE_OF_ALL + GRACE, "every process has ended")


def test_a_part_started_after_ctrl_c_can_still_be_ended() -> None:
    parent = (
        "import os, signal, subprocess, sys\nfrom devfarm.cli import _interruptible\n"
        "with _interruptible():\n"
        "    try:\n        signal.raise_signal(signal.SIGINT)\n"
        "    finally:\n        signal.raise_signal(signal.SIGTERM)\n"  # does not interrupt the clean-up
        "        subprocess.run([sys.executable, '-c', 'import signal; print(signal.getsignal(signal.SIGTERM))'])\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.strip() == str(signal.SIG_DFL), done.stderr


@contextlib.contextmanager
def start_farm(state: Path) -> Iterator[subprocess.Popen[bytes]]:
    argv = [*DEVFARM, "up", "--state", str(state)]
    log = state.parent / "out"
    with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out, start_new_session=True) as command:
        try:
            yield command
        finally:
            command.kill()


def read_instructions(command: subprocess.Popen[bytes], state: Path) -> str:
    out = (state.parent / "out").read_text()
    assert command.poll() is None, out
    return out if "Ctrl-C ends the farm" in out else ""


def ports_of(state: Path) -> list[int]:
    """Every port a farm listens on."""
    own = {int(entry.split()[0]) for entry in alive(str(state))}
    return [port for port, pids in listeners().items() if pids & own]


def send(command: subprocess.Popen[bytes], whom: str, number: int) -> None:
    if whom == "group":
        os.killpg(command.pid, number)
        return
    inner = subreaper.children(command.pid)
    processes = {
        "outer": [command.pid],
        "inner": inner or [command.pid],
    }
    os.kill(processes[whom][0], number)


def test_two_farms_at_once(farm: Farm, tmp_path: Path) -> None:
    with Farm(tmp_path / "second", own_daemons=False) as second:
        second.wait_until_ready()
        farm.wait_until_ready()
        with farm.broker() as ours, second.broker(BSTORE) as theirs:
            ours.put_raw("only-ours", b"x", priority=1)
            assert "only-ours" in ours.list_tubes()
            assert "only-ours" not in theirs.list_tubes()
