# SPDX-License-Identifier: Apache-2.0
"""What `reimzul setup` asks and refuses before it changes a host, how it takes a role off, and doctor at its end."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reimzul.admin.doctor import Finding, host, run_checks
from reimzul.admin.setup import apply, roles
from reimzul.admin.setup.apply import ApplyOptions
from reimzul.admin.setup.files import CHECKSUMS_FILE, System
from reimzul.core.config import load_file
from tests.ini import write_ini
from tests.setuphost import Host

HOSTS = ("--controller", "c.example.org", "--bstore", "s.example.org")
KEY = f"b1:{'ab' * 32}\n"
BUILDER = ("builder", *HOSTS, "--workers", "1", "--psk-file", "-")
SITE = "/etc/nginx/sites-enabled/default"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host that runs systemd."""
    host = Host(tmp_path / "host", tmp_path / "host.state", monkeypatch)
    host.systemd()
    return host


# --- host names


@pytest.mark.parametrize(
    "words",
    [
        ("builder", "--controller", "no.such.invalid", "--bstore", "s.example.org", "--psk-file", "-"),
        ("bstore", "--controller", "no.such.invalid", "--psk-file", "-"),
        ("controller", "--add-bstore", "no.such.invalid"),
    ],
)
def test_a_host_name_that_cannot_be_looked_up_is_refused_before_anything_is_written(
    machine: Host, words: tuple[str, ...]
) -> None:
    before = machine.files()
    code, out, err = machine.setup(*words, given="" if words[0] == "controller" else KEY)
    assert (code, out) == (4, "")
    assert re.match(r"reimzul: this host cannot look up no\.such\.invalid \(.+\): correct the name, or add it", err)
    assert (machine.files(), machine.calls()) == (before, [])


def test_a_name_that_stays_is_not_looked_up_again(machine: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.done(*BUILDER, given=KEY)
    monkeypatch.setattr("tests.setuphost.look_up", None)  # asking for any name would fail
    machine.done("builder", "--workers", "2")


# --- a builder's name


def test_another_identity_needs_yes(machine: Host) -> None:
    machine.done(*BUILDER, given=KEY)
    before = machine.files()
    other = KEY.replace("b1", "b2")
    code, _, err = machine.setup(*BUILDER, given=other)
    assert code == 4
    assert err.startswith("reimzul: this host is b1 (/etc/stunnel/reimzul-psk.txt), and would become b2: its builds,")
    assert machine.files() == before
    machine.done(*BUILDER, given=KEY.replace("ab", "cd"))  # another key of the same name is the same host
    machine.done(*BUILDER, "--yes", given=other)
    assert machine.text(roles.OWN_KEY) == other


def test_another_fqdn_needs_yes(machine: Host) -> None:
    machine.done(*BUILDER, "--set", "worker.fqdn=b1.example.org", given=KEY)
    code, _, err = machine.setup("builder", "--set", "worker.fqdn=b2.example.org")
    assert code == 4
    assert "this host is b1.example.org ([worker] fqdn in /etc/reimzul/reimzul.ini), and would become b2" in err
    machine.done("builder", "--set", "worker.fqdn=b1.example.org")
    machine.done("builder", "--set", "worker.fqdn=b2.example.org", "--yes")
    assert "\nfqdn = b2.example.org\n" in machine.text("/etc/reimzul/reimzul.ini")


# --- a site of somebody else's


def test_a_foreign_default_site_is_removed_only_if_a_person_agrees(machine: Host) -> None:
    machine.put("/etc/nginx/sites-available/default", "server { listen 80; root /srv/wiki; }\n")
    code, out, err = machine.setup("controller")
    assert code == 2
    assert f"{SITE}, to be removed:\n-server {{ listen 80; root /srv/wiki; }}\n" in out
    assert f"changed by a person: {SITE}; --yes replaces or removes them. Nothing was changed" in err
    assert machine.at(SITE).is_symlink()
    machine.done("controller", "--yes")
    assert not machine.at(SITE).is_symlink()
    assert machine.at("/etc/nginx/sites-available/default").exists(), "the link alone is removed"


def test_a_foreign_default_site_that_is_no_link_is_kept_as_a_backup(machine: Host) -> None:
    machine.at(SITE).unlink()
    machine.put(SITE, "server { listen 80; root /srv/wiki; }\n")
    assert machine.setup("controller")[0] == 2
    out = machine.done("controller", "--yes")
    assert f"removed {SITE} (backup: /etc/nginx/default.before-reimzul)" in out
    assert "wiki" in machine.text("/etc/nginx/default.before-reimzul")


def test_debians_own_default_site_is_removed_without_a_question(machine: Host) -> None:
    machine.done("controller")
    assert not machine.at(SITE).is_symlink()


# --- keys and the commands for others


def test_keys_have_a_heading_that_says_what_each_is_and_where_it_goes(machine: Host) -> None:
    code, out, err = machine.setup("controller", "--add-bstore", "s.example.org", "--add-builder", "b1")
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()] == ["s.example.org", "b1", "controller", "events"]
    lines = err.splitlines()
    heading = lines.index("Keys, printed this once; keep them secret until they are where they belong:")
    rows = lines[heading + 1 : heading + 5]
    assert [row.split(":…  ")[0].strip() for row in rows] == ["s.example.org", "b1", "controller", "events"]
    assert [row.rpartition(": for ")[2] for row in rows] == ["bstore", "bstore and b1", "bstore", "bstore"]
    assert "on b1, with the line of b1:\n  reimzul setup builder --name b1 " in err
    assert " --mock-configs URL --psk-file -\n" in err
    assert "URL is your git repository of mock's configurations (docs/install-builder.md)\n" in err


