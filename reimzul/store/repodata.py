# SPDX-License-Identifier: Apache-2.0
"""RD"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import attr

from reimzul.core import fs
from reimzul.core.errors import InputError, RetryLater
from reimzul.core.store_paths import StorePaths

log = logging.getLogger(__name__)

REPOMD = "repomd.xml"
#: What reading a repomd.xml raises where it is absent or damaged.
DAMAGED = (OSError, ElementTree.ParseError, KeyError, ValueError)
_NAMES = "{http://linux.duke.edu/metadata/repo}"
#: What createrepo_c makes in every run, in all forms (_db, _zck): of these the new ones replace the old ones.
_OWN_KINDS = ("primary", "filelists", "filelists-ext", "other")
_FORM = re.compile(r"_(?:db|gz|xz|bz2|zst|zck)\Z")
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst", ".zck")
_CHECKSUM = re.compile(r"[0-9a-f]{32,128}-")


@attr.frozen(kw_only=True)
class MetadataRecord:
    """One `<data>` of a repomd.xml."""

    type: str
    file: str  #: its file's name in repodata/; empty where the file is elsewhere
    text: str  #: the whole element, as it is written

    @property
    def kind(self) -> str:
        """Its type without the form: group_gz is another form of group."""
        return _FORM.sub("", self.type)

    @property
    def is_extra(self) -> bool:
        """Whether createrepo_c does not make it by itself."""
        return self.kind not in _OWN_KINDS


def read_records(folder: Path) -> list[MetadataRecord]:
    """The records of a folder's repomd.xml. Raises one of `DAMAGED`."""
    root = ElementTree.parse(folder / REPOMD).getroot()
    return [_record(data) for data in root.findall(f"{_NAMES}data")]


def _record(data: ElementTree.Element) -> MetadataRecord:
    location = data.find(f"{_NAMES}location")
    folder, _, name = (location.attrib["href"] if location is not None else "").rpartition("/")
    return MetadataRecord(type=data.attrib["type"], file=name if folder == "repodata" else "", text=_text(data))


def _text(element: ElementTree.Element) -> str:
    """An element without a prefix: createrepo_c's repomd.xml has all of them in its default namespace."""
    name = element.tag.rpartition("}")[2]
    attributes = "".join(f" {key}={quoteattr(value)}" for key, value in element.attrib.items() if "}" not in key)
    inner = escape((element.text or "").strip()) + "".join(map(_text, element))
    return f"<{name}{attributes}>{inner}</{name}>" if inner else f"<{name}{attributes}/>"


def add_records(repomd: str, records: Iterable[MetadataRecord]) -> str:
    """The text of a repomd.xml with further records at its end."""
    head, end, tail = repomd.rpartition("</repomd>")
    return head + "".join(f"  {record.text}\n" for record in records) + end + tail


def drop_records(repomd: str, kinds: Iterable[str]) -> str:
    """The text of a repomd.xml without the records of some kinds."""
    unwanted = set(kinds)

    def kept(found: re.Match[str]) -> str:
        return "" if _FORM.sub("", found[1]) in unwanted else found[0]

    return re.sub(r"[ \t]*<data type=[\"']([^\"']*)[\"'].*?</data>\n?", kept, repomd, flags=re.DOTALL)


def is_named_by_checksum(name: str) -> bool:
    """Whether a file is called as createrepo_c and modifyrepo_c call metadata."""
    return _CHECKSUM.match(name) is not None


def check_type(given: str) -> str:
    """The type of metadata that a person may add or remove. Raises `InputError`."""
    if not _TYPE.match(given):
        raise InputError(f"{given!r} is not a type of metadata, as group, updateinfo or modules")
    if _FORM.sub("", given) in _OWN_KINDS:
        raise InputError(f"{given} is made by createrepo_c itself")
    return given


def guess_type(name: str) -> str:
    """The type of a file of metadata, by its name: comps.xml and comps-f40.xml are a group. Raises `InputError`."""
    stem = _CHECKSUM.sub("", name).partition(".")[0]
    return check_type("group" if stem.partition("-")[0] == "comps" else stem)


