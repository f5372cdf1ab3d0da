# SPDX-License-Identifier: Apache-2.0
"""Whether a target lists a package's version and release already, by its repodata. An estimate: mock names packages."""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Callable
from urllib.parse import quote, unquote

from reimzul.core.errors import InvalidMessage
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.manifest import MAX_BYTES, Manifest
from reimzul.core.message import parse_json
from reimzul.core.rpm_header import Header
from reimzul.core.store_paths import MANIFEST

#: Seconds that the store has to answer in.
_PATIENCE_SECONDS = 5.0
_REPOMD_BYTES = 1 << 20
#: A primary.xml.gz of 50,000 packages has some 15 MB.
_PRIMARY_BYTES = 256 << 20
_PIECE_BYTES = 1 << 20
#: The longest location that is looked for.
_LOCATION_BYTES = 1024
_PRIMARY = re.compile(rb'<data type="primary">.*?<location [^>]*?href="([^"]+)"', re.DOTALL)
#: A disttag as distributions write it, with what derivatives add.
_DIST = re.compile(
    r"\.(?:el|fc|amzn|mga|lp|eln|suse|oe|ocs|cl|ol|rhel|epel)[0-9][A-Za-z0-9_]*"
    r"(?:\.(?:centos|rocky|alma|alma_plus|sl|ol)\b)?"
)
_UNPACK: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31), ".xz": lzma.LZMADecompressor, ".bz2": bz2.BZ2Decompressor,
}  # fmt: skip


def find_listed(
    header: Header, disttag: str, targets: Iterable[str], base_url: str, warn: Callable[[str], None]
) -> list[str]:
    """A line for each target that lists what would be built. Where the store does not answer, `warn` says so."""
    faults = []
    releases = estimate_releases(header.release, disttag)
    with HttpSession(timeout=_PATIENCE_SECONDS) as site:
        for target in targets:
            try:
                place = _find(site, f"{base_url}{quote(target)}/", header, releases)
            except NotFound:
                continue  # nothing was ever published
            except (HttpUnavailable, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
                warn(f"nobody knows what {target} lists ({error}): repogen will refuse a build that it holds already")
                continue
            if place:
                faults.append(_fault(site, f"{base_url}{quote(target)}/", target, header, place))
    return faults


def estimate_releases(release: str, disttag: str) -> tuple[str, ...]:
    """The releases that a build with a disttag may have, where its source rpm has this one."""
    exchanged, count = _DIST.subn(lambda _: disttag, release)
    if count or disttag in release:
        return (exchanged,)
    # it was made where %dist is empty, or its spec file does not use that
    return (release, release + disttag)


def _find(site: HttpSession, base: str, header: Header, releases: Iterable[str]) -> str:
    """The folder, seen from its target, of a build that is listed; empty where none is."""
    name = re.escape(quote(header.name).encode())
    folders = b"|".join(
        re.escape(spelled.encode())
        for release in releases
        for evr in [f"{header.version}-{release}"]
        for spelled in {evr, quote(evr)}
    )
    wanted = re.compile(rb'href="(' + name + rb"/[0-9]{14}/(?:" + folders + rb')\.[A-Za-z0-9_]+)/[^"/]+"')
    primary = _PRIMARY.search(site.get(f"{base}repodata/repomd.xml", _REPOMD_BYTES))
    if primary is None:
        raise ValueError("its repomd.xml names no primary.xml")
    href = primary[1].decode()
    before = b""
    for piece in _unpack(href, site.get(base + href, _PRIMARY_BYTES)):
        found = wanted.search(before + piece)
        if found:
            return unquote(found[1].decode())
        before = piece[-_LOCATION_BYTES:]
    return ""


def _unpack(name: str, packed: bytes) -> Iterator[bytes]:
    suffix = name[name.rfind(".") :]
    if suffix == ".xml":
        yield packed
        return
    if suffix not in _UNPACK:
        raise ValueError(f"{suffix} of its primary.xml cannot be read")
    unpacker = _UNPACK[suffix]()
    for start in range(0, len(packed), _PIECE_BYTES):
        yield unpacker.decompress(packed[start : start + _PIECE_BYTES])


def _fault(site: HttpSession, base: str, target: str, header: Header, place: str) -> str:
    evr = place.rpartition("/")[2].rpartition(".")[0]
    try:
        build = Manifest.from_json(parse_json(site.get(f"{base}{quote(place)}/{MANIFEST}", MAX_BYTES))).build_id
    except (NotFound, HttpUnavailable, InvalidMessage):
        build = "in " + place
    return (
        f"{target} lists {header.name}-{evr} of build {build} already (an estimate: the disttag was exchanged); "
        "give --rebuild to replace it, or the package another release"
    )
