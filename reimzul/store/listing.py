# SPDX-License-Identifier: Apache-2.0
"""Reads a target: its stored legs, its package files, and the entries of primary.xml that its repodata lists.

Published packages that the repodata does not list are recorded: legs replaced by a rebuild, and left-out packages.
repogen writes the record under the target's lock before the createrepo_c run that it affects. Later runs, the check of
the repodata, prune, `Published` and tosign read it. Manifests never change.
"""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import os
import re
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Callable
from urllib.parse import unquote
from xml.etree import ElementTree

import attr

from reimzul.core import fs, validators
from reimzul.core.errors import RetryLater
from reimzul.core.manifest import File, Manifest
from reimzul.core.message import Status
from reimzul.core.store_paths import StorePaths, leg_key
from reimzul.store.repodata import DAMAGED, REPODATA, REPOMD

# --- what is not listed

#: Seconds until an unreadable record is read again.
_REREAD_SECONDS = 60


@attr.frozen(kw_only=True)
class LeftOutPackage:
    """A package of a leg that is listed from another leg."""

    leg: str  #: `<build id>.<arch>` of the leg that is listed with it
    place: str  #: of that leg
    differs: bool  #: whether the two packages differ beyond build time and host


@attr.frozen(kw_only=True)
class UnlistedLeg:
    """A leg that is not listed, or not completely."""

    place: str
    replaced_by: str = ""  #: build id of the rebuild; then nothing of the leg is listed
    replacement: str = ""  #: the place of the rebuild's leg
    was_listed: bool = False  #: whether the rebuild was ever listed: then the leg is never listed again by itself
    left_out: Mapping[str, LeftOutPackage] = attr.field(factory=dict)  #: by file name

    @property
    def folder(self) -> str:
        return folder_of(self.place)


def folder_of(place: str) -> str:
    """The folder of a place, relative to its target's folder."""
    return place.split("/", 2)[2]


#: What is not listed in a target, by `<build id>.<arch>`.
Records = Mapping[str, UnlistedLeg]


#: The records read last, by their file, and what it was then: 5,000 of them take 0.4 s to check.
_RECORDS_CACHE: dict[Path, tuple[tuple[int, ...], dict[str, UnlistedLeg]]] = {}
_MAX_CACHED_RECORDS = 4


def read_records(store: StorePaths, target: str) -> dict[str, UnlistedLeg]:
    """The record of a target. Raises `RetryLater` where it is damaged: without it, too much would be listed."""
    path = store.unlisted(target)
    try:
        with path.open("rb") as stream:
            found = os.fstat(stream.fileno())
            identity = (found.st_ino, found.st_mtime_ns, found.st_size)
            known, records = _RECORDS_CACHE.pop(path, ((), {}))
            if known != identity:
                records = {_check_leg(leg): _parse_unlisted(each) for leg, each in json.load(stream).items()}
        _RECORDS_CACHE[path] = identity, records
        while len(_RECORDS_CACHE) > _MAX_CACHED_RECORDS:
            del _RECORDS_CACHE[next(iter(_RECORDS_CACHE))]
        return dict(records)
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RetryLater(f"{path} is damaged, restore it or remove it: {error!r}", pause=_REREAD_SECONDS) from error


def _check_place(place: str) -> str:
    """A place that is only compared."""
    if place.count("/") != 4:
        raise ValueError(f"{validators.quoted(place)} is no place")
    return place


def _check_leg(value: str) -> str:
    """A leg's name, which becomes a part of paths."""
    build_id, _, arch = value.partition(".")
    return leg_key(validators.build_id(build_id), validators.arch(arch))


def _parse_unlisted(raw: Any) -> UnlistedLeg:
    return UnlistedLeg(
        place=validators.place(raw["place"]),
        replaced_by=validators.optional(validators.build_id)(raw["replaced_by"]),
        replacement=validators.optional(validators.place)(raw["replacement"]),
        was_listed=validators.flag(raw["was_listed"]),
        left_out={
            validators.name(name): LeftOutPackage(
                leg=_check_leg(kept["leg"]), place=_check_place(kept["place"]), differs=validators.flag(kept["differs"])
            )
            for name, kept in raw["left_out"].items()
        },
    )


def write_records(store: StorePaths, target: str, records: Records) -> None:
    store.unlisted(target).parent.mkdir(exist_ok=True)  # a store of an earlier version has none
    rows = {leg: attr.asdict(each) for leg, each in sorted(records.items())}
    fs.write_atomic(store.unlisted(target), json.dumps(rows, indent=1) + "\n")


