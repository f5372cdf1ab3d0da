# SPDX-License-Identifier: Apache-2.0
"""What a handshake of our own with a stunnel says about a way that does not work: which part of it is broken."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from reimzul.admin.doctor import probe
from reimzul.admin.doctor.check import Result, fail
from reimzul.admin.doctor.host import CONTROLLER, Host, is_root
from reimzul.admin.doctor.services import Service
from reimzul.admin.doctor.tunnels import Address, Section

#: Seconds a far host has to take a connection.
REACH = 3.0
STUNNEL = "systemctl restart stunnel@reimzul; journalctl -u stunnel@reimzul"


def fault(host: Host, section: Section, far: Address, service: Service, there: str) -> Result | None:
    """What is wrong with a way through stunnel at an address; None where the service behind it answers.

    `there` is how a remedy begins that is for the host it is on.
    """
    why = unreachable(far)
    if why is not None:
        return fail(f"{shown(far)} cannot be reached: {why}", _of_reach(why, far, host, there))
    secrets = readable(section.secrets)
    if secrets is None:
        program = service.program
        words = f"{shown(far)} takes connections and ends them: it does not take our key, or its {program} is down"
        return fail(words, f"{section.secrets} cannot be read" if is_root() else "run it as root to see which")
    answer = probe.through(host.tunnels, section, far, secrets, service.speak)
    name = section.options.get("pskidentity") or owner(secrets)
    return _of_answer(answer, shown(far), name, service.program, there)


def _of_answer(answer: probe.Answer, far: str, name: str, program: str, there: str) -> Result | None:
    why = f" ({answer.words})" if answer.words else ""
    if answer.state == probe.THROUGH:
        return None
    if answer.state == probe.BEHIND:
        words = f"{far} takes the key of {name}, but {program} behind it does not answer{why}"
        return fail(words, f"{there}{start(program)}")
    if answer.state == probe.REFUSED:
        words = f"{far} does not take the key of {name}{why}: it was revoked, or has another secret there"
        makes = "on the controller --add-bstore NAME --new-key" if name == CONTROLLER else "--add-builder"
        return fail(words, f"{there}reimzul setup <role> --list shows whose keys are taken; {makes} makes one")
    if answer.state == probe.UNREACHED:
        return fail(f"{far} cannot be reached{why}", f"{there}{STUNNEL}")
    if answer.state == probe.SILENT:
        return fail(f"{far} takes connections, and makes no handshake", f"{there}{STUNNEL}")
    return fail(f"{far} makes no handshake{why}", f"{there}{STUNNEL}")


def unreachable(address: Address) -> str | None:
    """Why nobody takes a connection at an address; None where somebody does."""
    try:
        socket.create_connection(address, REACH).close()
    except ConnectionResetError:  # taken, and ended before we had looked: so stunnel does that finds nobody behind it
        return None
    except socket.gaierror as error:
        return f"the name {address[0]} is not known ({(error.strerror or str(error)).lower()})"
    except socket.timeout:  # TimeoutError is its name from Python 3.10 on
        return f"no answer within {REACH:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def readable(secrets: Path | None) -> Path | None:
    """A file of keys that we may read."""
    return secrets if secrets is not None and os.access(secrets, os.R_OK) else None


def owner(secrets: Path) -> str:
    """Whose the first key in a file is: the one a client uses. Raises `OSError`."""
    first = next((line for line in secrets.read_text(encoding="utf-8").splitlines() if ":" in line), "")
    return first.partition(":")[0] or "nobody"


def start(program: str) -> str:
    """What to do where a program does not run."""
    other = " (rsyncd on Fedora and EL)" if program == "rsync" else ""
    return f"systemctl restart {program}{other}; journalctl -u {program}"


def shown(address: Address) -> str:
    """An address as people write it."""
    return f"{address[0]}:{address[1]}"


def _of_reach(why: str, far: Address, host: Host, there: str) -> str:
    if "refused" in why:
        return f"{there}{STUNNEL}"
    if "name" in why:
        return f"is that name right in {host.tunnels.path}, and does DNS or /etc/hosts know it?"
    return f"is {far[0]} up, and port {far[1]} open in its firewall?"
