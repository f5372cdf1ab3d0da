# SPDX-License-Identifier: Apache-2.0
"""Which key lets a host connect, and to which services."""

from __future__ import annotations

import re
import secrets
from concurrent.futures import ThreadPoolExecutor

from tests.hosts.farm import TARGET, Farm
from tests.hosts.machine import Machine
from tests.waiting import until

#: The services offered, and the request that shows whether one answers.
_DOORS = {
    "controller 13100": "stats\r\n",
    "controller 11080": "GET /reimzul-incoming/ HTTP/1.0\r\n\r\n",
    "bstore 11874": "@RSYNCD: 31.0\n",
    "bstore 11081": "GET /bstore/repo/ HTTP/1.0\r\n\r\n",
}
_ANSWERS = ("OK ", "HTTP/1.1", "@RSYNCD: ")
_PUBLISHED = "/srv/reimzul/bstore/repo"


def _knock(machine: Machine, door: str, words: str) -> str:
    """The answer through TLS; `words` are the options of the key."""
    host, port = door.split()
    said = _DOORS[door].replace("\r", "\\r").replace("\n", "\\n")
    client = f"openssl s_client -quiet -no_ign_eof -connect {host}:{port} {words}"
    return machine.run(f"(printf '{said}'; sleep 5) | timeout 60 {client}", check=False).said


def _speak(machine: Machine, door: str) -> str:
    """The answer without TLS."""
    host, port = door.split()
    said = _DOORS[door].replace("\r", "\\r").replace("\n", "\\n")
    return machine.run(f"exec 3<>/dev/tcp/{host}/{port}; printf '{said}' >&3; timeout 5 cat <&3", check=False).said


def _answered(heard: str) -> bool:
    return any(answer in heard for answer in _ANSWERS)


def _key(farm: Farm, name: str) -> str:
    return farm[name].read("/etc/stunnel/reimzul-psk.txt").strip().partition(":")[2]


def test_stranger(farm: Farm) -> None:
    """A machine without a key gets nowhere: not in plain text, not by TLS, not by a key it made up, by no door."""
    customer, right = farm["customer"], f"-psk_identity b1 -psk {_key(farm, 'b1')}"
    ways = {
        "no key": "",
        "made up": f"-psk_identity b1 -psk {secrets.token_hex(32)}",
        "a right one by another's name": right.replace("b1", "eve"),
        "an old TLS": f"{right} -tls1_1 -cipher ALL:@SECLEVEL=0",
    }
    with ThreadPoolExecutor(32) as threads:
        heard = {
            (door, way): threads.submit(_knock, customer, door, words) for door in _DOORS for way, words in ways.items()
        }
        heard.update({(door, "in plain text"): threads.submit(_speak, customer, door) for door in _DOORS})
        assert {way: done.result() for way, done in heard.items() if _answered(done.result())} == {}
        until(
            lambda: all(map(_answered, threads.map(lambda door: _knock(customer, door, right), _DOORS))),
            90, "who has a key is heard at each",
        )  # fmt: skip


def test_revoked(farm: Farm) -> None:
    """A builder whose key is revoked is shut out at once, in mid-build too; another builds its job."""
    build = farm.submit(farm.slow("revoked", 20))
    builder = farm.building_on(build)
    other = next(machine for machine in farm.builders if machine.name != builder.name)
    key = _key(farm, builder.name)
    for role in ("controller", "bstore"):
        farm[role].run(f"reimzul setup {role} --revoke {builder.name}")
    until(lambda: farm.watchers() == 2, 60, f"{builder.name} is out")
    for door in _DOORS:
        heard = _knock(builder, door, f"-psk_identity {builder.name} -psk {key}")
        assert not _answered(heard), f"{door}: {heard}"
    (leg,) = farm.published(build)
    assert leg["builder"] == other.fqdn
    failed = farm.doctor(builder.name).failed
    assert {"link.beanstalkd", "link.incoming", "link.rsyncd", "link.store"} <= set(failed)
    said = farm.controller.run(f"reimzul setup controller --add-builder {builder.name}").out
    (line,) = re.findall(rf"^{builder.name}:[0-9a-f]+$", said, re.MULTILINE)
    farm.bstore.run(f"reimzul setup bstore --add-builder {builder.name} --psk-file -", stdin=line + "\n")
    builder.run("reimzul setup builder --yes --psk-file -", stdin=line + "\n")
    until(lambda: farm.watchers() == 4, 60, f"{builder.name} is in again")


