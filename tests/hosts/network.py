# SPDX-License-Identifier: Apache-2.0
"""The network between the machines: a switch, a cable to each, and an ear on the switch.

The switch is in a network namespace of the room, and so is each machine's end of its cable. Nothing of it is to be
seen on the host, and nothing of the host's network in a machine.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.waiting import until

_HUB, _SWITCH = "hub", "switch"
_PREFIX = "10.213.78"
#: States of a switch's port, as `bridge link set` has them.
_SILENT, _OPEN = "0", "3"


def address(number: int) -> str:
    """A machine's address."""
    return f"{_PREFIX}.{number}"


def namespace(name: str) -> Path:
    """Where a machine's network is."""
    return Path("/run/netns") / name


def make_switch() -> None:
    """The switch, with nothing plugged in."""
    _ip("netns", "add", _HUB)
    _ip("-n", _HUB, "link", "add", _SWITCH, "type", "bridge")
    _ip("-n", _HUB, "link", "set", _SWITCH, "up")


def plug_in(name: str, number: int) -> None:
    """A machine's network and its cable. Its hardware's address is always the same, as that of a real card."""
    port, mac = f"p-{name}", f"02:52:5a:00:00:{number:02x}"
    _ip("netns", "add", name)
    _ip("-n", _HUB, "link", "add", port, "type", "veth", "peer", "name", "host0", "address", mac, "netns", name)
    _ip("-n", _HUB, "link", "set", port, "master", _SWITCH, "up")
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "addr", "add", f"{address(number)}/24", "dev", "host0")
    _ip("-n", name, "link", "set", "host0", "up")


def unplug(name: str) -> None:
    """Remove a machine's network: what it had under way never ends."""
    if namespace(name).exists():
        # the cable goes first: a network lives on for a moment when its name is gone
        subprocess.run(["ip", "-n", _HUB, "link", "del", f"p-{name}"], check=True)
        _ip("netns", "del", name)


def cut_cable(name: str) -> None:
    """Let nothing pass a machine's cable any more, either way, without any error at its ends."""
    _port(name, _SILENT)


def mend(name: str) -> None:
    """It passes again."""
    _port(name, _OPEN)


def _port(name: str, state: str) -> None:
    subprocess.run(["bridge", "-n", _HUB, "link", "set", "dev", f"p-{name}", "state", state], check=True)


@contextlib.contextmanager
def capture_frames(goal: Path) -> Iterator[None]:
    """All that passes the switch while the block lasts is written to a file, whole frames."""
    argv = ["ip", "netns", "exec", _HUB, "tcpdump", "-i", _SWITCH, "-n", "-s", "0", "-B", "65536"]
    argv += ["-U", "--immediate-mode"]  # what was heard is in the file at once
    with goal.with_suffix(".said").open("w+") as said, subprocess.Popen([*argv, "-w", str(goal)], stderr=said) as ear:
        try:
            until(lambda: "listening on" in goal.with_suffix(".said").read_text(), 30, "tcpdump listens")
            yield
        finally:
            ear.terminate()
            ear.wait()
    words = goal.with_suffix(".said").read_text()
    assert "\n0 packets dropped by kernel" in words, f"the capture is not whole: {words}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
