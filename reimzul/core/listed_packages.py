# SPDX-License-Identifier: Apache-2.0
"""What a target lists: its repomd.xml and primary.xml, read from the store over HTTP.

Regular expressions read them, piece by piece: a primary.xml may have some 100 MB, and a parser takes four times as
long. A URL here is a target's, and ends with a slash.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable
from urllib.parse import unquote
from xml.sax.saxutils import unescape

import attr

from reimzul.core import validators
from reimzul.core.http_client import HttpSession, HttpUnavailable
from reimzul.core.rpm_version import OPERATOR_OF_FLAG, Capability, Evr

#: The largest repomd.xml (one has some 3 kB) and primary.xml (15 MB packed for 50,000 packages) that are read.
_MAX_REPOMD_BYTES, _MAX_PRIMARY_BYTES = 1 << 20, 256 << 20
#: How much of a packed primary.xml is unpacked at a time.
_PIECE_BYTES = 1 << 20
#: The largest listing of a folder that is read; some 200 bytes are about one entry.
_MAX_LISTING_BYTES = 8 << 20
_FOLDER_HREF = re.compile(rb'href="(?:\./)?([^"/?]+)/"')
_PRIMARY_HREF = re.compile(rb'<data type="primary">.*?<location [^>]*?href="([^"]+)"', re.DOTALL)
_PACKAGE = re.compile(rb'<size [^>]*?package="([0-9]+)".*?<location [^>]*?href="([^"]+)"', re.DOTALL)
_COUNT = re.compile(rb'<metadata [^>]*?packages="([0-9]+)"')
_END = b"</package>"
#: The place of a package: `<name>/<timestamp>/<version-release>.<arch>/<file>`.
_PLACE = re.compile(r"([^/]+)/([0-9]{14})/([^/]+)\.([A-Za-z0-9_]+)/[^/]+")
#: How a primary.xml is opened, by the suffix of its name.
_OPENERS: dict[str, Callable[[io.BytesIO], Any]] = {
    ".xml": contextlib.nullcontext, ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open,
}  # fmt: skip


@attr.frozen(kw_only=True)
class ListedBuild:
    """A leg whose packages a target lists, as its place names it."""

    name: str  #: of the source package
    timestamp: str
    evr: str
    arch: str

    @property
    def place(self) -> str:
        """Its folder, relative to the target's."""
        return f"{self.name}/{self.timestamp}/{self.evr}.{self.arch}"


@attr.frozen(kw_only=True)
class ListedPackage:
    location: str  #: relative to its target
    size: int  #: bytes

    @property
    def build(self) -> ListedBuild | None:
        """The leg it belongs to; None for a package that no build of the farm has put there."""
        found = _PLACE.fullmatch(self.location)
        return ListedBuild(name=found[1], timestamp=found[2], evr=found[3], arch=found[4]) if found else None


def list_store_targets(session: HttpSession, url: str) -> list[str]:
    """Return the targets in the web server's listing of `repo/`. Raises `NotFound`, `HttpUnavailable`."""
    return parse_store_listing(session.get(url, _MAX_LISTING_BYTES))


def parse_store_listing(listing: bytes) -> list[str]:
    """Return the targets in the web server's listing of `repo/`."""
    found = []
    for href in _FOLDER_HREF.findall(listing):
        with contextlib.suppress(ValueError):  # the parent folder, or what a person put there
            found.append(validators.target(unquote(href.decode())))
    return found


def fetch_repomd(session: HttpSession, url: str) -> bytes:
    """Read a target's repomd.xml. Raises `NotFound` if it has none, `HttpUnavailable`."""
    return session.get(f"{url}repodata/repomd.xml", _MAX_REPOMD_BYTES)


