# SPDX-License-Identifier: Apache-2.0
"""Checks the network: kernel settings, public ports, stunnel's configuration and keys, and the links to other hosts.

A link consists of our stunnel, the network, the far stunnel, our key, and the service behind it. Doctor asks the
service through all of them. Only if that fails does it examine the parts one by one. To test a tunnel, doctor runs its
own stunnel for the duration of one question. That stunnel reads the key from the key file, so no key is on a command
line, and it does what the host's own stunnel does. Its log names the broken part (stunnel 5.5 to 5.7, with
`debug = info`).
"""

from __future__ import annotations

import contextlib
import glob
import ipaddress
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

from reimzul.admin.doctor import (
    Check,
    CheckGroup,
    Misconfigured,
    Result,
    describe_error,
    fail,
    is_root,
    not_permitted,
    ok,
    recommend,
    require,
)
from reimzul.admin.doctor.host import Host
from reimzul.admin.doctor.services import STORE, Service, format_address, restart_hint, services, used_services
from reimzul.admin.setup.files import System
from reimzul.admin.setup.roles import PAGES, PUBLIC, current_port
from reimzul.core.config import LOCAL
from reimzul.core.errors import ProgramNotFound
from reimzul.core.formatting import list_first, pluralize
from reimzul.core.process import spawn, wait_until_exit
from reimzul.core.roles import BSTORE, CONTROLLER, Address, StunnelConfig, StunnelSection

#: Programs that may listen on a public address; conf/ has all others listen on loopback.
ALLOWED = ("stunnel", "stunnel4", "sshd")
#: The highest tcp_retries2 with which a vanished peer is noticed within 30 s: conf/sysctl-reimzul.conf.
MAX_RETRIES = 6

_NEW_KEYS = "on the controller: reimzul setup controller {option} --new-key; then the commands that it prints"
_SYSCTL_FILE = Path("/etc/sysctl.d/90-reimzul.conf")

RESTART_STUNNEL = "systemctl restart stunnel@reimzul; journalctl -u stunnel@reimzul"
#: Time limits for a host to accept a connection, and for our own stunnel to start.
CONNECT_TIMEOUT_SECONDS, START_TIMEOUT_SECONDS = 3.0, 3.0

#: States of a tunnel that does not work, which are their messages. SILENT: no TLS handshake within the time limit.
#: NO_TLS: the far side does not speak TLS with our settings, or our own stunnel cannot start.
SERVICE_DOWN = "{end} accepts the key of {name}, but {program} behind it does not answer{why}"
KEY_REFUSED = "{end} refuses the key of {name}{why}: the key was revoked there, or has another secret"
UNREACHED = "{end} cannot be reached{why}"
NO_TLS = "{end}: the TLS handshake fails{why}"
SILENT = "{end} accepts connections, but does not answer the TLS handshake"

#: OpenSSL's errors when the far side does not know our key, or has another secret for its name.
_KEY_ERRORS = ("handshake failure", "illegal parameter", "unknown psk identity", "decrypt error", "bad record mac")
#: stunnel logs this at every start, since it uses keys instead of certificates.
_HARMLESS_WARNING = "No trusted certificates found"
#: Global options that our own stunnel must not copy, and options of a section that it replaces.
_UNCOPIED_OPTIONS = ("foreground", "pid", "syslog", "debug", "output", "log", "setuid", "setgid", "chroot")
_REPLACED_OPTIONS = ("accept", "connect", "client", "psksecrets")
_LOOPBACK = "127.0.0.1"


# --- kernel settings and public ports


checks = CheckGroup()


@checks.add("tcp_retries2")
def _check_retries(host: Host) -> Result:
    value = int(Path("/proc/sys/net/ipv4/tcp_retries2").read_text())
    recommend(
        value <= MAX_RETRIES,
        f"{value}: if a peer vanishes during a transfer, it takes minutes to notice, instead of 30 s",
        f"sysctl -p {_SYSCTL_FILE}; if it comes back, another file of /etc/sysctl.d sets it"
        if _SYSCTL_FILE.exists()
        else f"reimzul setup {host.roles[0]}, which writes {_SYSCTL_FILE}",
    )
    return ok(str(value))