def replaced_builds(records: Records, build_id: str, arch: str) -> dict[str, UnlistedLeg]:
    """The legs that a build's leg took the place of, also by way of rebuilds between, by `<build id>.<arch>`."""
    found: dict[str, UnlistedLeg] = {}
    newer = [build_id]
    while newer:
        by = newer.pop()
        for leg, each in records.items():
            if each.replaced_by == by and leg.rpartition(".")[2] == arch and leg not in found:
                found[leg] = each
                newer.append(leg.rpartition(".")[0])
    return found


log = logging.getLogger(__name__)

#: Targets whose packages and listings stay in memory; of 50,000 packages, the former take 40 MB, the latter 20 MB.
_CACHED_TARGETS = 4
#: The depth of a leg's folder below its target: name, timestamp, version-release.arch. A leg is moved there by one
#: rename and does not change afterwards.
_LEG_DEPTH = 3
#: A folder that changed less than this before it was read may change again within one tick of the file system's
#: clock, so it is read once more.
_UNSETTLED_NANOSECONDS = 2_000_000_000
_OPEN: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".xml": open}
#: A package in a primary.xml as createrepo_c writes it.
_PACKAGE = re.compile(rb'pkgid="YES">([0-9a-f]+)</checksum>.*?<location [^>]*?href="([^"&]+)"', re.DOTALL)
_COUNT = re.compile(rb'<metadata [^>]*packages="(\d+)"')
_END = b"</package>"
#: How much of a primary.xml is searched at a time.
PIECE_BYTES = 1 << 20
#: Raised when a primary.xml is missing or damaged.
_UNREADABLE = (*DAMAGED, EOFError, zlib.error, lzma.LZMAError)


@attr.frozen(kw_only=True)
class Ruling:
    left_out: frozenset[str] = frozenset()  #: file names of packages that are not listed
    refused: str = ""  #: why none of its packages is listed
    notes: str = ""  #: what the Published event says about it


@attr.frozen(kw_only=True)
class StoredLeg:
    manifest: Manifest
    place: str
    ruling: Ruling = Ruling()

    @property
    def listed_files(self) -> list[File]:
        """The packages that the repodata has to list."""
        return [file for file in self.manifest.rpm_files if file.name not in self.ruling.left_out]

    @property
    def folder(self) -> str:
        """The place, relative to the target."""
        return self.place.split("/", 2)[2]

    @property
    def timestamp(self) -> str:
        """The timestamp in the place, which may be later than the request's."""
        return self.place.split("/")[3]

    @property
    def is_publishable(self) -> bool:
        """Whether it goes into the repodata and to the signer: a success that is no scratch build."""
        return self.manifest.status == Status.SUCCESS and not self.manifest.request.scratch


def listed_paths(leg: StoredLeg) -> dict[str, str]:
    """The path and sha256 of each package that the repodata of the leg's target has to list."""
    return {f"{leg.folder}/{file.name}": file.sha256 for file in leg.listed_files}


@attr.frozen
class Listing:
    """The packages that a target's repodata lists: their paths, relative to the target, and their sha256."""

    packages: Mapping[str, str]

    def has(self, leg: StoredLeg) -> bool:
        return all(self.packages.get(path) == sha256 for path, sha256 in listed_paths(leg).items())

    def has_wrong_checksum(self, leg: StoredLeg) -> bool:
        return any(self.packages.get(path, sha256) != sha256 for path, sha256 in listed_paths(leg).items())


class ListingCache:
    """The listings of the targets used last; each repodata is read once."""

    def __init__(self, store: StorePaths) -> None:
        self.store = store
        self._cached: dict[str, tuple[object, Listing]] = {}

    def visible(self, target: str) -> Listing:
        """What is listed now: nothing if there is no repodata, or if it cannot be read."""
        try:
            return self._read_cached(target, self.store.target(target) / REPODATA)
        except FileNotFoundError:
            return Listing({})
        except _UNREADABLE as error:
            log.error("the repodata of %s cannot be read: %r", target, error)
            return Listing({})

    def read_new(self, target: str) -> Listing:
        """What a run has just listed and nobody sees yet.

        Raises `RetryLater` if it cannot be read; that is no fault of a build.
        """
        try:
            return self._read_cached(target, self.store.output(target) / REPODATA)
        except _UNREADABLE as error:
            raise RetryLater(f"the new repodata of {target} cannot be read: {error!r}") from error

    def _read_cached(self, target: str, folder: Path) -> Listing:
        status = _find_primary(folder).stat()  # the file stays the same when the folder becomes the visible one
        identity = (status.st_ino, status.st_mtime_ns, status.st_size)
        cached, listing = self._cached.get(target, (None, Listing({})))
        if cached != identity:
            listing = Listing(read_listing(folder))
        _remember(self._cached, target, (identity, listing))
        return listing


