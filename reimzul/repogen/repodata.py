# SPDX-License-Identifier: Apache-2.0
"""A target's repodata: one run of createrepo_c, and what it lists in the end.

What createrepo_c says of itself decides nothing; the repodata is read back, and a build is published when each of
its packages is in it with the checksum of its manifest. Who calls this holds the target's lock.
"""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import os
import re
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Callable
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.parsers import expat

import attr

from reimzul.core import disk
from reimzul.core.bstore import Bstore
from reimzul.core.config import Repogen as Settings
from reimzul.core.errors import Again, ConfigError, TimedOut, ended_how
from reimzul.core.run import run
from reimzul.repogen.place import Placed
from reimzul.repogen.tree import Tree

log = logging.getLogger(__name__)

REPODATA = "repodata"
#: Seconds without using any processor after which createrepo_c hangs: a SIGTERM at the wrong moment does that to it
#: (seen with 0.17), and it would keep the target's lock for ever.
HUNG = 60
#: Seconds a run on a target is to last for: of many builds that end one after another, those of that long are
#: published together, and a farm that takes 100 builds in five seconds makes no more runs than seconds pass. One run
#: may be made ahead: legs of one build end shortly after each other, and neither waits.
PACE = 1.75
#: createrepo_c's status when it left out a package that it could not read.
LEFT_OUT = 2
#: What would have the repodata list other packages, or call them otherwise, than they are looked for.
_UNWANTED = (
    "-x", "--excludes", "-i", "--pkglist", "-n", "--includepkg", "-o", "--outputdir", "-s", "--checksum", "--split",
    "--basedir", "--cut-dirs", "--location-prefix", "--recycle-pkglist", "--skip-symlinks", "-S",
)  # fmt: skip
_OPEN: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".xml": open}
#: A package in a primary.xml as createrepo_c writes it.
_PACKAGE = re.compile(rb'pkgid="YES">([0-9a-f]+)</checksum>.*?<location [^>]*?href="([^"&]+)"', re.DOTALL)
_COUNT = re.compile(rb'<metadata [^>]*packages="(\d+)"')
_END = b"</package>"
#: Bytes of a primary.xml looked through at a time.
_PIECE = 1 << 20
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, expat.ExpatError, ElementTree.ParseError, KeyError)
#: Targets whose listing is kept between runs; one of 50,000 packages takes some 20 MB.
_KEPT = 4


@attr.frozen
class Listing:
    """What a target's repodata lists: the path of each package, seen from the target, and its sha256."""

    packages: Mapping[str, str]

    def has(self, leg: Placed) -> bool:
        """Whether all of a leg is listed, as it was built."""
        return all(self.packages.get(path) == sha256 for path, sha256 in paths(leg).items())

    def contradicts(self, leg: Placed) -> bool:
        """Whether a package of a leg is listed as something else than it is."""
        return any(self.packages.get(path, sha256) != sha256 for path, sha256 in paths(leg).items())


def paths(leg: Placed) -> dict[str, str]:
    """The packages of a leg as its target's repodata has to list them."""
    return {f"{leg.folder}/{file.name}": file.sha256 for file in leg.rpms}


class Listings:
    """The listings of the targets worked on last, each read once for each repodata there was."""

    def __init__(self, store: Bstore) -> None:
        self.store = store
        self._kept: dict[str, tuple[object, Listing]] = {}

    def of(self, target: str) -> Listing:
        """What is listed now: nothing, where there is no repodata or none that can be read."""
        try:
            return self._of(target)
        except FileNotFoundError:
            return Listing({})
        except _DAMAGED as error:
            log.error("the repodata of %s cannot be read: %r", target, error)
            return Listing({})

    def made(self, target: str) -> Listing:
        """What a run has just listed. Raises `Again` where that cannot be read: it says nothing against a build."""
        try:
            return self._of(target)
        except _DAMAGED as error:
            raise Again(f"the new repodata of {target} cannot be read: {error!r}") from error

    def _of(self, target: str) -> Listing:
        folder = self.store.target(target) / REPODATA
        told = (folder / "repomd.xml").stat()
        identity = (told.st_ino, told.st_mtime_ns, told.st_size)
        kept, listing = self._kept.pop(target, (None, Listing({})))
        if kept != identity:
            listing = Listing(read(folder))
        self._kept[target] = identity, listing
        while len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return listing


def read(folder: Path) -> dict[str, str]:
    """The packages that the repodata in a folder lists."""
    names = "{http://linux.duke.edu/metadata/repo}"
    root = ElementTree.parse(folder / "repomd.xml").getroot()
    where = root.find(f"{names}data[@type='primary']/{names}location")
    if where is None:
        raise KeyError("repomd.xml names no primary.xml")
    primary = folder / Path(where.attrib["href"]).name
    with _OPEN[primary.suffix](primary, "rb") as stream:
        found = _found(stream)
    if found is not None:
        return found
    with _OPEN[primary.suffix](primary, "rb") as stream:
        return _parsed(stream)


