# SPDX-License-Identifier: Apache-2.0
"""Checks stunnel's configuration and keys, and finds which part of a tunnel to another host is broken.

To test a tunnel, doctor runs its own stunnel for the duration of one question. That stunnel reads the key from the
key file, so no key is on a command line, and it does what the host's own stunnel does. Its log names the broken part
(stunnel 5.5 to 5.7, with `debug = info`).
"""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

import attr

from reimzul.admin.doctor.check import (
    Check,
    Misconfigured,
    Result,
    combine,
    describe_error,
    fail,
    is_root,
    not_permitted,
    ok,
    shorten,
)
from reimzul.admin.doctor.host import CONTROLLER, ROLES, Host
from reimzul.admin.doctor.services import Service, format_address, restart_hint
from reimzul.admin.doctor.stunnel_config import Address, StunnelConfig, StunnelSection
from reimzul.core.config import LOCAL
from reimzul.core.errors import ProgramNotFound
from reimzul.core.process import Process, spawn, wait_until_exit

RESTART_STUNNEL = "systemctl restart stunnel@reimzul; journalctl -u stunnel@reimzul"
_MAKE_KEYS = "reimzul setup on the controller makes keys, and prints where to put each"
#: Time limits for a host to accept a connection, and for our own stunnel to start.
CONNECT_TIMEOUT_SECONDS = 3.0
START_TIMEOUT_SECONDS = 3.0

#: States of a tunnel.
WORKS = "works"  #: the service behind the far stunnel answers
SERVICE_DOWN = "service down"  #: the TLS handshake succeeds, but the service behind the far stunnel does not answer
KEY_REFUSED = "key refused"
UNREACHED = "unreached"  #: the connection was refused
NO_TLS = "no TLS"  #: the far side does not speak TLS with our settings, or our own stunnel cannot start
SILENT = "silent"  #: no handshake within the time limit

#: OpenSSL's errors when the far side does not know our key, or has another secret for its name.
_KEY_ERRORS = ("handshake failure", "illegal parameter", "unknown psk identity", "decrypt error", "bad record mac")
#: stunnel logs this at every start, since it uses keys instead of certificates.
_HARMLESS_WARNING = "No trusted certificates found"
#: Global options that our own stunnel must not copy, and options of a section that it replaces.
_UNCOPIED_OPTIONS = ("foreground", "pid", "syslog", "debug", "output", "log", "setuid", "setgid", "chroot")
_REPLACED_OPTIONS = ("accept", "connect", "client", "psksecrets")
_LOOPBACK = "127.0.0.1"


# --- configuration and keys


def checks(host: Host) -> list[Check]:
    """The checks of every host; a single host with all roles needs no stunnel."""
    if not host.stunnel.sections and set(host.roles) == set(ROLES):
        return []
    found = [Check(name="tunnels", run=lambda: _check_config(host.stunnel, host.roles))]
    if host.stunnel.key_files:
        found.append(Check(name="keys", run=lambda: _check_keys(host.stunnel)))
    return found


def _check_config(config: StunnelConfig, roles: tuple[str, ...]) -> Result:
    hint = f"reimzul setup {roles[0]}" if len(roles) == 1 else "reimzul setup"
    if config.problem:
        return fail(config.problem, hint if "no such file" in config.problem else "run reimzul doctor as root")
    ours = [section for section in config.sections if section.is_client or section in config.offers.values()]
    if not ours:
        return fail(f"{config.path} has no section of the farm's", hint)
    holes = [fail(message, f"{hint}, or compare the file with conf/") for message in _find_holes(config)]
    return combine(holes, f"{config.path}: {', '.join(section.name for section in ours)}")


def _find_holes(config: StunnelConfig) -> Iterator[str]:
    for section in config.sections:
        options = section.options
        asks_certificate = any(options.get(name, "no") == "yes" for name in ("verifypeer", "verifychain"))
        if section.secrets is None and not asks_certificate:
            yield f"[{section.name}] accepts peers without a key"
        yield from _find_weaknesses(f"[{section.name}] ", options)
        # Without a host stunnel listens on every address.
        is_local = section.accept[0] in LOCAL or section.accept[0].startswith("127.")
        if section.is_client and not is_local:
            yield f"[{section.name}] lets anyone who reaches port {section.accept[1]} of this host use its key"
    yield from _find_weaknesses("", {name.lower(): value for name, value in config.common})