@checks.add("listen")
def _check_listeners(host: Host) -> Result:
    sockets = dict(_list_public_sockets())
    owners = _find_socket_owners(sockets)
    ours = {22, *(section.accept[1] for section in host.stunnel.sections if not section.is_client)}  # 22: ssh
    public = _list_public_ports(host)
    others: list[str] = []
    for inode, (address, port) in sorted(sockets.items(), key=lambda item: item[1][1]):
        name = owners.get(inode, "")
        # The MQTT broker may serve subscribers on other hosts: it authenticates them by their certificates.
        is_mqtt = host.has_role(CONTROLLER) and name == "mosquitto" and port == host.settings.mqtt.port
        # As may nginx where setup has it serve repo/ or the pages to all.
        is_public = name in ("", "nginx") and port in public
        if not (name in ALLOWED or (port in ours and name in ("", "systemd")) or is_mqtt or is_public):
            others.append(f"{name or 'an unknown program'} on {address}:{port}")
    recommend(
        not others,
        f"others than stunnel and sshd listen on public addresses: {', '.join(dict.fromkeys(others))}",
        ("" if is_root() else "run reimzul doctor as root to learn the program; ")
        + "stop it, or have it listen on 127.0.0.1"
        + ("; to serve repo/ to all: reimzul setup bstore --public-port PORT" if host.has_role(BSTORE) else ""),
    )
    return ok("only stunnel and sshd listen on public addresses")


def _list_public_ports(host: Host) -> list[int]:
    """The ports where setup has nginx serve everybody."""
    if not host.is_installed:
        return []
    system, files = System.at_root(Path("/")), {BSTORE: PUBLIC, CONTROLLER: PAGES}
    return [current_port(system, file) for role, file in files.items() if host.has_role(role)]


def _list_public_sockets() -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield the inode, address and port of each socket that listens on more than loopback."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                address, port = parse_socket_address(fields[1])
                if fields[3] == "0A" and not is_loopback(address):  # 0A: TCP_LISTEN
                    yield fields[9], (str(address), port)


def parse_socket_address(
    text: str, order: str = sys.byteorder
) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Parse an address and port of /proc/net/tcp: hexadecimal words of four bytes in this machine's byte order."""
    raw, _, port = text.partition(":")
    packed = bytes.fromhex(raw)
    if order == "little":
        packed = b"".join(packed[start : start + 4][::-1] for start in range(0, len(packed), 4))
    return ipaddress.ip_address(packed), int(port, 16)


def is_loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _find_socket_owners(inodes: Mapping[str, object]) -> dict[str, str]:
    """Find the program that has each socket open, as far as this process may see."""
    found: dict[str, str] = {}
    for link in glob.iglob("/proc/[0-9]*/fd/*"):  # ignores folders that cannot be read, unlike Path.glob
        with contextlib.suppress(OSError):
            inode = os.readlink(link).removeprefix("socket:[").removesuffix("]")
            if inode in inodes:
                name = (Path(link).parents[1] / "comm").read_text(encoding="utf-8", errors="replace").strip()
                # systemd may hold a socket on behalf of the program that uses it
                if name != "systemd" or inode not in found:
                    found[inode] = name
    return found


# --- stunnel's configuration and keys


tunnel_checks = CheckGroup()


@tunnel_checks.add("tunnels", applies=lambda host: host.needs_stunnel)
def _check_config(host: Host) -> Iterator[Result]:
    config = host.stunnel
    hint = f"reimzul setup {host.roles[0]}" if len(host.roles) == 1 else "reimzul setup"
    ours = [section for section in config.sections if section.is_client or section in config.offers.values()]
    require(
        not config.problem,
        config.problem,
        hint if "no such file" in config.problem else "run reimzul doctor as root",
    )
    require(ours, f"{config.path} has no section of the farm's", hint)
    yield from (fail(message, f"{hint}, which writes the file again") for message in _find_holes(config))
    yield ok(f"{config.path}: {', '.join(section.name for section in ours)}")