def test_the_url_of_mocks_configurations_is_in_the_builders_command(machine: Host) -> None:
    url = "https://git.example.org/mock_configs"
    err = machine.setup("controller", "--add-builder", "b1", "--mock-configs", url)[2]
    assert f" --mock-configs {url} --psk-file -\n" in err
    assert "URL is" not in err
    assert machine.setup("controller", "--add-builder", "b2", "--mock-configs", "--x")[0] == 4


# --- taking a role off


def test_a_builder_is_removed_but_for_what_is_not_setups(machine: Host) -> None:
    machine.done(*BUILDER, given=KEY)
    machine.put("/etc/sysctl.d/90-reimzul.conf", machine.text("/etc/sysctl.d/90-reimzul.conf") + "# mine\n")
    machine.at("/srv/reimzul/results").mkdir(parents=True)
    machine.calls()
    before = machine.files()
    shown = machine.done("builder", "--remove", "--dry-run")
    assert (machine.files(), machine.calls()) == (before, [])
    assert all(line.startswith("would ") for line in shown.splitlines()), shown
    assert "would disable stunnel@reimzul, which stops it\n" in shown
    assert "would remove /etc/stunnel/reimzul-psk.txt\n" in shown
    plan = json.loads(machine.done("builder", "--remove", "--dry-run", "--json"))
    assert set(plan) == {"removed", "kept", "reset", "steps"}
    assert plan["reset"] == []
    code, _, err = machine.setup("builder", "--remove")
    assert (code, machine.files()) == (2, before)
    assert "--remove needs --yes where there is no terminal" in err
    out = machine.done("builder", "--remove", "--yes")
    assert machine.calls() == ["disable --now reimzul-worker@1", "disable --now stunnel@reimzul", "daemon-reload"]
    drop_in = "/etc/systemd/system/stunnel@reimzul.service.d/reimzul.conf"
    for path in (roles.TUNNELS, roles.OWN_KEY, CHECKSUMS_FILE, drop_in):
        assert not machine.at(path).exists(), path
    assert "kept /etc/sysctl.d/90-reimzul.conf: it was changed after setup wrote it\n" in out
    assert "kept /etc/reimzul/reimzul.ini: settings are yours\n" in out
    assert "kept /srv/reimzul: data and logs\n" in out
    assert machine.setup("builder", "--remove", "--yes")[0] == 1, "it is not set up any more"
    machine.done(*BUILDER, "--yes", given=KEY.replace("b1", "b9"))  # and can be anything again


