# SPDX-License-Identifier: Apache-2.0
"""`reimzul setup` and the key of events: made on the controller, brought to bstore, never left on a builder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from reimzul.admin.setup.psk import EVENT_KEYS as PATH
from reimzul.core.config import parse_settings
from reimzul.core.event_signature import EventKeys
from reimzul.core.message import BuildEvent
from tests.events import event
from tests.setuphost import Host

ADDED = (
    "controller", "--controller", "c.example.org", "--add-bstore", "s.example.org", "--add-builder", "b1",
    "--mock-configs", "https://git.example.org/mock_configs",
)  # fmt: skip
ANY_TIME = 1_800_000_000.0


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Host]:
    """A controller, a bstore and a builder, set up by the commands that the controller printed."""
    hosts = {name: Host(tmp_path / name, tmp_path / f"{name}.state", monkeypatch) for name in ("c", "bstore", "b1")}
    code, lines, shown = hosts["c"].setup(*ADDED)
    assert code == 0, shown
    for name, words in printed_commands(shown).items():
        hosts[name].done(*words, given=lines)
    return hosts


def printed_commands(shown: str) -> dict[str, list[str]]:
    found = re.findall(r"^on (\S+), .*\n  reimzul setup (.*)$", shown, re.MULTILINE)
    return {name: command.split() for name, command in found}


def load_keys(host: Host) -> EventKeys:
    assert parse_settings(host.text("/etc/reimzul/reimzul.ini"), "test").farm.event_keys == Path(PATH)
    assert host.at(PATH).stat().st_mode & 0o7777 == 0o640
    return EventKeys.load(host.at(PATH))


def is_trusted(farm: dict[str, Host]) -> bool:
    """Whether the controller takes what bstore signs for bstore's."""
    verified = load_keys(farm["c"]).verify(load_keys(farm["bstore"]).sign(event("Published")), ANY_TIME)
    assert isinstance(verified, BuildEvent)
    return verified.claimed is False


def test_the_commands_that_are_printed_bring_the_key_to_bstore_alone(farm: dict[str, Host]) -> None:
    assert is_trusted(farm)
    assert not farm["b1"].at(PATH).exists()
    assert parse_settings(farm["b1"].text("/etc/reimzul/reimzul.ini"), "test").farm.event_keys is None
    secret = farm["c"].text(PATH).split(":")[1].strip()
    assert not any(secret in text for text, _ in farm["b1"].files().values())


def test_a_new_key_is_valid_on_the_controller_before_bstore_has_it(farm: dict[str, Host]) -> None:
    old = farm["bstore"].text(PATH)
    code, line, shown = farm["c"].setup("controller", "--new-event-key")
    assert code == 0, shown
    assert re.fullmatch(r"events:2:[0-9a-f]{64}\n", line)
    assert re.fullmatch(rf"{old.strip()}:\d{{4}}-\d\d-\d\d\n{line.removeprefix('events:')}", farm["c"].text(PATH)), (
        "the old key ends by date"
    )
    assert old == farm["bstore"].text(PATH)
    assert printed_commands(shown) == {"bstore": ["bstore", "--new-event-key", "--psk-file", "-"]}
    farm["bstore"].done(*printed_commands(shown)["bstore"], given=line)
    assert farm["bstore"].text(PATH) == line.removeprefix("events:")
    assert is_trusted(farm)


def test_repogen_and_the_notifier_are_reloaded_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path / "c", tmp_path / "c.state", monkeypatch)
    host.systemd()
    host.done(*ADDED)
    host.calls()
    line = host.done("controller", "--new-event-key")
    assert host.calls() == ["reload reimzul-notifier"]
    store = Host(tmp_path / "s", tmp_path / "s.state", monkeypatch)
    store.systemd()
    given = f"s:{'cd' * 32}\nevents:1:{'ab' * 32}\n"
    store.done("bstore", "--controller", "c", "--psk-file", "-", "--repogen-workers", "2", given=given)
    store.calls()
    store.done("bstore", "--new-event-key", "--psk-file", "-", given=line)
    assert store.calls() == [f"reload reimzul-repogen-worker@{number}" for number in (1, 2)]
    store.done("bstore", "--new-event-key", "--psk-file", "-", given=line)
    assert store.calls() == []


def test_setting_a_host_up_again_changes_no_key(farm: dict[str, Host]) -> None:
    before = {name: farm[name].files() for name in ("c", "bstore")}
    farm["c"].done("controller")
    farm["bstore"].done("bstore")
    assert {name: farm[name].files() for name in ("c", "bstore")} == before


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("", "there is no line events:number:hex among the keys given: the controller makes it"),
        ("events:1:ab\n", "standard input, line 1: not of the form events:number:hex, with 64 hex digits"),
        (f"events:1:{'ab' * 32}\nevents:2:{'cd' * 32}\n", "standard input, line 2: a second key of events"),
    ],
)
def test_a_wrong_line_is_refused_and_nothing_changes(farm: dict[str, Host], given: str, fault: str) -> None:
    before = farm["bstore"].text(PATH)
    code, _, shown = farm["bstore"].setup("bstore", "--new-event-key", "--psk-file", "-", given=given)
    assert (code, fault in shown) == (4, True), shown
    assert "abab" not in shown
    assert farm["bstore"].text(PATH) == before


def test_settings_that_name_a_removed_file_are_reset_with_the_role(farm: dict[str, Host]) -> None:
    host, ini = farm["c"], "/etc/reimzul/reimzul.ini"
    host.done("controller", "--mqtt", "--controller", "c.example.org", "--set", "mqtt.topic=el9", "--yes")
    settings = parse_settings(host.text(ini), "test")
    assert (settings.farm.event_keys, settings.mqtt.notifications) == (Path(PATH), True)
    assert f"would reset [farm] event_keys in {ini}\n" in host.done("controller", "--remove", "--dry-run")
    planned = json.loads(host.done("controller", "--remove", "--dry-run", "--json"))["reset"]
    assert set(planned) == {
        "farm.event_keys", "mqtt.notifications", "mqtt.ca_cert", "mqtt.tls_cert", "mqtt.tls_key", "irc.mqtt_cert",
        "irc.mqtt_key",
    }  # fmt: skip
    assert f"reset [farm] event_keys in {ini}\n" in host.done("controller", "--remove", "--yes")
    settings = parse_settings(host.text(ini), "test")
    assert (settings.farm.event_keys, settings.mqtt.ca_cert, settings.irc.mqtt_key) == (None, None, None)
    assert not settings.mqtt.notifications
    assert settings.mqtt.topic == "el9", "the others stay"
