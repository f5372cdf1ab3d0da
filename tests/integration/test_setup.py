# SPDX-License-Identifier: Apache-2.0
"""`reimzul setup` from its command line to the files and units of a host; systemctl alone is not the real one."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from reimzul.admin.setup import apply, roles
from reimzul.admin.setup.files import System
from tests.setuphost import Host

HEX = re.compile(r"[0-9a-f]{64}")
HOSTS = ("--controller", "c.example.org", "--bstore", "s.example.org")
KEY = f"b1:{'ab' * 32}\n"


@pytest.fixture
def new_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Host]:
    """Makes hosts by their names."""
    return lambda name: Host(tmp_path / name, tmp_path / f"{name}.state", monkeypatch)


@pytest.fixture
def host(new_host: Callable[[str], Host]) -> Host:
    """A host that runs systemd."""
    host = new_host("host")
    host.systemd()
    return host


# --- a role from nothing


def test_a_controller_is_set_up_in_one_run(host: Host) -> None:
    host.done("controller")
    assert host.calls() == [
        "daemon-reload",
        *(f"enable {unit}" for unit in ("beanstalkd", "nginx", "stunnel@reimzul", "reimzul-notifier", "reimzul-batch")),
        "restart systemd-sysctl", "restart beanstalkd", "restart nginx", "restart stunnel@reimzul",
        "start reimzul-notifier", "start reimzul-batch",
    ]  # fmt: skip
    assert not host.at("/etc/nginx/sites-enabled/default").is_symlink()
    without, _, _ = Path("conf/stunnel-controller.conf").read_text().partition("\n; Ours: ")
    assert host.text("/etc/stunnel/reimzul.conf") == without  # no bstore, no way to it
    assert not host.at(roles.OWN_KEY).exists()


def test_a_bstore_is_set_up_in_one_run(host: Host) -> None:
    keys = f"s:{'cd' * 32}\n{KEY}"
    host.done("bstore", *HOSTS[:2], "--name", "s", "--add-builder", "b1", "--psk-file", "-", given=keys)
    assert host.text(roles.OWN_KEY) == f"s:{'cd' * 32}\n"
    assert host.at("/srv/reimzul/bstore/live").is_dir()
    assert KEY in host.text(roles.ACCEPTED)
    assert "cd" * 32 not in host.text(roles.ACCEPTED)
    assert "\nconnect = c.example.org:13100\n" in host.text("/etc/stunnel/reimzul.conf")
    assert host.calls()[-4:] == [
        *(f"start reimzul-repogen-worker@{number}" for number in (1, 2, 3)), "start reimzul-signer",
    ]  # fmt: skip


def test_a_builder_is_set_up_in_one_run(host: Host) -> None:
    host.done("builder", *HOSTS, "--name", "b1", "--workers", "2", "--psk-file", "-", given=KEY)
    assert host.text(roles.OWN_KEY) == KEY
    assert sorted(set(re.findall(r"^connect = (\S+):", host.text("/etc/stunnel/reimzul.conf"), re.MULTILINE))) == [
        "c.example.org", "s.example.org",
    ]  # fmt: skip
    assert host.calls()[-2:] == ["start reimzul-worker@1", "start reimzul-worker@2"]


@pytest.mark.parametrize("role", ["controller", "bstore", "builder"])
def test_a_second_run_changes_and_starts_nothing(host: Host, role: str) -> None:
    needed = {"controller": (), "bstore": HOSTS[:2], "builder": HOSTS}[role]
    host.done(role, *needed, *(() if role == "controller" else ("--psk-file", "-")), given=KEY)
    host.calls()
    before = host.files()
    assert host.done(role) == "nothing to do\n"
    assert host.files() == before
    assert host.calls() == []


def test_a_dry_run_shows_all_and_does_nothing(host: Host) -> None:
    before = host.files()
    shown = host.done("builder", *HOSTS, "--psk-file", "-", "--dry-run", given=KEY)
    assert "+connect = c.example.org:13100" in shown
    assert "\nwould enable stunnel@reimzul\n" in shown
    assert "would create /etc/stunnel/reimzul.conf:\n" in shown
    own = [line for line in shown.splitlines() if line[:1] not in ("+", "-", " ", "@")]
    assert [line for line in own if not line.startswith("would ")] == [], "nothing has happened"
    assert "ab" * 32 not in shown
    shown = json.loads(host.done("builder", *HOSTS, "--psk-file", "-", "--dry-run", "--json", given=KEY))
    assert "enable stunnel@reimzul" in [step["message"] for step in shown["steps"]]
    assert "ab" * 32 not in json.dumps(shown)
    assert {file["kind"] for file in shown["files"]} == {"new"}
    assert ["systemctl", "enable", "stunnel@reimzul"] in [step["argv"] for step in shown["steps"]]
    assert (host.files(), host.calls()) == (before, [])


def test_bstore_notes_what_people_reach_it_by_and_says_so(host: Host) -> None:
    own = f"bstore.example.org:{'cd' * 32}\n"
    host.done("bstore", *HOSTS[:2], "--psk-file", "-", given=own)
    assert not host.at(roles.PUBLIC_URL).exists()
    shown = host.done("bstore", "--public-port", "8080")
    assert "links that people get begin with http://bstore.example.org:8080/\n" in shown
    assert host.text(roles.PUBLIC_URL) == "http://bstore.example.org:8080/\n"
    assert host.done("bstore") == "nothing to do\n"
    host.calls()
    host.done("bstore", "--public-url", "https://farm.example.org")
    assert host.text(roles.PUBLIC_URL) == "https://farm.example.org/\n"
    assert "\npublic_url = https://farm.example.org\n" in host.text(roles.SETTINGS)
    assert "restart nginx" not in host.calls(), "downloads go on"
    host.done("bstore", "--public-port", "0", "--public-url", "")
    assert not host.at(roles.PUBLIC_URL).exists()
    assert host.done("bstore") == "nothing to do\n"


def test_a_person_is_asked_what_links_begin_with(host: Host) -> None:
    own = f"bstore.example.org:{'cd' * 32}\n"
    host.done("bstore", *HOSTS[:2], "--psk-file", "-", given=own)
    code, _, err = host.setup("bstore", "--public-port", "80", typed="\n")
    assert "URL of the folder above repo/ as people reach it, for links [http://bstore.example.org/]: " in err
    assert (code, host.text(roles.PUBLIC_URL)) == (0, "http://bstore.example.org/\n")
    assert "\npublic_url =\n" in host.text(roles.SETTINGS), "what setup makes follows another port"
    assert "as people reach it" not in host.setup("bstore", "--public-port", "80", typed="")[2], "nothing is new"
    assert "as people reach it" not in host.setup("bstore", "--public-port", "81", "--yes", typed="")[2]
    words = "nonsense\nhttps://farm.example.org/repo/\nhttps://farm.example.org\n"
    code, out, err = host.setup("bstore", "--public-port", "8080", typed=words)
    assert (code, err.count("as people reach it"), err.count("Error: ")) == (0, 3, 2), err
    assert "links that people get begin with https://farm.example.org/\n" in out
    assert host.text(roles.PUBLIC_URL) == "https://farm.example.org/\n"
    assert "\npublic_url = https://farm.example.org/\n" in host.text(roles.SETTINGS)
    assert "as people reach it" not in host.setup("bstore", "--public-port", "80", typed="")[2], "it was answered"
    code, _, err = host.setup("bstore", "--public-port", "81", "--public-url", "", typed="")
    assert (code, "as people reach it" in err) == (0, False)


def test_a_person_is_asked_what_links_to_pages_begin_with(host: Host) -> None:
    code, out, err = host.setup("controller", "--pages-port", "80", "--controller", "f.example.org", typed="\n")
    assert "URL of the pages as people reach them, for links [http://f.example.org/]: " in err
    assert (code, "\nurl = http://f.example.org/\n" in host.text(roles.SETTINGS)) == (0, True)
    words = ("--pages-port", "8080", "--controller", "f.example.org")
    code, out, _ = host.setup("controller", *words, typed="https://farm.example.org\n")
    assert (code, "links that people get lead to https://farm.example.org/\n" in out) == (0, True)
    assert "\nurl = https://farm.example.org/\n" in host.text(roles.SETTINGS)
    assert "as people reach" not in host.setup("controller", "--pages-port", "80", typed="")[2], "it was answered"


def test_a_controller_may_have_links_of_another_host(host: Host) -> None:
    host.done("controller", "--public-url", "https://farm.example.org/")
    assert "\npublic_url = https://farm.example.org/\n" in host.text(roles.SETTINGS)
    host.calls()
    host.done("controller", "--public-url", "https://other.example.org/")
    assert host.calls() == ["reload reimzul-notifier", "reload reimzul-batch"]
    code, _, err = host.setup("controller", "--public-url", "https://farm.example.org/repo/")
    assert (code, err.count("\n")) == (4, 1)
    assert "give the URL of the folder above it" in err


def test_a_controller_serves_the_pages_only_where_it_is_asked_to(host: Host) -> None:
    host.done("controller", "--controller", "farm.example.org")
    assert not host.at(roles.PAGES).exists()
    host.calls()
    shown = host.done("controller", "--pages-port", "8080", "--controller", "farm.example.org")
    assert "links that people get lead to http://farm.example.org:8080/\n" in shown
    assert "    listen 8080;\n" in host.text(roles.PAGES)
    assert "\nurl = http://farm.example.org:8080/\n" in host.text(roles.SETTINGS)
    assert host.calls() == [
        "enable reimzul-pages", "restart nginx", "reload reimzul-notifier", "reload reimzul-batch",
        "start reimzul-pages",
    ]  # fmt: skip
    assert host.done("controller") == "nothing to do\n"
    host.done("controller", "--add-builder", "b1")
    host.calls()
    host.done("controller", "--pages-port", "80", "--controller", "farm.example.org")
    assert "\nurl = http://farm.example.org/\n" in host.text(roles.SETTINGS)
    assert host.calls() == ["restart nginx", "reload reimzul-notifier", "reload reimzul-batch", "reload reimzul-pages"]
    host.done("controller", "--pages-port", "0")
    assert not host.at(roles.PAGES).exists()
    assert "\nurl =\n" in host.text(roles.SETTINGS), "no link leads to pages that are gone"
    assert host.calls() == [
        "disable --now reimzul-pages",
        "restart nginx",
        "reload reimzul-notifier",
        "reload reimzul-batch",
    ]
    assert host.done("controller") == "nothing to do\n"


def test_a_url_of_the_pages_that_a_person_set_stays_while_there_are_pages(host: Host) -> None:
    host.done("controller", "--pages-port", "8080", "--set", "pages.url=https://farm.example.org/")
    host.done("controller", "--pages-port", "8081")
    assert "\nurl = https://farm.example.org/\n" in host.text(roles.SETTINGS)
    host.done("controller", "--pages-port", "0")
    assert "\nurl =\n" in host.text(roles.SETTINGS)


def test_a_daemon_of_pages_that_a_person_enabled_is_left_alone(host: Host) -> None:
    (host.state / "enabled/reimzul-pages").touch()
    host.done("controller")
    assert not [call for call in host.calls() if "reimzul-pages" in call]


def test_keys_are_readable_by_root_alone(host: Host) -> None:
    host.done("bstore", *HOSTS[:2], "--psk-file", "-", given=KEY)
    for path in (roles.OWN_KEY, roles.ACCEPTED):
        assert host.at(path).stat().st_mode & 0o777 == 0o600


# --- run again with something else


def test_only_affected_services_are_restarted(host: Host) -> None:
    host.done("builder", *HOSTS, "--workers", "1", "--psk-file", "-", given=KEY)
    host.calls()
    host.done("builder", "--controller", "other.example.org")
    assert host.calls() == ["restart stunnel@reimzul"]
    assert "connect = s.example.org:11874" in host.text("/etc/stunnel/reimzul.conf")


def test_more_and_fewer_workers(host: Host) -> None:
    host.done("builder", *HOSTS, "--workers", "1", "--psk-file", "-", given=KEY)
    host.calls()
    host.done("builder", "--workers", "3")
    assert host.calls() == [
        "enable reimzul-worker@2", "enable reimzul-worker@3", "start reimzul-worker@2", "start reimzul-worker@3",
    ]  # fmt: skip
    host.done("builder", "--workers", "2")
    assert host.calls() == ["disable --now reimzul-worker@3"]
    assert host.done("builder") == "nothing to do\n"


def test_a_unit_that_is_not_running_is_started(host: Host) -> None:
    host.done("controller")
    host.calls()
    (host.state / "active/nginx").unlink()
    host.done("controller")
    assert host.calls() == ["start nginx"]


def test_a_setting_reaches_the_programs_that_read_it(host: Host) -> None:
    host.done("builder", *HOSTS, "--workers", "1", "--psk-file", "-", given=KEY)
    host.put("/etc/reimzul/reimzul.ini", "# mine\n[worker]\ntries = 3\n")
    host.calls()
    host.done("builder", "--set", "worker.tries=5")
    assert host.text("/etc/reimzul/reimzul.ini") == "# mine\n[worker]\ntries = 5\n"
    assert host.calls() == ["reload reimzul-worker@1"]


def test_a_failed_step_is_reported_and_repeated_by_the_next_run(host: Host) -> None:
    host.done("controller")
    host.calls()
    for path in ("nginx/conf.d/reimzul.conf", "systemd/system/beanstalkd.service.d/reimzul.conf"):
        host.put(f"/etc/{path}", "# SPDX-License-Identifier: Apache-2.0\n# older\n")
    failing = host.state / "fails/restart-nginx"
    failing.touch()
    code, _, err = host.setup("controller", "--yes")
    assert code == 1
    assert err == (
        "reimzul: cannot restart nginx: systemctl exited with 1: Job for nginx.service failed. "
        "(see journalctl -u nginx)\n"
    )
    assert host.calls() == ["daemon-reload", "restart beanstalkd"]  # one that fails stops no other
    failing.unlink()
    host.done("controller")
    assert host.calls() == ["daemon-reload", "restart nginx"]  # and what did not fail is left alone
    assert host.done("controller") == "nothing to do\n"


def test_the_drop_in_for_workers_of_the_original_is_removed_and_their_uploads_are_counted(host: Host) -> None:
    host.done("bstore", *HOSTS[:2], "--repogen-workers", "1", "--psk-file", "-", given=KEY)
    host.calls()
    drop_in = host.put("/etc/systemd/system/rsync.service.d/reimzul-originals.conf", "[Service]\nBindPaths=/a:/b\n")
    host.at("/srv/reimzul/bstore/originals/c9s.x86_64/hello").mkdir(parents=True)
    code, out, err = host.setup("bstore", "--original-workers", "off")
    assert (code, err) == (0, "warning: --original-workers has no effect any more, and is an error from 0.3 on\n")
    assert not drop_in.exists()
    assert host.calls() == ["daemon-reload", "restart rsync"]
    assert "1 package in /srv/reimzul/bstore/originals will not be published" in out
    assert host.setup("controller", "--original-workers", "on")[0] == 4  # a host has one role, that is all


def test_a_host_with_a_wheel_gets_units_too(host: Host) -> None:
    packaged = host.at("/usr/lib/systemd/system/reimzul-notifier.service")
    packaged.unlink()
    host.done("controller")
    assert "ExecStart=" in host.text("/etc/systemd/system/reimzul-notifier.service")
    assert "start reimzul-notifier" in host.calls()
    assert host.done("controller") == "nothing to do\n"


# --- what others wrote


def test_a_changed_file_is_shown_and_kept_where_nobody_can_be_asked(host: Host) -> None:
    host.done("controller")
    host.calls()
    mine = host.text("/etc/nginx/conf.d/reimzul.conf") + "# a word of mine\n"
    host.put("/etc/nginx/conf.d/reimzul.conf", mine)
    code, out, err = host.setup("controller")
    assert code == 2
    assert "-# a word of mine" in out
    assert "/etc/nginx/conf.d/reimzul.conf; --yes replaces or removes them. Nothing was changed" in err
    assert host.text("/etc/nginx/conf.d/reimzul.conf") == mine
    assert host.calls() == []
    host.done("controller", "--yes")
    assert "a word of mine" not in host.text("/etc/nginx/conf.d/reimzul.conf")
    assert host.calls() == ["restart nginx"]


def test_a_foreign_rsyncd_conf_is_kept_beside_ours(host: Host) -> None:
    host.put("/etc/rsyncd.conf", "[mirror]\npath = /srv/mirror\n")
    assert host.setup("bstore", *HOSTS[:2], "--psk-file", "-", given=KEY)[0] == 2
    host.done("bstore", *HOSTS[:2], "--psk-file", "-", "--yes", given=KEY)
    assert host.text("/etc/rsyncd.conf.before-reimzul") == "[mirror]\npath = /srv/mirror\n"
    assert "[reimzul-bstore]" in host.text("/etc/rsyncd.conf")


def test_a_host_has_one_role(host: Host) -> None:
    host.done("controller")
    code, _, err = host.setup("bstore", *HOSTS[:2], "--psk-file", "-", given=KEY)
    assert code == 4
    assert err == "reimzul: this host is set up as controller (/etc/stunnel/reimzul.conf): a host has one role\n"


def test_a_missing_service_is_named_before_anything_is_written(host: Host) -> None:
    host.at("/usr/lib/systemd/system/nginx.service").unlink()
    before = host.files()
    code, _, err = host.setup("controller")
    assert code == 1
    assert "not installed here: nginx (make install" in err
    assert host.files() == before


# --- what is missing, what is wrong


def test_all_missing_options_are_in_one_line(host: Host) -> None:
    code, out, err = host.setup("builder")
    assert (code, out) == (2, "")
    assert err == (
        "reimzul: missing, and there is no terminal to ask on: --controller HOST, --bstore HOST, "
        "--psk-file FILE (the controller makes the key: docs/install.md)\n"
    )


@pytest.mark.parametrize(
    ("words", "given", "code", "says"),
    [
        (("--controller", "c; rm -rf /", *HOSTS[2:]), KEY, 4, "is not a host name"),
        (("--controller", "-c", *HOSTS[2:]), KEY, 4, "is not a host name"),
        ((*HOSTS, "--name", "b2"), KEY, 4, "the key is not that of b2, but of b1"),
        (HOSTS, "b1", 4, "standard input, line 1: not of the form name:hex"),
        (HOSTS, "", 2, "--psk-file FILE"),
        (HOSTS, KEY + KEY.replace("b1", "b2"), 4, "choose one with --name: b1, b2"),
        ((*HOSTS, "--set", "worker.tries=no"), KEY, 4, "[worker] tries: 'no' is not a whole number"),
        ((*HOSTS, "--mock-configs", "--x"), KEY, 4, "is not where a git repository is"),
        ((*HOSTS, "--workers", "0"), KEY, 2, "is not a whole number from 1 to "),
    ],
)
def test_wrong_input_gets_one_line_and_changes_nothing(
    host: Host, words: tuple[str, ...], given: str, code: int, says: str
) -> None:
    before = host.files()
    ended, _, err = host.setup("builder", *words, "--psk-file", "-", given=given)
    assert ended == code
    assert says in err
    assert "Traceback" not in err
    assert "ab" * 32 not in err
    assert host.files() == before


def test_a_key_file_that_is_not_there(host: Host) -> None:
    code, _, err = host.setup("builder", *HOSTS, "--psk-file", "/nowhere")
    assert (code, err) == (4, "reimzul: /nowhere: no such file or directory\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_root_is_needed() -> None:
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        [*words, "/usr/bin/env", f"PYTHONPATH={Path.cwd()}", sys.executable, "-m", "reimzul.admin.main",
         "setup", "controller"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (3, "reimzul: root is needed: run it with sudo\n")


# --- keys


def test_adding_a_builder_changes_nothing_else(host: Host) -> None:
    host.done("controller")
    host.put("/etc/nginx/conf.d/reimzul.conf", "# somebody's\n")
    host.calls()
    code, out, err = host.setup("controller", "--add-builder", "b3", *HOSTS)
    assert code == 0
    assert re.fullmatch(f"b3:{HEX.pattern}\n", out)
    assert out in host.text(roles.ACCEPTED)
    assert not HEX.search(err)
    peers = "--controller c.example.org --bstore s.example.org"
    assert f"  reimzul setup builder --name b3 {peers} --mock-configs URL --psk-file -\n" in err
    assert "  reimzul setup bstore --add-builder b3 --psk-file -\n" in err
    assert host.calls() == ["reload stunnel@reimzul"]  # nobody is cut off


def test_the_commands_that_are_printed_set_the_others_up(new_host: Callable[[str], Host]) -> None:
    hosts = {name: new_host(name) for name in ("controller", "bstore", "b1")}
    code, lines, shown = hosts["controller"].setup(
        "controller", "--controller", "c.example.org", "--add-bstore", "s.example.org", "--add-builder", "b1",
        "--mock-configs", "https://git.example.org/mock_configs",
    )  # fmt: skip
    assert code == 0
    assert "--mock-configs https://git.example.org/mock_configs" in shown
    commands = dict(re.findall(r"^on (\S+), .*\n  reimzul setup (.*)$", shown, re.MULTILINE))
    assert set(commands) == {"bstore", "b1"}
    hosts["bstore"].done(*commands["bstore"].split(), given=lines)
    hosts["b1"].done(*commands["b1"].split(), given=lines)  # picks its own of them
    accepted = hosts["controller"].text(roles.ACCEPTED)
    assert hosts["b1"].text(roles.OWN_KEY) in accepted
    assert hosts["bstore"].text(roles.OWN_KEY) in accepted
    assert hosts["b1"].text(roles.OWN_KEY) in hosts["bstore"].text(roles.ACCEPTED)
    assert hosts["controller"].text(roles.OWN_KEY) in hosts["bstore"].text(roles.ACCEPTED)
    assert "controller:" not in accepted


# --- the controller's own key, and its way to the store

ADDED = ("controller", "--controller", "c.example.org", "--add-bstore", "s.example.org")


def ways_of(host: Host) -> list[str]:
    """Where a host's stunnel connects to, of other hosts."""
    return re.findall(r"^connect = ((?!127\.)\S+)$", host.text(roles.TUNNELS), re.MULTILINE)


