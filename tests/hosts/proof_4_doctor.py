# SPDX-License-Identifier: Apache-2.0
"""Each link and each part broken in turn: doctor names the one that is broken, and no other."""

from __future__ import annotations

import contextlib
import re

import attr
import pytest

from tests.hosts.farm import Diagnosis, Farm
from tests.remedies import commands_of
from tests.waiting import until

_LINKS = frozenset({"link.beanstalkd", "link.incoming", "link.rsyncd", "link.store"})
_OF_CONTROLLER, _OF_BSTORE = frozenset({"link.beanstalkd", "link.incoming"}), frozenset({"link.rsyncd", "link.store"})
_FULL = "mount -t tmpfs -o size=16m,mode=777 full /srv/reimzul/results"
_FREE = "umount /srv/reimzul/results"
_PSK = "/etc/stunnel/reimzul-psk.txt"
_ANEW = "systemctl restart 'reimzul-*'"
_INI = "/etc/reimzul/reimzul.ini"


@attr.frozen
class Case:
    """One thing that is broken."""

    broken: str  #: on which machine
    by: str
    mended: str
    asked: str  #: whose doctor is asked
    failed: frozenset[str]  #: what it has to name, and nothing else
    words: str = ""  #: what it says of the first of them
    prefix: str = ""  #: before doctor's command line
    may: frozenset[str] = frozenset()  #: what may follow from it, by what the farm is at
    followed: bool = False  #: its remedies, run as they are printed, repair it


def _stop(machine: str, unit: str, asked: str, *failed: str, words: str = "") -> Case:
    by, mended = f"systemctl stop {unit}", f"systemctl start {unit}"
    return Case(machine, by, mended, asked, frozenset(failed), words, followed=True)


def _set(machine: str, setting: str, *failed: str, words: str = "") -> Case:
    role = "builder" if machine == "b1" else machine
    # it ends with doctor, who finds what is broken
    by = f"cp -p {_INI} {_INI}.kept && reimzul setup {role} --set {setting} || [ $? = 1 ]"
    return Case(machine, by, f"mv {_INI}.kept {_INI} && {_ANEW}", machine, frozenset(failed), words)


CASES = {
    "stunnel of the builder": _stop(
        "b1", "stunnel@reimzul", "b1", *_LINKS, "unit.stunnel@reimzul", words="stunnel does not run on this host"
    ),
    "stunnel of the controller, seen by a builder": _stop("controller", "stunnel@reimzul", "b1", *_OF_CONTROLLER),
    "stunnel of the controller, seen by bstore": _stop("controller", "stunnel@reimzul", "bstore", "link.beanstalkd"),
    "stunnel of bstore": _stop("bstore", "stunnel@reimzul", "b1", *_OF_BSTORE),
    "stunnel of bstore, on it": _stop(
        "bstore", "stunnel@reimzul", "bstore",
        "link.beanstalkd", "offer.rsyncd", "offer.store", "unit.stunnel@reimzul",
    ),
    "beanstalkd, seen by a builder": _stop("controller", "beanstalkd", "b1", "link.beanstalkd"),
    "beanstalkd, on the controller": _stop(
        "controller", "beanstalkd", "controller", "link.beanstalkd", "offer.beanstalkd", "unit.beanstalkd"
    ),
    "nginx of the controller": _stop("controller", "nginx", "b1", "link.incoming"),
    "nginx of bstore": _stop("bstore", "nginx", "b1", "link.store"),
    "nginx of bstore, seen by the controller": _stop("bstore", "nginx", "controller", "link.store"),
    "rsyncd": _stop("bstore", "rsync", "b1", "link.rsyncd"),
    "a worker": _stop("b1", "reimzul-worker@2", "b1", "unit.reimzul-worker"),
    "the notifier": attr.evolve(
        _stop("controller", "reimzul-notifier", "controller", "unit.reimzul-notifier"),
        may=frozenset({"tubes.watched"}),
    ),
    "the signer": _stop("bstore", "reimzul-signer", "bstore", "unit.reimzul-signer"),
    "a wrong key": Case(
        "b1",
        f"cp -p {_PSK} {_PSK}.kept && sed -i 's/:..../:0000/' {_PSK} && systemctl restart stunnel@reimzul",
        f"mv {_PSK}.kept {_PSK} && systemctl restart stunnel@reimzul",
        "b1", _LINKS, words="key",
    ),
    "a clock": Case(
        "b1", "apt-get install faketime", "true", "b1", frozenset({"clock.controller", "clock.bstore"}),
        prefix="faketime -f +10m",
    ),
    "a full disk": Case("b1", _FULL, _FREE, "b1", frozenset({"disk.results"})),
    "inodes": Case("b1", _FULL.replace("size=16m", "nr_inodes=1000"), _FREE, "b1", frozenset({"disk.results"})),
    "mock": _set("b1", "worker.mock=no-such-mock", "mock"),
    "mock's configurations": Case(
        "b1", "mv /srv/reimzul/mock_configs /srv/reimzul/away", "mv /srv/reimzul/away /srv/reimzul/mock_configs",
        "b1", frozenset({"configs"}),
    ),
    "a folder of another's": Case(
        "bstore", "chown root /srv/reimzul/bstore/spool", "chown reimzul /srv/reimzul/bstore/spool",
        "bstore", frozenset({"store"}),
    ),
    "the history": Case(
        "controller", "chmod 0 /srv/reimzul/notifier/history.sqlite", "chmod 644 /srv/reimzul/notifier/history.sqlite",
        "controller", frozenset({"history"}),
    ),
    "the mail server": _set("controller", "mail.notifications=true", "mail"),
    "the MQTT broker": _stop("controller", "mosquitto", "controller", "mqtt", "unit.mosquitto"),
    "the broker's certificates": Case(
        "controller", "apt-get install faketime", "true", "controller",
        frozenset({"certificate.mqtt.tls_cert", "mqtt"}), prefix="faketime -f +6y",
        may=frozenset({"clock.bstore"}),
    ),
}  # fmt: skip