def test_rsync(farm: Farm) -> None:
    """rsync cannot read what is published, overwrite it, delete it, or write anywhere but into the spool."""
    farm.published(farm.submit(f"{farm.slow('kept', 1)}"))
    folder = f"{_PUBLISHED}/{TARGET}.x86_64"
    before = _inventory(farm)
    package = farm.bstore.run(f"find {folder} -name 'kept-*.noarch.rpm'").out.split()[0]
    there = package.removeprefix("/srv/reimzul/bstore/")
    module = "rsync://localhost:11874/reimzul-bstore"
    b1 = farm["b1"]
    b1.run("mkdir -p /root/evil/deep && echo evil > /root/evil/x && ln -sfn /srv/reimzul/bstore/repo /root/evil/link")
    refused = {
        f"rsync {module}/": "list the module",
        f"rsync {module}/repo/": "list repo/",
        f"rsync {module}/{there} /root/stolen": "read what is published",
        f"rsync -r {module}/spool/ /root/stolen": "read the spool",
        f"rsync /root/evil/x {module}/{there}": "overwrite what is published",
        f"rsync --inplace --ignore-times /root/evil/x {module}/{there}": "overwrite it in its place",
        f"rsync --append /root/evil/x {module}/{there}": "append to it",
        f"rsync -r --delete /root/evil/deep/ {module}/repo/": "delete it",
        f"rsync -r --block-size=1 /root/evil/ {module}/spool/evil/": "read uploads by sums of their bytes",
        f"rsync -r --files-from=:/spool/x /root/evil/ {module}/spool/evil/": "read them as lists of names",
        f"rsync {module}-live/ /root/stolen": "read growing logs",
        f"rsync -r --delete /root/evil/deep/ {module}/spool/": "delete in the spool",
        f"rsync /root/evil/x {module}/x": "write to the root of the store",
        f"rsync /root/evil/x {module}/tosign/x": "write to what is to be signed",
        f"rsync /root/evil/x {module}/index/x": "write to the index",
        f"rsync /root/evil/x {module}/state/x": "write to the state",
        f"rsync /root/evil/x {module}/spool/../repo/x": "leave the spool by dots",
        f"rsync -r --backup --backup-dir=../repo /root/evil/ {module}/spool/evil/": "leave it by a backup",
        f"rsync -r --temp-dir=/srv/reimzul/bstore/repo /root/evil/x {module}/repo/": "leave it by a temporary file",
        f"rsync -l /root/evil/link {module}/spool/ && rsync /root/evil/x {module}/spool/link/x": "leave it by a link",
    }
    got = [what for line, what in refused.items() if b1.run(line, check=False).code == 0]
    assert got == []
    assert "evil" not in b1.run("cat /root/stolen* 2>/dev/null; ls /root/stolen* 2>/dev/null", check=False).out
    assert _inventory(farm) == before
    assert farm.bstore.run("find /srv/reimzul/bstore -name x -not -path '*/spool/*'").out == ""
    b1.run(f"rsync /root/evil/x {module}/spool/allowed")  # or all of it proves nothing
    b1.run(f"rsync --append /root/evil/x {module}-live/allowed/")


def _inventory(farm: Farm) -> str:
    """All that is published, file by file."""
    return farm.bstore.run(f"find {_PUBLISHED} -type f -printf '%p %s %T@ %i\\n' | sort").out