@pytest.mark.parametrize("role", ["controller", "bstore"])
def test_what_setup_wrote_is_gone_after_a_removal(machine: Host, role: str) -> None:
    before = set(machine.files())
    options = {"bstore": (*HOSTS[:2], "--psk-file", "-"), "controller": ("--pages-port", "80")}
    machine.done(role, *options[role], given=KEY)
    machine.calls()
    machine.done(role, "--remove", "--yes")
    assert set(machine.files()) - before == {"etc/reimzul/reimzul.ini"}
    stopped = [call.split()[-1] for call in machine.calls() if call.startswith("disable --now")]
    publishers = [f"reimzul-repogen-worker@{number}" for number in (3, 2, 1)]
    assert (
        stopped
        == {
            "controller": [
                "reimzul-pages",
                "reimzul-batch",
                "reimzul-notifier",
                "stunnel@reimzul",
                "nginx",
                "beanstalkd",
            ],  # fmt: skip
            "bstore": ["reimzul-signer", *publishers, "stunnel@reimzul", "nginx", "rsync"],
        }[role]
    )


def test_nginx_goes_on_where_it_has_other_sites(machine: Host) -> None:
    machine.done("controller")
    machine.put("/etc/nginx/conf.d/wiki.conf", "server { listen 8080; }\n")
    machine.calls()
    machine.done("controller", "--remove", "--yes")
    assert "disable --now nginx" not in machine.calls()
    assert machine.at("/etc/nginx/conf.d/wiki.conf").exists()


def test_a_role_that_the_host_has_not_is_not_removed(machine: Host) -> None:
    machine.done("controller")
    code, _, err = machine.setup("builder", "--remove", "--yes")
    assert code == 4
    assert "this host is set up as controller" in err


def test_a_person_is_asked_before_a_role_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Host(tmp_path / "image", tmp_path, monkeypatch)
    image.done("controller")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "reimzul.admin.main", "setup", "controller", "--remove", "--root", str(image.root)],
        stdin=theirs, stdout=theirs, stderr=theirs,
    ) as asking:  # fmt: skip
        os.close(theirs)
        shown = b""
        while b"from this host?" not in shown:
            shown += os.read(ours, 1024)
        os.write(ours, b"n\n")
        asking.wait(30)
    os.close(ours)
    assert asking.returncode == 1
    assert "would remove /etc/stunnel/reimzul.conf" in shown.decode()
    assert image.at(roles.TUNNELS).exists()


# --- doctor at the end


@pytest.fixture
def patient(tmp_path: Path) -> host.Host:
    """A controller whose incoming/ does not exist, as doctor sees it."""
    ini = write_ini(tmp_path / "doctor.ini", {"incoming": {"folder": tmp_path / "incoming"}})
    return host.find_host(load_file(ini), ini, ("controller",), tmp_path / "no-stunnel.conf")


def failures(patient: host.Host) -> list[Finding]:
    checks = [check for check in host.folder_checks(patient) if check.name == "folder.incoming"]
    return [finding for finding in run_checks(checks) if finding.level == "FAIL"]


def test_setup_ends_with_what_doctor_finds_to_fail(
    machine: Host, patient: host.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def examine(system: System, role: str) -> list[Finding]:
        asked.append(role)
        return failures(patient)

    monkeypatch.setattr(apply, "examine_host", examine)
    monkeypatch.setattr(apply.report_failures, "__defaults__", ((), (0,)))
    code, out, _ = machine.setup("controller")
    folder = patient.settings.incoming.folder
    assert code == 1
    assert out.endswith(
        "reimzul doctor finds 1 failure on this host:\n"
        f"  FAIL  folder.incoming: {folder} does not exist\n"
        f"        -> install -d -o {patient.user} -g {patient.user} {folder}\n"
    )
    assert asked == ["controller", "controller"], "it was asked again before it is believed"
    folder.mkdir()
    code, out, _ = machine.setup("controller")
    assert (code, out) == (0, "nothing to do\n"), "good lines are not shown"
    asked.clear()
    machine.done("controller", "--add-builder", "b1")
    machine.done("controller", "--dry-run")
    assert asked == [], "a change of keys alone, and a dry run, set nothing up"


def test_what_a_store_still_to_be_set_up_lacks_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Finding("FAIL", "b:11081 cannot be reached", "wait", name="link.store")]
    assert not apply.report_failures(lambda: found, ApplyOptions(), ("link.store",), ())
    assert capsys.readouterr().out == ""
    assert apply.report_failures(lambda: found, ApplyOptions(), (), ())


def test_daemons_that_have_just_started_are_waited_for() -> None:
    answers = iter([[Finding("FAIL", "nothing listens", "", name="offer.beanstalkd")], []])
    assert not apply.report_failures(lambda: next(answers), ApplyOptions(), (), (0,))
