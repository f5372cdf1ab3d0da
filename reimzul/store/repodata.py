# SPDX-License-Identifier: Apache-2.0
"""A target's repodata folder: the records of repomd.xml, old files kept for clients, and the swap that publishes it.

New repodata is put together in a hidden folder: the new files, each file that a former repomd.xml named until
`RETAIN_SECONDS` after it was replaced, and metadata that a person added. The hook runs on it, the disk is synced, and
then the two folders exchange their names. A client sees the old repodata or the new one, and finds every file that the
repomd.xml it has read names. Callers hold the target's lock.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Callable
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import attr

from reimzul.core import fs
from reimzul.core.errors import InputError, describe_os_error
from reimzul.core.store_paths import StorePaths

log = logging.getLogger(__name__)

REPODATA = "repodata"
REPOMD = "repomd.xml"
#: Raised when a repomd.xml is missing or damaged.
DAMAGED = (OSError, ElementTree.ParseError, KeyError, ValueError)
#: How long a file stays after repomd.xml has stopped naming it: a client may have read the former repomd.xml just then.
RETAIN_SECONDS = 120
_NAMESPACE = "{http://linux.duke.edu/metadata/repo}"
#: What createrepo_c makes in every run, in all forms (_db, _zck).
_OWN_KINDS = ("primary", "filelists", "filelists-ext", "other")
_FORM = re.compile(r"_(?:db|gz|xz|bz2|zst|zck)\Z")
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,199}\Z")
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst", ".zck")
#: Begins the names of files that createrepo_c and modifyrepo_c write.
_CHECKSUM = re.compile(r"[0-9a-f]{32,128}-")
_HIDDEN = f".{REPODATA}"
_MOVED = f"{REPODATA}.old.0"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
#: Errors of a kernel, a seccomp filter, a C library or a file system that cannot exchange two names.
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


@attr.frozen(kw_only=True)
class MetadataRecord:
    """One `<data>` element of a repomd.xml."""

    type: str
    file: str  #: the file's name in repodata/; empty if it lies elsewhere
    text: str  #: the whole element

    @property
    def kind(self) -> str:
        """The type without the form: group_gz is a form of group."""
        return _FORM.sub("", self.type)

    @property
    def is_extra(self) -> bool:
        """Whether createrepo_c does not make it by itself."""
        return self.kind not in _OWN_KINDS


def read_records(folder: Path) -> list[MetadataRecord]:
    """The records of a folder's repomd.xml. Raises one of `DAMAGED`."""
    return [_parse_record(data) for data in ElementTree.parse(folder / REPOMD).findall(f"{_NAMESPACE}data")]


def _parse_record(data: ElementTree.Element) -> MetadataRecord:
    location = data.find(f"{_NAMESPACE}location")
    folder, _, name = (location.attrib["href"] if location is not None else "").rpartition("/")
    return MetadataRecord(type=data.attrib["type"], file=name if folder == REPODATA else "", text=_serialize(data))


def _serialize(element: ElementTree.Element) -> str:
    """An element without a prefix: createrepo_c's repomd.xml has all of them in its default namespace."""
    name = element.tag.rpartition("}")[2]
    attributes = "".join(f" {key}={quoteattr(value)}" for key, value in element.attrib.items() if "}" not in key)
    inner = escape((element.text or "").strip()) + "".join(map(_serialize, element))
    return f"<{name}{attributes}>{inner}</{name}>" if inner else f"<{name}{attributes}/>"


def add_records(repomd: str, records: Iterable[MetadataRecord]) -> str:
    head, end, tail = repomd.rpartition("</repomd>")
    return head + "".join(f"  {record.text}\n" for record in records) + end + tail


def drop_records(repomd: str, kinds: Collection[str]) -> str:
    return re.sub(
        r"[ \t]*<data type=[\"']([^\"']*)[\"'].*?</data>\n?",
        lambda match: "" if _FORM.sub("", match[1]) in kinds else match[0],
        repomd,
        flags=re.DOTALL,
    )


def check_type(given: str) -> str:
    """The type of metadata that a person may add or remove. Raises `InputError`."""
    if not _TYPE.match(given):
        raise InputError(f"{given!r} is not a type of metadata, as group, updateinfo or modules")
    if _FORM.sub("", given) in _OWN_KINDS:
        raise InputError(f"{given} is made by createrepo_c itself")
    return given


def guess_type(name: str) -> str:
    """Guess a metadata file's type from its name: comps.xml and comps-f40.xml are a group. Raises `InputError`."""
    stem = _CHECKSUM.sub("", name).partition(".")[0]
    return check_type("group" if stem.partition("-")[0] == "comps" else stem)


@attr.frozen(kw_only=True)
class Addition:
    """Metadata that a person adds: the record and the file's content."""

    record: MetadataRecord
    content: bytes