@attr.frozen(kw_only=True)
class Addition:
    """Metadata that a person adds: the record, and its file's content."""

    record: MetadataRecord
    content: bytes

    @classmethod
    def make(cls, name: str, raw: bytes, type_: str) -> Addition:
        """Compress a file as modifyrepo_c does, and describe it. Raises `InputError` where it is no metadata."""
        if not raw:
            raise InputError(f"{name} is empty")
        if name.endswith(".xml"):
            try:
                ElementTree.fromstring(raw)
            except (ElementTree.ParseError, ValueError) as error:
                raise InputError(f"{name} is not well-formed XML: {error}") from None
        packed = name.endswith(_COMPRESSED)
        content = raw if packed else gzip.compress(raw, mtime=0)
        sha256 = hashlib.sha256(content).hexdigest()
        file = f"{sha256}-{_CHECKSUM.sub('', name)}" + ("" if packed else ".gz")
        opened = "" if packed else f'<open-checksum type="sha256">{hashlib.sha256(raw).hexdigest()}</open-checksum>'
        text = (
            f'<data type="{type_}"><checksum type="sha256">{sha256}</checksum>{opened}'
            f"<location href={quoteattr(f'repodata/{file}')}/><timestamp>{int(time.time())}</timestamp>"
            f"<size>{len(content)}</size>" + ("" if packed else f"<open-size>{len(raw)}</open-size>") + "</data>"
        )
        return cls(record=MetadataRecord(type=type_, file=file, text=text), content=content)


REPODATA = "repodata"
#: How long a file stays that repomd.xml does not name any more: a client that read it before fetches the file yet.
RETAIN_SECONDS = 120
_HIDDEN = f".{REPODATA}"
_MOVED = f"{REPODATA}.old.0"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
#: What says that a kernel, its filter, a C library or a file system does not exchange two names.
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


@attr.frozen(kw_only=True)
class RetainedFiles:
    """What is known of the files beside those that repomd.xml names."""

    replaced: dict[str, float] = attr.field(factory=dict)  #: when repomd.xml ceased to name it, seconds since 1970
    hook: frozenset[str] = frozenset()  #: what the hook wrote: it writes that again, so it is not carried over

    @classmethod
    def read(cls, path: Path) -> RetainedFiles:
        """From `state/<target>.retained`; nothing where that is absent or damaged."""
        try:
            raw = json.loads(path.read_bytes())
            return cls(
                replaced={str(name): float(at) for name, at in raw["replaced"].items()},
                hook=frozenset(map(str, raw["hook"])),
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def write(self, path: Path) -> None:
        """Keep it."""
        fs.write_atomic(path, json.dumps({"replaced": self.replaced, "hook": sorted(self.hook)}, indent=1) + "\n")


@attr.frozen(kw_only=True)
class Draft:
    """New repodata that nobody sees yet."""

    store: StorePaths
    target: str
    folder: Path
    retained: RetainedFiles
    files: frozenset[str]  #: what lies in it before the hook runs

    @property
    def live(self) -> Path:
        """The folder that everybody sees."""
        return self.store.target(self.target) / REPODATA

    def check(self) -> None:
        """Raise `RetryLater` where the hook left something that no client could use."""
        try:
            records = read_records(self.folder)
        except DAMAGED as error:
            raise RetryLater(f"its repomd.xml cannot be read any more: {error!r}") from error
        lost = [record.type for record in records if not record.file or not (self.folder / record.file).is_file()]
        if lost or not any(record.type == "primary" for record in records):
            raise RetryLater(f"its repomd.xml names files that are not there: {', '.join(lost) or 'primary'}")

    def publish(self) -> None:
        """Have the disk keep it, and make it visible in place of what was."""
        for path in [*self.folder.iterdir(), self.folder]:
            fs.sync(path)
        new = {path.name for path in self.folder.iterdir()} - self.files
        # a kill before the swap leaves what the hook wrote before
        old = {name for name in self.retained.hook if (self.live / name).exists()}
        attr.evolve(self.retained, hook=frozenset(new | old)).write(self.store.retained(self.target))
        swap_folders(self.folder, self.live)
        fs.sync(self.live.parent)
        recover_interrupted_run(self.live.parent, thorough=False)


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
    """Make the hidden folder from the repodata in `source`, and from what the visible one has beside it.

    `without` are kinds of additional metadata that are to go. `copy` has additional metadata copied, since a hook that
    writes it again would write through a hard link. Raises one of `DAMAGED` where `source` cannot be read.
    """
    live = store.target(target) / REPODATA
    recover_interrupted_run(live.parent, thorough=False)
    # no two have one name: what the hook of a run that was killed writes late, it writes nowhere
    folder = live.parent / _HIDDEN / f"{os.getpid()}.{time.time_ns()}"
    folder.mkdir(parents=True)
    source_records, live_records = read_records(source), _live_records(live)
    dropped = {*without, *([addition.record.kind] if addition else [])}
    for record in source_records:
        if not record.is_extra:
            _link(source / record.file, folder / record.file)
        elif record.kind not in dropped and not _link_extra(source, folder, record, copy=copy):
            dropped.add(record.kind)
    present = dropped | {record.kind for record in source_records}
    extra = list(_carry_over(live, folder, live_records, present, copy=copy))
    text = drop_records((source / REPOMD).read_text(encoding="utf-8"), dropped)
    if addition:
        (folder / addition.record.file).write_bytes(addition.content)
        extra.append(addition.record)
    (folder / REPOMD).write_text(add_records(text, extra), encoding="utf-8")
    _check_kinds(folder, without)
    retained = _retain(store, target, folder, {record.file for record in live_records}, now)
    files = frozenset(path.name for path in folder.iterdir())
    return Draft(store=store, target=target, folder=folder, retained=retained, files=files)


def _live_records(live: Path) -> list[MetadataRecord]:
    try:
        return read_records(live)
    except FileNotFoundError:
        return []
    except DAMAGED as error:
        log.error("%s cannot be read, so additional metadata that it named is lost: %r", live / REPOMD, error)
        return []


def _check_kinds(folder: Path, without: Collection[str]) -> None:
    left = {record.kind for record in read_records(folder)} & set(without)
    if left:
        raise ValueError(f"repomd.xml still has {', '.join(sorted(left))}")


def _carry_over(
    live: Path, folder: Path, records: Sequence[MetadataRecord], present: Collection[str], *, copy: bool
) -> Iterator[MetadataRecord]:
    """The additional records that the visible repomd.xml has and the new one lacks; their files are linked."""
    for record in records:
        if record.is_extra and record.kind not in present and _link_extra(live, folder, record, copy=copy):
            yield record


def _link_extra(source: Path, folder: Path, record: MetadataRecord, *, copy: bool) -> bool:
    """Link the file of an additional record; false, and a line in the log, where it is not there."""
    try:
        if not record.file:
            raise FileNotFoundError(errno.ENOENT, "it is not in repodata/")
        _link(source / record.file, folder / record.file, copy=copy)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        log.error("%s: its metadata %s is dropped: %s: %s", folder.parents[1].name, record.type, record.file, why)
        return False
    return True


def _retain(store: StorePaths, target: str, folder: Path, named: Collection[str], now: float) -> RetainedFiles:
    """Link what the visible folder has beside, as long as it is to stay; when each file of it was replaced."""
    known = RetainedFiles.read(store.retained(target))
    live = store.target(target) / REPODATA
    replaced: dict[str, float] = {}
    for path in sorted(live.iterdir()) if live.is_dir() else []:
        name = path.name
        if name.startswith(REPOMD) or (folder / name).exists() or not path.is_file():
            continue
        at: float | None = None  # a person's, or another program's: it stays
        if name in named:
            at = now
        elif name in known.replaced or is_named_by_checksum(name):
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
    """One more name of a file, or a copy where that cannot be: of another's file, the kernel may refuse it."""
    if copy:
        shutil.copyfile(source, goal)
        return
    try:
        os.link(source, goal, follow_symlinks=True)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, goal)


