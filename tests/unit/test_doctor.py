# SPDX-License-Identifier: Apache-2.0
"""Unit tests of doctor: parallel checks, stunnel logs, certificates, addresses, and the stages of a canary."""

from __future__ import annotations

import os
import pwd
import threading
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from reimzul.admin.doctor import (
    FAIL,
    OK,
    WARN,
    Check,
    Finding,
    Result,
    canary,
    cli,
    combine,
    controller,
    fail,
    host,
    network,
    ok,
    run_checks,
    services,
    warn,
)
from reimzul.admin.doctor.controller import is_too_old
from reimzul.admin.doctor.host import ENTER, READ, WRITE, Host, user_can
from reimzul.admin.setup.files import System
from reimzul.admin.setup.roles import PAGES, PUBLIC
from reimzul.core import roles
from reimzul.core.errors import BrokerUnavailable, InputError
from reimzul.core.settings import Settings

TREE = Path(__file__).parents[2]
#: Made by openssl req -x509 -days 3650 and -days 20000: before 2050 the time has two digits of the year, after it four.
BEFORE_2050 = """\
-----BEGIN CERTIFICATE-----
MIIBczCCARmgAwIBAgIUd2moijjZJ6qyGL8VVW0an45tm+UwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEc29vbjAeFw0yNjExMjQwMzQzNDBaFw0zNjExMjEwMzQzNDBa
MA8xDTALBgNVBAMMBHNvb24wWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATXm3CY
1UYqysOhDouHsb2odjnVhlLZSZBLpgt2Qa8YXonfTasIOEO3tosIXGn5KNLL1nnu
BEGVSmMjUhUl3VHjo1MwUTAdBgNVHQ4EFgQUFaGXlwBixiW4Y/rdJZtGcN99wVIw
HwYDVR0jBBgwFoAUFaGXlwBixiW4Y/rdJZtGcN99wVIwDwYDVR0TAQH/BAUwAwEB
/zAKBggqhkjOPQQDAgNIADBFAiA8j/6CsqsEPsn2FCR2mXazi4BJtUQEssmE7YYO
Pn3T/gIhAOaB7cyKCOuS8O6e90XzJmW5ym7X1RQ3TrUH2zijnGsB
-----END CERTIFICATE-----
"""
AFTER_2050 = """\
-----BEGIN CERTIFICATE-----
MIIBdDCCARugAwIBAgIULSK7MEKh0wO1Qts0fgcTnQe2ox8wCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEbGF0ZTAgFw0yNjExMjQwMzQzNDBaGA8yMDgxMDgyNzAzNDM0
MFowDzENMAsGA1UEAwwEbGF0ZTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABLJJ
bEsTKZkU8OPv3OP6kXs00/qkyQ9rVpuO2LWNJcBRzw2Wv9l8qgcT57zwN8r20LQt
bzrQXSZiFSbeE5ThTgijUzBRMB0GA1UdDgQWBBSUzSeTwj8rKi0rnxuRfKT8c/VU
EDAfBgNVHSMEGDAWgBSUzSeTwj8rKi0rnxuRfKT8c/VUEDAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0cAMEQCIFeiVMp6lr1civ1toWtTiwDuc3CZSAyoKM+f
TLJCSDw4AiBfTRNxLfbENvDIF5U1FkQpXr6gMMxlyNVqXEViyLkSjQ==
-----END CERTIFICATE-----
"""


def raising(error: Exception) -> Result:
    raise error


# --- checks side by side


def test_findings_come_in_the_order_of_the_checks_however_long_each_takes() -> None:
    second_is_done = threading.Event()

    def first() -> Result:
        assert second_is_done.wait(30), "they run side by side"
        return ok("first")

    def second() -> Result:
        second_is_done.set()
        return ok("second")

    found = list(run_checks([Check(name="a", run=first), Check(name="b", run=second)]))
    assert [(each.name, each.level, each.message) for each in found] == [("a", OK, "first"), ("b", OK, "second")]


