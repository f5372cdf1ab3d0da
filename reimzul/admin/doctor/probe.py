# SPDX-License-Identifier: Apache-2.0
"""A way through a far stunnel, opened by a stunnel of our own that lives for this one question.

It reads the key from its file by itself: the key is on no command line, and what is tried is what the host's own
stunnel does. What it logs tells which part of the way is broken (stunnel 5.5 to 5.7, at `debug = info`).
"""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

import attr

from reimzul.admin.doctor.services import Wrong
from reimzul.admin.doctor.tunnels import Address, Section, Tunnels
from reimzul.core.errors import BrokerUnavailable, ProgramNotFound
from reimzul.core.process import Process, spawn, wait_until_exit

#: Seconds our stunnel has to come up.
START = 3.0

#: What came of it.
THROUGH = "through"  #: what is behind the far stunnel answers
BEHIND = "behind"  #: a handshake was made, and what is behind does not answer
REFUSED = "refused"  #: our key is not one that is accepted
UNREACHED = "unreached"  #: nobody took the connection
STRANGE = "strange"  #: whoever is there speaks no such TLS, or our own stunnel cannot start
SILENT = "silent"  #: no handshake was made in time

#: What the far side says of a key it does not know, or of another secret under that name; OpenSSL's words.
_OF_KEYS = ("handshake failure", "illegal parameter", "unknown psk identity", "decrypt error", "bad record mac")
#: Said at every start: there are no certificates, only keys.
_OF_NO_CONCERN = "No trusted certificates found"
#: Options of the whole configuration that are not for ours, and of a section that we say ourselves.
_OF_ALL = ("foreground", "pid", "syslog", "debug", "output", "log", "setuid", "setgid", "chroot")
_MADE = ("accept", "connect", "client", "psksecrets")
_NEAR = "127.0.0.1"


@attr.frozen
class Answer:
    """What came of it."""

    state: str
    words: str = ""  #: why, where somebody says so


def through(tunnels: Tunnels, section: Section, far: Address, secrets: Path, speak: Callable[[Address], str]) -> Answer:
    """Speak to what is behind a far stunnel, as a section reaches it, with the first key in a file."""
    with TemporaryDirectory(prefix="reimzul-doctor-") as folder:
        near = (_NEAR, _free_port())
        config, said = Path(folder) / "stunnel.conf", Path(folder) / "said"
        config.write_text(configuration(tunnels, section, near, far, secrets), encoding="utf-8")
        try:
            with said.open("wb") as sink, spawn(["stunnel", config], output=sink, grace=1.0) as process:
                if not _is_up(process, said):
                    return Answer(STRANGE, _complaint(_text(said)))
                return _spoken(near, speak, said)
        except ProgramNotFound as error:
            return Answer(STRANGE, str(error))


def configuration(tunnels: Tunnels, section: Section, near: Address, far: Address, secrets: Path) -> str:
    """stunnel's configuration for one way, from `near` to `far`; all else as the host's own has it."""
    head = [(name, value) for name, value in tunnels.head if name.lower() not in _OF_ALL]
    own = [(name, value) for name, value in section.options.items() if name not in _MADE]
    ends = (("accept", near), ("connect", far))
    rows = [("foreground", "yes"), ("pid", ""), ("syslog", "no"), ("debug", "info"), *head]
    lines = [f"{name} = {value}" for name, value in rows]
    lines += ["[doctor]", "client = yes", *(f"{name} = {host}:{port}" for name, (host, port) in ends)]
    lines += [*(f"{name} = {value}" for name, value in own), f"PSKsecrets = {secrets}"]
    return "\n".join(lines) + "\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_NEAR, 0))
        return int(probe.getsockname()[1])


def _is_up(process: Process, said: Path) -> bool:
    deadline = time.monotonic() + START
    while "bound to" not in _text(said):
        if wait_until_exit(process, 0.01) or time.monotonic() > deadline:
            return False
    return True


def _spoken(near: Address, speak: Callable[[Address], str], said: Path) -> Answer:
    try:
        return Answer(THROUGH, speak(near))
    except Wrong as wrong:
        return Answer(THROUGH, str(wrong))
    except socket.timeout:  # TimeoutError is its name from Python 3.10 on
        why = "no answer"
    except (OSError, BrokerUnavailable) as error:
        # beanstalkd's client has wrapped what the socket said
        why = "no answer" if isinstance(error.__cause__, socket.timeout) else "it takes no connection"
    return _understood(_text(said), why)


def _text(said: Path) -> str:
    return said.read_text(encoding="utf-8", errors="replace")


def _understood(said: str, why: str) -> Answer:
    """What stunnel's log says of a way on which nobody answered."""
    if "TLS connected" in said:
        return Answer(BEHIND, why)
    if refusal := re.search(r"SSL_connect: (.+)", said):
        reason = refusal[1].rpartition(":")[2].strip()
        return Answer(REFUSED if any(words in reason for words in _OF_KEYS) else STRANGE, reason)
    if unreached := re.search(r"s_connect: (?:connect )?\S+: (.+)", said):
        return Answer(UNREACHED, unreached[1].lower())
    return Answer(SILENT)


def _complaint(said: str) -> str:
    faults = [words for words in re.findall(r"LOG[0-3]\[\w+\]: (.+)", said) if words != _OF_NO_CONCERN]
    return faults[-1] if faults else "our own stunnel does not start"
