# SPDX-License-Identifier: Apache-2.0
"""The repositories of the stand-in for mock: what dnf would find in them, cached as dnf caches it.

All builds of one root name share a cache, whatever their `--uniqueext`. Cached metadata is used for 48 hours, unless
`metadata_expire` sets another time. Repositories with an http baseurl are read; https, mirror lists and metalinks
are not. Nothing is installed: installed_pkgs.log lists what dnf would have installed.
"""

from __future__ import annotations

import bz2
import contextlib
import fcntl
import functools
import gzip
import hashlib
import lzma
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import attr

from devfarm.mockstub.logs import Exit, Fault
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.mock_config import Repository, list_repositories
from reimzul.core.rpm_header import import_rpm

#: Seconds for which dnf uses cached metadata where the configuration sets no time.
EXPIRE_SECONDS = 48 * 3600
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LIMIT_BYTES = 256 << 20
_FALSE = ("0", "no", "false", "off")
_DAMAGED = (OSError, EOFError, lzma.LZMAError, ElementTree.ParseError, KeyError, AttributeError)
_DECOMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".xml": bytes,
}
_OPERATORS = {"LT": "<", "LE": "<=", "EQ": "=", "GE": ">=", "GT": ">"}
_REPO = "{http://linux.duke.edu/metadata/repo}"
_COMMON = "{http://linux.duke.edu/metadata/common}"
_RPM = "{http://linux.duke.edu/metadata/rpm}"

#: Epoch, version, release.
Evr = tuple[str, str, str]


@attr.frozen
class Capability:
    """What a package provides or requires."""

    name: str
    operator: str = ""  #: empty for any version
    evr: Evr = ("0", "", "")

    def is_met_by(self, provided: Capability) -> bool:
        if self.name != provided.name or not self.operator or not provided.operator:
            return self.name == provided.name
        order = _compare(provided.evr, self.evr)
        return ("<" if order < 0 else ">" if order > 0 else "=") in self.operator


@attr.frozen(kw_only=True)
class Package:
    """A package of a repository."""

    name: str
    evr: Evr
    arch: str
    built: str  #: seconds since 1970
    size: str  #: bytes, installed
    provides: tuple[Capability, ...]
    requires: tuple[Capability, ...]

    @property
    def line(self) -> str:
        """Its line in installed_pkgs.log."""
        epoch, version, release = self.evr
        nevra = f"{self.name}-{'' if epoch == '0' else f'{epoch}:'}{version}-{release}.{self.arch}"
        return f"{nevra} {self.built} {self.size} installed\n"


class Unavailable(Exception):
    """A repository's metadata cannot be had."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


def _compare(one: Evr, other: Evr) -> int:
    """Compare as rpm does; releases only where both have one."""
    if not (one[2] and other[2]):
        one, other = (one[0], one[1], "0"), (other[0], other[1], "0")
    return int(import_rpm().labelCompare(one, other))


def read_capability(text: str) -> Capability:
    """Parse a requirement as a header has it: `libfoo-devel >= 1:2.0-3`."""
    parts = text.split()
    if len(parts) != 3:
        return Capability(text.strip())
    epoch, _, rest = parts[2].rpartition(":")
    version, _, release = rest.partition("-")
    return Capability(parts[0], parts[1], (epoch or "0", version, release))


def find_newest(required: Capability, packages: Iterable[Package]) -> Package | None:
    """The newest package that satisfies a requirement."""
    found = [each for each in packages if any(required.is_met_by(provided) for provided in each.provides)]
    order = functools.cmp_to_key(_compare)
    return max(found, key=lambda package: order(package.evr), default=None)


def install(package: Package, packages: Collection[Package], installed: dict[str, Package]) -> None:
    """Note a package as installed, with those of the repositories that it requires."""
    installed[package.name] = package
    for required in package.requires:
        found = find_newest(required, packages)
        if found and found.name not in installed:
            install(found, packages, installed)


@attr.frozen(kw_only=True)
class Repositories:
    """The repositories of one root name."""

    conf: str  #: dnf.conf, expanded
    cache: Path  #: shared by all builds of the root name
    arches: Collection[str]  #: of packages that can be installed
    variables: Mapping[str, str]  #: dnf's: basearch, releasever

    def load(self, command: str, log: Callable[[str], None]) -> list[Package]:
        """The packages of all repositories. Raises `Fault` where one that must not be skipped is unavailable."""
        packages: list[Package] = []
        sections = list(list_repositories(self.conf))
        main = next((each for each in sections if each.name == "main"), Repository(name="main", options={}))
        for section in sections:
            url = self._url(section)
            if section.name == "main" or not url or section.last_value("enabled", "1").lower() in _FALSE:
                continue

            def option(name: str, default: str, section: Repository = section) -> str:
                return section.last_value(name, main.last_value(name, default)).lower()

            try:
                packages += self._read(section.name, url, _seconds(option("metadata_expire", str(EXPIRE_SECONDS))))
            except Unavailable as error:
                skip = option("skip_if_unavailable", "0") not in _FALSE
                self._report(section.name, error, command, log, skip)
        return packages

    def _url(self, section: Repository) -> str:
        """The repository's URL; empty where the stand-in does not read its kind."""
        for template in section.last_value("baseurl").replace(",", " ").split():
            url = template
            for name, value in self.variables.items():
                url = url.replace(f"${name}", value).replace(f"${{{name}}}", value)
            if url.startswith("http://"):
                return url.rstrip("/") + "/"
        return ""

    def _report(self, name: str, error: Unavailable, command: str, log: Callable[[str], None], skip: bool) -> None:
        lines = [f"Errors during downloading metadata for repository '{name}':", f"  - {error}"]
        lines.append(f"Error: Failed to download metadata for repo '{name}': {error.cause}")
        for line in [*lines, f"Ignoring repositories: {name}"] if skip else lines:
            log(line)
        if not skip:
            raise Fault(Exit.DEPENDENCIES, "\n".join(["Command failed: ", f" # {command}", *lines, ""]))

    def _read(self, name: str, url: str, expire_seconds: float) -> list[Package]:
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        with _lock_cache(self.cache / f"{quote(name, safe='')}-{digest}") as folder:
            try:
                primary = _read_cache(folder, expire_seconds) or _download_metadata(folder, url)
                packages = map(_parse_package, ElementTree.fromstring(primary).iter(f"{_COMMON}package"))
                return [package for package in packages if package.arch in self.arches]
            except _DAMAGED as error:
                raise Unavailable("its metadata is damaged", f"{type(error).__name__}: {error}") from error


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)\s*([smhdw]?)", text)
    return int(found[1]) * _UNIT_SECONDS[found[2]] if found else float("inf")  # never, or -1