def test_with_bstore_comes_the_way_to_it(host: Host) -> None:
    host.done("controller")
    host.calls()
    code, out, err = host.setup(*ADDED)
    assert (code, [line.partition(":")[0] for line in out.splitlines()]) == (
        0, ["s.example.org", "controller", "events"],
    )  # fmt: skip
    assert not HEX.search(err)
    assert (
        "on bstore, with the lines of s.example.org, controller and events:\n"
        "  reimzul setup bstore --controller c.example.org --name s.example.org --psk-file -\n"
    ) in err
    assert host.text(roles.OWN_KEY) in out
    assert host.at(roles.OWN_KEY).stat().st_mode & 0o777 == 0o600
    assert ways_of(host) == ["s.example.org:11081"]
    # nobody is cut off
    assert host.calls() == ["reload stunnel@reimzul", "reload reimzul-notifier", "reload reimzul-batch"]
    before = host.files()
    assert host.done("controller") == "nothing to do\n"
    assert (host.setup(*ADDED)[0], host.files(), host.calls()) == (4, before, [])


def test_bstore_takes_the_controllers_key_and_the_next_one(new_host: Callable[[str], Host]) -> None:
    controller, bstore = new_host("controller"), new_host("bstore")
    for more in ((), ("--new-key",)):
        lines = controller.done(*ADDED, *more)
        words = ("--controller", "c.example.org", "--name", "s.example.org", "--psk-file", "-")
        bstore.done("bstore", *words, given=lines)
        mine = controller.text(roles.OWN_KEY)
        assert mine in lines
        assert bstore.text(roles.ACCEPTED).count("controller:") == 1
        assert mine in bstore.text(roles.ACCEPTED)
        assert mine not in bstore.text(roles.OWN_KEY)
        before = bstore.files()
        bstore.done("bstore", *words, given=lines)
        assert bstore.files() == before
    assert bstore.done("bstore", "--list") == "controller\n"
    assert ways_of(controller) == ["s.example.org:11081"]


