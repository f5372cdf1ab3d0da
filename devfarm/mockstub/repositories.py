# SPDX-License-Identifier: Apache-2.0
"""The repositories of the stand-in for mock: what dnf would find in them, cached as dnf caches it.

All builds of one root name share a cache, whatever their `--uniqueext`. Cached metadata is used for 48 hours, unless
`metadata_expire` sets another time. Repositories with an http baseurl and gzip are read; https, mirror lists and
metalinks are not. Nothing is installed: installed_pkgs.log lists those that meet BuildRequires.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import attr

from devfarm.mockstub.config import I386, MockConfig
from devfarm.mockstub.logs import Exit, Fault
from reimzul.core.fs import file_lock, write_atomic
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.mock_config import Repository, list_repositories
from reimzul.core.rpm_header import import_rpm

_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LIMIT_BYTES = 256 << 20
_FALSE = ("0", "no", "false", "off")
_DAMAGED = (OSError, EOFError, ElementTree.ParseError, KeyError, AttributeError, ValueError)
_OPERATORS = {"LT": "<", "LE": "<=", "EQ": "=", "GE": ">=", "GT": ">"}
#: rpm's flags of a dependency, RPMSENSE_LESS and so on.
_SENSES = {"<": 2, ">": 4, "=": 8}
_COMMON = "{http://linux.duke.edu/metadata/common}"
_RPM = "{http://linux.duke.edu/metadata/rpm}"


@attr.frozen
class Capability:
    name: str
    operator: str = ""  #: empty for any version
    evr: str = ""  #: [epoch:]version[-release]

    @classmethod
    def parse(cls, text: str) -> Capability:
        """Parse a requirement as a header has it: `libfoo-devel >= 1:2.0-3`."""
        parts = text.split()
        return cls(*parts) if len(parts) == 3 else cls(text.strip())

    def to_rpm(self) -> Any:
        rpm = import_rpm()
        senses = sum(_SENSES[each] for each in self.operator)
        return rpm.ds((self.name, senses, self.evr), rpm.RPMTAG_REQUIRENAME)


@attr.frozen(kw_only=True)
class Package:
    name: str
    evr: tuple[str, str, str]  #: epoch, version, release
    line: str  #: its line in installed_pkgs.log


class Packages:
    """The packages of all repositories, by what they provide."""

    def __init__(self) -> None:
        self._providers: defaultdict[str, list[tuple[Capability, Package]]] = defaultdict(list)

    def add(self, package: Package, provides: Iterator[Capability]) -> None:
        for capability in provides:
            self._providers[capability.name].append((capability, package))

    def find_newest(self, required: Capability) -> Package | None:
        provided = self._providers.get(required.name, ())
        found = [package for each, package in provided if each.to_rpm().Compare(required.to_rpm())]
        order = functools.cmp_to_key(import_rpm().labelCompare)
        return max(found, key=lambda package: order(package.evr), default=None)


class Unavailable(Exception):
    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


def load_packages(config: MockConfig, command: str, log: Callable[[str], None]) -> Packages:
    """Read all repositories. Raises `Fault` as of dnf's `command` where one cannot be read, nor be skipped."""
    arches = {*(I386 if config.target in I386 else {config.target}), "noarch"}
    packages = Packages()
    sections = {section.name: section for section in list_repositories(config.conf)}
    main = sections.pop("main", Repository(name="main", options={}))
    for name, section in sections.items():
        url = _find_url(section, config)
        if not url or section.last_value("enabled", "1").lower() in _FALSE:
            continue
        expire = section.last_value("metadata_expire", main.last_value("metadata_expire", "48h"))
        skip = section.last_value("skip_if_unavailable", main.last_value("skip_if_unavailable", "0"))
        folder = config.cache / "dnf_cache" / f"{quote(name, safe='')}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
        try:
            for element in _read_cached(folder, url, _parse_seconds(expire.lower())).iter(f"{_COMMON}package"):
                if element.findtext(f"{_COMMON}arch") in arches:
                    packages.add(_parse_package(element), _parse_provides(element))
        except (Unavailable, *_DAMAGED) as error:
            _report(name, error, command, log, skip=skip.lower() not in _FALSE)
    return packages


