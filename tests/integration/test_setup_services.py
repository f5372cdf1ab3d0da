# SPDX-License-Identifier: Apache-2.0
"""What `reimzul setup` writes, run by the real programs: stunnel, rsyncd, nginx, mosquitto.

The files are those of three hosts that were set up, with other ports and folders, so that they fit on one.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

import attr
import pytest

from reimzul.admin.setup import roles
from reimzul.core.beanstalk import Broker
from reimzul.core.store_paths import StoreUrls, spool_name
from reimzul.worker.upload import LogStreamer, Uploader
from tests.conftest import Beanstalkd, free_port
from tests.rsyncd import CONF
from tests.rsyncd import rsyncd as running_rsyncd
from tests.setuphost import Host
from tests.waiting import until

ADDRESS = "127.0.0.1"


def listens(port: int) -> bool:
    """Whether somebody is at a port."""
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, port)) == 0


@contextlib.contextmanager
def program(*argv: object, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server, once it listens; its output goes to `log`."""
    with log.open("ab") as output, subprocess.Popen(list(map(str, argv)), stdout=output, stderr=output) as process:
        try:
            until(lambda: listens(port) or process.poll() is not None, 20, f"{argv[0]} listens")
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.terminate()


# --- stunnel


@attr.define
class Tunnels:
    """The hosts of a farm, and their stunnels as configured; only ports and paths are others."""

    hosts: dict[str, Host]
    folder: Path
    ports: dict[str, int]  #: the farm's port on a host (`controller 13100`, `b1 11300`) -> the one it has here

    def port(self, host: str, port: int) -> int:
        """The port that stands for one of a host's."""
        return self.ports.setdefault(f"{host} {port}", free_port())

    def file(self, host: str) -> Path:
        """A host's configuration, fit to run here."""
        text = self.hosts[host].text(roles.TUNNELS)
        for path in (roles.OWN_KEY, roles.ACCEPTED):
            text = text.replace(path, str(self.hosts[host].at(path)))
        text = re.sub(
            r"^accept = (?:127.0.0.1:)?(\d+)$", lambda m: self._option_line(host, m[1], "accept"), text, flags=re.M
        )
        text = re.sub(
            r"^connect = ([\w.]+):(\d+)$", lambda m: self._option_line(m[1], m[2], "connect", host), text, flags=re.M
        )
        file = self.folder / f"{host}.conf"
        file.write_text(text)
        return file

    def _option_line(self, host: str, port: str, word: str, local: str = "") -> str:
        return f"{word} = {ADDRESS}:{self.port(local if host == ADDRESS else host, int(port))}"

    @contextlib.contextmanager
    def run_stunnel(self, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
        """A host's stunnel, once it listens at what stands for `port`."""
        file = self.file(host)
        with program("stunnel", file, port=self.port(host, port), log=file.with_suffix(".log")) as process:
            yield process

    def answers(self, builder: str) -> bool:
        """Whether a builder's stunnel leads to beanstalkd."""
        # a stunnel that turns us away may do so before connect() is back; one that is not there fails
        address = (ADDRESS, self.port(builder, 11300))
        with contextlib.suppress(ConnectionResetError), socket.create_connection(address, 10) as connection:
            connection.sendall(b"list-tubes\r\n")
            with contextlib.suppress(OSError):
                return connection.recv(1024).startswith(b"OK")
        return False

    @contextlib.contextmanager
    def broker(self, builder: str) -> Iterator[Broker]:
        """A connection to beanstalkd through a builder's stunnel, which runs as long."""
        with self.run_stunnel(builder, 11300), Broker(ADDRESS, self.port(builder, 11300)) as broker:
            yield broker


@pytest.fixture
def tunnels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beanstalkd: Beanstalkd) -> Tunnels:
    """A controller with three builders; b3's key is one that the controller has not."""
    hosts = {name: Host(tmp_path / name, tmp_path, monkeypatch) for name in ("controller", "b1", "b2", "b3")}
    made = hosts["controller"].done("controller", "--add-builder", "b1", "--add-builder", "b2")
    keys = {**dict(line.split(":") for line in made.split()), "b3": "ab" * 32}
    for name, secret in keys.items():
        words = ("--controller", "controller", "--bstore", "bstore", "--psk-file", "-")
        hosts[name].done("builder", *words, given=f"{name}:{secret}\n")
    (tmp_path / "tunnels").mkdir()
    return Tunnels(hosts, tmp_path / "tunnels", {"controller 11300": beanstalkd.port})