def test_the_controllers_key_alone_is_replaced(new_host: Callable[[str], Host]) -> None:
    controller, bstore = new_host("controller"), new_host("bstore")
    lines = controller.done(*ADDED, "--bstore", "192.0.2.7")
    bstore.done("bstore", *HOSTS[:2], "--name", "s.example.org", "--psk-file", "-", given=lines)
    code, out, err = controller.setup("controller", "--revoke", "controller")
    assert (code, out) == (0, "")
    assert "on bstore:\n  reimzul setup bstore --revoke controller\n" in err
    assert ways_of(controller) == []
    assert not controller.at(roles.OWN_KEY).exists()
    bstore.done("bstore", "--revoke", "controller")
    assert "controller:" not in bstore.text(roles.ACCEPTED)
    code, line, err = controller.setup(*ADDED)
    assert code == 0
    assert re.fullmatch(f"controller:{HEX.pattern}\n", line)
    assert line not in lines
    assert "on bstore, with the line of controller:\n  reimzul setup bstore --psk-file -\n" in err
    own = bstore.text(roles.OWN_KEY)
    bstore.done("bstore", "--psk-file", "-", given=line)
    assert line in bstore.text(roles.ACCEPTED)
    assert bstore.text(roles.OWN_KEY) == own


def test_revoking_the_controllers_own_key_takes_effect_at_once(host: Host) -> None:
    host.done(*ADDED)
    host.calls()
    host.done("controller", "--revoke", "controller")
    assert host.calls() == ["restart stunnel@reimzul"]
    assert host.done("controller") == "nothing to do\n"


