# SPDX-License-Identifier: Apache-2.0
"""Reading rpm headers. Only this module imports the rpm bindings.

The bindings belong to the distribution's own Python, so they are imported when a header is read: everything else runs,
and is tested, on any Python.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attr

from reimzul.core import validators
from reimzul.core.errors import InputError, ProgramNotFound, describe_os_error, translate_errors

#: Tags of when, where and with which flags a package was built, and checksums over them. The signature header's tags,
#: below 1000, are such checksums too.
_MAKING = (
    "BUILDTIME", "BUILDHOST", "COOKIE", "OPTFLAGS", "PLATFORM", "SOURCEPKGID", "FILEMTIMES", "FILEINODES",
    "FILEDEVICES", "PAYLOADDIGEST", "PAYLOADDIGESTALT", "PAYLOADSHA256", "PAYLOADSHA256ALT", "PAYLOADSHA512",
    "PAYLOADSHA512ALT", "PAYLOADSHA3_256", "PAYLOADSHA3_256ALT", "PAYLOADSIZE", "PAYLOADSIZEALT",
)  # fmt: skip
_FIRST_TAG = 1000
_LEAD = 96  # bytes
#: Held while the bindings are imported: another thread would find them in sys.modules half made.
_IMPORT_LOCK = threading.Lock()
_MAGIC = b"\xed\xab\xee\xdb"  # of the lead, rpm's docs/manual/format_lead.md


@attr.frozen(kw_only=True)
class Header:
    name: str
    epoch: int | None
    version: str
    release: str
    arch: str  #: of a source rpm, the arch of the host that made it
    is_source: bool
    #: of a source rpm, as the next two; a macro unknown to the packager's host stays unexpanded
    exclusive_arch: tuple[str, ...] = ()
    exclude_arch: tuple[str, ...] = ()
    build_archs: tuple[str, ...] = ()  #: BuildArch of the main package of a source rpm, mostly ("noarch",)
    requires: tuple[str, ...] = ()  #: of a source rpm, its BuildRequires, with versions
    provides: tuple[str, ...] = ()  #: names; of a source rpm made by rpm 4.16 or newer, the packages that it builds
    source_rpm: str = ""  #: of a binary rpm, the file name of the source rpm that it was built from

    @property
    def evr(self) -> str:
        """version-release, without the epoch, as in the original."""
        return f"{self.version}-{self.release}"

    @property
    def nevra(self) -> str:
        """name-[epoch:]version-release.arch, `src` for a source rpm."""
        epoch = f"{self.epoch}:" if self.epoch else ""
        return f"{self.name}-{epoch}{self.version}-{self.release}.{'src' if self.is_source else self.arch}"

    @property
    def has_dynamic_requires(self) -> bool:
        """Whether a source rpm has BuildRequires that only its build computes."""
        return any(each.startswith("rpmlib(DynamicBuildRequires)") for each in self.requires)


def _expose_system_rpm() -> None:
    """In a virtual environment, load the bindings of the Python that it was made with.

    PyPI's shim finds them too, but starts every Python on the host to do so: 0.06 s of each start.
    """
    if "rpm" in sys.modules or sys.prefix == sys.base_prefix:
        return
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # Debian's folder, and Fedora's and EL's
    folders = [f"{sys.base_prefix}/{end}" for end in ("lib/python3/dist-packages", f"lib64/{version}/site-packages")]
    spec = importlib.machinery.PathFinder.find_spec("rpm", folders)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["rpm"] = module
    try:
        spec.loader.exec_module(module)
    except ImportError:  # of another Python: leave it to the shim
        del sys.modules["rpm"]


def import_rpm() -> Any:
    """Import the rpm module. Raises `ProgramNotFound` if this Python has none."""
    try:
        with _IMPORT_LOCK:
            _expose_system_rpm()
            import rpm
    except ImportError as error:
        raise ProgramNotFound(
            f"the rpm bindings cannot be imported ({error}): install python3-rpm and use the Python it belongs to"
        ) from error
    return rpm


def read_header(path: Path) -> Header:
    """Read the header of a package. Raises `InputError`."""
    return _check_names(_header_of(_read_raw(path), import_rpm()), path)


def compare_versions(one: str, other: str) -> int:
    """Compare `[epoch:]version[-release]` as rpm does: -1, 0 or 1. A release counts if both have one."""
    parts = [_split_version(each) for each in (one, other)]
    if not all(release for _, _, release in parts):
        parts = [(epoch, version, "") for epoch, version, _ in parts]
    return int(import_rpm().labelCompare(*parts))


def _split_version(text: str) -> tuple[str, str, str]:
    epoch, colon, rest = text.partition(":")
    version, _, release = (rest if colon else text).partition("-")
    return epoch if colon else "0", version, release


def is_same_package(one: Path, other: Path) -> bool:
    """Whether two packages differ only in when, where and with which flags they were built. Raises `InputError`."""
    rpm = import_rpm()
    making = {getattr(rpm, f"RPMTAG_{name}", 0) for name in _MAKING}

    def content(path: Path) -> dict[int, str]:
        raw = _read_raw(path)
        return {tag: repr(raw[tag]) for tag in raw.keys() if tag >= _FIRST_TAG and tag not in making}  # noqa: SIM118

    return content(one) == content(other)


def _read_raw(path: Path) -> Any:
    with _open_header(import_rpm(), path) as raw:
        return raw


#: The tags whose text createrepo_c writes into a repository's XML (found with 0.17, which omits Distribution, BugURL,
#: OrderWithRequires and scriptlets).
_PUBLISHED_TAGS = (
    "NAME", "VERSION", "RELEASE", "ARCH", "SUMMARY", "DESCRIPTION", "URL", "PACKAGER", "VENDOR", "GROUP", "LICENSE",
    "BUILDHOST", "SOURCERPM", "DIRNAMES", "BASENAMES", "CHANGELOGNAME", "CHANGELOGTEXT",
    *(
        f"{kind}{part}"
        for kind in ("PROVIDE", "REQUIRE", "CONFLICT", "OBSOLETE", "RECOMMEND", "SUGGEST", "SUPPLEMENT", "ENHANCE")
        for part in ("NAME", "VERSION")
    ),
)  # fmt: skip


def read_published_texts(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and value of each tag that becomes part of a repository's metadata."""
    rpm = import_rpm()
    with _open_header(rpm, path) as raw:
        for tag in _PUBLISHED_TAGS:
            values = raw[getattr(rpm, f"RPMTAG_{tag}")]
            for value in values if isinstance(values, (list, tuple)) else [values]:
                if value is not None:
                    # rpm before 4.15 returns bytes; newer ones escape bytes that are not UTF-8
                    yield tag, value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _open_header(rpm: Any, path: Path) -> Iterator[Any]:
    """Open a complete package. Raises `InputError`."""
    with translate_errors({OSError: lambda error: InputError(f"{path}: {describe_os_error(error)}")}):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # do not wait for a pipe
        try:
            if os.pread(descriptor, 4, 0) != _MAGIC:
                raise InputError(f"{path}: not an rpm package")
            raw = _parse_header(rpm, descriptor, path)
            _check_payload(raw, rpm, descriptor, path)
            yield raw
        finally:
            os.close(descriptor)