def _find_holes(config: StunnelConfig) -> Iterator[str]:
    for section in config.sections:
        asks_certificate = any(section.options.get(name, "no") == "yes" for name in ("verifypeer", "verifychain"))
        if section.secrets is None and not asks_certificate:
            yield f"[{section.name}] accepts peers without a key"
        yield from _find_weaknesses(f"[{section.name}] ", section.options)
        host, port = section.accept  # without host stunnel listens on every address
        if section.is_client and host not in LOCAL and not host.startswith("127."):
            yield f"[{section.name}] lets anyone who reaches port {port} of this host use its key"
    yield from _find_weaknesses("", {name.lower(): value for name, value in config.common})


def _find_weaknesses(where: str, options: Mapping[str, str]) -> Iterator[str]:
    """The options, global or of a section, that weaken authentication or encryption. See stunnel(8)."""
    for name in ("sslVersionMin", "sslVersion", "sslVersionMax"):
        value = options.get(name.lower(), "")
        if value in ("SSLv2", "SSLv3", "TLSv1", "TLSv1.1") or (value == "all" and name == "sslVersionMin"):
            yield f"{where}{name} = {value}: TLS 1.2 is the oldest safe version"
    if options.get("verify") == "0":
        yield f"{where}verify = 0: peers are not authenticated"
    if weak := {"NULL", "eNULL", "aNULL", "COMPLEMENTOFALL"} & set(re.split("[:, +]", options.get("ciphers", ""))):
        yield f"{where}ciphers allows {min(weak)}: no encryption, or no authentication"


@tunnel_checks.add("keys", applies=lambda host: host.stunnel.key_files)
def _check_keys(host: Host) -> Iterable[Result]:
    return (_check_key_file(host, path) for path in host.stunnel.key_files)


def _check_key_file(host: Host, path: Path) -> Result:
    try:
        status = path.stat()
    except FileNotFoundError:
        return fail(f"{path} does not exist", _hint_for_new_key(host, path))
    except PermissionError:
        return not_permitted(str(path))
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        return fail(f"{path} has mode {mode:o}: other users can read the keys", f"chmod 600 {path}")
    if status.st_uid not in (0, os.geteuid()):
        return fail(f"{path} does not belong to root", f"chown root: {path}")
    if not _is_readable(path):
        return ok(f"{path.name}: other users cannot read it")
    names = _read_key_names(path)
    return (
        ok(f"{path.name} has {pluralize(len(names), 'key')}: {list_first(names, 8)}")
        if names
        else fail(f"{path} contains no key", _hint_for_new_key(host, path))
    )


def _hint_for_new_key(host: Host, path: Path, name: str = "NAME") -> str:
    """How a host gets a key again; or the controller and bstore those they accept, which are in a file of their own."""
    if any(section.secrets == path for section in host.stunnel.offers.values()) and host.has_role(BSTORE):
        return "restore it from a backup; or " + _NEW_KEYS.format(option="--add-bstore NAME --add-builder NAME …")
    if host.has_role(CONTROLLER) or host.has_role(BSTORE):
        return _NEW_KEYS.format(option=f"--add-bstore {'NAME' if name == CONTROLLER else name}")
    return _NEW_KEYS.format(option=f"--add-builder {name}")


def _read_key_names(path: Path) -> list[str]:
    """The names of the keys in a file; a client uses the first one."""
    return [line.partition(":")[0] for line in path.read_text(encoding="utf-8").splitlines() if ":" in line]


def _is_readable(path: Path | None) -> bool:
    return path is not None and os.access(path, os.R_OK)