def test_bstores_host_is_the_one_given_last(host: Host) -> None:
    host.done(*ADDED, "--bstore", "192.0.2.7")
    assert ways_of(host) == ["192.0.2.7:11081"]
    err = host.setup("controller", "--add-builder", "b1")[2]
    assert "--bstore 192.0.2.7 --mock-configs URL --psk-file -" in err  # known, and printed
    host.done(*ADDED, "--new-key")
    assert ways_of(host) == ["192.0.2.7:11081"]
    host.calls()
    host.done("controller", "--bstore", "s2.example.org")
    assert (ways_of(host), host.calls()) == (["s2.example.org:11081"], ["restart stunnel@reimzul"])


def test_a_controller_without_a_key_of_its_own_takes_no_bstore(host: Host) -> None:
    code, _, err = host.setup("controller", "--bstore", "s.example.org")
    assert code == 2
    assert "--bstore goes with --add-bstore" in err
    assert not host.at(roles.TUNNELS).exists()


@pytest.mark.parametrize(
    "words", [("controller", "--add-builder", "controller"), ("bstore", "--add-builder", "controller", *HOSTS[:2])]
)
def test_no_other_host_is_called_as_the_controllers_key(host: Host, words: tuple[str, ...]) -> None:
    given = f"s:{'ab' * 32}\ncontroller:{'cd' * 32}\n"
    code, _, err = host.setup(*words, "--psk-file", "-", given=given)
    assert code == 4
    assert "'controller' is no name for a builder" in err
    assert "cd" * 32 not in err


