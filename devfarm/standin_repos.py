# SPDX-License-Identifier: Apache-2.0
"""The repositories of the stand-in for mock: what dnf would find in them, in the cache that dnf would use.

All builds of one root name share a cache, whatever their `--uniqueext`. Cached metadata is believed for 48 hours,
unless `metadata_expire` sets another time. Repositories with an http or file baseurl are read; https, mirror lists and
metalinks are not. Nothing is installed: installed_pkgs.log lists what dnf would have installed.
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
from typing import Any, Callable, Optional
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

import attr

from devfarm.standin_faults import Exit, Fault
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.mock_config import Repository, list_repositories
from reimzul.core.rpm_header import import_rpm

#: Seconds dnf believes cached metadata where the configuration sets no time.
EXPIRE_SECONDS = 48 * 3600
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LIMIT_BYTES = 256 << 20
_FALSE = ("0", "no", "false", "off")
_DAMAGED = (OSError, EOFError, lzma.LZMAError, ElementTree.ParseError, KeyError, AttributeError)
_OPEN: Mapping[str, Callable[[bytes], bytes]] = {
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
    """What a package provides or asks for."""

    name: str
    operator: str = ""  #: empty for any version
    evr: Evr = ("0", "", "")

    def is_met_by(self, provided: Capability) -> bool:
        """Whether that is what is asked for."""
        if self.name != provided.name or not self.operator or not provided.operator:
            return self.name == provided.name
        order = compare(provided.evr, self.evr)
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
    def nevra(self) -> str:
        """name-[epoch:]version-release.arch."""
        epoch, version, release = self.evr
        return f"{self.name}-{'' if epoch == '0' else f'{epoch}:'}{version}-{release}.{self.arch}"

    @property
    def line(self) -> str:
        """Its line in installed_pkgs.log."""
        return f"{self.nevra} {self.built} {self.size} installed\n"


def compare(one: Evr, other: Evr) -> int:
    """rpm's own comparison; where one has no release, none is compared."""
    if not (one[2] and other[2]):
        one, other = (one[0], one[1], "0"), (other[0], other[1], "0")
    return int(import_rpm().labelCompare(one, other))


def read_capability(words: str) -> Capability:
    """A requirement as a header has it: `libfoo-devel >= 1:2.0-3`."""
    parts = words.split()
    if len(parts) != 3:
        return Capability(words.strip())
    epoch, _, rest = parts[2].rpartition(":")
    version, _, release = rest.partition("-")
    return Capability(parts[0], parts[1], (epoch or "0", version, release))


class Unavailable(Exception):
    """A repository's metadata cannot be had."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


@attr.frozen(kw_only=True)
class Repositories:
    """The repositories of one root name."""

    conf: str  #: dnf.conf, expanded
    cache: Path  #: shared by all builds of the root name
    arches: Collection[str]  #: of packages that can be installed
    variables: Mapping[str, str]  #: dnf's: basearch, releasever

    def load(self, command: str, say: Callable[[str], None]) -> list[Package]:
        """The packages of all repositories. Raises `Fault` where one that must not be skipped is unavailable."""
        found: list[Package] = []
        sections = list(list_repositories(self.conf))
        main = next((each for each in sections if each.name == "main"), Repository(name="main", options={}))
        for section in sections:
            url = self._url(section)
            if section.name == "main" or not url or section.last_value("enabled", "1").lower() in _FALSE:
                continue
            try:
                found += self._packages(section, main, url)
            except Unavailable as error:
                self._miss(section, main, error, command, say)
        return found

    def _url(self, section: Repository) -> str:
        """Where it is; empty where we do not read its kind."""
        for url in section.last_value("baseurl").replace(",", " ").split():
            for name, value in self.variables.items():
                url = url.replace(f"${name}", value).replace(f"${{{name}}}", value)
            if url.startswith(("http://", "file:///")):
                return url.rstrip("/") + "/"
        return ""

    def _miss(
        self, section: Repository, main: Repository, error: Unavailable, command: str, say: Callable[[str], None]
    ) -> None:
        name = section.name
        lines = [f"Errors during downloading metadata for repository '{name}':", f"  - {error}"]
        lines.append(f"Error: Failed to download metadata for repo '{name}': {error.cause}")
        skipped = (
            section.last_value("skip_if_unavailable", main.last_value("skip_if_unavailable", "0")).lower() not in _FALSE
        )
        for line in [*lines, f"Ignoring repositories: {name}"] if skipped else lines:
            say(line)
        if not skipped:
            raise Fault(Exit.DEPENDENCIES, "\n".join(["Command failed: ", f" # {command}", *lines, ""]))

    def _packages(self, section: Repository, main: Repository, url: str) -> list[Package]:
        seconds = _seconds(
            section.last_value("metadata_expire", main.last_value("metadata_expire", str(EXPIRE_SECONDS)))
        )
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        with _held(self.cache / f"{quote(section.name, safe='')}-{digest}") as folder:
            try:
                return list(self._read(_cached(folder, seconds) or _refreshed(folder, url)))
            except _DAMAGED as error:
                raise Unavailable("its metadata is damaged", f"{type(error).__name__}: {error}") from error

    def _read(self, primary: bytes) -> Iterator[Package]:
        for element in ElementTree.fromstring(primary).iter(f"{_COMMON}package"):
            package = _package(element)
            if package.arch in self.arches:
                yield package


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)\s*([smhdw]?)", text.lower())
    return int(found[1]) * _UNIT_SECONDS[found[2]] if found else float("inf")  # never, or -1


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[Path]:
    """A repository's cache, ours alone: other builds of the root name use it too."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield folder


