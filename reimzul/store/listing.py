# SPDX-License-Identifier: Apache-2.0
"""LI"""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Callable
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.parsers import expat

import attr

from reimzul.core.errors import RetryLater
from reimzul.core.manifest import File, Manifest
from reimzul.core.message import Status
from reimzul.core.store_paths import StorePaths
from reimzul.store.repodata import REPODATA

log = logging.getLogger(__name__)

#: Below a target: name, timestamp, version-release.arch. What lies in the last was renamed there whole, and stays.
_LEG = 3
#: Nanoseconds. A folder that changed so shortly before we looked may change again within one tick of its file
#: system's clock, so it is looked into once more.
_YOUNG = 2_000_000_000
#: Targets whose folders are remembered; one of 50,000 packages takes some 30 MB.
_KEPT = 4


@attr.define
class _KnownFolder:
    inode: int
    changed: int  #: its mtime in ns when we looked into it, 0 where it has to be looked into again
    folders: dict[str, _KnownFolder] = attr.field(factory=dict)
    packages: list[str] = attr.field(factory=list)


class PackageTree:
    """What was found in the targets worked on last."""

    def __init__(self) -> None:
        self._known: dict[Path, _KnownFolder] = {}

    def list_packages(self, target: Path) -> list[str]:
        """The path of each package, seen from the target, in the order that createrepo_c takes best.

        Raises `OSError` where the target cannot be read.
        """
        found = _look(str(target), self._known.pop(target, None), os.stat(target), 0)
        self._known[target] = found
        while len(self._known) > _KEPT:
            del self._known[next(iter(self._known))]
        return sorted(_paths(found, ""), key=_by_name)


def _by_name(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return name, folder


def _paths(folder: _KnownFolder, prefix: str) -> Iterator[str]:
    yield from (prefix + name for name in folder.packages)
    for name, inner in folder.folders.items():
        yield from _paths(inner, f"{prefix}{name}/")


def _look(path: str, known: _KnownFolder | None, told: os.stat_result, depth: int) -> _KnownFolder:
    """A folder as it is now; of what is known of it, that is kept which cannot have changed."""
    if known is None or known.inode != told.st_ino or known.changed != told.st_mtime_ns:
        known = _read(path, known, told)
    for name, inner in list(known.folders.items()):
        if depth + 1 >= _LEG and inner.changed:
            continue
        below = f"{path}/{name}"
        try:
            known.folders[name] = _look(below, inner, os.stat(below, follow_symlinks=False), depth + 1)
        except FileNotFoundError:  # gone since
            del known.folders[name]
    return known


def _read(path: str, before: _KnownFolder | None, told: os.stat_result) -> _KnownFolder:
    age = time.time_ns() - told.st_mtime_ns
    found = _KnownFolder(told.st_ino, told.st_mtime_ns if age > _YOUNG else 0)
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith((".", "repodata")):
                    inner = before.folders.get(entry.name) if before else None
                    same = inner is not None and inner.inode == entry.inode()
                    found.folders[entry.name] = inner if inner and same else _KnownFolder(entry.inode(), 0)
            elif entry.name.endswith(".rpm") and "\n" not in entry.name and entry.is_file():
                found.packages.append(entry.name)
    return found


@attr.frozen(kw_only=True)
class Ruling:
    """What the rules of its target have decided about a leg."""

    left_out: frozenset[str] = frozenset()  #: file names of packages that are not listed
    refused: str = ""  #: why nothing of it is listed
    notes: str = ""  #: what everybody is told of it


@attr.frozen(kw_only=True)
class StoredLeg:
    """A leg that has its place."""

    manifest: Manifest
    place: str
    ruling: Ruling = Ruling()

    @property
    def listed_files(self) -> list[File]:
        """Its packages that are to be listed."""
        return [file for file in self.manifest.rpm_files if file.name not in self.ruling.left_out]

    @property
    def folder(self) -> str:
        """Seen from its target."""
        return self.place.split("/", 2)[2]

    @property
    def timestamp(self) -> str:
        """Of the place, which may be later than the request's."""
        return self.place.split("/")[3]

    @property
    def is_publishable(self) -> bool:
        """Whether it is one for the repodata and the signer: built, and not only to see whether it builds."""
        return self.manifest.status == Status.SUCCESS and not self.manifest.request.scratch


_OPEN: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".xml": open}


#: A package in a primary.xml as createrepo_c writes it.
_PACKAGE = re.compile(rb'pkgid="YES">([0-9a-f]+)</checksum>.*?<location [^>]*?href="([^"&]+)"', re.DOTALL)


_COUNT = re.compile(rb'<metadata [^>]*packages="(\d+)"')


