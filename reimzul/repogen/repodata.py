# SPDX-License-Identifier: Apache-2.0
"""A target's repodata: one run of createrepo_c, what it lists in the end, and how it becomes visible.

What createrepo_c says of itself decides nothing; the repodata is read back, and a build is published when each of
its packages is in it with the checksum of its manifest. createrepo_c writes into `cache/`, which nobody reads but us;
`swap.py` makes it visible. Who calls this holds the target's lock.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import logging
import lzma
import os
import re
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Callable
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.parsers import expat

import attr

from reimzul.core import fs
from reimzul.core.config import RepogenSettings as Settings
from reimzul.core.errors import ConfigError, RetryLater, TimedOut, describe_exit
from reimzul.core.process import run
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import StorePaths
from reimzul.repogen import hook, pace
from reimzul.repogen.place import Placed
from reimzul.repogen.repomd import Addition
from reimzul.repogen.swap import REPODATA, Draft, draft, tidy
from reimzul.repogen.tree import Tree

log = logging.getLogger(__name__)

Heed = Callable[[], None]

#: Seconds without using any processor after which createrepo_c hangs: a SIGTERM at the wrong moment does that to it
#: (seen with 0.17), and it would keep the target's lock for ever.
HUNG = 60
#: createrepo_c's status when it left out a package that it could not read.
LEFT_OUT = 2
#: What would have the repodata list other packages, or call them otherwise, than they are looked for.
_UNWANTED = frozenset((
    "-x", "--excludes", "-i", "--pkglist", "-n", "--includepkg", "-o", "--outputdir", "-s", "--checksum", "--split",
    "--basedir", "--cut-dirs", "--location-prefix", "--recycle-pkglist", "--skip-symlinks", "-S",
    # of 1.1 and newer: of packages of one NEVRA all but one are left out
    "--duplicated-nevra",
    # they end it before it has done anything
    "-h", "--help", "--help-all", "--help-expert", "-V", "--version",
    # its hidden folder has another name then, which nobody tidies; and a listing is known by its repomd.xml's mtime
    "--ignore-lock", "--set-timestamp-to-revision",
    # what follows is taken for folders
    "--",
))  # fmt: skip
#: What would take files away that clients still fetch, or have repomd.xml name files that are not in repodata/.
_OURS = frozenset(("--retain-old-md", "--retain-old-md-by-age", "--simple-md-filenames", "--deltas"))
#: Values of --general-compress-type whose files `_OPEN` opens.
_COMPRESSIONS = {"gz", "bz2", "xz"}
_OPEN: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".xml": open}
#: A package in a primary.xml as createrepo_c writes it.
_PACKAGE = re.compile(rb'pkgid="YES">([0-9a-f]+)</checksum>.*?<location [^>]*?href="([^"&]+)"', re.DOTALL)
_COUNT = re.compile(rb'<metadata [^>]*packages="(\d+)"')
_END = b"</package>"
#: Bytes of a primary.xml looked through at a time.
_PIECE = 1 << 20
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, expat.ExpatError, ElementTree.ParseError, KeyError)
#: Targets whose listing is kept between runs; one of 50,000 packages takes some 20 MB.
_KEPT = 4


class Crashed(RetryLater):
    """createrepo_c was ended by a signal."""


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

    def __init__(self, store: StorePaths) -> None:
        self.store = store
        self._kept: dict[str, tuple[object, Listing]] = {}

    def of(self, target: str) -> Listing:
        """What is listed now: nothing, where there is no repodata or none that can be read."""
        try:
            return self._of(target, self.store.target(target) / REPODATA)
        except FileNotFoundError:
            return Listing({})
        except DAMAGED as error:
            log.error("the repodata of %s cannot be read: %r", target, error)
            return Listing({})

    def made(self, target: str) -> Listing:
        """What a run has just listed, which nobody else sees yet.

        Raises `RetryLater` where that cannot be read: it says nothing against a build.
        """
        try:
            return self._of(target, self.store.output(target) / REPODATA)
        except DAMAGED as error:
            raise RetryLater(f"the new repodata of {target} cannot be read: {error!r}") from error

    def _of(self, target: str, folder: Path) -> Listing:
        told = _primary(folder).stat()  # the one file, also once it has another name in the visible folder
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
    primary = _primary(folder)
    with _OPEN[primary.suffix](primary, "rb") as stream:
        found = _found(stream)
    if found is not None:
        return found
    with _OPEN[primary.suffix](primary, "rb") as stream:
        return _parsed(stream)


def _primary(folder: Path) -> Path:
    names = "{http://linux.duke.edu/metadata/repo}"
    root = ElementTree.parse(folder / "repomd.xml").getroot()
    where = root.find(f"{names}data[@type='primary']/{names}location")
    if where is None:
        raise KeyError("repomd.xml names no primary.xml")
    return folder / Path(where.attrib["href"]).name


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


def _options(word: str) -> list[str]:
    """The options in a word of the command line, as GLib reads it: short ones may be joined, none abbreviated."""
    if word.startswith("-") and not word.startswith("--"):
        return [f"-{letter}" for letter in word[1:].split("=")[0]]
    return [word.split("=")[0]]


@attr.frozen(kw_only=True)
class Indexer:
    """createrepo_c on this host."""

    store: StorePaths
    settings: Settings = attr.field()
    tree: Tree = attr.field(factory=Tree)

    @settings.validator
    def _wanted(self, _: Any, settings: Settings) -> None:
        for word in settings.arguments:
            if not _UNWANTED.isdisjoint(_options(word)):
                raise ConfigError(f"[repogen] arguments: {word} would keep builds from being found in the repodata")
            if not _OURS.isdisjoint(_options(word)):
                raise ConfigError(f"[repogen] arguments: {word} does not go with how repogen keeps old metadata")
        self._check_compression(settings.arguments)

    @staticmethod
    def _check_compression(arguments: Sequence[str]) -> None:
        """Raise `ConfigError` if the metadata would be compressed as this program cannot read it."""
        for word, following in zip(arguments, [*arguments[1:], ""]):
            option, _, value = word.partition("=")
            value = value or following
            if option == "--general-compress-type" and value not in _COMPRESSIONS:
                known = ", ".join(sorted(_COMPRESSIONS))
                raise ConfigError(f"[repogen] arguments: {word}: such metadata cannot be read; known: {known}")

    def _list(self, target: str) -> Path:
        return self.store.cache / f"{target}.packages"

    def argv(self, target: str, *, afresh: bool = False) -> list[str | os.PathLike[str]]:
        """createrepo_c's command line."""
        cores = self.settings.cores or len(os.sched_getaffinity(0))
        output, folder = self.store.output(target), self.store.target(target)
        is_first = not (output / REPODATA).is_dir()  # as after an upgrade: then it knows what is visible
        visible = ["--update-md-path", str(folder)] if is_first and (folder / REPODATA).is_dir() else []
        return [
            self.settings.createrepo_c,
            *([] if afresh else ["--update", "--skip-stat", *visible]),
            "--pkglist", self._list(target),
            # each run takes away what it replaces: what clients still fetch, `swap.py` keeps
            "--outputdir", output, "--compatibility",
            # one for each target: createrepo_c's own writes there are not atomic, the target's lock makes them so
            "--cachedir", self.store.cache / target,
            "--workers", str(cores),
            # 1.0 and newer would take zstd, which Python (and yum of EL7) cannot read
            "--general-compress-type=gz",
            "--database" if self.settings.database else "--no-database",
            "--error-exit-val",
            *self.settings.arguments,
            folder,
        ]  # fmt: skip

    def rested(self, target: str) -> bool:
        """Whether the last run on a target, whoever made it, allows the next one now."""
        return pace.read_run(self.store.runs(target)).allows_next(time.time())

    def _write_list(self, target: str, packages: Iterable[str]) -> int:
        """What createrepo_c is to look at; how many packages that are."""
        lines = [f"{path}\n" for path in packages]
        self._list(target).write_bytes(os.fsencode("".join(lines)))
        return len(lines)

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
        """Index all of a target; return whether every package could be read. Raises `RetryLater` if the run failed.

        Nobody sees what it made before `show`. `afresh` trusts nothing of what was listed or reckoned before;
        `packages` are to be listed, all that lie there where they are not given. createrepo_c inherits the lock: where
        we are killed, nobody else starts on the target until it has ended too.
        """
        folder, made = self.store.target(target), self.store.output(target)
        if afresh:
            fs.remove(self.store.cache / target)
        for needed in (folder, made):
            needed.mkdir(parents=True, exist_ok=True)
        tidy(folder, thorough=not (made / REPODATA).is_dir())
        tidy(made)
        count = self._write_list(target, self.packages(target) if packages is None else packages)
        with self._paced(target) if count else contextlib.nullcontext():
            code = self._run(target, lock, heed, afresh=afresh)
        if code == LEFT_OUT:
            log.warning("createrepo_c could not read all of %s: %s", target, tail(self.store.log(target)))
        return code == 0

    @contextlib.contextmanager
    def _paced(self, target: str) -> Iterator[None]:
        """Record that a run was made, however it ends. One that makes a target's first, empty repodata is none."""
        before, start = pace.read_run(self.store.runs(target)), time.time()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a full disk, which the run says itself
                pace.write_run(self.store.runs(target), before.followed_by(start, max(start, time.time())))

    def _run(self, target: str, lock: int, heed: Callable[[], None], *, afresh: bool) -> int:
        output, made = self.store.log(target), self.store.output(target)
        output.unlink(missing_ok=True)
        argv = self.argv(target, afresh=afresh)
        try:
            code = run(argv, output=output, cancel=CancelToken(heed), every=0.1, inherit=[lock], idle=HUNG)
        except TimedOut as error:
            raise RetryLater(str(error)) from error
        if code not in (0, LEFT_OUT) or not (made / REPODATA).is_dir():
            fs.remove(made)  # it may be what the run failed at, and is made from what is visible
            kind = Crashed if code < 0 else RetryLater
            raise kind(f"createrepo_c {describe_exit(code)} for {target}: {tail(output)}")
        return code

    def draft(self, target: str) -> Draft:
        """What the last `make` made, in a hidden folder beside what is visible. Raises `RetryLater`."""
        made = self.store.output(target) / REPODATA
        try:
            return draft(self.store, target, made, time.time(), copy=bool(self.settings.after_createrepo))
        except DAMAGED as error:
            raise RetryLater(f"the new repodata of {target} cannot be read: {error!r}") from error

    def show(self, target: str, heed: Callable[[], None]) -> None:
        """Make visible what the last `make` made, once the hook has run on it. Raises `RetryLater`, `HookFailed`."""
        self.finish(self.draft(target), heed)

    def finish(self, new: Draft, heed: Callable[[], None]) -> None:
        """Run the hook on new repodata, and make that visible. Raises `HookFailed`."""
        try:
            with self.hooked(new) as running:
                if running is not None:
                    hook.await_hook(running, heed)
            self.reveal(new)
        except hook.HookFailed as error:
            self.give_up(new, error)
            raise

    @contextlib.contextmanager
    def hooked(self, new: Draft) -> Iterator[hook.Running | None]:
        """The hook at work on new repodata; None where there is no hook. Raises `HookFailed`."""
        if not self.settings.after_createrepo:
            yield None
            return
        with hook.run_hook(self.settings, self.store, new.target, new.folder) as running:
            yield running

    def give_up(self, new: Draft, error: hook.HookFailed) -> hook.Failure:
        """Record why new repodata does not become visible, and remove it."""
        fs.remove(new.folder.parent)
        return hook.note_failure(self.store.hook(new.target), str(error))

    def reveal(self, new: Draft) -> None:
        """Make new repodata visible, on which the hook has run. Raises `HookFailed` where the hook spoilt it."""
        try:
            new.check()
        except RetryLater as error:
            raise hook.HookFailed(str(error)) from error
        new.show()
        self.store.hook(new.target).unlink(missing_ok=True)
        last = pace.read_run(self.store.runs(new.target))
        if last.row:
            pace.write_run(self.store.runs(new.target), attr.evolve(last, end=max(last.end, time.time())))

    def change_metadata(
        self, target: str, heed: Callable[[], None], *, addition: Addition | None = None, without: Collection[str] = ()
    ) -> None:
        """Add or remove what createrepo_c does not make; all else stays as it is. Raises `HookFailed`."""
        live = self.store.target(target) / REPODATA
        copy = bool(self.settings.after_createrepo)
        self.finish(draft(self.store, target, live, time.time(), addition=addition, without=without, copy=copy), heed)


def tail(output: Path, lines: int = 3) -> str:
    """The last that a program said, on one line."""
    try:
        with output.open("rb") as stream:
            stream.seek(-min(4096, output.stat().st_size), os.SEEK_END)
            said = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return " / ".join(said.strip().splitlines()[-lines:])
