# SPDX-License-Identifier: Apache-2.0
"""Until when certificates are good: those that settings name, and the MQTT broker's own.

Python's ssl shows no certificate that it has not trusted, so the one field that is wanted is read here: RFC 5280,
section 4.1, in DER (X.690).
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from reimzul.admin.doctor.check import Check, Result, closed, fail, ok, warn
from reimzul.admin.doctor.host import CONTROLLER, Host
from reimzul.admin.doctor.services import PATIENCE
from reimzul.core.tls import client_context

#: Days before the end from which on a person should know.
SOON = 14
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0
#: What stands before the validity of a certificate: serial number, algorithm, issuer.
_BEFORE = 3


def checks(host: Host) -> list[Check]:
    """One for each file that the settings of a controller name, and one for the MQTT broker."""
    if not host.has(CONTROLLER):
        return []
    found = [Check(name=f"certificate.{name}", look=_File(path)) for name, path in _named(host)]
    if host.settings.mqtt.notifications:
        found.append(Check(name="certificate.mqtt.broker", look=lambda: _broker(host), needs=("mqtt",)))
    return found


def _named(host: Host) -> Iterator[tuple[str, Path]]:
    settings = host.settings
    rows: list[tuple[str, Path | None]] = []
    if settings.mqtt.notifications:
        rows += [("mqtt.ca_cert", settings.mqtt.ca_cert), ("mqtt.tls_cert", settings.mqtt.tls_cert)]
    if settings.mail.notifications:
        rows += [("mail.ca_cert", settings.mail.ca_cert)]
    for name, path in rows:
        if path is not None:
            yield name, path


class _File:
    """The certificates in a file; the first that ends counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> Result:
        try:
            pem = _PEM.findall(self.path.read_text(encoding="utf-8", errors="replace"))
        except PermissionError:
            return closed(str(self.path))
        try:
            ends = [until(ssl.PEM_cert_to_DER_cert(each)) for each in pem]
        except (ValueError, IndexError) as error:
            return fail(f"{self.path}: not a certificate: {error}")
        if not ends:
            return fail(f"{self.path}: there is no certificate in it")
        return judged(min(ends), str(self.path))


def judged(end: float, what: str) -> Result:
    """What there is to say of a certificate that ends at that time, in seconds since 1970."""
    days = (end - time.time()) / 86400
    when = datetime.fromtimestamp(end, timezone.utc).strftime("%Y-%m-%d")
    if days < 0:
        return fail(f"{what} has expired on {when}", "have a new one made by your authority, and put it in its place")
    if days < SOON:
        return warn(f"{what} expires in {days:.0f} days, on {when}", "have a new one made by your authority")
    return ok(f"until {when}")


def _broker(host: Host) -> Result:
    settings = host.settings.mqtt
    pair = (settings.tls_cert, settings.tls_key)
    ours = (pair[0], pair[1]) if pair[0] and pair[1] else None
    context = client_context("mqtt", ca_cert=settings.ca_cert, pair=ours, any_name=settings.tls_insecure)
    with contextlib.ExitStack() as open_ends:
        plain = open_ends.enter_context(socket.create_connection((settings.host, settings.port), PATIENCE))
        wrapped = open_ends.enter_context(context.wrap_socket(plain, server_hostname=settings.host))
        certificate = wrapped.getpeercert(binary_form=True)
    return judged(until(certificate or b""), f"the certificate of {settings.host}:{settings.port}")


def until(der: bytes) -> float:
    """The time a certificate's validity ends, in seconds since 1970. Raises `ValueError`, `IndexError`."""
    certificate = _fields(_content(der, _SEQUENCE))
    parts = _fields(_content(certificate[0], _SEQUENCE))
    validity = parts[_BEFORE + (parts[0][0] == _VERSION)]
    return _time(_fields(_content(validity, _SEQUENCE))[1])


def _time(field: bytes) -> float:
    text = _content(field, field[0]).decode("ascii")
    if field[0] == _UTC_TIME:  # of two digits; RFC 5280: from 50 on they are of the last century
        text = ("19" if text >= "50" else "20") + text
    elif field[0] != _GENERALIZED_TIME:
        raise ValueError("its validity is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()


def _content(field: bytes, tag: int) -> bytes:
    start, end = _extent(field)
    if field[0] != tag:
        raise ValueError(f"a field of kind {field[0]:#x} where {tag:#x} belongs")
    return field[start:end]


def _fields(content: bytes) -> list[bytes]:
    found = []
    while content:
        _, end = _extent(content)
        found.append(content[:end])
        content = content[end:]
    return found


def _extent(field: bytes) -> tuple[int, int]:
    """Where the content of a field begins and ends."""
    if len(field) < 2:
        raise ValueError("it is cut off")
    size, start = field[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(field[2:start], "big")
    if start + size > len(field):
        raise ValueError("it is cut off")
    return start, start + size
