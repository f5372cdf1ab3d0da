# SPDX-License-Identifier: Apache-2.0
"""A small certificate authority for the farm's MQTT, by openssl: what is there and still holds is never made anew."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attr

from reimzul.core.errors import ProgramFailed
from reimzul.core.process import output_of

#: Days certificates last; the authority's own, and those it signs.
AUTHORITY_DAYS, DAYS = 7300, 1826
#: One that has fewer days left is made anew.
DAYS_LEFT = 30

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@attr.frozen
class Pair:
    """A certificate and its key, as texts."""

    certificate: str
    key: str = attr.field(repr=False)


def holds(pair: Pair | None, authority: Pair | None = None, host: str = "") -> bool:
    """Whether a certificate lasts for a while, is signed by the authority, and has the host's name."""
    if pair is None or not pair.certificate or not pair.key:
        return False
    with _folder(certificate=pair.certificate, authority=(authority or pair).certificate) as folder:
        try:
            _openssl(folder, "x509", "-in", "certificate", "-noout", "-checkend", str(DAYS_LEFT * 86400))
            _openssl(folder, "verify", "-CAfile", "authority", "certificate")
            said = _openssl(folder, "x509", "-in", "certificate", "-noout", *_asked(host))
        except ProgramFailed:
            return False
    return not host or "does match" in said


def new_authority(name: str) -> Pair:
    """An authority that signs."""
    with _folder() as folder:
        _openssl(
            folder, "req", "-x509", *_KEY, "-days", str(AUTHORITY_DAYS), "-subj", f"/CN={name}",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", "key", "-out", "certificate",
        )  # fmt: skip
        return _pair(folder)


def issued(authority: Pair, name: str, usage: str, hosts: Sequence[str] = ()) -> Pair:
    """A certificate whose common name is `name`, for `serverAuth` at these hosts or `clientAuth`, and its key."""
    also = f"subjectAltName={','.join(map(_alternative, hosts))}\n" if hosts else ""
    extensions = f"basicConstraints=critical,CA:FALSE\nextendedKeyUsage={usage}\n{also}"
    with _folder(authority=authority.certificate, authority_key=authority.key, extensions=extensions) as folder:
        _openssl(folder, "req", "-new", *_KEY, "-subj", f"/CN={name}", "-keyout", "key", "-out", "request")
        _openssl(
            folder, "x509", "-req", "-in", "request", "-extfile", "extensions", "-days", str(DAYS),
            "-CA", "authority", "-CAkey", "authority_key", "-CAcreateserial", "-out", "certificate",
        )  # fmt: skip
        return _pair(folder)


def hosts_of(pair: Pair | None) -> list[str]:
    """The hosts that a server's certificate names."""
    if pair is None:
        return []
    with _folder(certificate=pair.certificate) as folder:
        try:
            said = _openssl(folder, "x509", "-in", "certificate", "-noout", "-ext", "subjectAltName")
        except ProgramFailed:
            return []
    return re.findall(r"(?:DNS|IP Address):([^\s,]+)", said)


def is_address(host: str) -> bool:
    """Whether a host is an IPv4 address rather than a name."""
    return bool(re.match(r"\d+\.\d+\.\d+\.\d+\Z", host))


def _asked(host: str) -> tuple[str, ...]:
    return ("-checkip" if is_address(host) else "-checkhost", host) if host else ()


def _alternative(host: str) -> str:
    return f"{'IP' if is_address(host) else 'DNS'}:{host}"


def _pair(folder: Path) -> Pair:
    return Pair((folder / "certificate").read_text(), (folder / "key").read_text())


@contextlib.contextmanager
def _folder(**files: str) -> Iterator[Path]:
    """A folder nobody else can enter, with these files in it, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="reimzul-") as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        yield Path(folder)


def _openssl(folder: Path, *words: str) -> str:
    # by names alone: whatever the folder is called means nothing to openssl
    return output_of(["openssl", *words], cwd=folder)