# --- links


def link_checks(host: Host) -> list[Check]:
    used = used_services(host).items()
    return [
        *(Check(name=f"link.{name}", run=partial(_check_link, host, service)) for name, service in used),
        *(Check(name=f"offer.{name}", run=partial(_check_offer, host, name)) for name in host.stunnel.offers),
    ]


def _check_link(host: Host, service: Service) -> Result:
    """Ask a service; if it does not answer, find out which part of the link is broken."""
    section = host.stunnel.find_client(*service.address)
    if error := _find_connect_error(service.address):
        return _explain_near_end(host, service, section, error)
    far = section.connect if section else service.address
    end = format_address(far)
    try:
        return ok(f"{end}: {service.ask(service.address)}")
    except OSError as failure:
        if section is None:
            return fail(f"{end}: {describe_error(failure)}", restart_hint(service.program))
    return _diagnose_tunnel(host, section, far, service, f"on {far[0]}: ") or fail(
        f"{end} accepts the key in the file, but not the key that this host's stunnel uses: "
        "stunnel has not read its files since they changed",
        RESTART_STUNNEL,
    )


def _explain_near_end(host: Host, service: Service, section: StunnelSection | None, error: str) -> Result:
    near = format_address(service.address)
    require(section is None, f"nothing listens on {near}: stunnel does not run on this host", RESTART_STUNNEL)
    require(
        service.address[0] in LOCAL,
        f"{near} cannot be reached: {error}",
        f"check {service.setting}, and that the host runs",
    )
    require(
        not host.has_role(service.offered_by),
        f"nothing listens on {near}: {service.program} does not run",
        restart_hint(service.program),
    )
    options = " --add-bstore NAME" if host.roles[0] == CONTROLLER and service.name == STORE else ""
    return fail(
        f"nothing listens on {near}, and no section of {host.stunnel.path} has that port",
        f"reimzul setup {host.roles[0]}{options}, or correct {service.setting}",
    )


def _check_offer(host: Host, name: str) -> Result:
    """Check a service that others reach through this host's stunnel: first the service, then stunnel."""
    section, service = host.stunnel.offers[name], services(host.settings)[name]
    accept = (section.accept[0] or _LOOPBACK, section.accept[1])
    require(
        _find_connect_error(accept) is None,
        f"nothing listens on port {accept[1]}: stunnel does not run on this host",
        RESTART_STUNNEL,
    )
    try:
        answer = service.ask(section.connect)
    except OSError as error:
        return fail(f"{format_address(section.connect)}: {describe_error(error)}", restart_hint(service.program))
    if not _is_readable(section.secrets):
        return ok(f"port {accept[1]}: {answer}; run reimzul doctor as root to check the keys, too")
    return _diagnose_tunnel(host, section, accept, service) or ok(f"port {accept[1]} accepts keys; {answer}")


# --- diagnosis of a tunnel


def _find_connect_error(address: Address) -> str | None:
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


def _diagnose_tunnel(
    host: Host, section: StunnelSection, far: Address, service: Service, prefix: str = ""
) -> Result | None:
    """Find what is broken in a tunnel to a stunnel at an address; None if the service behind it answers.

    `prefix` begins the hints for the far host, as "on <host>: ".
    """
    end, program, secrets = format_address(far), service.program, section.secrets
    if error := _find_connect_error(far):
        return fail(UNREACHED.format(end=end, why=f": {error}"), _hint_for_unreached(error, far, host, prefix))
    if secrets is None or not _is_readable(secrets):
        return fail(
            f"{end} accepts connections and closes them: it refuses our key, or its {program} is down",
            f"{secrets} cannot be read" if is_root() else "run reimzul doctor as root to learn which",
        )
    state, reason = _try_tunnel(host.stunnel, section, far, secrets, service.ask)
    if not state:
        return None
    name = section.options.get("pskidentity") or next(iter(_read_key_names(secrets)), "nobody")
    message = state.format(end=end, name=name, program=program, why=f" ({reason})" if reason else "")
    if state == KEY_REFUSED and prefix:  # our own stunnel refuses a key of its own file until it reads it
        return fail(message, _hint_for_new_key(host, secrets, name))
    return fail(message, prefix + (restart_hint(program) if state == SERVICE_DOWN else RESTART_STUNNEL))