def test_a_check_that_does_not_end_is_given_up_and_keeps_nobody() -> None:
    never = threading.Event()
    checks = [Check(name="hangs", run=lambda: ok(str(never.wait()))), Check(name="other", run=lambda: ok("well"))]
    hangs, other = run_checks(checks, timeout=0.2)
    assert (hangs.level, other.level) == (FAIL, OK)
    assert "no answer within 0.2 s" in hangs.message
    assert all(each.daemon for each in threading.enumerate() if each.name == "hangs"), "Python ends without it"
    never.set()


def test_what_stands_on_something_that_fails_is_not_looked_at() -> None:
    looked: list[str] = []

    def look() -> Result:
        looked.append("above")
        return ok("")

    checks = [
        Check(name="link", run=lambda: fail("broken", "mend it")),
        Check(name="above", run=look, needs=("link", "not asked for")),
        Check(name="beside", run=lambda: warn("hm"), needs=()),
        Check(name="on a warning", run=lambda: ok("fine"), needs=("beside",)),
    ]
    found = {each.name: each for each in run_checks(checks)}
    assert (found["above"].level, found["above"].message) == (WARN, "skipped because link fails")
    assert not looked
    assert found["on a warning"].level == OK


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (BrokerUnavailable("beanstalkd is gone"), "beanstalkd is gone"),
        (FileNotFoundError(2, "No such file or directory", "/none"), "/none: no such file or directory"),
        (KeyError("x"), "bug in reimzul doctor: KeyError('x')"),
    ],
)
def test_what_a_check_raises_is_a_finding(error: Exception, words: str) -> None:
    (found,) = run_checks([Check(name="ill", run=lambda: raising(error))])
    assert (found.level, found.message) == (FAIL, words)


