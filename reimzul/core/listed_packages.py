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
from reimzul.core.capability import Provide
from reimzul.core.http_client import Document, HttpSession, HttpUnavailable

#: The largest repomd.xml (one has some 3 kB) and primary.xml (15 MB packed for 50,000 packages) that are read.
_MAX_REPOMD_BYTES, _MAX_PRIMARY_BYTES = 1 << 20, 256 << 20
#: How much of a packed primary.xml is unpacked at a time.
_PIECE_BYTES = 1 << 20
#: The largest listing of a folder that is read; some 200 bytes are about one entry.
_MAX_LISTING_BYTES = 8 << 20
_FOLDER_HREF = re.compile(rb'href="(?:\./)?([^"/?]+)/"')
_DATA_HREF = re.compile(rb'<data type="(primary|filelists)">.*?<location [^>]*?href="([^"]+)"', re.DOTALL)
_PACKAGE = re.compile(rb'<size [^>]*?package="([0-9]+)".*?<location [^>]*?href="([^"]+)"', re.DOTALL)
_COUNT = re.compile(rb'<metadata [^>]*?packages="([0-9]+)"')
_END = b"</package>"
_ARCH = re.compile(rb"<arch>([A-Za-z0-9_]+)</arch>")
_FILELISTS_ARCH = re.compile(rb'<package [^>]*?\barch="([A-Za-z0-9_]+)"')
_PROVIDES = re.compile(rb"<rpm:provides>(.*?)</rpm:provides>", re.DOTALL)
_ENTRY = re.compile(
    r'<rpm:entry name="([^"]*)"(?: flags="([A-Z]+)"(?: epoch="([^"]*)")?(?: ver="([^"]*)")?(?: rel="([^"]*)")?)?'
)
_FILE = re.compile(rb"<file(?: type=\"[a-z]+\")?>([^<]+)</file>")
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
    return fetch_newer_repomd(session, url, Document(b"")).body


def fetch_newer_repomd(session: HttpSession, url: str, known: Document) -> Document:
    """Read a target's repomd.xml unless it is still the known one. Raises `NotFound`, `HttpUnavailable`."""
    return session.get_newer(f"{url}repodata/repomd.xml", _MAX_REPOMD_BYTES, known)


def _iterate_metadata(session: HttpSession, url: str, kind: str = "primary") -> Iterator[bytes]:
    """Yield a target's primary.xml or filelists.xml in pieces.

    Raises `NotFound`, and `HttpUnavailable` also for damaged repodata.
    """
    named = {found[1].decode(): found[2].decode() for found in _DATA_HREF.finditer(fetch_repomd(session, url))}
    if kind not in named:
        raise HttpUnavailable(f"{url}: its repomd.xml names no {kind}.xml")
    href = named[kind]
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


def iterate_packages(session: HttpSession, url: str) -> Iterator[ListedPackage]:
    """Yield the packages that a target lists. Raises `NotFound`, `HttpUnavailable`."""
    for match in _iterate_matches(session, url, _PACKAGE):
        yield ListedPackage(location=_unquote(match[2]), size=int(match[1]))