def read_addition(name: str, raw: bytes, given: str) -> Addition:
    """Compress a file as modifyrepo_c does, and describe it; without a given type, its name decides.

    Raises `InputError` if it is no metadata.
    """
    if not _FILE_NAME.match(name):
        raise InputError(f"{name!r} is not a name for a file of metadata, as comps.xml")
    type_ = check_type(given) if given else guess_type(name)
    if not raw:
        raise InputError(f"{name} is empty")
    if name.endswith(".xml"):
        try:
            ElementTree.fromstring(raw)
        except (ElementTree.ParseError, ValueError) as error:
            raise InputError(f"{name} is not well-formed XML: {error}") from None
    is_packed = name.endswith(_COMPRESSED)
    content = raw if is_packed else gzip.compress(raw, mtime=0)
    sha256 = hashlib.sha256(content).hexdigest()
    file = f"{sha256}-{_CHECKSUM.sub('', name)}" + ("" if is_packed else ".gz")
    opened = "" if is_packed else f'<open-checksum type="sha256">{hashlib.sha256(raw).hexdigest()}</open-checksum>'
    text = (
        f'<data type="{type_}"><checksum type="sha256">{sha256}</checksum>{opened}'
        f"<location href={quoteattr(f'repodata/{file}')}/><timestamp>{int(time.time())}</timestamp>"
        f"<size>{len(content)}</size>" + ("" if is_packed else f"<open-size>{len(raw)}</open-size>") + "</data>"
    )
    return Addition(record=MetadataRecord(type=type_, file=file, text=text), content=content)


@attr.frozen(kw_only=True)
class RetainedFiles:
    """The files in repodata/ that repomd.xml does not name (`state/<target>.retained`)."""

    replaced: dict[str, float] = attr.field(factory=dict)  #: when repomd.xml stopped naming it, seconds since 1970
    hook: frozenset[str] = frozenset()  #: files that the hook writes each time, so they are not carried over

    @classmethod
    def read(cls, path: Path) -> RetainedFiles:
        try:
            raw = json.loads(path.read_bytes())
            replaced = {str(name): float(at) for name, at in raw["replaced"].items()}
            return cls(replaced=replaced, hook=frozenset(map(str, raw["hook"])))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def write(self, path: Path) -> None:
        fs.write_atomic(path, json.dumps({"replaced": self.replaced, "hook": sorted(self.hook)}, indent=1) + "\n")


@attr.frozen(kw_only=True)
class Draft:
    store: StorePaths
    target: str
    folder: Path
    retained: RetainedFiles
    files: frozenset[str]  #: what lies in it before the hook runs

    def find_damage(self) -> str:
        """What the hook left that no client could use; "" if nothing."""
        try:
            records = read_records(self.folder)
        except DAMAGED as error:
            return f"its repomd.xml cannot be read any more: {error!r}"
        lost = [record.type for record in records if not record.file or not (self.folder / record.file).is_file()]
        if not lost and any(record.type == "primary" for record in records):
            return ""
        return f"its repomd.xml names files that are not there: {', '.join(lost) or 'primary'}"

    def publish(self) -> None:
        """Sync it to disk, and put it in the place of the visible folder."""
        live = self.store.target(self.target) / REPODATA
        for path in [*self.folder.iterdir(), self.folder]:
            fs.sync(path)
        new = {path.name for path in self.folder.iterdir()} - self.files
        # If this is killed before the swap, what the hook wrote earlier is still visible.
        old = {name for name in self.retained.hook if (live / name).exists()}
        attr.evolve(self.retained, hook=frozenset(new | old)).write(self.store.retained_record(self.target))
        swap_folders(self.folder, live)
        fs.sync(live.parent)
        recover_interrupted_run(live.parent, thorough=False)