def _find_weaknesses(where: str, options: Mapping[str, str]) -> Iterator[str]:
    """The options, global or of a section, that weaken authentication or encryption. See stunnel(8)."""
    for name in ("sslVersionMin", "sslVersion", "sslVersionMax"):
        value = options.get(name.lower(), "")
        if value in ("SSLv2", "SSLv3", "TLSv1", "TLSv1.1") or (value == "all" and name == "sslVersionMin"):
            yield f"{where}{name} = {value}: TLS 1.2 is the oldest safe version"
    if options.get("verify") == "0":
        yield f"{where}verify = 0: peers are not authenticated"
    weak = {"NULL", "eNULL", "aNULL", "COMPLEMENTOFALL"} & set(re.split("[:, +]", options.get("ciphers", "")))
    if weak:
        yield f"{where}ciphers allows {min(weak)}: no encryption, or no authentication"


def _check_keys(config: StunnelConfig) -> Result:
    results = [_check_key_file(path) for path in config.key_files]
    return combine(results, "; ".join(result.message for result in results))


def _check_key_file(path: Path) -> Result:
    try:
        status = path.stat()
    except FileNotFoundError:
        return fail(f"{path} does not exist", _MAKE_KEYS)
    except PermissionError:
        return not_permitted(str(path))
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        return fail(f"{path} has mode {mode:o}: other users can read the keys", f"chmod 600 {path}")
    if status.st_uid not in (0, os.geteuid()):
        return fail(f"{path} does not belong to root", f"chown root: {path}")
    if not os.access(path, os.R_OK):
        return ok(f"{path.name}: other users cannot read it")
    names = _key_names(path)
    if not names:
        return fail(f"{path} contains no key", _MAKE_KEYS)
    return ok(f"{path.name} of {shorten(names, 8)}")


def _key_names(path: Path) -> list[str]:
    """The names of the keys in a file; a client uses the first one."""
    return [line.partition(":")[0] for line in path.read_text(encoding="utf-8").splitlines() if ":" in line]


# --- diagnosis of a tunnel


def is_readable(path: Path | None) -> bool:
    return path is not None and os.access(path, os.R_OK)


def find_connect_error(address: Address) -> str | None:
    """Try to connect; return why it fails, or None if it succeeds."""
    try:
        socket.create_connection(address, CONNECT_TIMEOUT_SECONDS).close()
    except ConnectionResetError:  # accepted and closed at once, as stunnel does if the service behind it is down
        return None
    except socket.gaierror as error:
        return f"the name {address[0]} is not known ({describe_error(error)})"
    except socket.timeout:  # TimeoutError is its name from Python 3.10 on
        return f"no answer within {CONNECT_TIMEOUT_SECONDS:g} s"
    except OSError as error:
        return describe_error(error)
    return None


def diagnose_tunnel(
    host: Host, section: StunnelSection, far: Address, service: Service, prefix: str = ""
) -> Result | None:
    """Find what is broken in a tunnel to a stunnel at an address; None if the service behind it answers.

    `prefix` begins the hints for the far host, as "on <host>: ".
    """
    end = format_address(far)
    error = find_connect_error(far)
    if error is not None:
        return fail(f"{end} cannot be reached: {error}", _unreached_hint(error, far, host, prefix))
    secrets, program = section.secrets, service.program
    if secrets is None or not is_readable(secrets):
        return fail(
            f"{end} accepts connections and closes them: it refuses our key, or its {program} is down",
            f"{secrets} cannot be read" if is_root() else "run reimzul doctor as root to learn which",
        )
    tunnel = try_tunnel(host.stunnel, section, far, secrets, service.ask)
    name = section.options.get("pskidentity") or next(iter(_key_names(secrets)), "nobody")
    return _explain_state(tunnel, end, name, program, prefix)


def _explain_state(tunnel: TunnelState, end: str, name: str, program: str, prefix: str) -> Result | None:
    state, why = tunnel.state, f" ({tunnel.reason})" if tunnel.reason else ""
    if state == WORKS:
        return None
    if state == SERVICE_DOWN:
        return fail(
            f"{end} accepts the key of {name}, but {program} behind it does not answer{why}",
            f"{prefix}{restart_hint(program)}",
        )
    if state == KEY_REFUSED:
        message = f"{end} refuses the key of {name}{why}: the key was revoked there, or has another secret"
        option = "on the controller --add-bstore NAME --new-key" if name == CONTROLLER else "--add-builder"
        return fail(message, f"{prefix}reimzul setup <role> --list shows the accepted keys; {option} makes a new one")
    return fail(
        {
            UNREACHED: f"{end} cannot be reached{why}",
            SILENT: f"{end} accepts connections, but does not answer the TLS handshake",
        }.get(state, f"{end}: the TLS handshake fails{why}"),
        f"{prefix}{RESTART_STUNNEL}",
    )