@pytest.mark.parametrize(
    ("builder", "key", "opens"),
    [
        ("b1", None, True),
        ("b3", None, False),  # one the controller has never heard of
        ("b1", "b1:" + "ab" * 32, False),  # the wrong one
        ("b1", "b2:" + "ab" * 32, False),  # another's name
        ("b1", "localhost:" + "00" * 32, False),
    ],
)
def test_only_a_builders_own_key_leads_to_beanstalkd(
    tunnels: Tunnels, builder: str, key: Optional[str], opens: bool
) -> None:
    if key:
        tunnels.hosts[builder].at(roles.OWN_KEY).write_text(key + "\n")
    with tunnels.run_stunnel("controller", 13100), tunnels.run_stunnel(builder, 11300):
        assert tunnels.answers(builder) is opens


def test_without_a_key_there_is_no_handshake_and_without_tls_no_answer(tunnels: Tunnels) -> None:
    with tunnels.run_stunnel("controller", 13100):
        for port in (13100, 11080):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            address = (ADDRESS, tunnels.port("controller", port))
            with socket.create_connection(address, 10) as connection, pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(connection)
        with socket.create_connection((ADDRESS, tunnels.port("controller", 13100)), 10) as connection:
            connection.sendall(b"list-tubes\r\n")
            with contextlib.suppress(OSError):
                assert not connection.recv(1024).startswith(b"OK")


@pytest.mark.parametrize(
    ("words", "opens"),
    [
        (("-tls1_3",), True),
        (("-tls1_2",), True),
        (("-tls1_1", "-cipher", "PSK:@SECLEVEL=0"), False),
        (("-tls1_2", "-cipher", "PSK-NULL-SHA256:@SECLEVEL=0"), False),  # the key, and nothing encrypted
    ],
)
def test_tls_is_1_2_at_least_and_encrypts(tunnels: Tunnels, words: tuple[str, ...], opens: bool) -> None:
    secret = tunnels.hosts["b1"].text(roles.OWN_KEY).strip().partition(":")[2]
    goal = f"{ADDRESS}:{tunnels.port('controller', 13100)}"
    with tunnels.run_stunnel("controller", 13100):
        done = subprocess.run(
            ["openssl", "s_client", "-quiet", "-connect", goal, "-psk_identity", "b1", "-psk", secret, *words],
            input=b"list-tubes\r\nquit\r\n", capture_output=True, timeout=20, check=False,
        )  # fmt: skip
    assert (b"OK " in done.stdout) is opens, done.stderr


def test_an_added_host_connects_and_the_others_stay_connected(tunnels: Tunnels) -> None:
    with (
        tunnels.run_stunnel("controller", 13100) as stunnel,
        tunnels.broker("b1") as open_before,
        tunnels.run_stunnel("b3", 11300),
    ):
        assert not tunnels.answers("b3")
        given = tunnels.hosts["b3"].text(roles.OWN_KEY)
        tunnels.hosts["controller"].done("controller", "--add-builder", "b3", "--psk-file", "-", given=given)
        stunnel.send_signal(signal.SIGHUP)  # systemctl reload
        until(lambda: tunnels.answers("b3"), 20, "b3 comes in")
        open_before.list_tubes()


def test_revoking_closes_the_open_connection(tunnels: Tunnels) -> None:
    with tunnels.run_stunnel("b1", 11300), tunnels.run_stunnel("b2", 11300):
        with tunnels.run_stunnel("controller", 13100):
            connection = socket.create_connection((ADDRESS, tunnels.port("b1", 11300)), 10)
            connection.sendall(b"list-tubes\r\n")
            assert connection.recv(1024)
            tunnels.hosts["controller"].done("controller", "--revoke", "b1")
        assert connection.recv(1024) == b""  # systemctl restart ends stunnel,
        connection.close()
        with tunnels.run_stunnel("controller", 13100):  # and starts it
            until(lambda: tunnels.answers("b2"), 20, "the other builder is back")
            assert not tunnels.answers("b1")