def test_mqtt(farm: Farm) -> None:
    """reimzul setup controller --mqtt is a broker, its certificates, and a doctor who is content with them."""
    farm.controller.run("reimzul setup controller --mqtt")
    until(lambda: farm.doctor("controller").failed == [], 60, "doctor is content")
    assert {"mqtt", "certificate.mqtt.broker"} <= {check["name"] for check in farm.doctor("controller").checks}


@pytest.mark.parametrize("name", CASES)
def test_broken(farm: Farm, name: str) -> None:
    """doctor names what is broken, and nothing else"""
    case = CASES[name]
    machine = farm[case.broken]
    machine.run(case.by)
    found: Diagnosis | None = None

    def is_named() -> bool:
        nonlocal found
        found = farm.doctor(case.asked, prefix=case.prefix)
        return case.failed <= set(found.failed) <= case.failed | case.may

    try:
        # a unit may be about to reload its settings
        with contextlib.suppress(AssertionError):
            until(is_named, 45, "it is named")
    finally:
        if case.followed and found:
            _follow(farm, case, found)
        machine.run(case.mended)
    assert found is not None
    assert set(found.failed) - case.may == case.failed, found.text
    assert found.code == 1
    assert case.words in found.words(sorted(case.failed)[0]), found.text


def _follow(farm: Farm, case: Case, found: Diagnosis) -> None:
    """Do what doctor says, where it says, until it has nothing to say."""
    for name in sorted(case.failed):
        for place, command in commands_of(found.remedy(name)):
            where = place.partition(".")[0] or case.asked
            done = farm[where].run(command, check=False, timeout=300)
            assert done.code == 0, f"{name}: {command} on {where}: {done.said}"
    until(lambda: farm.doctor(case.asked).failed == [], 60, f"{case.asked} is mended by what its doctor says")