def _unreached_hint(error: str, far: Address, host: Host, prefix: str) -> str:
    if "refused" in error:
        return f"{prefix}{RESTART_STUNNEL}"
    if "name" in error:
        return f"check that name in {host.stunnel.path}, and that DNS or /etc/hosts knows it"
    return f"check that {far[0]} runs, and that its firewall lets port {far[1]} in"


# --- our own stunnel


@attr.frozen
class TunnelState:
    state: str
    reason: str = ""


def try_tunnel(
    config: StunnelConfig, section: StunnelSection, far: Address, secrets: Path, ask: Callable[[Address], str]
) -> TunnelState:
    """Ask the service behind a far stunnel through our own stunnel, with the first key in a file."""
    with TemporaryDirectory(prefix="reimzul-doctor-") as folder:
        near = (_LOOPBACK, _find_free_port())
        file, log = Path(folder) / "stunnel.conf", Path(folder) / "log"
        file.write_text(make_config(config, section, near, far, secrets), encoding="utf-8")
        try:
            with log.open("wb") as sink, spawn(["stunnel", file], output=sink, grace=1.0) as process:
                if not _wait_until_up(process, log):
                    return TunnelState(NO_TLS, _find_startup_error(_read_log(log)))
                return _ask_through(near, ask, log)
        except ProgramNotFound as error:
            return TunnelState(NO_TLS, str(error))


def make_config(config: StunnelConfig, section: StunnelSection, near: Address, far: Address, secrets: Path) -> str:
    """Write the configuration of our own stunnel from `near` to `far`, with the other options of the host's own."""
    head = [(name, value) for name, value in config.common if name.lower() not in _UNCOPIED_OPTIONS]
    own = [(name, value) for name, value in section.options.items() if name not in _REPLACED_OPTIONS]
    rows = [("foreground", "yes"), ("pid", ""), ("syslog", "no"), ("debug", "info"), *head]
    ends = [("client", "yes"), ("accept", format_address(near)), ("connect", format_address(far))]
    options = [*ends, *own, ("PSKsecrets", str(secrets))]
    lines = [f"{name} = {value}" for name, value in rows]
    return "\n".join([*lines, "[doctor]", *(f"{name} = {value}" for name, value in options)]) + "\n"


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _wait_until_up(process: Process, log: Path) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while "bound to" not in _read_log(log):
        if wait_until_exit(process, 0.01) or time.monotonic() > deadline:
            return False
    return True


def _ask_through(near: Address, ask: Callable[[Address], str], log: Path) -> TunnelState:
    try:
        return TunnelState(WORKS, ask(near))
    except Misconfigured as error:
        return TunnelState(WORKS, str(error))
    except socket.timeout:  # TimeoutError is its name from Python 3.10 on
        why = "no answer"
    except OSError as error:  # of beanstalkd's client, it wraps the socket's
        why = "no answer" if isinstance(error.__cause__, socket.timeout) else "it accepts no connection"
    return interpret_log(_read_log(log), why)


def _read_log(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def interpret_log(log: str, why: str) -> TunnelState:
    """Find the state of a tunnel through which nobody answered, by stunnel's log."""
    if "TLS connected" in log:
        return TunnelState(SERVICE_DOWN, why)
    if refusal := re.search(r"SSL_connect: (.+)", log):
        reason = refusal[1].rpartition(":")[2].strip()
        return TunnelState(KEY_REFUSED if any(error in reason for error in _KEY_ERRORS) else NO_TLS, reason)
    if unreached := re.search(r"s_connect: (?:connect )?\S+: (.+)", log):
        return TunnelState(UNREACHED, unreached[1].lower())
    return TunnelState(SILENT)


def _find_startup_error(log: str) -> str:
    errors = [text for text in re.findall(r"LOG[0-3]\[\w+\]: (.+)", log) if text != _HARMLESS_WARNING]
    return errors[-1] if errors else "doctor's own stunnel does not start"