def read_source_header(path: Path) -> Header:
    """Read the header of a source rpm. Raises `InputError`, also for a binary rpm."""
    header = read_header(path)
    if not header.is_source:
        raise InputError(f"{path}: a binary rpm ({header.nevra}), not a source rpm")
    return header


def _parse_header(rpm: Any, descriptor: int, path: Path) -> Any:
    transaction = rpm.TransactionSet()
    # Signatures are the signer's concern; digests are still checked.
    transaction.setVSFlags(rpm._RPMVSF_NOSIGNATURES)  # noqa: SLF001  rpm documents it under this name
    silence = rpm.setVerbosity  # librpm would print its own errors on stderr too
    silence(rpm.RPMLOG_CRIT)
    try:
        return transaction.hdrFromFdno(descriptor)
    except rpm.error as error:
        raise InputError(f"{path}: truncated or damaged ({error})") from error
    finally:
        silence(rpm.RPMLOG_NOTICE)


def _check_payload(raw: Any, rpm: Any, descriptor: int, path: Path) -> None:
    """Compare the file's size with the size in its signature header: a truncated file's header reads well.

    Layout: a lead of 96 bytes, the signature header (16 bytes of intro, 16 an entry, its data, padded to 8),
    then the header and payload, whose size the signature gives (rpm's docs/manual/format_v4.md).
    """
    payload = raw[rpm.RPMTAG_LONGSIGSIZE] or raw[rpm.RPMTAG_SIGSIZE]
    entries, data = struct.unpack(">II", os.pread(descriptor, 8, _LEAD + 8))
    start = _LEAD + 16 + 16 * entries + data
    whole = start + -start % 8 + int(payload or 0)
    size = os.fstat(descriptor).st_size
    if payload and size < whole:
        raise InputError(f"{path}: truncated: {size} of {whole} bytes")


def _header_of(raw: Any, rpm: Any) -> Header:
    return Header(
        name=_decode_text(raw[rpm.RPMTAG_NAME]),
        epoch=raw[rpm.RPMTAG_EPOCH],
        version=_decode_text(raw[rpm.RPMTAG_VERSION]),
        release=_decode_text(raw[rpm.RPMTAG_RELEASE]),
        arch=_decode_text(raw[rpm.RPMTAG_ARCH]),
        is_source=bool(raw[rpm.RPMTAG_SOURCEPACKAGE]),
        exclusive_arch=_decode_list(raw[rpm.RPMTAG_EXCLUSIVEARCH]),
        exclude_arch=_decode_list(raw[rpm.RPMTAG_EXCLUDEARCH]),
        build_archs=_decode_list(raw[rpm.RPMTAG_BUILDARCHS]),
        requires=_decode_list(raw[rpm.RPMTAG_REQUIRENEVRS]),
        provides=_decode_list(raw[rpm.RPMTAG_PROVIDENAME]),
        source_rpm=_decode_text(raw[rpm.RPMTAG_SOURCERPM]),
    )


def _check_names(header: Header, path: Path) -> Header:
    """Check what becomes a part of paths: rpm allows more than we do, and reads a header without any of it."""
    fields = {"name": header.name, "version": header.version, "release": header.release, "arch": header.arch}
    missing = ", ".join(field for field, value in fields.items() if not value)
    if missing:
        raise InputError(f"{path}: its header cannot be used: it has no {missing}")
    try:
        validators.name(header.name)
        validators.name(header.evr)
        validators.arch(header.arch)
    except ValueError as error:
        raise InputError(f"{path}: its header cannot be used: {error}") from None
    return header


def _decode_list(values: Any) -> tuple[str, ...]:
    return tuple(_decode_text(value) for value in values or ())


def _decode_text(value: Any) -> str:
    if value is None:  # the header has no such tag
        return ""
    # rpm before 4.15 returns bytes
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