def test_new_key(farm: Farm) -> None:
    """A builder whose key has another secret: the commands that doctor names, and those they print, let it in again."""
    builder = farm["b1"]
    builder.run(f"sed -i 's/:..../:0000/' {_PSK} && systemctl restart stunnel@reimzul")
    until(lambda: set(farm.doctor("b1").failed) == _LINKS, 45, "the key is refused")
    (place, command), *_ = commands_of(farm.doctor("b1").remedy("link.beanstalkd"))
    done = farm[place].run(command)
    printed = dict(re.findall(r"^on (\S+), .*\n  (reimzul setup .*)$", done.said, re.MULTILINE))
    assert list(printed) == ["bstore", "b1"], done.said
    for name, line in printed.items():
        farm[name].run(line.replace(" --mock-configs URL", ""), stdin=done.out, timeout=300)
    until(lambda: farm.doctor("b1").failed == [], 60, "it is let in again")


_CHECKOUT = "/srv/reimzul/mock_configs"
#: Faults of a host that systemd has no part in, and the finding that names each.
BROKEN = {
    "a folder that is missing": ("b1", "mv /srv/reimzul/results /srv/reimzul/away", "folder.results"),
    "the group of the event key": ("controller", "chgrp reimzul /etc/reimzul/event-keys", "events.key"),
    "an event key that all can read": ("bstore", "chmod 644 /etc/reimzul/event-keys", "events.key"),
    "keys that others can read": ("b1", f"chmod 644 {_PSK}", "keys"),
    "settings that cannot be read": ("b1", f"chmod 600 {_INI}; chown root:root {_INI}", "settings"),
    "configurations of another's": ("b1", f"chown -R root: {_CHECKOUT}", "configs"),
    "a compiler": ("b1", "apt-get remove --yes patch", "mock"),
    "a masked unit": (
        "bstore",
        "systemctl disable --now reimzul-signer; systemctl mask reimzul-signer",
        "unit.reimzul-signer",
    ),
    "a kernel setting": ("b2", "sysctl -w net.ipv4.tcp_retries2=15", "tcp_retries2"),
    "a hole in stunnel's configuration": (
        "b1", "sed -i 's/^sslVersionMin = .*/sslVersionMin = TLSv1/' /etc/stunnel/reimzul.conf", "tunnels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_remedy(farm: Farm, name: str) -> None:
    """the command that doctor prints repairs it"""
    host, breaks, check = BROKEN[name]
    well = farm.doctor(host).level(check)  # `warn` where the stand-in builds
    farm[host].run(breaks, check=False, timeout=300)
    found = farm.doctor(host)
    assert found.level(check) != well, found.text
    commands = commands_of(found.remedy(check))
    assert commands, found.text
    for place, command in commands:
        line = f"yes | {command}" if command.startswith("apt-get") else command
        done = farm[place or host].run(f"{line} --yes" if line.startswith("reimzul setup") else line, check=False)
        assert done.code == 0, f"{command}: {done.said}"
    until(lambda: farm.doctor(host).level(check) == well, 60, f"{commands} mends {check}: {farm.doctor(host).text}")


def test_public_port(farm: Farm) -> None:
    """The port of --public-port is documented, and no finding."""
    (listen,) = [check for check in farm.doctor("bstore").checks if check["name"] == "listen"]
    assert listen["level"] == "ok", listen


def test_cut_off(farm: Farm) -> None:
    """A builder whose cable is pulled: doctor names all its links, and that they cannot be reached."""
    farm["b1"].cut_link()
    try:
        found = farm.doctor("b1")
    finally:
        farm["b1"].mend_link()
    assert set(found.failed) == _LINKS, found.text
    assert "controller" in found.words("link.beanstalkd"), found.text


def test_nobody_builds(farm: Farm) -> None:
    """All workers are stopped and a job waits: doctor says on the controller that nobody watches its tube."""
    for builder in farm.builders:
        builder.run("systemctl stop 'reimzul-worker@*'")
    build = farm.submit(farm.slow("waiting", 1))
    found = farm.doctor("controller")
    for builder in farm.builders:
        builder.run("systemctl start reimzul-worker@{1..2}")
    assert found.failed == ["tubes.watched"], found.text
    assert "x86_64" in found.words("tubes.watched")
    farm.published(build)


def test_well_again(farm: Farm) -> None:
    """After all repairs doctor finds no problem on any host."""
    for machine in farm.farm:
        until(lambda name=machine.name: farm.doctor(name).failed == [], 90, f"{machine.name} is well again")  # type: ignore[misc]
