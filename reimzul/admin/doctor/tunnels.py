# SPDX-License-Identifier: Apache-2.0
"""stunnel's configuration, read: which ways it opens for this host, and what it offers to others. stunnel(8)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import attr

from reimzul.core.config import LOCAL

#: Where a host that was set up has it.
INSTALLED = Path("/etc/stunnel/reimzul.conf")
#: What the others are offered, as our configurations call the sections: a devfarm has one for each address.
_OFFER = re.compile(r"(beanstalkd|incoming|rsyncd|store)-server(-\d+)?\Z")

Address = tuple[str, int]


@attr.frozen(kw_only=True)
class Section:
    """A service of stunnel's."""

    name: str
    options: Mapping[str, str]  #: names in lower case; of one that comes again the last

    @property
    def is_client(self) -> bool:
        """Whether it is our way to a far host."""
        return self.options.get("client", "no") == "yes"

    @property
    def accept(self) -> Address:
        """Where it listens; the host is empty where that is every address."""
        return address(self.options.get("accept", ""))

    @property
    def connect(self) -> Address:
        """Where it connects to."""
        host, port = address(self.options.get("connect", ""))
        return host or "localhost", port

    @property
    def secrets(self) -> Path | None:
        """The file of its keys."""
        return Path(self.options["psksecrets"]) if "psksecrets" in self.options else None


@attr.frozen(kw_only=True)
class Tunnels:
    """A configuration, or why there is none."""

    path: Path
    head: tuple[tuple[str, str], ...] = ()  #: options of all, in their order
    sections: tuple[Section, ...] = ()
    fault: str = ""  #: why it cannot be read

    @property
    def ways(self) -> list[Section]:
        """The ways to far hosts."""
        return [section for section in self.sections if section.is_client]

    @property
    def offers(self) -> dict[str, Section]:
        """What the others are offered, by the service's name."""
        found: dict[str, Section] = {}
        for section in self.sections:
            match = _OFFER.match(section.name)
            if match and not section.is_client:
                found.setdefault(match[1], section)
        return found

    def way_at(self, host: str, port: int) -> Section | None:
        """The section that listens where a setting points to."""
        if host not in LOCAL:
            return None
        return next((way for way in self.ways if way.accept[1] == port), None)

    @property
    def keys(self) -> list[Path]:
        """The files of keys it names."""
        return sorted({section.secrets for section in self.sections if section.secrets is not None})


def address(text: str) -> Address:
    """`port` or `host:port`; port 0 where it is neither."""
    host, _, port = text.strip().rpartition(":")
    return host.strip("[]"), int(port) if port.isascii() and port.isdigit() else 0


def read(path: Path) -> Tunnels:
    """The configuration in a file."""
    try:
        return parse(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        return Tunnels(path=path, fault=f"{path}: {(reason or 'cannot be read').lower()}")


def parse(path: Path, text: str) -> Tunnels:
    """The configuration in a text."""
    head: list[tuple[str, str]] = []
    sections: list[tuple[str, dict[str, str]]] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            sections.append((line[1:-1].strip(), {}))
        elif line and line[0] not in ";#" and "=" in line:
            name, _, value = line.partition("=")
            if sections:
                sections[-1][1][name.strip().lower()] = value.strip()
            else:
                head.append((name.strip(), value.strip()))
    made = tuple(Section(name=name, options=options) for name, options in sections)
    return Tunnels(path=path, head=tuple(head), sections=made)
