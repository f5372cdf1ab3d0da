# SPDX-License-Identifier: Apache-2.0
"""What this host is in the farm, and that commands which need the controller say so on every other host."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from reimzul.admin.main import COMMANDS, WORK_ANYWHERE
from reimzul.core import config, roles
from reimzul.core.config import load_file
from reimzul.core.errors import InputError
from tests import commands
from tests.terminal import run_on_terminal

TREE = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
#: How the farm's configurations call a host.
NAMES = {"CONTROLLER": "c1.example.org", "BSTORE": "s1.example.org"}
SUBMIT = ["reimzul-submit", "-s", "a-1-1.src.rpm", "-a", "x86_64", "-t", "c9s", "-d", ".el9"]


def make_host(folder: Path, role: str) -> Path:
    """Write the settings of a host, and beside them stunnel's configuration as setup makes it; none for no role."""
    ini = folder / "host.ini"
    (folder / "incoming").mkdir()
    ini.write_text(
        f"[incoming]\nfolder = {folder}/incoming\n[beanstalkd]\nport = 9\n"
        f"[history]\nurl = sqlite:///{folder}/history.sqlite\n"
    )
    if role:
        text = (TREE / "conf" / f"stunnel-{role}.conf").read_text()
        for placeholder, name in NAMES.items():
            text = text.replace(f"connect = {placeholder}:", f"connect = {name}:")
        (folder / "stunnel-host.conf").write_text(text)
    return ini


def run(ini: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program, *rest = words
    argv = [str(PROGRAMS / program), *rest]
    environment = {**os.environ, "REIMZUL_CONFIG": str(ini)}
    return commands.run(argv, env=environment, cwd=ini.parent)


@pytest.mark.parametrize(("role", "own"), [("builder", "a builder"), ("bstore", "bstore")])
@pytest.mark.parametrize("words", [SUBMIT, [*SUBMIT, "--json"], ["reimzul", "builds"], ["reimzul", "builds", "--json"]])
def test_another_host_says_where_to_go(tmp_path: Path, role: str, own: str, words: list[str]) -> None:
    ini = make_host(tmp_path, role)
    (tmp_path / "a-1-1.src.rpm").write_bytes(b"x")
    done = run(ini, *words)
    typed = "reimzul-submit" if words[0] != "reimzul" else "reimzul builds"
    why = f"this host is {own}, not the controller: run `{typed}` on the controller, c1.example.org"
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.splitlines() == [f"{words[0]}: {why}"]
    assert not list((tmp_path / "incoming").iterdir())


def test_a_terminal_is_told_so_too(tmp_path: Path) -> None:
    ini = make_host(tmp_path, "builder")
    argv = [str(PROGRAMS / "reimzul"), "builds"]
    code, said = run_on_terminal(argv, tmp_path, {**os.environ, "REIMZUL_CONFIG": str(ini)})
    assert code == 4
    assert "on the controller, c1.example.org" in said
    assert "No build" not in said


def needed_words(name: str) -> list[str]:
    """What a command cannot be called without."""
    module, attribute, _ = COMMANDS[name]
    command: click.Command = getattr(importlib.import_module(f"reimzul.admin.{module}"), attribute)
    words = []
    for parameter in command.params:
        if parameter.required:
            words += [] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
            words.append("1")
    return words


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WORK_ANYWHERE])
def test_every_command_that_needs_the_controller_says_so(tmp_path: Path, name: str) -> None:
    done = run(make_host(tmp_path, "bstore"), "reimzul", name, *needed_words(name))
    assert done.returncode == 4
    assert f"run `reimzul {name}` on the controller, c1.example.org" in done.stderr


@pytest.mark.parametrize("role", ["controller", ""])
def test_the_controller_and_a_host_without_roles_work_as_before(tmp_path: Path, role: str) -> None:
    ini = make_host(tmp_path, role)
    assert run(ini, "reimzul", "builds", "--json").stdout == "[]\n"
    refused = run(ini, *SUBMIT)
    assert refused.returncode == 4
    assert "not in " in refused.stderr, "the missing source rpm is all that is wrong"


def test_commands_of_bstore_work_there(tmp_path: Path) -> None:
    done = run(make_host(tmp_path, "bstore"), "reimzul", "scratch", "list")
    assert "controller" not in done.stderr


# --- the rule, on an installed host


@pytest.fixture
def enabled_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of which nothing is set up yet; its folder of enabled units."""
    monkeypatch.delenv("REIMZUL_CONFIG", raising=False)
    for module in (config, roles):
        monkeypatch.setattr(module, "DEFAULT_FILE", tmp_path / "reimzul.ini")
    monkeypatch.setattr(roles, "_STUNNEL_FILE", tmp_path / "reimzul.conf")
    monkeypatch.setattr(roles, "ENABLED_UNITS", tmp_path)
    units = tmp_path / "multi-user.target.wants"
    units.mkdir()
    return units


def refusal(folder: Path) -> str:
    try:
        roles.require_controller("`x`", load_file(None), None)
    except InputError as error:
        return str(error)
    return ""


def test_a_single_host_is_its_own_controller(enabled_units: Path) -> None:
    assert not refusal(enabled_units)
    (enabled_units / "reimzul-worker@1.service").touch()
    (enabled_units / "reimzul-repogen-worker@1.service").touch()
    assert not refusal(enabled_units), "without stunnel, and with a beanstalkd of its own"
    (enabled_units / "reimzul-notifier.service").touch()
    (enabled_units.parent / "reimzul.conf").write_text("[rsyncd-server]\naccept = 1\n")
    assert not refusal(enabled_units)


def test_a_builder_without_stunnel_is_known_by_its_units_and_its_beanstalkd(enabled_units: Path) -> None:
    (enabled_units / "reimzul-worker@1.service").touch()
    (enabled_units.parent / "reimzul.ini").write_text("[beanstalkd]\nhost = c2.example.org\n")
    assert refusal(enabled_units).endswith("run `x` on the controller, c2.example.org")


def test_a_stunnel_that_cannot_be_read_leaves_the_name_out(enabled_units: Path) -> None:
    (enabled_units / "reimzul-worker@1.service").touch()
    (enabled_units / "reimzul-repogen-worker@1.service").touch()
    (enabled_units.parent / "reimzul.conf").write_bytes(b"\xff")  # root may read any file
    assert refusal(enabled_units) == "this host is a builder and bstore, not the controller: run `x` on the controller"


def test_a_devfarms_controller_has_no_name_of_its_own(tmp_path: Path) -> None:
    ini = make_host(tmp_path, "builder")
    conf = tmp_path / "stunnel-host.conf"
    conf.write_text(conf.read_text().replace("c1.example.org", "127.0.0.1"))
    with pytest.raises(InputError, match="on the controller$"):
        roles.require_controller("`x`", load_file(ini), ini)