_END = b"</package>"


#: Bytes of a primary.xml looked through at a time.
PIECE_BYTES = 1 << 20


DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, expat.ExpatError, ElementTree.ParseError, KeyError)


#: Targets whose listing is kept between runs; one of 50,000 packages takes some 20 MB.
_KEPT = 4


@attr.frozen
class Listing:
    """What a target's repodata lists: the path of each package, seen from the target, and its sha256."""

    packages: Mapping[str, str]

    def has(self, leg: StoredLeg) -> bool:
        """Whether all of a leg is listed, as it was built."""
        return all(self.packages.get(path) == sha256 for path, sha256 in listed_paths(leg).items())

    def has_wrong_checksum(self, leg: StoredLeg) -> bool:
        """Whether a package of a leg is listed as something else than it is."""
        return any(self.packages.get(path, sha256) != sha256 for path, sha256 in listed_paths(leg).items())


def listed_paths(leg: StoredLeg) -> dict[str, str]:
    """The packages of a leg as its target's repodata has to list them."""
    return {f"{leg.folder}/{file.name}": file.sha256 for file in leg.listed_files}


class ListingCache:
    """The listings of the targets worked on last, each read once for each repodata there was."""

    def __init__(self, store: StorePaths) -> None:
        self.store = store
        self._kept: dict[str, tuple[object, Listing]] = {}

    def visible(self, target: str) -> Listing:
        """What is listed now: nothing, where there is no repodata or none that can be read."""
        try:
            return self._read_cached(target, self.store.target(target) / REPODATA)
        except FileNotFoundError:
            return Listing({})
        except DAMAGED as error:
            log.error("the repodata of %s cannot be read: %r", target, error)
            return Listing({})

    def read_new(self, target: str) -> Listing:
        """What a run has just listed, which nobody else sees yet.

        Raises `RetryLater` where that cannot be read: it says nothing against a build.
        """
        try:
            return self._read_cached(target, self.store.output(target) / REPODATA)
        except DAMAGED as error:
            raise RetryLater(f"the new repodata of {target} cannot be read: {error!r}") from error

    def _read_cached(self, target: str, folder: Path) -> Listing:
        told = _find_primary(folder).stat()  # the one file, also once it has another name in the visible folder
        identity = (told.st_ino, told.st_mtime_ns, told.st_size)
        kept, listing = self._kept.pop(target, (None, Listing({})))
        if kept != identity:
            listing = Listing(read_listing(folder))
        self._kept[target] = identity, listing
        while len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return listing


def read_listing(folder: Path) -> dict[str, str]:
    """The packages that the repodata in a folder lists."""
    primary = _find_primary(folder)
    with _OPEN[primary.suffix](primary, "rb") as stream:
        found = _scan_primary(stream)
    if found is not None:
        return found
    with _OPEN[primary.suffix](primary, "rb") as stream:
        return _parse_primary(stream)


def _find_primary(folder: Path) -> Path:
    names = "{http://linux.duke.edu/metadata/repo}"
    root = ElementTree.parse(folder / "repomd.xml").getroot()
    where = root.find(f"{names}data[@type='primary']/{names}location")
    if where is None:
        raise KeyError("repomd.xml names no primary.xml")
    return folder / Path(where.attrib["href"]).name


def _scan_primary(primary: IO[bytes]) -> dict[str, str] | None:
    """Path and checksum of each package, as createrepo_c writes them; None where that is not all it should list.

    Four times as fast as a parser, and what is published waits for it: 0.2 s of 0.9 s at 50,000 packages.
    """
    found: dict[str, str] = {}
    piece = primary.read(PIECE_BYTES)
    count = _COUNT.search(piece)
    while piece:
        whole = piece.rfind(_END) + len(_END) if _END in piece else 0
        for match in _PACKAGE.finditer(piece, 0, whole):
            found[unquote(match[2].decode())] = match[1].decode()
        more = primary.read(PIECE_BYTES)
        piece = piece[whole:] + more if more else b""
    return found if count and int(count[1]) == len(found) else None


def _parse_primary(primary: IO[bytes]) -> dict[str, str]:
    """The same of any primary.xml, which may be as large as some 100 MB."""
    found: dict[str, str] = {}
    said: list[str] = []
    path = ""

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal path
        if tag == "checksum":
            said.clear()
            parser.CharacterDataHandler = said.append
        elif tag == "location":
            path = unquote(attributes["href"])

    def end(tag: str) -> None:
        if tag == "checksum":
            parser.CharacterDataHandler = None
        elif tag == "package":
            found[path] = "".join(said).strip()

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.ParseFile(primary)
    return found