def _iterate_primary(session: HttpSession, url: str) -> Iterator[bytes]:
    """Yield a target's primary.xml in pieces. Raises `NotFound`, and `HttpUnavailable` also for damaged repodata."""
    primary = _PRIMARY_HREF.search(fetch_repomd(session, url))
    if primary is None:
        raise HttpUnavailable(f"{url}: its repomd.xml names no primary.xml")
    href = primary[1].decode()
    opener = _OPENERS.get(Path(href).suffix)
    if opener is None:
        raise HttpUnavailable(f"{url}: {href} is compressed in a way that cannot be read")
    packed = session.get(url + href, _MAX_PRIMARY_BYTES)
    try:
        with opener(io.BytesIO(packed)) as stream:
            while piece := stream.read(_PIECE_BYTES):
                yield piece
    except (zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise HttpUnavailable(f"{url}: {href} cannot be read: {error}") from error


def _iterate_matches(session: HttpSession, url: str, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
    """Yield the match of a pattern in each package of a target. Raises `NotFound`, `HttpUnavailable`."""
    rest, declared, found = b"", None, 0
    for piece in _iterate_primary(session, url):
        rest += piece
        declared = declared or _COUNT.search(rest)
        whole = rest.rfind(_END) + len(_END) if _END in rest else 0
        for match in pattern.finditer(rest, 0, whole):
            found += 1
            yield match
        rest = rest[whole:]
    if declared is None or int(declared[1]) != found:
        raise HttpUnavailable(f"{url}: its primary.xml is not as createrepo_c writes it")


def iterate_packages(session: HttpSession, url: str) -> Iterator[ListedPackage]:
    """Yield the packages that a target lists. Raises `NotFound`, `HttpUnavailable`."""
    for match in _iterate_matches(session, url, _PACKAGE):
        yield ListedPackage(location=unquote(unescape(match[2].decode())), size=int(match[1]))


# --- what packages provide and require

_CONTENT = re.compile(
    rb"<name>([^<]*)</name>\s*<arch>([^<]*)</arch>\s*"
    rb'<version epoch="([^"]*)" ver="([^"]*)" rel="([^"]*)"/>(.*?)</package>',
    re.DOTALL,
)
_LOCATION = re.compile(r'<location [^>]*?href="([^"]+)"')
_BUILD_TIME = re.compile(r'<time [^>]*?build="([0-9]+)"')
_SOURCE_RPM = re.compile(r"<rpm:sourcerpm>([^<]*)</rpm:sourcerpm>")
_PROVIDES = re.compile(r"<rpm:provides>(.*?)</rpm:provides>", re.DOTALL)
_REQUIRES = re.compile(r"<rpm:requires>(.*?)</rpm:requires>", re.DOTALL)
_ENTRY = re.compile(
    r'<rpm:entry name="([^"]*)"(?: flags="([A-Z]+)")?(?: epoch="([^"]*)")?(?: ver="([^"]*)")?(?: rel="([^"]*)")?'
)
_FILE = re.compile(r"<file(?: type=\"[a-z]+\")?>([^<]*)</file>")
#: The name of the source package in the file name of a source rpm.
_SOURCE_NAME = re.compile(r"(.+)-([^-]+-[^-]+)\.(?:no)?src\.rpm")


@attr.frozen(kw_only=True)
class PackageContent:
    """A package that a target lists, with what primary.xml has of its capabilities and files."""

    name: str
    arch: str  #: `src` for a source rpm
    evr: Evr
    location: str  #: relative to its target
    built: int = 0  #: when it was built, seconds since 1970; 0 if unknown
    source_rpm: str  #: the file name of its source rpm; of a source rpm, its own
    provides: tuple[Capability, ...]
    requires: tuple[str, ...]  #: in rpm's notation; of a source rpm, its BuildRequires
    files: tuple[str, ...]  #: those in bin folders and in /etc

    @property
    def nevra(self) -> str:
        return f"{self.name}-{self.evr}.{self.arch}"

    @property
    def is_source(self) -> bool:
        return self.arch in ("src", "nosrc")

    @property
    def source_name(self) -> str:
        """The name of its source package."""
        found = _SOURCE_NAME.fullmatch(self.source_rpm)
        return found[1] if found else self.name

    @property
    def source_release(self) -> str:
        """The version-release of its source package."""
        found = _SOURCE_NAME.fullmatch(self.source_rpm)
        return found[2] if found else f"{self.evr.version}-{self.evr.release}"


def iterate_contents(session: HttpSession, url: str) -> Iterator[PackageContent]:
    """Yield the packages that a target lists, with their capabilities. Raises `NotFound`, `HttpUnavailable`."""
    for match in _iterate_matches(session, url, _CONTENT):
        name, arch, epoch, version, release, rest = (each.decode("utf-8", "replace") for each in match.groups())
        location, source, built = _LOCATION.search(rest), _SOURCE_RPM.search(rest), _BUILD_TIME.search(rest)
        path = unquote(unescape(location[1])) if location else ""
        yield PackageContent(
            name=unescape(name),
            arch=arch,
            evr=Evr(int(epoch) if epoch.isdigit() else 0, unescape(version), unescape(release)),
            location=path,
            built=int(built[1]) if built else 0,
            source_rpm=unescape(source[1]) if source and source[1] else path.rpartition("/")[2],
            provides=tuple(_read_capabilities(_PROVIDES.search(rest))),
            requires=tuple(str(each) for each in _read_capabilities(_REQUIRES.search(rest))),
            files=tuple(unescape(each) for each in _FILE.findall(rest)),
        )


def _read_capabilities(block: re.Match[str] | None) -> Iterator[Capability]:
    for name, flags, epoch, version, release in _ENTRY.findall(block[1]) if block else ():
        if flags in OPERATOR_OF_FLAG and version:
            evr = Evr(int(epoch) if epoch.isdigit() else 0, unescape(version), unescape(release))
            yield Capability(unescape(name), OPERATOR_OF_FLAG[flags], evr)
        else:
            yield Capability(unescape(name))