def _find_url(section: Repository, config: MockConfig) -> str:
    """The repository's URL; empty where the stand-in does not read its kind."""
    variables = {"basearch": "i386" if config.target in I386 else config.target, "releasever": config.releasever}
    for url in section.last_value("baseurl").replace(",", " ").split():
        for name, value in variables.items():
            url = url.replace(f"${name}", value).replace(f"${{{name}}}", value)  # noqa: PLW2901
        if url.startswith("http://"):
            return url.rstrip("/") + "/"
    return ""


def _report(name: str, error: Exception, command: str, log: Callable[[str], None], *, skip: bool) -> None:
    cause = error.cause if isinstance(error, Unavailable) else f"its metadata is damaged ({type(error).__name__})"
    lines = [f"Errors during downloading metadata for repository '{name}':", f"  - {error}"]
    lines.append(f"Error: Failed to download metadata for repo '{name}': {cause}")
    for line in [*lines, f"Ignoring repositories: {name}"] if skip else lines:
        log(line)
    if not skip:
        raise Fault(Exit.DEPENDENCIES, "\n".join(["Command failed: ", f" # {command}", *lines, ""]))


def _parse_seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)\s*([smhdw]?)", text)
    return int(found[1]) * _UNIT_SECONDS[found[2]] if found else float("inf")  # never, or -1


def _read_cached(folder: Path, url: str, expire_seconds: float) -> Any:
    """The primary metadata; downloaded where there is none yet, or where it has expired."""
    folder.mkdir(parents=True, exist_ok=True)
    cached = folder / "primary.xml"
    with file_lock(folder / "lock", wait=True):  # other builds of the root name use it too
        if not cached.exists() or time.time() - cached.stat().st_mtime >= expire_seconds:
            write_atomic(cached, _download_primary(url))
        return ElementTree.parse(cached).getroot()


def _download_primary(url: str) -> str:
    with HttpSession() as session:
        repomd = ElementTree.fromstring(_download(session, f"{url}repodata/repomd.xml"))
        location = repomd.find("{*}data[@type='primary']/{*}location")
        name = Path(location.attrib["href"]).name if location is not None else ""
        body = _download(session, f"{url}repodata/{name}")
    return (gzip.decompress(body) if name.endswith(".gz") else body).decode()


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
    name, arch = (str(element.findtext(f"{_COMMON}{tag}")) for tag in ("name", "arch"))
    version = element.find(f"{_COMMON}version").attrib
    built, size = element.find(f"{_COMMON}time").attrib["build"], element.find(f"{_COMMON}size").attrib["installed"]
    return Package(
        name=name,
        evr=(version.get("epoch") or "0", version["ver"], version["rel"]),
        line=f"{name}-{_format_evr(version)}.{arch} {built} {size} installed\n",
    )


def _parse_provides(element: Any) -> Iterator[Capability]:
    for file in element.iterfind(f"{_COMMON}format/{_COMMON}file"):
        yield Capability(str(file.text))
    for entry in element.iterfind(f"{_COMMON}format/{_RPM}provides/{_RPM}entry"):
        yield Capability(entry.attrib["name"], _OPERATORS.get(entry.get("flags", ""), ""), _format_evr(entry.attrib))


def _format_evr(attributes: Mapping[str, str]) -> str:
    """[epoch:]version[-release], as rpm and installed_pkgs.log have it."""
    epoch, release = attributes.get("epoch") or "0", attributes.get("rel", "")
    return f"{'' if epoch == '0' else f'{epoch}:'}{attributes.get('ver', '')}{f'-{release}' if release else ''}"
