# SPDX-License-Identifier: Apache-2.0
"""This host as a set-up finds it: its files below a root, the units its packages brought, whether systemd runs.

It only reads. Another root than / is an image that is being made: nothing is started there.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import attr

from reimzul.core.errors import ConfigError

#: Where systemd looks for units: systemd.unit(5).
UNIT_FOLDERS = (
    "/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system",
)  # fmt: skip


class RootNeeded(ConfigError):
    """Only root may read and write what a set-up is about."""

    def __init__(self, path: str = "") -> None:
        super().__init__(f"root is needed{f' for {path}' if path else ''}: run it with sudo")


@attr.frozen(kw_only=True)
class System:
    """A host's files and units."""

    root: Path = Path("/")
    running: bool = False  #: systemd runs, and it is this host that is set up

    @classmethod
    def below(cls, root: Path) -> System:
        """The host whose files are below `root`; / is this one."""
        return cls(root=root, running=root == Path("/") and Path("/run/systemd/system").is_dir())

    def at(self, path: str) -> Path:
        """Where a path of that host is, seen from here."""
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str | None:
        """What a file holds; None where there is none. Raises `RootNeeded`, and `ConfigError` where it is no text."""
        try:
            return self.at(path).read_bytes().decode()
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise RootNeeded(path) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 at byte {error.start}: move it away") from error
        except OSError as error:
            raise ConfigError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from error

    def mode(self, path: str) -> int:
        """The mode of a file that is there."""
        return stat.S_IMODE(self.at(path).stat().st_mode)

    def has_unit(self, unit: str) -> bool:
        """Whether a unit, or the template of an instance, is installed."""
        return self._unit_file(unit) is not None

    def _unit_file(self, unit: str) -> Path | None:
        name = f"{template_of(unit)}.service" if "." not in template_of(unit) else template_of(unit)
        files = (self.at(f"{folder}/{name}") for folder in UNIT_FOLDERS)
        return next((file for file in files if file.exists()), None)

    def first_unit(self, names: Sequence[str]) -> str:
        """Which of a unit's names this distribution has; the first where it has none."""
        return next((name for name in names if self.has_unit(name)), names[0])

    def instances(self, template: str) -> list[int]:
        """The numbers N of the enabled instances `template@N`, in order."""
        links = self.at("/etc/systemd/system").glob(f"*.wants/{template}@*.service")
        numbers = {link.name[len(template) + 1 : -len(".service")] for link in links}
        return sorted(int(number) for number in numbers if number.isdigit())

    def wanted_by_something(self, unit: str) -> bool:
        """Whether a unit is linked to be started with another."""
        return any(self.at("/etc/systemd/system").glob(f"*.wants/{unit}"))

    def other_tunnels(self) -> Iterator[str]:
        """Configurations of stunnel that are not ours."""
        for file in sorted(self.at("/etc/stunnel").glob("*.conf")):
            if file.name != "reimzul.conf":
                yield f"/etc/stunnel/{file.name}"


def template_of(unit: str) -> str:
    """The unit's name with its instance left out: `stunnel@` of `stunnel@reimzul`."""
    return unit.partition("@")[0] + "@" if "@" in unit else unit