@contextlib.contextmanager
def _lock_cache(folder: Path) -> Iterator[Path]:
    """A repository's cache folder, locked: other builds of the root name use it too."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield folder


def _read_cache(folder: Path, expire_seconds: float) -> bytes | None:
    """The cached primary metadata; None where there is none, or it has expired."""
    try:
        if time.time() - (folder / "repomd.xml").stat().st_mtime >= expire_seconds:
            return None
        return _read_primary((folder / "repomd.xml").read_bytes(), lambda name: (folder / name).read_bytes())
    except FileNotFoundError:
        return None


def _download_metadata(folder: Path, url: str) -> bytes:
    """Download the primary metadata and cache it."""
    with HttpSession() as session:
        repomd = _download(session, f"{url}repodata/repomd.xml")

        def download(name: str) -> bytes:
            body = _download(session, f"{url}repodata/{name}")
            for former in folder.glob("*primary*"):
                former.unlink()
            _replace(folder / name, body)
            return body

        primary = _read_primary(repomd, download)
    _replace(folder / "repomd.xml", repomd)
    return primary


def _read_primary(repomd: bytes, read: Callable[[str], bytes]) -> bytes:
    location = ElementTree.fromstring(repomd).find(f"{_REPO}data[@type='primary']/{_REPO}location")
    name = Path(location.attrib["href"]).name if location is not None else ""
    body = read(name)
    suffix = Path(name).suffix
    if suffix not in _DECOMPRESS:
        raise Unavailable("its metadata is compressed in a way that the stand-in cannot read", name)
    return _DECOMPRESS[suffix](body)


def _replace(path: Path, body: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(body)
    os.replace(temporary, path)


def _download(session: HttpSession, url: str) -> bytes:
    name = f"repodata/{Path(urlsplit(url).path).name}"
    if name == "repodata/repomd.xml":
        cause = f"Cannot download repomd.xml: Cannot download {name}: All mirrors were tried"
    else:
        cause = "Yum repo downloading error: Downloading error(s): "
        cause += f"{name} - Cannot download, all mirrors were already tried"
    try:
        return session.get(url, _LIMIT_BYTES)
    except NotFound as error:
        raise Unavailable(cause, f"Status code: 404 for {url} (IP: {urlsplit(url).hostname})") from error
    except HttpUnavailable as error:
        status = re.search(r": HTTP (\d+)$", str(error))
        detail = f"Status code: {status[1]}" if status else "Curl error (7): Couldn't connect to server"
        raise Unavailable(cause, f"{detail} for {url} [{error}]") from error


def _parse_package(element: Any) -> Package:
    form = element.find(f"{_COMMON}format")
    files = (Capability(str(each.text)) for each in form.findall(f"{_COMMON}file"))
    return Package(
        name=str(element.findtext(f"{_COMMON}name")),
        evr=_evr(element.find(f"{_COMMON}version").attrib),
        arch=str(element.findtext(f"{_COMMON}arch")),
        built=element.find(f"{_COMMON}time").attrib["build"],
        size=element.find(f"{_COMMON}size").attrib["installed"],
        provides=(*_capabilities(form, "provides"), *files),
        requires=tuple(_capabilities(form, "requires")),
    )


def _capabilities(form: Any, kind: str) -> Iterator[Capability]:
    for entry in form.iterfind(f"{_RPM}{kind}/{_RPM}entry"):
        yield Capability(entry.attrib["name"], _OPERATORS.get(entry.get("flags", ""), ""), _evr(entry.attrib))


def _evr(attributes: Mapping[str, str]) -> Evr:
    return attributes.get("epoch") or "0", attributes.get("ver", ""), attributes.get("rel", "")
