# SPDX-License-Identifier: Apache-2.0
"""The command blocks of the original's README, run as they are written on a machine where `make install` was run.

The machine is this one with folders of the test's own (private.py); bash, systemctl's enabling, systemd-analyze,
beanstalkd and the installed programs are real.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from reimzul.core.beanstalk import PRIORITY, Broker, arch_tube
from reimzul.core.message import BuildRequest
from tests.acceptance.private import PrivateMachine
from tests.conftest import Beanstalkd
from tests.srpms import compiled, make_srpm

CHECKOUT = Path(__file__).parents[2]
BLOCKS = CHECKOUT / "tests/samples/original-readme-blocks.md"
SRPM = "time-1.7-45.el7.src.rpm"

pytestmark = pytest.mark.slow


def block(title: str) -> str:
    """The block that stands under a title, as it is written."""
    found = re.search(rf"^## {re.escape(title)}\n```\n(.*?)^```$", BLOCKS.read_text(), re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


@pytest.fixture(scope="module")
def machine(internet: None, tmp_path_factory: pytest.TempPathFactory) -> PrivateMachine:
    """A machine on which Reimzul was installed."""
    machine = PrivateMachine(tmp_path_factory.mktemp("machine"), CHECKOUT)
    done = machine.run("tools/install --no-packages")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "installed reimzul[controller,irc]" in done.stdout
    return machine


def as_written(machine: PrivateMachine, title: str) -> str:
    """Run a block, every command of which has to succeed; what it printed."""
    done = machine.run(f"set -e\n{block(title)}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_installing_again_changes_nothing(machine: PrivateMachine) -> None:
    ini = machine.resolve("/etc/reimzul/reimzul.ini")
    ini.write_text(ini.read_text() + "# a word of the administrator's\n")
    before = ini.read_text()
    done = machine.run("tools/install --role controller --no-packages")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if " made " in line or " linked " in line] == []
    assert ini.read_text() == before


@pytest.mark.parametrize(
    ("role", "asked_for", "not_asked_for"),
    [("bstore", "createrepo", "beanstalkd"), ("controller", "beanstalkd", "createrepo")],
)
def test_what_a_role_lacks_is_installed_by_the_distribution(
    machine: PrivateMachine, role: str, asked_for: str, not_asked_for: str
) -> None:
    """The machine has all; so what two roles need is hidden, and the part that would install writes down for what."""
    done = machine.run(
        "folder=$(mktemp -d); printf '#!/bin/bash\necho asked: \"$@\"; exit 9\n' >$folder/setup\n"
        "mount --bind $folder/setup tools/setup; rm -r $folder\n"
        "for program in createrepo_c beanstalkd; do mount --bind /dev/null $(command -v $program); done\n"
        f"tools/install --role {role}"
    )
    assert done.returncode == 9
    (asked,) = [line for line in done.stdout.splitlines() if line.startswith("asked:")]
    assert asked.startswith("asked: --install ")
    assert asked_for in asked
    assert not_asked_for not in asked


def test_wrong_usage_of_the_installer_is_said(machine: PrivateMachine) -> None:
    for words, said in (
        ("--role", "--role needs a role"),
        ("--role mirror", "unknown role 'mirror'"),
        ("--packages", "unknown argument '--packages'"),
    ):
        done = machine.run(f"tools/install {words}")
        assert done.returncode == 2
        assert said in done.stderr


def test_what_is_installed_elsewhere_names_its_own_programs(machine: PrivateMachine, tmp_path: Path) -> None:
    done = machine.run(f"DESTDIR={tmp_path} PREFIX=/usr tools/install --role builder")
    assert done.returncode == 0, done.stdout + done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith("install: needs from "), "said before anything is done"
    assert " attrs click greenstalk pyyaml " in first
    units = tmp_path / "usr/lib/systemd/system"
    assert {path.name for path in units.iterdir()} == {
        path.name for kind in ("service", "target", "timer") for path in (CHECKOUT / "systemd").glob(f"*.{kind}")
    }
    for unit in units.iterdir():
        assert "/usr/local" not in unit.read_text()
    assert "ExecStart=/usr/bin/reimzul-worker\n" in (units / "reimzul-worker@.service").read_text()
    assert (tmp_path / "usr/lib/sysusers.d/reimzul.conf").exists()
    assert (tmp_path / "usr/lib/tmpfiles.d/reimzul.conf").exists()
    conf = {path.name for path in (tmp_path / "usr/share/doc/reimzul/conf").iterdir()}
    assert conf == {path.name for path in (CHECKOUT / "conf").iterdir()}
    assert (tmp_path / "srv/reimzul/notifier").stat().st_mode & 0o7777 == 0o2750


def test_what_is_installed_belongs_to_whom_it_should(machine: PrivateMachine) -> None:
    done = machine.run(
        "stat -c '%n %U %a' /srv/reimzul/{code,incoming,bstore,results,mock_configs,notifier} "
        "/var/log/reimzul /etc/reimzul/reimzul.ini; reimzul config check"
    )
    owners = dict(line.split(None, 1) for line in done.stdout.splitlines() if line.startswith(("/srv", "/var")))
    writable = [path for path, owner in owners.items() if owner.startswith("reimzul")]
    assert set(owners) - set(writable) <= {"/srv/reimzul/code"}, done.stdout
    assert "/etc/reimzul/reimzul.ini: no faults" in done.stdout


def test_man_pages_and_completions_are_installed(machine: PrivateMachine) -> None:
    share = machine.resolve("/usr/local/share")
    pages = {path.name for path in share.glob("man/man?/*")}
    assert pages >= {"reimzul.1", "reimzul-builds.1", "reimzul-worker.8", "reimzul.ini.5", "reimzul-wire.7"}
    assert (share / "zsh/site-functions/_reimzul-submit").read_text().startswith("#compdef reimzul-submit\n")
    done = machine.run(
        "source /usr/local/share/bash-completion/completions/reimzul-submit 2>/dev/null; complete -p reimzul-submit\n"
        "COMP_WORDS=(reimzul-submit --scr) COMP_CWORD=1; compopt() { :; }\n"
        "_reimzul_submit_completion reimzul-submit; echo ${COMPREPLY[@]}"
    )
    assert done.stdout.splitlines() == ["complete -o nosort -F _reimzul_submit_completion reimzul-submit", "--scratch"]


def test_a_file_in_the_place_of_a_link_is_kept(machine: PrivateMachine) -> None:
    done = machine.run(
        "link=/srv/reimzul/code/reimzul_submit.py\n"
        "rm $link; echo the original >$link; tools/install --no-packages; cat $link.original"
    )
    assert done.returncode == 0, done.stderr
    assert "kept what was there as /srv/reimzul/code/reimzul_submit.py.original" in done.stdout
    assert done.stdout.endswith("the original\n")
    assert machine.resolve("/srv/reimzul/code/reimzul_submit.py").is_symlink()


@pytest.mark.parametrize(
    ("title", "units"),
    [
        ("One notifier", ["reimzul-notifier.service"]),
        ("Four workers", [f"reimzul-worker@{number}.service" for number in (1, 2, 3, 4)]),
        ("Three repogen workers", [f"reimzul-repogen-worker@{number}.service" for number in (1, 2, 3)]),
        ("One signer", ["reimzul-signer.service"]),
    ],
)
def test_units_are_copied_and_enabled(machine: PrivateMachine, title: str, units: list[str]) -> None:
    before = len(machine.systemctl_calls())
    as_written(machine, title)
    system = machine.resolve("/etc/systemd/system")
    for unit in units:
        template = re.sub(r"@\d+", "@", unit)
        enabled = system / "multi-user.target.wants" / unit
        assert enabled.readlink() == Path("/etc/systemd/system") / template
        assert (system / template).read_text() == (CHECKOUT / "systemd" / template).read_text()
    enabling = [f"enable {unit.removesuffix('.service')} --now" for unit in units]
    assert machine.systemctl_calls()[before:] == ["daemon-reload", *enabling]


def test_systemd_finds_no_fault_with_the_units(machine: PrivateMachine) -> None:
    units = ["reimzul-notifier", "reimzul-worker@1", "reimzul-repogen-worker@1", "reimzul-signer", "reimzul-irc"]
    done = machine.run(
        "cp systemd/*.service /etc/systemd/system/\n"
        + shlex.join(["systemd-analyze", "verify", *(f"{unit}.service" for unit in units)])
    )
    ours = [line for line in done.stderr.splitlines() if "reimzul" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


@pytest.mark.parametrize("unit", sorted(path.name for path in (CHECKOUT / "systemd").glob("*.service")))
def test_a_unit_starts_an_installed_program(machine: PrivateMachine, unit: str) -> None:
    found = re.search(r"^ExecStart=(\S+)", (CHECKOUT / "systemd" / unit).read_text(), re.MULTILINE)
    assert found
    done = machine.run(f"{found[1]} --version")
    assert done.stdout.startswith(f"{Path(found[1]).name} "), done.stderr


def test_a_source_rpm_is_submitted_to_several_arches(
    own_network: None, machine: PrivateMachine, beanstalkd: Beanstalkd, broker: Broker, tmp_path: Path
) -> None:
    spec = compiled("time", version="1.7").replace("Release: 1%{?dist}", "Release: 45.el7")
    made = make_srpm(tmp_path, "time", spec)
    assert made.name == SRPM
    (machine.resolve("/srv/reimzul/incoming") / SRPM).write_bytes(made.read_bytes())
    ini = machine.resolve("/etc/reimzul/reimzul.ini")
    ini.write_text(ini.read_text().replace("port = 11300", f"port = {beanstalkd.port}"))

    said = as_written(machine, "Submit one source rpm to several arches").splitlines()

    tubes = {"x86_64": "x86_64", "aarch64": "aarch64", "armhfp": "armv7l"}
    assert len(said) == len(tubes)
    for line, (arch, tube) in zip(said, tubes.items()):
        request = take_request(broker, tube)
        assert (request.srpm, request.arch, request.disttag) == (SRPM, arch, ".el7")
        assert (request.target, request.scratch) == (f"c7.1708.u.{arch}", False)
        assert line.split("\t") == [request.build_id, arch, request.target, SRPM]


def take_request(broker: Broker, tube: str) -> BuildRequest:
    """The one request that waits in a tube, at the original's priority."""
    broker.watch([tube])
    claim = broker.reserve({tube: arch_tube(tube)}, 1)
    assert claim is not None, f"nothing waits in {tube}"
    assert claim.stats.priority == PRIORITY
    claim.delete()
    assert broker.tube_stats(tube).ready == 0
    return claim.message


def test_without_arguments_the_client_prints_its_help(machine: PrivateMachine) -> None:
    done = machine.run("/srv/reimzul/code/reimzul_submit.py")
    assert (done.returncode, done.stdout) == (2, "")
    options = set(re.findall(r"(?<![\w-])--?[a-z]+\b", block("The client's usage")))
    assert options == {"-h", "-s", "-a", "-t", "-d", "--help", "--srpm", "--arch", "--target", "--disttag", "--now",
                       "--scratch"}  # fmt: skip
    assert {option for option in options if not re.search(rf"(?<![\w-]){option}\b", done.stderr)} <= {"-h"}


def test_the_clients_help_can_be_had_by_its_short_name(machine: PrivateMachine) -> None:
    done = machine.run("/srv/reimzul/code/reimzul_submit.py -h")
    assert (done.returncode, done.stderr) == (0, "")
