# SPDX-License-Identifier: Apache-2.0
"""Checks the network: kernel settings, public ports, the links to other hosts, and certificates.

A link consists of our stunnel, the network, the far stunnel, our key, and the service behind it. Doctor asks the
service through all of them. Only if that fails does it examine the parts one by one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from reimzul.admin.doctor.check import Check, Result, describe_error, fail, is_root, ok, warn
from reimzul.admin.doctor.host import BSTORE, BUILDER, CONTROLLER, PROGRAM_TIMEOUT_SECONDS, Host
from reimzul.admin.doctor.services import (
    ANSWER_TIMEOUT_SECONDS,
    BEANSTALKD,
    INCOMING,
    RSYNCD,
    STORE,
    Service,
    format_address,
    restart_hint,
    services,
)
from reimzul.admin.doctor.stunnel import RESTART_STUNNEL, diagnose_tunnel, find_connect_error, is_readable
from reimzul.admin.doctor.stunnel_config import StunnelSection
from reimzul.core.config import LOCAL
from reimzul.core.errors import ReimzulError
from reimzul.core.process import output_of
from reimzul.core.tls import client_context

#: The services each role needs.
NEEDED = {CONTROLLER: (BEANSTALKD, STORE), BSTORE: (BEANSTALKD,), BUILDER: (BEANSTALKD, INCOMING, RSYNCD, STORE)}
#: Programs that may listen on a public address; conf/ has all others listen on loopback.
ALLOWED = ("stunnel", "stunnel4", "sshd")
_SSH_PORT = 22
#: The highest tcp_retries2 with which a vanished peer is noticed within 30 s: conf/sysctl-reimzul.conf.
MAX_RETRIES = 6
_RETRIES = Path("/proc/sys/net/ipv4/tcp_retries2")
_TCP_LISTEN = "0A"  # the state in /proc/net/tcp
#: Doctor warns this many days before a certificate expires.
EXPIRY_WARNING_DAYS = 14
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def checks(host: Host) -> list[Check]:
    return [
        Check(name="tcp_retries2", run=_check_retries),
        Check(name="listen", run=lambda: _check_listeners(host)),
    ]


def _check_retries() -> Result:
    value = int(_RETRIES.read_text())
    if value > MAX_RETRIES:
        return warn(
            f"{value}: if a peer vanishes during a transfer, it takes minutes to notice, instead of 30 s",
            "reimzul setup writes /etc/sysctl.d/90-reimzul.conf; then run sysctl --system",
        )
    return ok(str(value))


# --- public ports


def _check_listeners(host: Host) -> Result:
    sockets = dict(list_public_sockets())
    owners = find_socket_owners(set(sockets))
    ours = {section.accept[1] for section in host.stunnel.sections if not section.is_client} | {_SSH_PORT}
    others = []
    for inode, (address, port) in sorted(sockets.items(), key=lambda item: item[1][1]):
        name = owners.get(inode, "")
        # The MQTT broker may serve subscribers on other hosts: it authenticates them by their certificates.
        is_mqtt = host.has_role(CONTROLLER) and name == "mosquitto" and port == host.settings.mqtt.port
        if name in ALLOWED or (port in ours and name in ("", "systemd")) or is_mqtt:
            continue
        others.append(f"{name or 'an unknown program'} on {address}:{port}")
    if others:
        hint = "" if is_root() else "run reimzul doctor as root to learn the program; "
        return warn(
            f"others than stunnel and sshd listen on public addresses: {', '.join(dict.fromkeys(others))}",
            f"{hint}have it listen on 127.0.0.1, or close the port in the firewall",
        )
    return ok("only stunnel and sshd listen on public addresses")


def list_public_sockets() -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield the inode, address and port of each socket that listens on more than loopback."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                address, port = parse_socket_address(fields[1])
                if fields[3] == _TCP_LISTEN and not is_loopback(address):
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
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def find_socket_owners(inodes: set[str]) -> dict[str, str]:
    """Find the program that has each socket open, as far as this process may see."""
    links = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for number in os.listdir(folder / "fd"):
                with contextlib.suppress(OSError):
                    inode = links.get(os.readlink(folder / "fd" / number))
                    name = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip() if inode else ""
                    # systemd may hold a socket on behalf of the program that uses it
                    if inode and not (name == "systemd" and inode in found):
                        found[inode] = name
    return found


# --- links


def used_services(host: Host) -> dict[str, Service]:
    """The services this host uses: those its roles need, and those it has a tunnel to."""
    needed = {name for role in host.roles for name in NEEDED[role]}
    return {
        name: service
        for name, service in services(host.settings).items()
        if name in needed or host.stunnel.find_client(*service.address)
    }


def link_checks(host: Host) -> list[Check]:
    links = [
        Check(name=f"link.{name}", run=partial(_check_link, host, service))
        for name, service in used_services(host).items()
    ]
    offers = [Check(name=f"offer.{name}", run=partial(_check_offer, host, name)) for name in host.stunnel.offers]
    return links + offers


def _check_link(host: Host, service: Service) -> Result:
    """Ask a service; if it does not answer, find out which part of the link is broken."""
    section = host.stunnel.find_client(*service.address)
    error = find_connect_error(service.address)
    if error is not None:
        return _explain_near_end(host, service, section, error)
    far = section.connect if section else service.address
    end = format_address(far)
    try:
        return ok(f"{end}: {service.ask(service.address)}")
    except OSError as failure:
        if section is None:
            return fail(f"{end}: {describe_error(failure)}", restart_hint(service.program))
    return diagnose_tunnel(host, section, far, service, f"on {far[0]}: ") or fail(
        f"{end} accepts the key in the file, but not the key that this host's stunnel uses: "
        "stunnel has not read its files since they changed",
        RESTART_STUNNEL,
    )


def _explain_near_end(host: Host, service: Service, section: StunnelSection | None, error: str) -> Result:
    """Why this host's own end of a link accepts no connection."""
    near = format_address(service.address)
    if section is not None:
        return fail(f"nothing listens on {near}: stunnel does not run on this host", RESTART_STUNNEL)
    if service.address[0] not in LOCAL:
        return fail(f"{near} cannot be reached: {error}", f"check {service.setting}, and that the host runs")
    if host.has_role(service.offered_by):
        return fail(f"nothing listens on {near}: {service.program} does not run", restart_hint(service.program))
    options = " --add-bstore NAME" if host.roles[0] == CONTROLLER and service.name == STORE else ""
    return fail(
        f"nothing listens on {near}, and no section of {host.stunnel.path} has that port",
        f"reimzul setup {host.roles[0]}{options}, or correct {service.setting}",
    )