def _cached(folder: Path, seconds: float) -> Optional[bytes]:
    """What was downloaded before, where that is not too long ago."""
    try:
        if time.time() - (folder / "repomd.xml").stat().st_mtime >= seconds:
            return None
        return _primary((folder / "repomd.xml").read_bytes(), lambda name: (folder / name).read_bytes())
    except FileNotFoundError:
        return None


def _refreshed(folder: Path, url: str) -> bytes:
    """The metadata as it is now, which is kept."""
    with HttpSession() as site:
        repomd = _download(site, f"{url}repodata/repomd.xml")

        def get(name: str) -> bytes:
            body = _download(site, f"{url}repodata/{name}")
            for former in folder.glob("*primary*"):
                former.unlink()
            _keep(folder / name, body)
            return body

        found = _primary(repomd, get)
    _keep(folder / "repomd.xml", repomd)
    return found


def _primary(repomd: bytes, get: Callable[[str], bytes]) -> bytes:
    data = ElementTree.fromstring(repomd).find(f"{_REPO}data[@type='primary']/{_REPO}location")
    name = Path(data.attrib["href"]).name if data is not None else ""
    body = get(name)
    suffix = Path(name).suffix
    if suffix not in _OPEN:
        raise Unavailable("its metadata is compressed in a way that the stand-in cannot read", name)
    return _OPEN[suffix](body)


def _keep(path: Path, body: bytes) -> None:
    beside = path.with_name(f".{path.name}")
    beside.write_bytes(body)
    os.replace(beside, path)


def _download(site: HttpSession, url: str) -> bytes:
    name = f"repodata/{Path(urlsplit(url).path).name}"
    cause = (
        f"Yum repo downloading error: Downloading error(s): {name} - Cannot download, all mirrors were already tried"
    )
    if name == "repodata/repomd.xml":
        cause = f"Cannot download repomd.xml: Cannot download {name}: All mirrors were tried"
    try:
        if url.startswith("file:"):
            return Path(unquote(urlsplit(url).path)).read_bytes()
        return site.get(url, _LIMIT_BYTES)
    except NotFound as error:
        raise Unavailable(cause, f"Status code: 404 for {url} (IP: {urlsplit(url).hostname})") from error
    except HttpUnavailable as error:
        status = re.search(r": HTTP (\d+)$", str(error))
        words = (
            f"Status code: {status[1]} for {url}" if status else f"Curl error (7): Couldn't connect to server for {url}"
        )
        raise Unavailable(cause, f"{words} [{error}]") from error
    except OSError as error:
        raise Unavailable(cause, f"Curl error (37): Couldn't read a file:// file for {url} [{error}]") from error


def _package(element: Any) -> Package:
    def text(tag: str) -> str:
        return str(element.findtext(f"{_COMMON}{tag}"))

    form = element.find(f"{_COMMON}format")
    files = (Capability(str(each.text)) for each in form.findall(f"{_COMMON}file"))
    return Package(
        name=text("name"),
        evr=_evr(element.find(f"{_COMMON}version").attrib),
        arch=text("arch"),
        built=element.find(f"{_COMMON}time").attrib["build"],
        size=element.find(f"{_COMMON}size").attrib["installed"],
        provides=(*_capabilities(form, "provides"), *files),
        requires=tuple(_capabilities(form, "requires")),
    )


def _capabilities(form: Any, kind: str) -> Iterator[Capability]:
    for entry in form.iterfind(f"{_RPM}{kind}/{_RPM}entry"):
        yield Capability(entry.attrib["name"], _OPERATORS.get(entry.get("flags", ""), ""), _evr(entry.attrib))


def _evr(given: Mapping[str, str]) -> Evr:
    return given.get("epoch") or "0", given.get("ver", ""), given.get("rel", "")


def choose(asked: Capability, packages: Iterable[Package]) -> Optional[Package]:
    """The newest package that satisfies a requirement; None where none does."""
    found = [each for each in packages if any(asked.is_met_by(provided) for provided in each.provides)]
    order = functools.cmp_to_key(compare)
    return max(found, key=lambda package: order(package.evr), default=None)


def install(package: Package, packages: Collection[Package], installed: dict[str, Package]) -> None:
    """Note a package as installed, with those of the repositories that it requires."""
    installed[package.name] = package
    for asked in package.requires:
        found = choose(asked, packages)
        if found and found.name not in installed:
            install(found, packages, installed)