def test_the_controllers_key_is_in_no_plan(host: Host) -> None:
    host.done(*ADDED)
    shown = host.done(*ADDED, "--new-key", "--dry-run", "--json") + host.setup(*ADDED, "--new-key", "--dry-run")[2]
    assert host.text(roles.OWN_KEY).partition(":")[2].strip() not in shown
    assert not HEX.search(shown)
    assert roles.OWN_KEY in shown


# --- who comes and goes


def test_a_revoked_host_is_disconnected_at_once(host: Host) -> None:
    host.done("controller", "--add-builder", "b1", "--add-builder", "b2")
    host.calls()
    code, out, err = host.setup("controller", "--revoke", "b1")
    assert (code, out) == (0, "")
    assert "b1:" not in host.text(roles.ACCEPTED)
    assert "b2:" in host.text(roles.ACCEPTED)
    assert host.calls() == ["restart stunnel@reimzul"]
    assert "reimzul setup bstore --revoke b1" in err
    assert host.done("controller", "--list") == "b2\n"
    assert json.loads(host.done("controller", "--list", "--json")) == {"names": ["b2"]}


def test_a_name_that_is_taken_keeps_its_key(host: Host) -> None:
    first = host.done("controller", "--add-builder", "b1")
    code, out, err = host.setup("controller", "--add-builder", "b1")
    assert (code, out) == (4, "")
    assert "b1 has a key already; --new-key" in err
    assert first in host.text(roles.ACCEPTED)
    host.calls()
    code, second, err = host.setup("controller", "--add-builder", "b1", "--new-key")
    assert code == 0
    assert "reimzul setup bstore --add-builder b1 --new-key --psk-file -" in err
    assert second != first
    assert first not in host.text(roles.ACCEPTED)
    assert host.calls() == ["restart stunnel@reimzul"]  # whoever had the first is out