def _iterate_matches(session: HttpSession, url: str, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
    """Yield the match of a pattern in each package of a target. Raises `NotFound`, `HttpUnavailable`."""
    declared, found = None, 0
    for whole in _iterate_whole_packages(session, url):
        declared = declared or _COUNT.search(whole)
        for match in pattern.finditer(whole):
            found += 1
            yield match
    if declared is None or int(declared[1]) != found:
        raise HttpUnavailable(f"{url}: its primary.xml is not as createrepo_c writes it")


def iterate_provides(session: HttpSession, url: str) -> Iterator[tuple[str, Provide]]:
    """Yield what a target's packages provide, with those of their files that primary.xml has, and each package's arch.

    Raises `NotFound`, `HttpUnavailable`.
    """
    for arch, package in _iterate_with_arch(session, url, "primary", _ARCH):
        for entry in _read_entries(_PROVIDES.search(package)):
            yield arch, Provide(*entry)
        for file in _FILE.finditer(package):
            yield arch, Provide(_unescape(file[1]))


def iterate_files(session: HttpSession, url: str) -> Iterator[tuple[str, str]]:
    """Yield the paths of all files of a target's packages, and each package's arch.

    Raises `NotFound`, `HttpUnavailable`.
    """
    for arch, package in _iterate_with_arch(session, url, "filelists", _FILELISTS_ARCH):
        yield from ((arch, _unescape(file[1])) for file in _FILE.finditer(package))


def _iterate_with_arch(
    session: HttpSession, url: str, kind: str, pattern: re.Pattern[bytes]
) -> Iterator[tuple[str, bytes]]:
    """Yield the arch and the XML of each package; `pattern` finds the arch."""
    for whole in _iterate_whole_packages(session, url, kind):
        for package in whole.split(_END):
            if found := pattern.search(package):
                yield found[1].decode(), package


def _iterate_whole_packages(session: HttpSession, url: str, kind: str = "primary") -> Iterator[bytes]:
    """Yield a target's primary.xml or filelists.xml in pieces that no package extends beyond."""
    rest = b""
    for piece in _iterate_metadata(session, url, kind):
        rest += piece
        end = rest.rfind(_END) + len(_END) if _END in rest else 0
        yield rest[:end]
        rest = rest[end:]
    yield rest


def _read_entries(block: re.Match[bytes] | None) -> Iterator[tuple[str, str, str]]:
    """Yield the name, flags and version of each capability in a list of a primary.xml."""
    for entry in _ENTRY.findall(block[1].decode("utf-8", "replace")) if block else ():
        name, flags, epoch, version, release = map(_unescape_text, entry) if "&" in entry[0] else entry
        if version:
            yield name, flags, f"{epoch or 0}:{version}{'-' if release else ''}{release}"
        else:
            yield name, "", ""


def _unescape(text: bytes) -> str:
    return _unescape_text(text.decode("utf-8", "replace"))


def _unescape_text(text: str) -> str:
    return unescape(text, {"&quot;": '"', "&apos;": "'"}) if "&" in text else text


def _unquote(text: bytes) -> str:
    return unquote(unescape(text.decode()))


# --- the contents of packages

_CONTENT = re.compile(
    rb"<name>([^<]*)</name>\s*<arch>([^<]*)</arch>\s*"
    rb'<version epoch="([^"]*)" ver="([^"]*)" rel="([^"]*)"/>(.*?)</package>',
    re.DOTALL,
)
_LOCATION = re.compile(rb'<location [^>]*?href="([^"]+)"')
_BUILD_TIME = re.compile(rb'<time [^>]*?build="([0-9]+)"')
_SOURCE_RPM = re.compile(rb"<rpm:sourcerpm>([^<]+)</rpm:sourcerpm>")
_REQUIRES = re.compile(rb"<rpm:requires>(.*?)</rpm:requires>", re.DOTALL)
#: The name and the version-release in the file name of a source rpm.
_SOURCE = re.compile(r"(.+)-([^-]+-[^-]+)\.(?:no)?src\.rpm")
_SIGNS = {"EQ": "=", "LT": "<", "LE": "<=", "GT": ">", "GE": ">="}


@attr.frozen(kw_only=True)
class PackageContent:
    """A package that a target lists, with what primary.xml has of its capabilities and files."""

    name: str
    arch: str  #: `src` or `nosrc` of a source rpm
    epoch: str
    evr: str  #: version-release
    built: int = 0  #: when it was built, seconds since 1970
    location: str  #: relative to its target
    source: str  #: the name of its source package
    source_evr: str  #: version-release of that
    provides: tuple[Provide, ...]
    requires: tuple[str, ...]  #: in rpm's notation; of a source rpm, its BuildRequires
    files: tuple[str, ...]  #: those in bin folders and in /etc

    @property
    def version(self) -> str:
        """[epoch:]version-release."""
        return self.evr if self.epoch in ("", "0") else f"{self.epoch}:{self.evr}"

    @property
    def nevra(self) -> str:
        return f"{self.name}-{self.version}.{self.arch}"

    @property
    def is_source(self) -> bool:
        return self.arch in ("src", "nosrc")


def iterate_contents(session: HttpSession, url: str) -> Iterator[PackageContent]:
    """Yield the packages that a target lists, with their capabilities. Raises `NotFound`, `HttpUnavailable`."""
    for match in _iterate_matches(session, url, _CONTENT):
        name, arch, epoch, version, release = map(_unescape, match.groups()[:5])
        location, source_rpm = _LOCATION.search(match[6]), _SOURCE_RPM.search(match[6])
        built = _BUILD_TIME.search(match[6])
        path = _unquote(location[1]) if location else ""
        source = _SOURCE.fullmatch(_unescape(source_rpm[1]) if source_rpm else path.rpartition("/")[2])
        yield PackageContent(
            name=name,
            arch=arch,
            epoch=epoch,
            evr=f"{version}-{release}",
            built=int(built[1]) if built else 0,
            location=path,
            source=source[1] if source else name,
            source_evr=source[2] if source else f"{version}-{release}",
            provides=tuple(Provide(*entry) for entry in _read_entries(_PROVIDES.search(match[6]))),
            requires=tuple(_format_requirement(*entry) for entry in _read_entries(_REQUIRES.search(match[6]))),
            files=tuple(map(_unescape, _FILE.findall(match[6]))),
        )


def _format_requirement(name: str, flags: str, version: str) -> str:
    return f"{name} {_SIGNS[flags]} {version}" if flags in _SIGNS else name
