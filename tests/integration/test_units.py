# SPDX-License-Identifier: Apache-2.0
"""The units, by systemd's own judgement: no fault, no more exposed than they have to be, and what they promise."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNITS = sorted(path.name for path in SYSTEMD.glob("*.service"))
#: Those that a timer starts end by themselves.
DAEMONS = [unit for unit in UNITS if not (SYSTEMD / unit).with_suffix(".timer").exists()]
BIN = Path(sys.executable).parent
#: What implies NoNewPrivileges= in a unit with User= (systemd.exec(5)), with which mock could not become root.
IMPLYING = {
    "NoNewPrivileges", "DynamicUser", "LockPersonality", "MemoryDenyWriteExecute", "PrivateDevices", "ProtectClock",
    "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "RestrictAddressFamilies",
    "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallFilter",
    "SystemCallLog",
}  # fmt: skip


def settings(unit: str) -> dict[str, str]:
    """A unit's settings; of one given several times, all."""
    told: dict[str, str] = {}
    for key, text in re.findall(r"^(\w+)=(.*)$", (SYSTEMD / unit).read_text(), re.MULTILINE):
        told[key] = f"{told[key]} {text}" if key in told else text
    return told


@pytest.fixture
def installed_units(tmp_path: Path) -> Path:
    """A folder with the units as they would be had the programs been installed here."""
    for path in [*SYSTEMD.glob("*.service"), *SYSTEMD.glob("*.target"), *SYSTEMD.glob("*.timer")]:
        text = path.read_text()
        quoted = re.sub(r"^ExecStart=/usr/local/bin/(\S+)", rf'ExecStart="{BIN}/\1"', text, flags=re.MULTILINE)
        (tmp_path / path.name).write_text(quoted)
    return tmp_path


def test_systemd_finds_no_fault(installed_units: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", *sorted(installed_units.iterdir())], capture_output=True, text=True, check=False
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "reimzul" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("unit", UNITS)
def test_no_unit_is_more_exposed_than_it_has_to_be(unit: str) -> None:
    most = 80 if unit == "reimzul-worker@.service" else 30  # tenths: the worker's mock becomes root
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", "--no-pager", SYSTEMD / unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_worker_may_start_what_becomes_root() -> None:
    assert not IMPLYING & settings("reimzul-worker@.service").keys()


@pytest.mark.parametrize("unit", DAEMONS)
def test_a_unit_is_watched_comes_back_and_is_stopped_with_the_others(unit: str) -> None:
    told = settings(unit)
    expected = {
        "Type": "notify", "NotifyAccess": "main", "User": "reimzul", "Restart": "always", "KillMode": "mixed",
        "StartLimitIntervalSec": "0", "RestartPreventExitStatus": "2 3", "PartOf": "reimzul.target",
        "ExecReload": "/bin/kill -USR1 $MAINPID", "WantedBy": "multi-user.target reimzul.target",
        "ProtectSystem": "strict",
    }  # fmt: skip
    assert {key: told.get(key) for key in expected} == expected
    assert {"WatchdogSec", "TimeoutStopSec"} <= told.keys()
    assert {"network-online.target", "reimzul.target"} <= set(told["After"].split())


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_may_write_where_its_settings_defaults_are(unit: str) -> None:
    needed = {
        "reimzul-irc.service": set(),
        "reimzul-metrics.service": {"/srv/reimzul/notifier"},
        "reimzul-batch.service": {"/srv/reimzul/notifier", "/srv/reimzul/incoming"},
        "reimzul-notifier.service": {"/srv/reimzul/notifier", "/srv/reimzul/incoming", "/var/log/reimzul"},
        "reimzul-pages.service": {"/srv/reimzul/pages", "/srv/reimzul/notifier"},
        "reimzul-repogen-worker@.service": {"/srv/reimzul/bstore", "/var/log/reimzul"},
        "reimzul-signer.service": {"/srv/reimzul/bstore", "/var/log/reimzul"},
        "reimzul-worker@.service": {
            "/srv/reimzul/results", "/srv/reimzul/mock_configs", "/var/log/reimzul",
            "/var/lib/mock", "/var/cache/mock", "/var/lib/containers", "/run",
        },
    }  # fmt: skip
    may = {word.lstrip("-") for word in settings(unit).get("ReadWritePaths", "").split()}
    assert may == needed[unit]
    made = (SYSTEMD / "reimzul.tmpfiles").read_text().split()
    assert {path for path in may if "reimzul" in path} <= set(made)


def test_the_user_and_its_folders_are_as_systemd_reads_them(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for lines in ("reimzul.sysusers", "reimzul-builder.sysusers"):
        subprocess.run(["systemd-sysusers", f"--root={tmp_path}", SYSTEMD / lines], check=True, capture_output=True)
    (user,) = re.findall(r"^reimzul:.*$", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    assert user.split(":")[5] == "/srv/reimzul"
    assert user.endswith("nologin")
    assert re.search(r"^reimzul-store:", (tmp_path / "etc/group").read_text(), re.MULTILINE)
    assert re.search(r"^mock:.*:reimzul$", (tmp_path / "etc/group").read_text(), re.MULTILINE)


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    """What it makes, it makes with an owner, which only root can give: here all belongs to whoever runs this."""
    own = tmp_path / "own.conf"
    own.write_text(re.sub(r":(root|reimzul)", "-", (SYSTEMD / "reimzul.tmpfiles").read_text()))
    there = tmp_path / "root/srv/reimzul/incoming"
    there.mkdir(parents=True)
    there.chmod(0o700)
    subprocess.run(["systemd-tmpfiles", "--create", f"--root={tmp_path}/root", own], check=True)
    assert there.stat().st_mode & 0o7777 == 0o700
    assert (tmp_path / "root/srv/reimzul/notifier").stat().st_mode & 0o7777 == 0o2750
    shutil.rmtree(tmp_path / "root")


def test_only_repogen_and_the_notifier_may_read_the_keys_of_events() -> None:
    readers = {unit for unit in UNITS if settings(unit).get("SupplementaryGroups") == "reimzul-store"}
    assert readers == {"reimzul-repogen-worker@.service", "reimzul-notifier.service"}