def swap_folders(hidden: Path, live: Path) -> None:
    """Give a folder the name of another in one step; the other then has the hidden name, or one that `tidy` knows."""
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
    """Exchange the names of two files or folders in one step. Raises `OSError`, with ENOSYS where nothing can."""
    try:
        import ctypes  # not before it is needed: some hardened hosts refuse it the memory it asks for

        renameat2: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
    except (ImportError, MemoryError, OSError, AttributeError):  # the last: a C library from before 2018
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def recover_interrupted_run(folder: Path, *, thorough: bool = True) -> None:
    """Remove what a run that was killed left in a target; give back the repodata it had moved out of its way.

    Thorough, it looks at all names in the folder, for what createrepo_c left: it calls that repodata.old.<pid>.<time>.
    """
    fs.remove(folder / _HIDDEN)
    moved = folder / _MOVED
    is_missing = not (folder / REPODATA).exists()
    olds = [moved] if moved.exists() else []
    if thorough or is_missing:
        olds = list(folder.glob(f"{REPODATA}.old.*"))
    for old in sorted(olds, key=lambda path: path.stat().st_mtime, reverse=True):
        if (folder / REPODATA).exists():
            fs.remove(old)
        else:
            old.rename(folder / REPODATA)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,199}\Z")


def read_addition(name: str, raw: bytes, given: str) -> Addition:
    """Metadata in a file of some name; its type is given, or told by the name. Raises `InputError`."""
    if not _NAME.match(name):
        raise InputError(f"{name!r} is not a name for a file of metadata, as comps.xml")
    return Addition.make(name, raw, check_type(given) if given else guess_type(name))
