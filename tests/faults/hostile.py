# SPDX-License-Identifier: Apache-2.0
"""Messages nobody should be sent, in every tube, while builds go on: each is refused, and does nothing else.

They are made from real ones by changing what a person would change who wants a file written elsewhere, a program run,
or a daemon to fall over. One that is a valid message by chance is none of ours.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable

from devfarm.processes import PartFailed
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import PRIORITY
from reimzul.core.errors import InvalidMessage
from reimzul.core.message import BuildRequest, RepogenRequest, SignRequest, decode_event
from reimzul.history import open_history
from tests.faults.checks import count_buried
from tests.faults.ground import Ground
from tests.faults.ledger import ARCH, FOLLOWER
from tests.waiting import until

_BUILD, _ATTEMPT, _TIME = "0" * 31 + "1", "1763800001-0000000a", "20260101000000"
_PLACE = f"repo/one.1.{ARCH}/hello/{_TIME}/1-1.{ARCH}"
_REQUEST = {
    "srpm": "plain-1.0-1.src.rpm", "arch": ARCH, "target": f"one.1.{ARCH}", "disttag": ".x", "scratch": False,
    "submitter": "mallory", "build_id": _BUILD, "timestamp": _TIME, "srpm_sha256": "ab" * 32, "tries": [],
}  # fmt: skip
_EVENT = {
    **{name: _REQUEST[name] for name in ("srpm", "arch", "target", "submitter", "build_id", "timestamp")},
    "status": "Success", "attempt": _ATTEMPT, "place": _PLACE, "rpm_count": 1, "rpms": ["hello-1-1.x86_64.rpm"],
}  # fmt: skip
_REPOGEN = {"target": f"one.1.{ARCH}", "build_id": _BUILD, "arch": ARCH, "attempt": _ATTEMPT, "place": _PLACE}
_SIGN = {"pkgname": "hello", "status": "Success", "target": f"one.1.{ARCH}", "arch": ARCH, "timestamp": _TIME}
#: What a tube carries: a message to begin with, and who reads it.
_TUBES: Mapping[str, tuple[dict[str, Any], Callable[[bytes], Any]]] = {
    ARCH: (_REQUEST, BuildRequest.decode),
    FOLLOWER: ({**_REQUEST, "arch": FOLLOWER, "target": f"one.1.{FOLLOWER}"}, BuildRequest.decode),
    "notify": (_EVENT, decode_event),
    "createrepo": (_REPOGEN, RepogenRequest.decode),
    "tosign": ({**_SIGN, "build_id": _BUILD, "place": _PLACE}, SignRequest.decode),
}


class Mallory:
    """Who makes them."""

    def __init__(self, chance: random.Random, canary: Path) -> None:
        self._chance = chance
        self._known = read_arches().known
        run = f"touch {canary}"
        self._words = (
            "", ".", "..", "/", "../../../etc/passwd", f"../{canary.name}", str(canary), f"$({run})", f"`{run}`",
            f"; {run};", f"| {run}", f"&& {run}", f"-e {run}", f"--rsh={run}", f"--rsync-path={run}", "-", "--help",
            f"--define=%({run})", f"%({run})", f"x\n{run}\n", "x\0y", "a/b", "%s%n", "x" * 5000, "\u202egnp", "\ud800",
            "' OR 1=1 --", "{{7*7}}", "hello-1-1.src.rpm/../x", "*", "~root", "NaN", "é" * 300,
        )  # fmt: skip
        self._values: tuple[Any, ...] = (
            None, True, 0, -1, 2**63, 1e308, [], {}, [[]], {"$gt": ""}, ["x"] * 100, {"x": {"y": "z"}}, 0.1,
        )  # fmt: skip

    def message(self, tube: str) -> bytes:
        """One that its tube's reader refuses."""
        wire, decode = _TUBES[tube]
        while True:
            body = self._chance.choice(
                (self._change_values, self._change_values, self._lacking, self._cut_text, self._odd)
            )(wire)
            try:
                read = decode(body)
            except InvalidMessage:
                return body
            if getattr(read, "arch", "") not in {"", *self._known} and tube in (ARCH, FOLLOWER):
                return body

    def _change_values(self, wire: dict[str, Any]) -> bytes:
        keys = self._chance.sample(sorted(wire), self._chance.randint(1, 3))
        return self._text({**wire, **{key: self._chance.choice((*self._words, *self._values)) for key in keys}})

    def _lacking(self, wire: dict[str, Any]) -> bytes:
        gone = self._chance.choice(sorted(wire))
        return self._text({key: value for key, value in wire.items() if key != gone})

    def _cut_text(self, wire: dict[str, Any]) -> bytes:
        text = bytearray(self._text(wire))
        for _ in range(self._chance.randint(1, 4)):
            text[self._chance.randrange(len(text))] = self._chance.randrange(256)
        return bytes(text[: self._chance.randint(0, len(text))])

    def _odd(self, wire: dict[str, Any]) -> bytes:
        bodies = (
            b"", b"\0" * 100, b"null", b"[]", b'"x"', b"1e999", b"NaN", b"[" * 30_000, b'{"a":' * 9_000,
            self._chance.randbytes(self._chance.randint(1, 300)), b"\xff\xfe" + self._text(wire),
            self._text({**wire, "extra": "x" * 60_000})[:65_000], b"delete 1\r\n", b'{"status":"Refused"}',
            b'{"target":1' + b"0" * 5000 + b"}", self._text({**wire, "target": {"$where": "1"}}),
        )  # fmt: skip
        return self._chance.choice(bodies)

    def _text(self, wire: Mapping[str, Any]) -> bytes:
        return json.dumps(wire).encode()


def flood(ground: Ground, chance: random.Random, count: int, canary: Path) -> Counter[str]:
    """Put that many, over all tubes; how many each tube got."""
    mallory, sent = Mallory(chance, canary), Counter[str]()
    with ground.broker() as broker:
        for _ in range(count):
            tube = chance.choice(sorted(_TUBES))
            broker.put_raw(tube, mallory.message(tube), priority=chance.choice((0, PRIORITY, 2**32 - 1)))
            sent[tube] += 1
    return sent


def refused_in(ground: Ground, tube: str) -> int:
    """How many jobs of a tube are buried."""
    return count_buried(ground).get(tube, 0)


def wait_until_refused(ground: Ground, sent: Mapping[str, int], seconds: float) -> None:
    """Every one of them, and the history knows of all."""

    def missing() -> dict[str, int]:
        counts = {tube: number - refused_in(ground, tube) for tube, number in sent.items()}
        return {tube: number for tube, number in counts.items() if number}

    until(lambda: not missing(), seconds, f"all are refused; missing at first: {missing()}")
    total = sum(sent.values())
    until(lambda: known_refused(ground) == total, seconds, f"the history knows of {total}: {known_refused(ground)}")


def known_refused(ground: Ground) -> int:
    """How many the history has."""
    history = open_history(f"sqlite:///{ground.farm.layout.history}", reading=True)
    try:
        return sum(1 for _ in history.iterate_refusals())
    finally:
        history.close()


def memory(ground: Ground) -> dict[str, float]:
    """MiB that each of our daemons has resident."""
    found = {}
    for name in ground.daemons():
        try:
            status = Path(f"/proc/{ground.farm.pids(name)[0]}/status").read_text()
        except (OSError, PartFailed):
            continue
        found[name] = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
    return found


def files(*folders: Path) -> Iterator[tuple[str, float]]:
    """Every file below, and when it was changed."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield str(path), path.stat().st_mtime
