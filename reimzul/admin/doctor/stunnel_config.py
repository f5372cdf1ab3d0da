# SPDX-License-Identifier: Apache-2.0
"""stunnel's configuration as doctor reads it: see stunnel(8)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import attr

from reimzul.core.config import LOCAL

#: Section names of the services offered to others. A devfarm has one section per address, with a number.
_OFFER = re.compile(r"(beanstalkd|incoming|rsyncd|store)-server(-\d+)?\Z")

Address = tuple[str, int]


@attr.frozen(kw_only=True)
class StunnelSection:
    name: str
    options: Mapping[str, str]  #: by name in lower case; the last value of a repeated option

    @property
    def is_client(self) -> bool:
        """A client is a tunnel to another host; the other sections are services offered to others."""
        return self.options.get("client", "no") == "yes"

    @property
    def accept(self) -> Address:
        """The address it listens on; the host is empty if that is every address."""
        return _parse_address(self.options.get("accept", ""))

    @property
    def connect(self) -> Address:
        host, port = _parse_address(self.options.get("connect", ""))
        return host or "localhost", port

    @property
    def secrets(self) -> Path | None:
        return Path(self.options["psksecrets"]) if "psksecrets" in self.options else None


@attr.frozen(kw_only=True)
class StunnelConfig:
    path: Path
    common: tuple[tuple[str, str], ...] = ()  #: options before the first section, in their order
    sections: tuple[StunnelSection, ...] = ()
    problem: str = ""  #: why it cannot be read

    @property
    def clients(self) -> list[StunnelSection]:
        return [section for section in self.sections if section.is_client]

    @property
    def offers(self) -> dict[str, StunnelSection]:
        """The sections that offer a service to others, by the service's name; the first of each."""
        found: dict[str, StunnelSection] = {}
        for section in self.sections:
            match = _OFFER.match(section.name)
            if match and not section.is_client:
                found.setdefault(match[1], section)
        return found

    def find_client(self, host: str, port: int) -> StunnelSection | None:
        found = (section for section in self.clients if section.accept[1] == port)
        return next(found, None) if host in LOCAL else None

    @property
    def key_files(self) -> list[Path]:
        return sorted({section.secrets for section in self.sections if section.secrets is not None})


def _parse_address(text: str) -> Address:
    """Parse `port` or `host:port`; the port is 0 if the text is neither."""
    host, _, port = text.strip().rpartition(":")
    return host.strip("[]"), int(port) if port.isascii() and port.isdigit() else 0


def read_stunnel_config(path: Path) -> StunnelConfig:
    try:
        return parse_stunnel_config(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        return StunnelConfig(path=path, problem=f"{path}: {(reason or 'cannot be read').lower()}")


def parse_stunnel_config(path: Path, text: str) -> StunnelConfig:
    common: list[tuple[str, str]] = []
    sections: list[StunnelSection] = []
    options: dict[str, str] = {}
    for line in map(str.strip, text.splitlines()):
        name, equals, value = (part.strip() for part in line.partition("="))
        if line.startswith("[") and line.endswith("]"):
            options = {}
            sections.append(StunnelSection(name=line[1:-1].strip(), options=options))
        elif equals and line[0] not in ";#":
            options[name.lower()] = value
            if not sections:
                common.append((name, value))
    return StunnelConfig(path=path, common=tuple(common), sections=tuple(sections))
