# SPDX-License-Identifier: Apache-2.0
"""The records of a repomd.xml: which files it names, and which records createrepo_c does not make itself."""

from __future__ import annotations

import gzip
import hashlib
import re
import time
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import attr

from reimzul.core.errors import InputError

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
class Record:
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


def read_records(folder: Path) -> list[Record]:
    """The records of a folder's repomd.xml. Raises one of `DAMAGED`."""
    root = ElementTree.parse(folder / REPOMD).getroot()
    return [_record(data) for data in root.findall(f"{_NAMES}data")]


def _record(data: ElementTree.Element) -> Record:
    location = data.find(f"{_NAMES}location")
    folder, _, name = (location.attrib["href"] if location is not None else "").rpartition("/")
    return Record(type=data.attrib["type"], file=name if folder == "repodata" else "", text=_text(data))


def _text(element: ElementTree.Element) -> str:
    """An element without a prefix: createrepo_c's repomd.xml has all of them in its default namespace."""
    name = element.tag.rpartition("}")[2]
    attributes = "".join(f" {key}={quoteattr(value)}" for key, value in element.attrib.items() if "}" not in key)
    inner = escape((element.text or "").strip()) + "".join(map(_text, element))
    return f"<{name}{attributes}>{inner}</{name}>" if inner else f"<{name}{attributes}/>"


def add_records(repomd: str, records: Iterable[Record]) -> str:
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

    record: Record
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
        return cls(record=Record(type=type_, file=file, text=text), content=content)
