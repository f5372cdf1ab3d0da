# SPDX-License-Identifier: Apache-2.0
"""Who submits, and which names may be written while workers of 0.1 are in a farm."""

from __future__ import annotations

import getpass
import os
from typing import Any

import pytest

from reimzul.core import cli
from reimzul.core.beanstalk_stats import TubeStats
from reimzul.core.errors import InputError
from reimzul.core.message import WorkerHeartbeat
from reimzul.history.workers import all_accept_any_name, is_plain

USER_VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")


@pytest.mark.parametrize("name", ["johnny", "CORP\\jdoe", "John Doe", "José", "a@example.org"])
def test_a_users_name_is_kept_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", name)
    assert cli.current_user() == name


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a\u202eb", "-o", "x" * 65])
def test_a_users_name_that_could_harm_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", name)
    with pytest.raises(InputError, match=r"cannot be used: .* \(set another in \$LOGNAME\)") as refused:
        cli.current_user()
    assert str(refused.value).isprintable()


def test_who_calls_sudo_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "root")
    monkeypatch.setenv("SUDO_USER", "CORP\\jdoe")
    assert cli.current_user() == "root", "as the original has it"


def test_an_empty_name_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in USER_VARIABLES:
        monkeypatch.setenv(variable, "")
    assert cli.current_user() == getpass.getuser() != ""
    monkeypatch.setenv("LOGNAME", "  ")
    assert cli.current_user() == f"uid{os.getuid()}"


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 4711"), OSError("No username set")])
def test_a_user_that_no_table_has_is_known_by_number(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", raise_error)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert cli.current_user() == "uid4711"
    assert is_plain("uid4711")


class Tubes:
    """A broker that counts who watches."""

    def __init__(self, **watchers: int) -> None:
        self.watchers = {name.replace("_", "."): count for name, count in watchers.items()}

    def list_tubes(self) -> list[str]:
        return list(self.watchers)

    def tube_stats(self, name: str) -> TubeStats:
        return TubeStats(name, watchers=self.watchers.get(name, 0))


def make_worker(version: str, host: str = "b1") -> WorkerHeartbeat:
    return WorkerHeartbeat(host=host, instance="1", state="idle", arches=("x86_64",), version=version)


@pytest.mark.parametrize(
    ("workers", "tubes", "taken"),
    [
        ([], {}, True),
        ([make_worker("0.2.0")], {"host_b1": 1}, True),
        ([make_worker("0.2.0"), make_worker("0.1.0", "b2")], {"host_b1": 1}, False),
        ([make_worker("0.2.0")], {"host_b1": 1, "host_b2": 1}, False),  # it says nothing of itself
        ([make_worker("0.2.0")], {"host_b1": 1, "host_b2": 0, "x86_64": 1}, True),
        ([make_worker("")], {}, False),
        ([make_worker("1.0")], {}, True),
        ([make_worker("0.10.3")], {}, True),
        ([make_worker("0.2.0.dev3")], {}, True),
        ([make_worker("unknown")], {}, False),
    ],
)
def test_any_name_is_written_once_every_worker_takes_it(
    workers: list[WorkerHeartbeat], tubes: dict[str, int], taken: bool
) -> None:
    broker: Any = Tubes(**tubes)
    assert all_accept_any_name(broker, workers) is taken