@pytest.mark.parametrize(("user", "level"), [(0, FAIL), (1000, WARN)])
def test_what_may_not_be_looked_at_is_a_fault_for_root_alone(
    monkeypatch: pytest.MonkeyPatch, user: int, level: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    error = PermissionError(13, "Permission denied", "/etc/stunnel/psk.txt")
    (found,) = run_checks([Check(name="keys", run=lambda: raising(error))])
    assert found.level == level
    assert "/etc/stunnel/psk.txt" in found.message
    assert bool(user) == (found.hint == "run reimzul doctor as root")


def test_several_results_are_as_bad_as_the_combine() -> None:
    assert combine([ok("a"), ok("b")]) == ok("a; b")
    assert combine([ok("a"), warn("b", "do")]) == warn("b", "do")
    both = combine([warn("b", "do"), fail("c", "do"), fail("d", "that"), ok("all well")])
    assert both == fail("b; c; d", "do; that")


def test_a_finding_is_one_line_of_four_cells_in_a_pipe() -> None:
    (found,) = run_checks([Check(name="odd", run=lambda: fail("two\nlines\tand a tab", "do\nthis"))])
    assert cli.format_for_pipe(found) == "FAIL\todd\ttwo lines and a tab\tdo this"
    first, second = cli.format_for_terminal(found, 6).splitlines()
    assert first.endswith("odd     two lines and a tab")
    assert second.strip() == "-> do this"


# --- whose host it is


def conf(name: str) -> roles.StunnelConfig:
    text = (TREE / "conf" / name).read_text(encoding="utf-8")
    return roles.parse_stunnel_config(Path("/etc/stunnel/reimzul.conf"), text)


def test_our_configurations_of_stunnel_are_understood() -> None:
    builder = conf("stunnel-builder.conf")
    assert [way.name for way in builder.clients] == ["beanstalkd", "incoming", "rsyncd", "store"]
    way = builder.find_client("localhost", 11300)
    assert way is not None
    assert (way.connect, way.accept) == (("CONTROLLER", 13100), ("127.0.0.1", 11300))
    assert builder.find_client("farhost", 11300) is None
    assert builder.key_files == [Path("/etc/stunnel/reimzul-psk.txt")]
    controller = conf("stunnel-controller.conf")
    assert controller.offers["beanstalkd"].accept == ("", 13100)
    assert controller.offers["incoming"].connect == ("127.0.0.1", 80)
    assert [(way.name, way.accept) for way in controller.clients] == [("store", ("127.0.0.1", 11081))]
    assert set(controller.offers) == {"beanstalkd", "incoming"}
    assert ("sslVersionMin", "TLSv1.2") in controller.common


@pytest.mark.parametrize(
    ("name", "roles"),
    [("controller", ["controller"]), ("builder", ["builder"]), ("bstore", ["bstore"])],
)
def test_a_host_is_what_its_stunnel_offers_and_uses(tmp_path: Path, name: str, roles: list[str]) -> None:
    ini = tmp_path / "reimzul.ini"
    assert host.detect_roles(conf(f"stunnel-{name}.conf"), ini) == roles


def test_without_stunnel_a_host_is_what_its_settings_say(tmp_path: Path) -> None:
    ini, none = tmp_path / "reimzul.ini", roles.read_stunnel_config(tmp_path / "none.conf")
    ini.write_text("[worker]\nmock = mock\n[repogen]\ncores = 1\n")
    assert host.detect_roles(none, ini) == ["builder", "bstore"]
    ini.write_text("[farm]\n")
    with pytest.raises(InputError, match="--role"):
        host.detect_roles(none, ini)


# --- a stunnel of our own


def test_our_own_stunnel_is_as_the_hosts_and_has_its_ends_and_key_file() -> None:
    builder = conf("stunnel-builder.conf")
    way = builder.clients[0]
    text = network.make_config(builder, way, ("127.0.0.1", 4), ("far", 13100), Path("/etc/stunnel/reimzul-psk.txt"))
    made = roles.parse_stunnel_config(Path("/probe"), text)
    (section,) = made.sections
    assert (section.is_client, section.accept, section.connect) == (True, ("127.0.0.1", 4), ("far", 13100))
    assert section.options["ciphers"] == way.options["ciphers"]
    head = dict(made.common)
    assert (head["sslVersionMin"], head["debug"], head["foreground"]) == ("TLSv1.2", "info", "yes")


ACCEPTED = "2026.11.24 03:10:06 LOG6[0]: TLS connected: new session negotiated\n"
_ALERT = "LOG3[0]: SSL_connect: ../ssl/record/rec_layer_s3.c:1601: error:0A000410:SSL routines::sslv3 alert"
UNKNOWN, OTHER_SECRET = f"{_ALERT} handshake failure\n", f"{_ALERT} illegal parameter\n"


@pytest.mark.parametrize(
    ("version", "old"), [("1.12", False), ("1.10", True), ("1.13+4", False), ("2.0", False), ("dev", False)]
)
def test_a_beanstalkd_without_reserve_job_is_too_old(version: str, old: bool) -> None:
    assert is_too_old(version) == old


NO_TLS = "LOG3[0]: SSL_connect: ssl/record/ssl3_record.c:354: error:0A00010B:SSL routines::wrong version number\n"
NOBODY = "LOG3[0]: s_connect: connect 127.0.0.1:23101: Connection refused (111)\n"


@pytest.mark.parametrize(
    ("said", "state", "words"),
    [
        (ACCEPTED, network.SERVICE_DOWN, "no answer"),
        (UNKNOWN, network.KEY_REFUSED, "sslv3 alert handshake failure"),
        (OTHER_SECRET, network.KEY_REFUSED, "sslv3 alert illegal parameter"),
        (NO_TLS, network.NO_TLS, "wrong version number"),
        (NOBODY, network.UNREACHED, "connection refused (111)"),
        ("", network.SILENT, ""),
    ],
)
def test_what_stunnel_logs_tells_which_part_is_broken(said: str, state: str, words: str) -> None:
    assert network.interpret_log(said, "no answer") == (state, words)


# --- certificates, addresses, units, access


@pytest.mark.parametrize(
    ("pem", "end"),
    [(BEFORE_2050, (2036, 11, 21, 3, 43, 40)), (AFTER_2050, (2081, 8, 27, 3, 43, 40))],
)
def test_the_end_of_a_certificate_is_found(tmp_path: Path, pem: str, end: tuple[int, int, int, int, int, int]) -> None:
    file = tmp_path / "certificate.pem"
    file.write_text(pem)
    assert controller.expiry_times(file) == [datetime(*end, tzinfo=timezone.utc).timestamp()]


def test_what_is_no_certificate_is_said(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    for text in ("", "rubbish", f"{BEFORE_2050[:200]}-----END CERTIFICATE-----"):
        file.write_text(text)
        assert controller.check_certificates(file).level == FAIL
    key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    file.write_text(key + BEFORE_2050 + AFTER_2050)
    assert controller.check_certificates(file) == ok("valid until 2036-11-21"), "the first that ends counts"


@pytest.mark.parametrize(("days", "level"), [(-1, FAIL), (3, WARN), (30, OK)])
def test_a_certificate_is_warned_of_before_it_ends(days: int, level: str) -> None:
    now = datetime.now(timezone.utc).timestamp()
    assert controller.judge_expiry(now + days * 86400, "ca.pem", "renew it").level == level


@pytest.mark.parametrize(
    ("text", "order", "address"),
    [
        ("0100007F:2C24", "little", ("127.0.0.1", 11300)),
        ("7F000001:2C24", "big", ("127.0.0.1", 11300)),
        ("00000000:0050", "little", ("0.0.0.0", 80)),
        ("00000000000000000000000001000000:332C", "little", ("::1", 13100)),
        ("0000000000000000FFFF00000100007F:332C", "little", ("::ffff:127.0.0.1", 13100)),
    ],
)
def test_addresses_of_proc_net_tcp_are_read(text: str, order: str, address: tuple[str, int]) -> None:
    found, port = network.parse_socket_address(text, order)
    assert (found, port) == (type(found)(address[0]), address[1])
    assert network.is_loopback(found) == (address[0] != "0.0.0.0")


@pytest.mark.parametrize(
    ("properties", "levels"),
    [
        ({"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled"}, []),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, [FAIL]),
        ({"LoadState": "loaded", "ActiveState": "failed", "SubState": "failed", "UnitFileState": "enabled"}, [FAIL]),
        ({"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "disabled"}, [FAIL]),
        ({"LoadState": "loaded", "ActiveState": "activating", "SubState": "auto-restart"}, [FAIL]),
    ],
)
def test_a_unit_has_to_run_and_to_come_back(properties: dict[str, str], levels: list[str]) -> None:
    assert [result.level for result in services.find_unit_problems({"Id": "x.service", **properties})] == levels


@pytest.mark.parametrize(
    ("properties", "hint"),
    [
        ({"ActiveState": "inactive"}, "systemctl start x; journalctl -u x"),
        ({"ActiveState": "failed"}, "systemctl reset-failed x; systemctl start x; journalctl -u x"),
        (
            {"ActiveState": "inactive", "UnitFileState": "masked"},
            "systemctl unmask x; systemctl start x; journalctl -u x",
        ),
        (
            {"ActiveState": "active", "UnitFileState": "masked"},
            "systemctl unmask x; systemctl enable --now x",
        ),
    ],
)
def test_a_unit_is_brought_up_by_what_its_state_allows(properties: dict[str, str], hint: str) -> None:
    first, *_ = services.find_unit_problems({"Id": "x.service", "LoadState": "loaded", **properties})
    assert first.hint == hint


def test_a_user_may_do_what_owner_group_and_mode_say(tmp_path: Path) -> None:
    me = pwd.getpwuid(os.geteuid())
    other = pwd.struct_passwd(("nobody-here", "x", 54_321, 54_321, "", "/", "/bin/false"))
    folder = tmp_path / "folder"
    folder.mkdir()
    above = [each for each in folder.resolve().parents if not each.stat().st_mode & 0o001]
    folder.chmod(0o755)
    assert user_can(me, folder, READ | WRITE | ENTER)
    if not above:  # pytest's own folder may be closed to others
        assert user_can(other, folder, READ | ENTER)
    assert not user_can(other, folder, WRITE)
    folder.chmod(0o700)
    assert not user_can(other, folder, READ)


# --- a canary's hops


@pytest.mark.parametrize(
    ("target", "given", "arches"),
    [("c9s", [], []), ("c9s.aarch64", [], ["aarch64"]), ("c7.u", ["i386"], ["i386"])],
)
def test_a_canary_takes_a_target_with_or_without_its_arch(target: str, given: list[str], arches: list[str]) -> None:
    host = cast(Host, SimpleNamespace(has_role=lambda *_: True, settings=Settings()))
    prepared = canary.prepare_canary(host, given, target, 1)
    assert (prepared.target, prepared.arches) == (target.replace(".aarch64", ""), arches)
    with pytest.raises(InputError, match="'x86'; is x86_64 meant"):
        canary.prepare_canary(host, ["x86"], target, 1)


def a_run() -> canary.CanaryRun:
    return canary.CanaryRun(
        arch="x86_64", tube="x86_64", build_id="0" * 32, job=7, began=100.0, since=100.0, served=100.0
    )


def update(run: canary.CanaryRun, now: float, **document: Any) -> list[Finding]:
    return list(run.update(document, now))


def test_a_canary_makes_its_hops_one_after_the_other() -> None:
    run = a_run()
    assert update(run, 101, status="Queued") == []
    (queued,) = update(run, 103, status="Building", builder_fqdn="b1")
    assert (queued.name, queued.seconds, queued.level) == ("canary.x86_64.queue", 3.0, OK)
    assert update(run, 104, status="Building", builder_fqdn="b1") == []
    done = {"status": "Success", "builder_fqdn": "b1", "finished": 1000.0, "at": 1002.0, "rpms": ["a.rpm"]}
    build, upload = update(run, 113, **done)
    assert (build.name, build.seconds) == ("canary.x86_64.build", 8.0)
    assert (upload.name, upload.seconds) == ("canary.x86_64.upload", 2.0)
    assert update(run, 114, **done) == []
    placed, total = run.complete_last(115, "there")
    assert (placed.name, placed.seconds) == ("canary.x86_64.placed", 2.0)
    assert (total.name, total.seconds) == ("canary.x86_64.total", 15.0)
    assert run.stage == ""


def test_a_canary_that_was_built_before_it_was_seen_building_has_all_hops() -> None:
    found = update(a_run(), 110, status="Success", builder_fqdn="b1", finished=50.0, at=51.0)
    assert [each.name.rpartition(".")[2] for each in found] == ["queue", "build", "upload"]


@pytest.mark.parametrize("status", ["Failed", "Cancelled", "Rejected"])
def test_a_canary_that_fails_says_in_which_hop(status: str) -> None:
    run = a_run()
    *_, last = update(run, 105, status=status, builder_fqdn="b1", reason="mock is ill", url="http://x/")
    assert (last.name, last.level, last.hint) == ("canary.x86_64.build", FAIL, "reimzul log 00000000 --arch x86_64")
    assert f"{status.lower()}: mock is ill" in last.message
    assert run.stage == ""
    early = a_run()
    (only,) = update(early, 105, status="Cancelled")
    assert only.name == "canary.x86_64.queue"


@pytest.mark.parametrize(("role", "ports"), [("controller", [8080]), ("bstore", [80]), ("builder", [])])
def test_nginx_may_listen_where_setup_has_it_serve_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, ports: list[int]
) -> None:
    for path, port in ((PUBLIC, 80), (PAGES, 8080)):
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"server {{\n    listen {port};\n}}\n")
    monkeypatch.setattr(System, "at_root", lambda _: System(root=tmp_path))
    found = cast(Host, SimpleNamespace(is_installed=True, has_role=lambda asked: asked == role))
    assert network._list_public_ports(found) == ports
    assert network._list_public_ports(cast(Host, SimpleNamespace(is_installed=False))) == []