def make_draft(
    store: StorePaths,
    target: str,
    source: Path,
    now: float,
    *,
    addition: Addition | None = None,
    without: Collection[str] = (),
    copy: bool = False,
) -> Draft:
    """Make the hidden folder from the repodata in `source`, and from what the visible one has besides.

    `without` are kinds of additional metadata to remove. `copy` copies additional metadata, since a hook that rewrites
    it would write through a hard link. Raises one of `DAMAGED` if `source` cannot be read.
    """
    live = store.target(target) / REPODATA
    recover_interrupted_run(live.parent, thorough=False)
    # The name is never used again, so the hook of a run that was killed cannot write into a later draft.
    folder = live.parent / _HIDDEN / f"{os.getpid()}.{time.time_ns()}"
    folder.mkdir(parents=True)
    source_records, live_records = read_records(source), _read_live_records(live)
    dropped = {*without, *([addition.record.kind] if addition else [])}
    for record in source_records:
        if not record.is_extra:
            _link(source / record.file, folder / record.file)
        elif record.kind not in dropped and not _link_extra(source, folder, record, copy=copy):
            dropped.add(record.kind)
    present = dropped | {record.kind for record in source_records}
    extra = [
        record
        for record in live_records
        if record.is_extra and record.kind not in present and _link_extra(live, folder, record, copy=copy)
    ]
    text = drop_records((source / REPOMD).read_text(encoding="utf-8"), dropped)
    if addition:
        (folder / addition.record.file).write_bytes(addition.content)
        extra.append(addition.record)
    (folder / REPOMD).write_text(add_records(text, extra), encoding="utf-8")
    left = {record.kind for record in read_records(folder)} & set(without)
    if left:
        raise ValueError(f"repomd.xml still has {', '.join(sorted(left))}")
    retained = _link_retained(store, target, folder, {record.file for record in live_records}, now)
    return Draft(
        store=store,
        target=target,
        folder=folder,
        retained=retained,
        files=frozenset(path.name for path in folder.iterdir()),
    )


def _read_live_records(live: Path) -> list[MetadataRecord]:
    try:
        return read_records(live)
    except FileNotFoundError:
        return []
    except DAMAGED as error:
        log.error("%s cannot be read, so additional metadata that it named is lost: %r", live / REPOMD, error)
        return []


def _link_extra(source: Path, folder: Path, record: MetadataRecord, *, copy: bool) -> bool:
    """Link the file of an additional record; log an error and return false if that fails."""
    try:
        if not record.file:
            raise FileNotFoundError(errno.ENOENT, "it is not in repodata/")
        _link(source / record.file, folder / record.file, copy=copy)
    except OSError as error:
        why = describe_os_error(error)
        log.error("%s: its metadata %s is dropped: %s: %s", folder.parents[1].name, record.type, record.file, why)
        return False
    return True


def _link_retained(store: StorePaths, target: str, folder: Path, named: Collection[str], now: float) -> RetainedFiles:
    """Link what else lies in the visible folder, as long as it has to stay; return when each file was replaced."""
    known = RetainedFiles.read(store.retained_record(target))
    live = store.target(target) / REPODATA
    replaced: dict[str, float] = {}
    for path in sorted(live.iterdir()) if live.is_dir() else []:
        name = path.name
        if name.startswith(REPOMD) or (folder / name).exists() or not path.is_file():
            continue
        at: float | None = None  # a file of a person or of another program stays for ever
        if name in named:
            at = now
        elif name in known.replaced or _CHECKSUM.match(name):
            at = min(now, known.replaced.get(name, now))
        elif name in known.hook:
            continue
        if at is not None and now - at > RETAIN_SECONDS:
            continue
        try:
            _link(path, folder / name)
        except OSError as error:
            log.error("%s: %s is not carried over: %s", target, path, error)
            continue
        if at is not None:
            replaced[name] = at
    return RetainedFiles(replaced=replaced, hook=known.hook)


def _link(source: Path, goal: Path, *, copy: bool = False) -> None:
    """Link a file, or copy it if the kernel refuses the link, as it may for a file of another user."""
    if not copy:
        with contextlib.suppress(OSError):
            os.link(source, goal, follow_symlinks=True)
            return
    shutil.copyfile(source, goal)


def swap_folders(hidden: Path, live: Path) -> None:
    """Put the hidden folder in the place of the visible one, which gets a name that `recover_interrupted_run` knows."""
    if not live.exists():
        os.rename(hidden, live)
        return
    try:
        exchange_names(hidden, live)
    except OSError as error:
        if error.errno not in _CANNOT_EXCHANGE:
            raise
        os.rename(live, live.with_name(_MOVED))
        os.rename(hidden, live)


def exchange_names(one: Path, other: Path) -> None:
    """Exchange the names of two files or folders in one step. Raises `OSError`: ENOSYS if this host cannot."""
    try:
        import ctypes  # not at the top: some hardened hosts refuse it the memory it asks for

        renameat2: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
    except (ImportError, MemoryError, OSError, AttributeError):  # AttributeError: a C library from before 2018
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def recover_interrupted_run(folder: Path, *, thorough: bool = True) -> None:
    """Remove what a killed run left in a target, and restore the repodata that it had moved away.

    A thorough call also removes what createrepo_c left, which is named repodata.old.<pid>.<time>.
    """
    fs.remove(folder / _HIDDEN)
    olds = [folder / _MOVED] if (folder / _MOVED).exists() else []
    if thorough or not (folder / REPODATA).exists():
        olds = list(folder.glob(f"{REPODATA}.old.*"))
    for old in sorted(olds, key=lambda path: path.stat().st_mtime, reverse=True):
        if (folder / REPODATA).exists():
            fs.remove(old)
        else:
            old.rename(folder / REPODATA)