def _check_offer(host: Host, name: str) -> Result:
    """Check a service that others reach through this host's stunnel: first the service, then stunnel."""
    section, service = host.stunnel.offers[name], services(host.settings)[name]
    accept = (section.accept[0] or "127.0.0.1", section.accept[1])
    if find_connect_error(accept) is not None:
        return fail(f"nothing listens on port {accept[1]}: stunnel does not run on this host", RESTART_STUNNEL)
    try:
        answer = service.ask(section.connect)
    except OSError as error:
        return fail(f"{format_address(section.connect)}: {describe_error(error)}", restart_hint(service.program))
    if not is_readable(section.secrets):
        return ok(f"port {accept[1]}: {answer}; run reimzul doctor as root to check the keys, too")
    return diagnose_tunnel(host, section, accept, service) or ok(f"port {accept[1]} accepts keys; {answer}")


# --- certificates


def certificate_checks(host: Host) -> list[Check]:
    mqtt, mail = host.settings.mqtt, host.settings.mail
    rows = (
        ("mqtt.ca_cert", mqtt.ca_cert, mqtt.notifications),
        ("mqtt.tls_cert", mqtt.tls_cert, mqtt.notifications),
        ("mail.ca_cert", mail.ca_cert, mail.notifications),
    )
    found = [
        Check(name=f"certificate.{name}", run=partial(check_certificates, path))
        for name, path, is_used in rows
        if path and is_used
    ]
    if mqtt.notifications:
        found.append(Check(name="certificate.mqtt.broker", run=lambda: _check_broker(host), needs=("mqtt",)))
    return found


def check_certificates(path: Path) -> Result:
    """Check the certificates in a file; the first to expire counts."""
    try:
        ends = expiry_times(path)
    except ReimzulError as error:
        return fail(f"{path}: cannot read a certificate: {error}", "replace the file with a valid one")
    if not ends:
        return fail(f"{path} contains no certificate", "replace the file with a valid one")
    return judge_expiry(min(ends), str(path))


def expiry_times(path: Path) -> list[float]:
    """When each certificate in a file expires, in seconds since 1970. Raises `OSError`, `ReimzulError`."""
    certificates = _CERTIFICATE.findall(path.read_text(encoding="utf-8", errors="replace"))
    with TemporaryDirectory(prefix="reimzul-doctor-") as folder:
        # openssl storeutl fails for a file that contains a key, too
        file = Path(folder) / "certificates.pem"
        file.write_text("\n".join(certificates), encoding="utf-8")
        text = output_of(["openssl", "storeutl", "-noout", "-text", "-certs", file], timeout=PROGRAM_TIMEOUT_SECONDS)
    return [ssl.cert_time_to_seconds(time_text) for time_text in re.findall(r"Not After *: (.*)", text)]


def judge_expiry(end: float, name: str) -> Result:
    """The result for a certificate that expires at that time, in seconds since 1970."""
    days = (end - time.time()) / 86400
    date = datetime.fromtimestamp(end, timezone.utc).strftime("%Y-%m-%d")
    if days < 0:
        return fail(f"{name} expired on {date}", "replace it with a new certificate of your authority")
    if days < EXPIRY_WARNING_DAYS:
        return warn(f"{name} expires in {days:.0f} days, on {date}", "get a new certificate from your authority")
    return ok(f"valid until {date}")


def _check_broker(host: Host) -> Result:
    settings = host.settings.mqtt
    pair = (settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
    context = client_context("mqtt", ca_cert=settings.ca_cert, pair=pair, any_name=settings.tls_insecure)
    with contextlib.ExitStack() as stack:
        address = (settings.host, settings.port)
        plain = stack.enter_context(socket.create_connection(address, ANSWER_TIMEOUT_SECONDS))
        wrapped = stack.enter_context(context.wrap_socket(plain, server_hostname=settings.host))
        certificate = wrapped.getpeercert() or {}
    end = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return judge_expiry(end, f"the certificate of {format_address(address)}")