def _hint_for_unreached(error: str, far: Address, host: Host, prefix: str) -> str:
    if "refused" in error:
        return f"{prefix}{RESTART_STUNNEL}"
    if "name" in error:
        return f"check that name in {host.stunnel.path}, and that DNS or /etc/hosts knows it"
    return (
        f"check that {far[0]} runs, and that its firewall lets port {far[1]} in (reimzul setup there opens firewalld)"
    )


# --- our own stunnel


def _try_tunnel(
    config: StunnelConfig, section: StunnelSection, far: Address, secrets: Path, ask: Callable[[Address], str]
) -> tuple[str, str]:
    """Ask the service behind a far stunnel through our own stunnel, with the first key in a file.

    Returns the state of the tunnel, which is empty if it works, and the reason if it is known.
    """
    with TemporaryDirectory(prefix="reimzul-doctor-") as folder:
        near = (_LOOPBACK, _find_free_port())
        file, log = Path(folder) / "stunnel.conf", Path(folder) / "log"
        file.write_text(make_config(config, section, near, far, secrets), encoding="utf-8")
        try:
            with log.open("wb") as sink, spawn(["stunnel", file], output=sink, grace=1.0) as process:
                deadline = time.monotonic() + START_TIMEOUT_SECONDS
                while "bound to" not in _read_log(log):
                    if wait_until_exit(process, 0.01) or time.monotonic() > deadline:
                        errors = re.findall(r"LOG[0-3]\[\w+\]: (.+)", _read_log(log))
                        errors = [error for error in errors if error != _HARMLESS_WARNING]
                        return NO_TLS, errors[-1] if errors else "doctor's own stunnel does not start"
                return _ask_through(near, ask, log)
        except ProgramNotFound as error:
            return NO_TLS, str(error)


def make_config(config: StunnelConfig, section: StunnelSection, near: Address, far: Address, secrets: Path) -> str:
    """The configuration of our own stunnel from `near` to `far`, with the other options of the host's own."""
    lines = [
        "foreground = yes", "pid =", "syslog = no", "debug = info",
        *(f"{name} = {value}" for name, value in config.common if name.lower() not in _UNCOPIED_OPTIONS),
        "[doctor]", "client = yes", f"accept = {format_address(near)}", f"connect = {format_address(far)}",
        *(f"{name} = {value}" for name, value in section.options.items() if name not in _REPLACED_OPTIONS),
        f"PSKsecrets = {secrets}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _ask_through(near: Address, ask: Callable[[Address], str], log: Path) -> tuple[str, str]:
    try:
        with contextlib.suppress(Misconfigured):
            ask(near)
        return "", ""
    except OSError as error:  # of beanstalkd's client, it wraps the socket's
        is_late = isinstance(error, socket.timeout) or isinstance(error.__cause__, socket.timeout)
    return interpret_log(_read_log(log), "no answer" if is_late else "it accepts no connection")


def _read_log(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def interpret_log(log: str, why: str) -> tuple[str, str]:
    """Find the state of a tunnel through which nobody answered, and the reason, by stunnel's log."""
    if "TLS connected" in log:
        return SERVICE_DOWN, why
    if refusal := re.search(r"SSL_connect: (.+)", log):
        reason = refusal[1].rpartition(":")[2].strip()
        return KEY_REFUSED if any(error in reason for error in _KEY_ERRORS) else NO_TLS, reason
    if unreached := re.search(r"s_connect: (?:connect )?\S+: (.+)", log):
        return UNREACHED, unreached[1].lower()
    return SILENT, ""