def _found(primary: IO[bytes]) -> dict[str, str] | None:
    """Path and checksum of each package, as createrepo_c writes them; None where that is not all it should list.

    Four times as fast as a parser, and what is published waits for it: 0.2 s of 0.9 s at 50,000 packages.
    """
    found: dict[str, str] = {}
    piece = primary.read(_PIECE)
    count = _COUNT.search(piece)
    while piece:
        whole = piece.rfind(_END) + len(_END) if _END in piece else 0
        for match in _PACKAGE.finditer(piece, 0, whole):
            found[unquote(match[2].decode())] = match[1].decode()
        more = primary.read(_PIECE)
        piece = piece[whole:] + more if more else b""
    return found if count and int(count[1]) == len(found) else None


def _parsed(primary: IO[bytes]) -> dict[str, str]:
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


@attr.frozen(kw_only=True)
class Indexer:
    """createrepo_c on this host."""

    store: Bstore
    settings: Settings = attr.field()
    tree: Tree = attr.field(factory=Tree)

    @settings.validator
    def _wanted(self, _: Any, settings: Settings) -> None:
        for word in settings.arguments:
            if word.split("=")[0] in _UNWANTED:
                raise ConfigError(f"[repogen] arguments: {word} would keep builds from being found in the repodata")

    def _list(self, target: str) -> Path:
        return self.store.cache / f"{target}.packages"

    def argv(self, target: str, *, afresh: bool = False) -> list[str | os.PathLike[str]]:
        """createrepo_c's command line."""
        cores = self.settings.cores or len(os.sched_getaffinity(0))
        return [
            self.settings.createrepo_c,
            *([] if afresh else ["--update", "--skip-stat"]),
            "--pkglist", self._list(target),
            # as the classical createrepo meant it: any number keeps every old file for ever without --compatibility
            "--retain-old-md=3", "--compatibility",
            # one for each target: createrepo_c's own writes there are not atomic, the target's lock makes them so
            "--cachedir", self.store.cache / target,
            "--workers", str(cores),
            # 1.0 and newer would take zstd, which Python (and yum of EL7) cannot read
            "--general-compress-type=gz",
            "--database" if self.settings.database else "--no-database",
            "--error-exit-val",
            *self.settings.arguments,
            self.store.target(target),
        ]  # fmt: skip

    def rested(self, target: str) -> bool:
        """Whether the last runs on a target, whoever made them, began long enough ago for the next."""
        ahead = self._lasts_until(target) - time.time()
        return ahead <= PACE or ahead > 2 * PACE  # a clock that was put back is no reason to wait for it

    def _lasts_until(self, target: str) -> float:
        """Until when the runs made so far are to last; seconds since 1970."""
        try:
            return self._list(target).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _write_list(self, target: str, packages: Iterable[str]) -> None:
        """What createrepo_c is to look at; by its mtime, whoever works on this target knows until when that lasts."""
        now, until = time.time(), self._lasts_until(target)
        until = (until if now < until <= now + 2 * PACE else now) + PACE
        self._list(target).write_bytes(os.fsencode("".join(f"{path}\n" for path in packages)))
        os.utime(self._list(target), (until, until))

    def packages(self, target: str) -> list[str]:
        """All packages that lie in a target, seen from it, as createrepo_c takes them best."""
        self.store.target(target).mkdir(parents=True, exist_ok=True)
        return self.tree.packages(self.store.target(target))

    def make(
        self,
        target: str,
        lock: int,
        heed: Callable[[], None],
        *,
        afresh: bool = False,
        packages: Sequence[str] | None = None,
    ) -> bool:
        """One run for all that lies in a target; whether it could read all. Raises `Again` where it came to nothing.

        `afresh` trusts nothing of what was listed or reckoned before; `packages` are to be listed, all that lie there
        where they are not given. createrepo_c inherits the lock: where we are killed, nobody else starts on the target
        until it has ended too.
        """
        folder, output = self.store.target(target), self.store.log(target)
        if afresh:
            disk.remove(self.store.cache / target)
        for needed in (folder, self.store.cache / target):
            needed.mkdir(parents=True, exist_ok=True)
        tidy(folder)
        output.unlink(missing_ok=True)
        self._write_list(target, self.packages(target) if packages is None else packages)
        argv = self.argv(target, afresh=afresh)
        try:
            code = run(argv, output=output, heed=heed, every=0.1, inherit=[lock], idle=HUNG)
        except TimedOut as error:
            raise Again(str(error)) from error
        if code not in (0, LEFT_OUT) or not (folder / REPODATA).is_dir():
            raise Again(f"createrepo_c {ended_how(code)} for {target}: {tail(output)}")
        if code == LEFT_OUT:
            log.warning("createrepo_c could not read all of %s: %s", target, tail(output))
        for path in [*(folder / REPODATA).iterdir(), folder / REPODATA, folder]:
            disk.sync(path)
        return code == 0


def tidy(folder: Path) -> None:
    """Remove what a createrepo_c that was killed left; give back the repodata it had moved out of its way."""
    disk.remove(folder / ".repodata")
    # named repodata.old.<pid>.<time>, and there between its last two renames
    for old in sorted(folder.glob(f"{REPODATA}.old.*"), key=lambda path: path.stat().st_mtime, reverse=True):
        if (folder / REPODATA).exists():
            disk.remove(old)
        else:
            old.rename(folder / REPODATA)


def tail(output: Path, lines: int = 3) -> str:
    """The last that a program said, on one line."""
    try:
        with output.open("rb") as stream:
            stream.seek(-min(4096, output.stat().st_size), os.SEEK_END)
            said = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return " / ".join(said.strip().splitlines()[-lines:])