def _remember(cache: dict[Any, Any], key: object, value: object) -> None:
    """Add the most recently used value, and drop the least recently used one if there are too many."""
    cache.pop(key, None)
    cache[key] = value
    if len(cache) > _CACHED_TARGETS:
        del cache[next(iter(cache))]


def read_listing(folder: Path) -> dict[str, str]:
    """The path and sha256 of each package that the repodata in a folder lists. Raises one of `_UNREADABLE`."""
    primary = _find_primary(folder)
    with _OPEN[primary.suffix](primary, "rb") as stream:
        found = _scan_primary(stream)
    if found is not None:
        return found
    with _OPEN[primary.suffix](primary, "rb") as stream:
        return _parse_primary(stream)


def _find_primary(folder: Path) -> Path:
    location = ElementTree.parse(folder / REPOMD).getroot().find("{*}data[@type='primary']/{*}location")
    if location is None:
        raise KeyError("repomd.xml names no primary.xml")
    return folder / Path(location.attrib["href"]).name


def _scan_primary(primary: IO[bytes]) -> dict[str, str] | None:
    """Find the packages with a regular expression; None if it finds another number than the file declares.

    This is four times as fast as a parser, and publishing waits for it: 0.2 s of 0.9 s at 50,000 packages.
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
    """Parse any primary.xml; it may have some 100 MB, so elements are dropped as soon as they are read."""
    found: dict[str, str] = {}
    for _, element in ElementTree.iterparse(primary):
        if element.tag.rpartition("}")[2] == "package":
            location = element.find("{*}location")
            if location is not None:
                found[unquote(location.attrib["href"])] = element.findtext("{*}checksum", "").strip()
            element.clear()
    return found


@attr.define
class _KnownFolder:
    inode: int
    mtime: int = 0  #: in nanoseconds, when it was read; 0 if it has to be read again
    folders: dict[str, int] = attr.field(factory=dict)  #: the folders in it, and their inodes
    packages: list[str] = attr.field(factory=list)


class PackageTree:
    """The packages that lie in the targets used last; only folders that have changed are read again.

    createrepo_c could walk the target itself, but it sorts what it finds by inserting into a list from its front,
    which is quadratic (`g_queue_insert_sorted` in 0.17: 12 s at 50,000 packages). A package list is read from the last
    line to the first, so in a list that is already in its order each package is inserted at the front: 1.2 s.
    """

    def __init__(self) -> None:
        self._known: dict[Path, dict[str, _KnownFolder]] = {}  #: by target and path below it, which begins with a slash

    def list_packages(self, target: Path) -> list[str]:
        """The paths of all packages, relative to the target, in createrepo_c's own order. Raises `OSError`."""
        found = _update(target, self._known.pop(target, {}))
        _remember(self._known, target, found)
        return sorted(
            (f"{path}/{name}"[1:] for path, folder in found.items() for name in folder.packages), key=_by_name
        )


def _by_name(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return name, folder


def _update(target: Path, before: Mapping[str, _KnownFolder]) -> dict[str, _KnownFolder]:
    found = {}
    waiting = [("", target.stat().st_ino)]
    for path, inode in waiting:  # grows meanwhile
        known = before.get(path)
        if known is None or known.inode != inode:
            known = _KnownFolder(inode)
        if path.count("/") < _LEG_DEPTH or not known.mtime:
            try:
                status = os.stat(f"{target}{path}")
                if (known.inode, known.mtime) != (status.st_ino, status.st_mtime_ns):
                    known = _read_folder(f"{target}{path}", status)
            except FileNotFoundError:  # removed meanwhile
                continue
        found[path] = known
        waiting += [(f"{path}/{name}", inode) for name, inode in known.folders.items()]
    return found


def _read_folder(path: str, status: os.stat_result) -> _KnownFolder:
    age = time.time_ns() - status.st_mtime_ns
    found = _KnownFolder(status.st_ino, status.st_mtime_ns if age > _UNSETTLED_NANOSECONDS else 0)
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith((".", REPODATA)):
                    found.folders[entry.name] = entry.inode()
            elif entry.name.endswith(".rpm") and "\n" not in entry.name and entry.is_file():
                found.packages.append(entry.name)
    return found