def test_bstore_takes_a_builders_key_and_shuts_it_out_again(host: Host) -> None:
    host.done("bstore", *HOSTS[:2], "--psk-file", "-", given=f"s:{'cd' * 32}\n")
    host.calls()
    assert host.setup("bstore", "--add-builder", "b1")[0] == 2
    host.done("bstore", "--add-builder", "b1", "--psk-file", "-", given=KEY)
    assert KEY in host.text(roles.ACCEPTED)
    host.done("bstore", "--add-builder", "b1", "--psk-file", "-", given=KEY)  # the same again
    assert host.calls() == ["reload stunnel@reimzul"]
    host.done("bstore", "--revoke", "b1")
    assert KEY not in host.text(roles.ACCEPTED)
    assert host.calls() == ["restart stunnel@reimzul"]


def test_a_key_made_elsewhere_is_imported(host: Host, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    assert host.done("controller", "--add-builder", "b1", "--psk-file", str(tmp_path / "keys")) == ""
    assert KEY in host.text(roles.ACCEPTED)


@pytest.mark.parametrize("words", [("--psk-file", "-"), ("--new-key",), ("--json",)])
def test_options_that_mean_nothing_alone_are_refused(host: Host, words: tuple[str, ...]) -> None:
    code, _, err = host.setup("controller", *words)
    assert code == 2
    assert "goes with" in err


@pytest.mark.parametrize("kind", ["--list", "--remove"])
@pytest.mark.parametrize(
    "words",
    [("--add-builder", "b1"), ("--revoke", "b1"), ("--public-url", "http://f.example.org/"), ("--psk-file", "-"),
     ("--set", "worker.max_load=8"), ("--new-event-key",)],
    ids=lambda words: words[0],
)  # fmt: skip
def test_what_lists_or_removes_refuses_all_that_it_would_not_do(host: Host, kind: str, words: tuple[str, ...]) -> None:
    host.done("bstore", *HOSTS[:2], "--psk-file", "-", given=KEY)
    host.calls()
    before = host.files()
    code, out, err = host.setup("bstore", kind, *words, given="no key")
    assert (code, out) == (2, "")
    assert f"{words[0]} has no effect with {kind}: leave it out" in err
    assert (host.files(), host.calls()) == (before, [])


def test_keys_are_listed_while_another_setup_runs(host: Host) -> None:
    host.done("bstore", *HOSTS[:2], "--name", "s", "--psk-file", "-", given=f"s:{'cd' * 32}\ncontroller:{'ef' * 32}\n")
    with apply.lock_setup(System(root=host.root, running=True)):
        assert host.done("bstore", "--list") == "controller\n"
        assert json.loads(host.done("bstore", "--list", "--json")) == {"names": ["controller"]}


def test_keys_are_pasted_unseen(new_host: Callable[[str], Host]) -> None:
    host = new_host("typed")
    ours, theirs = pty.openpty()
    words = [*HOSTS[:2], "--name", "s", "--add-builder", "b1", "--psk-file", "-", "--root", str(host.root)]
    with subprocess.Popen(
        [sys.executable, "-m", "reimzul.admin.main", "setup", "bstore", *words],
        stdin=theirs, stdout=theirs, stderr=theirs,
    ) as typing:  # fmt: skip
        os.close(theirs)
        shown = b""
        while b"ends them:" not in shown:
            shown += os.read(ours, 1024)
        os.write(ours, f"s:{'cd' * 32}\n{KEY}\n".encode())
        while b"for links (empty: none): " not in shown:
            shown += os.read(ours, 1024)
        os.write(ours, b"https://farm.example.org/\n")
        try:
            while more := os.read(ours, 1024):
                shown += more
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert typing.returncode == 0, shown
    assert "ab" * 32 not in shown.decode()
    assert "cd" * 32 not in shown.decode()
    assert host.text(roles.OWN_KEY) == f"s:{'cd' * 32}\n"
    assert KEY in host.text(roles.ACCEPTED)
    assert host.text(roles.PUBLIC_URL) == "https://farm.example.org/\n"


# --- firewalld

FIREWALL = """\
#!/usr/bin/env bash
printf '%s\\n' "$*" >>{log}
case $* in
    --state) exit {state} ;;
    *--query-port=13100/tcp | *--query-port=8081/tcp) exit 0 ;;
    *--query-port=*) exit 1 ;;
esac
"""


@pytest.mark.parametrize("runs", [True, False])
def test_ports_that_are_closed_are_opened_in_firewalld(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    log, program = tmp_path / "firewall", tmp_path / "programs" / "firewall-cmd"
    program.parent.mkdir()
    program.write_text(FIREWALL.format(log=log, state=0 if runs else 252))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    assert program.name == apply._FIREWALL
    host.done("controller")
    added = [line for line in log.read_text().splitlines() if "--add-port" in line]
    assert added == (["--add-port=11080/tcp", "--permanent --add-port=11080/tcp"] if runs else [])
    log.unlink()
    host.done("controller", "--pages-port", "8080")
    added = [line for line in log.read_text().splitlines() if "--add-port=8080/tcp" in line]
    assert len(added) == (2 if runs else 0)
    host.done("controller", "--pages-port", "8081")
    log.unlink()
    host.done("controller", "--pages-port", "0")
    closed = [line for line in log.read_text().splitlines() if "--remove-port" in line]
    assert closed == (["--remove-port=8081/tcp", "--permanent --remove-port=8081/tcp"] if runs else [])
    host.done("controller", "--pages-port", "8081")
    log.unlink()
    host.done("controller", "--remove", "--yes")
    closed = [line for line in log.read_text().splitlines() if "--remove-port" in line]
    ports = (13100, 8081) if runs else ()
    assert closed == [f"{when}--remove-port={port}/tcp" for port in ports for when in ("", "--permanent ")]
