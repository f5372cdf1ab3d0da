# SPDX-License-Identifier: Apache-2.0
"""The host that is set up, as it is now: files below a root, installed units, firewalld. Nothing is changed here.

Another root than / is an image in the making: files are written below it, and nothing is started.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import attr

from reimzul.core.errors import ConfigError
from reimzul.core.process import run

#: Where systemd looks for units (systemd.unit(5)); the first is the administrator's.
UNIT_FOLDERS = (
    "/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system",
)  # fmt: skip
#: Seconds a command may take: a unit that stops may have a worker in it that ends a build and removes its root.
COMMAND_TIMEOUT = 180


class RootNeeded(ConfigError):
    """Only root may read and write the files of a setup."""

    def __init__(self, path: str = "") -> None:
        super().__init__(f"root is needed{f' for {path}' if path else ''}: run it with sudo")


@attr.frozen(kw_only=True)
class Step:
    """One command of a setup."""

    argv: tuple[str, ...]
    description: str  #: its effect, for a person
    hint: str = ""  #: where to look when it fails
    unit: str = ""  #: the unit that runs with its present files once the command succeeds


@attr.frozen(kw_only=True)
class System:
    """A host's files and units."""

    root: Path = Path("/")
    running: bool = False  #: systemd runs, and the root is this host's own

    @classmethod
    def at_root(cls, root: Path) -> System:
        return cls(root=root, running=root == Path("/") and Path("/run/systemd/system").is_dir())

    def resolve(self, path: str) -> Path:
        """The path on this host of a path below the root."""
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str | None:
        """A file's text; None if the file does not exist. Raises `RootNeeded`, and `ConfigError` if it is no text."""
        try:
            return self.resolve(path).read_bytes().decode()
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise RootNeeded(path) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 at byte {error.start}: move it away") from error
        except OSError as error:
            raise ConfigError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from error

    def mode(self, path: str) -> int:
        return stat.S_IMODE(self.resolve(path).stat().st_mode)

    def has_unit(self, unit: str, folders: Sequence[str] = UNIT_FOLDERS) -> bool:
        """Whether a unit, or the template of an instance, is installed in one of the folders."""
        return any(self.resolve(f"{folder}/{unit_file(unit)}").exists() for folder in folders)

    def has_linked_unit(self, unit: str) -> bool:
        return self.resolve(f"{UNIT_FOLDERS[0]}/{unit_file(unit)}").is_symlink()

    def first_installed_unit(self, names: Sequence[str]) -> str:
        """The first of a unit's names that is installed here, else the first name."""
        return next((name for name in names if self.has_unit(name)), names[0])

    def instances(self, template: str) -> list[int]:
        """The numbers N of the enabled instances `template@N`, in order."""
        links = self.resolve("/etc/systemd/system").glob(f"*.wants/{template}@*.service")
        numbers = {link.name[len(template) + 1 : -len(".service")] for link in links}
        return sorted(int(number) for number in numbers if number.isdigit())

    def is_wanted(self, unit: str) -> bool:
        return any(self.resolve("/etc/systemd/system").glob(f"*.wants/{unit}"))

    def has_other_tunnels(self) -> bool:
        """Whether stunnel has a configuration that is not Reimzul's."""
        return any(file.name != "reimzul.conf" for file in self.resolve("/etc/stunnel").glob("*.conf"))


def unit_file(unit: str) -> str:
    """The name of a unit's file: `stunnel@.service` for `stunnel@reimzul`."""
    name = unit.partition("@")[0] + "@" if "@" in unit else unit
    return name if "." in name else f"{name}.service"


_FIREWALL = "firewall-cmd"


def firewall_steps(system: System, ports: Sequence[int]) -> Iterator[Step]:
    """Open the ports that are still closed, now and for good; no steps where firewalld does not run."""
    if not ports or not system.running or not shutil.which(_FIREWALL) or not _firewall_agrees("--state"):
        return
    for port in ports:
        for lasting, when in (((), "now"), (("--permanent",), "for good")):
            if not _firewall_agrees(*lasting, f"--query-port={port}/tcp"):
                argv = (_FIREWALL, *lasting, f"--add-port={port}/tcp")
                yield Step(argv=argv, description=f"port {port} opened {when} in firewalld")


def _firewall_agrees(*arguments: str) -> bool:
    return run([_FIREWALL, *arguments], timeout=COMMAND_TIMEOUT) == 0