def test_a_controller_without_any_builder_has_a_stunnel_that_runs(tunnels: Tunnels) -> None:
    tunnels.hosts["controller"].done("controller", "--revoke", "b1", "--revoke", "b2")
    with tunnels.run_stunnel("controller", 13100), tunnels.run_stunnel("b1", 11300):
        assert not tunnels.answers("b1")


# --- the controller's way to the store


@pytest.fixture
def store(tunnels: Tunnels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """What is behind bstore's stunnel; bstore itself is set up by the keys it is given."""
    root = tmp_path / "served"
    (root / "bstore").mkdir(parents=True)
    (root / "bstore/build.json").write_text("{}\n")
    port = tunnels.port("bstore", 80)
    words = (sys.executable, "-m", "http.server", "--bind", ADDRESS, "--directory", root, port)
    tunnels.hosts["bstore"] = Host(tmp_path / "bstore", tmp_path, monkeypatch)
    with program(*words, port=port, log=tmp_path / "http.log"):
        yield tunnels.hosts["bstore"]


def add_bstore(tunnels: Tunnels, *words: str) -> str:
    """Have the controller make the keys of bstore and its own; the lines for bstore."""
    return tunnels.hosts["controller"].done(
        "controller", "--controller", "controller", "--add-bstore", "bstore", *words
    )


def take(bstore: Host, lines: str) -> None:
    """Have bstore take its lines."""
    bstore.done("bstore", "--controller", "controller", "--name", "bstore", "--psk-file", "-", given=lines)


def reads(tunnels: Tunnels) -> bool:
    """Whether the controller reads the store."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return get_page(tunnels.port("controller", 11081), "/bstore/build.json") == (200, "{}\n")
    return False


def test_the_way_to_the_store_comes_with_bstore_and_cuts_nobody_off(tunnels: Tunnels, store: Host) -> None:
    with tunnels.run_stunnel("controller", 13100) as stunnel, tunnels.broker("b1") as open_before:
        open_before.list_tubes()
        take(store, add_bstore(tunnels))
        tunnels.file("controller")
        with tunnels.run_stunnel("bstore", 11081):
            assert not reads(tunnels)
            stunnel.send_signal(signal.SIGHUP)  # systemctl reload
            until(lambda: reads(tunnels), 20, "the store is read")
        open_before.list_tubes()
        assert stunnel.poll() is None


def test_the_store_is_read_by_the_controllers_key_of_now_alone(tunnels: Tunnels, store: Host) -> None:
    first, second = add_bstore(tunnels), add_bstore(tunnels, "--new-key")
    take(store, first)
    with tunnels.run_stunnel("controller", 11081):
        with tunnels.run_stunnel("bstore", 11081):
            assert not reads(tunnels)
        take(store, second)
        with tunnels.run_stunnel("bstore", 11081):
            assert reads(tunnels)
        store.done("bstore", "--revoke", "controller")
        with tunnels.run_stunnel("bstore", 11081):
            assert not reads(tunnels)


# --- rsyncd


@attr.frozen
class Rsyncd:
    """bstore's rsyncd, and its store."""

    root: Path
    url: str

    def rsync(self, *words: object) -> int:
        """rsync's exit code."""
        return self.run("--recursive", *words)[0]

    def run(self, *words: object) -> tuple[int, str]:
        """rsync's exit code, and what it prints."""
        argv = ["rsync", *map(str, words)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20, check=False)
        return done.returncode, done.stdout.decode(errors="replace")

    def folder(self, area: str) -> str:
        """The URL of spool/ or live/."""
        return f"{self.url}-live" if area == "live" else f"{self.url}/{area}"


@pytest.fixture(scope="module")
def bstore(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A bstore that was set up, with some of a store in it; one for all who only add to its spool."""
    folder = tmp_path_factory.mktemp("bstore")
    with pytest.MonkeyPatch.context() as monkeypatch:
        host = Host(folder / "bstore", folder, monkeypatch)
        words = ("--controller", "controller", "--psk-file", "-", "--public-port", "8080")
        host.done("bstore", *words, given=f"s:{'ab' * 32}\n")
    for path in ("repo/t/x.rpm", "scratch/t/x.rpm", "index/id.x86_64", "attempts/id/build.log", "tosign/t/x.rpm",
                 "state/mark", "spool/other/x.rpm", "live/id/build.log", "rejected/x"):  # fmt: skip
        host.put(f"/srv/reimzul/bstore/{path}", f"{path}\n")
    return host


@pytest.fixture
def rsyncd(bstore: Host, tmp_path: Path) -> Iterator[Rsyncd]:
    """rsyncd with the file that was written, which is the one in conf/."""
    assert bstore.text("/etc/rsyncd.conf") == (CONF / "rsyncd.conf").read_text()
    port, root = free_port(), bstore.at("/srv/reimzul/bstore")
    with running_rsyncd(root, port, tmp_path, "rsyncd.conf"):
        yield Rsyncd(root, f"rsync://{ADDRESS}:{port}/reimzul-bstore")


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    """A folder to be uploaded: a file, and one of a published name."""
    folder = tmp_path / "upload"
    folder.mkdir()
    (folder / "x.rpm").write_text("mine\n")
    return folder


def read_all_files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("area", ["spool", "live"])
def test_a_builder_uploads_to_its_two_folders(rsyncd: Rsyncd, upload: Path, area: str) -> None:
    (upload / "x.rpm").chmod(0o4600)
    assert rsyncd.rsync("--times", "--partial", "--timeout=60", f"{upload}/", f"{rsyncd.folder(area)}/id.1-ab/") == 0
    there = rsyncd.root / area / "id.1-ab/x.rpm"
    assert there.read_text() == "mine\n"
    assert there.stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize(
    "place",
    ["", "repo/", "repo/t/", "scratch/t/", "index/", "tosign/t/", "state/", "rejected/", "new/", "../",
     "spool/../repo/t/", "spool/../../outside/", "spool/other/../../repo/t/"],
)  # fmt: skip
def test_nothing_else_can_be_written_to(rsyncd: Rsyncd, upload: Path, place: str) -> None:
    before = read_all_files(rsyncd.root.parent)
    rsyncd.rsync(f"{upload}/", f"{rsyncd.url}/{place}")
    assert read_all_files(rsyncd.root.parent) == before


@pytest.mark.parametrize("place", ["", "repo/t/", "spool/", "spool/other/", "spool/../repo/t/", "tosign/t/"])
def test_nothing_can_be_read_by_rsync(rsyncd: Rsyncd, tmp_path: Path, place: str) -> None:
    assert rsyncd.rsync(f"{rsyncd.url}/{place}", f"{tmp_path}/got/") != 0
    assert not list((tmp_path / "got").rglob("*")) if (tmp_path / "got").exists() else True


def test_modules_are_not_listed(rsyncd: Rsyncd) -> None:
    url = rsyncd.url.rpartition("/")[0] + "/"
    assert b"reimzul" not in subprocess.run(["rsync", url], capture_output=True, timeout=20, check=False).stdout


@pytest.mark.parametrize("goal", ["/etc", "../../repo/t", "../repo"])
def test_no_link_leads_out_of_spool(rsyncd: Rsyncd, upload: Path, goal: str) -> None:
    """A link is refused where it is meant to be sent, and left out where it is not."""
    before = {path: text for path, text in read_all_files(rsyncd.root).items() if not path.startswith("spool/")}
    (upload / "way").symlink_to(goal)
    assert rsyncd.rsync("--links", f"{upload}/", f"{rsyncd.url}/spool/id/") != 0
    rsyncd.rsync(f"{upload}/", f"{rsyncd.url}/spool/id/")
    assert not (rsyncd.root / "spool/id/way").is_symlink()
    assert {path: text for path, text in read_all_files(rsyncd.root).items() if not path.startswith("spool/")} == before


REFUSED = (
    "--delete", "--remove-source-files", "--force", "--links", "--hard-links", "--devices", "--specials", "-D",
    "--write-devices", "--sparse", "--preallocate", "--backup", "--partial-dir=x", "--temp-dir=/spool", "--checksum",
    "--checksum-choice=md5", "--block-size=700", "--fuzzy", "--compare-dest=/spool/x", "--copy-dest=/spool/x",
    "--link-dest=/spool/x",
)  # fmt: skip
IN_PLACE = ("--inplace", "--append", "--append-verify")


@pytest.mark.parametrize(
    ("area", "option"),
    [("spool", option) for option in (*REFUSED, *IN_PLACE)] + [("live", option) for option in REFUSED],
)
def test_options_that_no_upload_needs_are_refused(rsyncd: Rsyncd, upload: Path, area: str, option: str) -> None:
    before = read_all_files(rsyncd.root)
    code, text = rsyncd.run("--recursive", option, f"{upload}/", f"{rsyncd.folder(area)}/other/")
    assert (code, "The server is configured to refuse" in text) == (4, True), text
    assert read_all_files(rsyncd.root) == before


def test_what_the_worker_itself_calls_is_accepted(rsyncd: Rsyncd, upload: Path) -> None:
    """Its uploads, repeated as after a lost link, and its growing logs; with `[worker] rsync_arguments`."""
    more, urls = ("--bwlimit=20m", "--compress"), StoreUrls("", f"{rsyncd.url}/")
    uploader = Uploader(rsync="rsync", arguments=more, urls=urls)
    streamer = LogStreamer("rsync", more, urls, interval=2)
    key, log = ("0" * 32, "x86_64", "1-00000000"), upload / "build.log"
    for text in ("one\n", "one\ntwo\n"):
        log.write_text(text)
        for argv in (uploader.argv(upload, urls.spool(*key)), streamer.argv([log], urls.live_upload(*key))):
            assert rsyncd.run(*argv[1:]) == (0, "")
        for area in ("spool", "live"):
            assert (rsyncd.root / area / spool_name(*key) / "build.log").read_text() == text


@pytest.mark.parametrize(
    "options",
    [["--files-from=:/spool/other/x.rpm"], ["--files-from=:/spool/other/x.rpm", "--from0"],
     ["--block-size=1", "--debug=deltasum4", "--ignore-times"]],
)  # fmt: skip
def test_what_another_uploads_is_not_read_by_an_upload(rsyncd: Rsyncd, upload: Path, options: list[str]) -> None:
    """rsyncd reads a list of names for its client, and sends it sums of blocks: of single bytes, if asked."""
    code, text = rsyncd.run("--recursive", *options, f"{upload}/", f"{rsyncd.url}/spool/other/")
    assert (code != 0, "link_stat" in text, "chunk[" in text) == (True, False, False), text


# --- nginx


@contextlib.contextmanager
def nginx(host: Host, folder: Path, ports: dict[str, int]) -> Iterator[None]:
    """nginx with the files of a host's conf.d, as its distribution's main file includes them."""
    (folder / "conf.d").mkdir(parents=True)
    for file in host.at("/etc/nginx/conf.d").iterdir():
        text = file.read_text().replace("/srv/reimzul", str(host.at("/srv/reimzul")))
        for port, other in ports.items():
            text = text.replace(f"listen {port};", f"listen {ADDRESS}:{other};")
        (folder / "conf.d" / file.name).write_text(text)
    temporary = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    main = folder / "nginx.conf"
    main.write_text(
        f"{'user root;' if os.geteuid() == 0 else ''}daemon off; pid {folder}/pid; error_log {folder}/error;\n"
        f"events {{}}\nhttp {{ {temporary} access_log off; include {folder}/conf.d/*.conf; }}\n"
    )
    checked = subprocess.run(["nginx", "-t", "-c", main], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr, checked.stderr
    with program("nginx", "-c", main, port=next(iter(ports.values())), log=folder / "out"):
        yield


def get_page(port: int, path: str) -> tuple[int, str]:
    """The status of a page, and the page."""
    try:
        with urllib.request.urlopen(f"http://{ADDRESS}:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_only_published_parts_of_the_store_are_served(bstore: Host, tmp_path: Path) -> None:
    ports = {"127.0.0.1:80": free_port(), "8080": free_port()}
    with nginx(bstore, tmp_path / "nginx", ports):
        inside, outside = ports.values()
        logs = ("attempts/id/build.log", "live/id/build.log")
        for path in ("repo/t/x.rpm", "scratch/t/x.rpm", "index/id.x86_64", *logs):
            assert get_page(inside, f"/bstore/{path}") == (200, f"{path}\n")
        for path in ("tosign/t/x.rpm", "state/mark", "spool/other/x.rpm", "rejected/x", "", "repo/../spool/other/x.rpm",
                     "repo/%2e%2e/spool/other/x.rpm", "repo../spool/other/x.rpm"):  # fmt: skip
            assert get_page(inside, f"/bstore/{path}")[0] in (400, 404), path
        assert "x.rpm" in get_page(inside, "/bstore/repo/t/")[1]
        assert get_page(outside, "/repo/t/x.rpm") == (200, "repo/t/x.rpm\n")
        for path in ("/bstore/repo/t/x.rpm", "/scratch/t/x.rpm", "/repo../spool/other/x.rpm", "/", "/index/id.x86_64"):
            assert get_page(outside, path)[0] == 404, path


def test_of_the_controller_only_incoming_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path / "controller", tmp_path, monkeypatch)
    host.done("controller")
    host.put("/srv/reimzul/incoming/x.src.rpm", "x\n")
    host.put("/srv/reimzul/notifier/history.sqlite", "secret\n")
    ports = {"127.0.0.1:80": free_port()}
    with nginx(host, tmp_path / "nginx", ports):
        port = ports["127.0.0.1:80"]
        assert get_page(port, "/reimzul-incoming/x.src.rpm") == (200, "x\n")
        assert get_page(port, "/reimzul-incoming../notifier/history.sqlite")[0] == 404
        assert get_page(port, "/")[0] == 404


# --- mosquitto


@attr.frozen
class Mqtt:
    """A controller's mosquitto, and clients of it."""

    host: Host
    port: int

    def words(self, name: str) -> list[str]:
        """How one who has a certificate connects."""
        folder = self.host.at("/etc/reimzul/mqtt")
        certificate = ["--cert", f"{folder}/{name}.crt", "--key", f"{folder}/{name}.key"] if name else []
        way = ["-h", "localhost", "-p", str(self.port), "-V", "5", "-q", "1"]
        return [*way, "--cafile", f"{folder}/ca.crt", *certificate]

    def publish(self, name: str, topic: str) -> bool:
        """Whether the broker took a message from somebody, to hand it on."""
        argv = ["mosquitto_pub", *self.words(name), "-t", topic, "-m", "built", "-r"]
        done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
        return done.returncode == 0 and b"denied" not in done.stderr and b"uthorized" not in done.stderr

    def heard(self, name: str, topic: str) -> bytes:
        """The retained messages of a topic, as a subscriber receives them."""
        argv = ["mosquitto_sub", *self.words(name), "-t", topic, "-C", "1", "-W", "2"]
        return subprocess.run(argv, capture_output=True, timeout=20, check=False).stdout


@pytest.fixture
def mqtt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mqtt]:
    """mosquitto as `--mqtt` configures it."""
    host = Host(tmp_path / "controller", tmp_path, monkeypatch)
    host.done("controller", "--mqtt", "--controller", "c.example.org")
    port = free_port()
    text = host.text("/etc/mosquitto/conf.d/reimzul.conf").replace("listener 8883", f"listener {port}")
    file = tmp_path / "mosquitto.conf"
    root = "user root\n" if os.geteuid() == 0 else ""
    file.write_text(f"{root}log_dest none\n" + text.replace("/etc/mosquitto", str(host.at("/etc/mosquitto"))))
    with program("mosquitto", "-c", file, port=port, log=tmp_path / "mosquitto.log"):
        yield Mqtt(host, port)


def test_the_notifier_publishes_and_the_listener_hears(mqtt: Mqtt) -> None:
    assert mqtt.publish("notifier", "reimzul/builds/results")
    assert mqtt.heard("listener", "reimzul/builds/results") == b"built\n"


def test_nobody_does_anything_else(mqtt: Mqtt) -> None:
    assert not mqtt.publish("listener", "reimzul/builds/results")
    assert not mqtt.publish("notifier", "elsewhere")
    assert not mqtt.publish("", "reimzul/builds/results")  # no certificate, no connection
    assert mqtt.publish("notifier", "reimzul/builds/results")
    assert mqtt.heard("notifier", "reimzul/builds/results") == b""
    assert mqtt.heard("", "reimzul/builds/results") == b""


def test_the_notifier_may_publish_under_the_topic_of_the_settings(mqtt: Mqtt) -> None:
    """mosquitto acknowledges what its list forbids, and drops it."""
    access = "/etc/mosquitto/reimzul.acl"
    mqtt.host.done("controller", "--mqtt", "--set", "mqtt.topic=koji/el9")
    assert "topic write koji/el9/#" in mqtt.host.text(access)
    assert " reimzul/#" not in mqtt.host.text(access)
    mqtt.host.done("controller")  # as reimzul.ini says now
    assert "topic read koji/el9/#" in mqtt.host.text(access)


def test_the_notifiers_settings_find_its_certificate(mqtt: Mqtt) -> None:
    text = mqtt.host.text("/etc/reimzul/reimzul.ini")
    for line in ("notifications = true", "ca_cert = {}/ca.crt", "tls_key = {}/notifier.key"):
        assert f"\n{line.format('/etc/reimzul/mqtt')}\n" in text
    for path in ("/etc/reimzul/mqtt/ca.key", "/etc/reimzul/mqtt/notifier.key", "/etc/mosquitto/certs/reimzul.key"):
        assert mqtt.host.at(path).stat().st_mode & 0o777 == 0o600


def test_certificates_are_made_once_and_replaced_before_they_expire(
    mqtt: Mqtt, monkeypatch: pytest.MonkeyPatch, expired: Callable[[Host, str], None]
) -> None:
    before = mqtt.host.files()
    mqtt.host.done("controller")
    mqtt.host.done("controller", "--mqtt")
    assert mqtt.host.files() == before
    expired(mqtt.host, "listener")
    mqtt.host.done("controller")
    changed = {path for path, (text, _) in mqtt.host.files().items() if text != before[path][0]}
    assert changed == {"etc/reimzul/mqtt/listener.crt", "etc/reimzul/mqtt/listener.key"}


@pytest.fixture
def expired() -> Callable[[Host, str], None]:
    """Puts a certificate in a client's place that ends tomorrow."""

    def put(host: Host, name: str) -> None:
        folder = host.at("/etc/reimzul/mqtt")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "1", "-subj", f"/CN={name}", "-CA", "ca.crt", "-CAkey", "ca.key",
             "-keyout", f"{name}.key", "-out", f"{name}.crt"],
            cwd=folder, capture_output=True, check=True,
        )  # fmt: skip

    return put


def test_the_broker_is_known_by_the_name_subscribers_use(mqtt: Mqtt) -> None:
    said = named_in(mqtt.host)
    assert "DNS:localhost" in said
    assert "DNS:c.example.org" in said
    assert "IP Address:127.0.0.1" in said


def test_a_new_certificate_of_the_broker_has_the_names_of_the_one_before(mqtt: Mqtt) -> None:
    mqtt.host.done("controller", "--mqtt", "--controller", "d.example.org")
    said = named_in(mqtt.host)
    assert "DNS:c.example.org" in said
    assert "DNS:d.example.org" in said


def named_in(host: Host) -> str:
    """The names in the broker's certificate, as openssl writes them."""
    certificate = host.at("/etc/mosquitto/certs/reimzul.crt")
    return subprocess.run(
        ["openssl", "x509", "-in", certificate, "-noout", "-ext", "subjectAltName"], capture_output=True, check=True
    ).stdout.decode()
