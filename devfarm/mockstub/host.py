# SPDX-License-Identifier: Apache-2.0
"""What this host has for a build of the stand-in for mock: the arches it can build, the BuildRequires it meets.

mock installs what a package requires; the stand-in installs nothing. On a host whose rpmdb is empty (Debian) a name is
looked up as a file, a program, a pkg-config module, and a package of the host's own kind. Versions are not compared,
since they are another distribution's.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attr

from devfarm.mockstub.logs import Exit, Fault
from reimzul.core.errors import ReimzulError
from reimzul.core.process import output_of

#: rpm's names of 32-bit x86.
I386 = frozenset({"i386", "i486", "i586", "i686", "athlon"})
#: The option that makes each program of a 64-bit tool chain produce 32-bit programs.
_I386_OPTIONS = {
    **dict.fromkeys(("gcc", "cc", "g++", "c++", "cpp", "gfortran"), "-m32"),
    **dict.fromkeys(("x86_64-linux-gnu-gcc", "x86_64-linux-gnu-g++", "x86_64-linux-gnu-cpp"), "-m32"),
    "as": "--32",
    "ld": "-m elf_i386",
}
#: rpm's own flags for i386 are for a 386, on which no glibc of today runs.
_I386_RPMRC = "".join(f"optflags: {arch} -O2 -g -m32 -march=i686 -mtune=generic\n" for arch in sorted(I386))
#: What Fedora's packages are on any host: a program, or a file (a glob).
_EQUIVALENTS = {
    "binutils": "ld",
    "coreutils": "ls",
    "findutils": "find",
    "gcc-c++": "g++",
    "gettext": "msgfmt",
    "glibc-devel": "/usr/include/stdio.h",
    "perl-interpreter": "perl",
    "python3-attrs": "/usr/lib/python3*/*-packages/attr",
    "python3-devel": "/usr/include/python3*/Python.h",
    "python3-pyyaml": "/usr/lib/python3*/*-packages/yaml",
    "shadow-utils": "useradd",
    "texinfo": "makeinfo",
    "util-linux": "setarch",
    "zlib-devel": "/usr/include/zlib.h",
}
_PKGCONFIG = ("/usr/lib/pkgconfig", "/usr/share/pkgconfig", "/usr/lib64/pkgconfig", "/usr/lib/*-linux-gnu*/pkgconfig")


@attr.frozen
class BuildMode:
    """How this host builds for an arch."""

    prefix: tuple[str, ...] = ()  #: of rpmbuild's command line
    rpmrc: str = ""
    wrapped: Mapping[str, str] = attr.field(factory=dict)  #: program -> the option it always gets


def choose_build_mode(target: str, legal_hosts: Iterable[str]) -> BuildMode:
    """How to build for `target` here. Raises `Fault` as mock does where this machine cannot."""
    machine, legal = os.uname().machine, tuple(legal_hosts)
    fault = f"Cannot build target {target} on arch {machine}"
    if legal and machine not in legal:
        raise Fault(Exit.ARCH, f"{fault}, because it is not listed in legal_host_arches {legal}")
    if target in {machine, "noarch"} or {target, machine} <= I386:
        return BuildMode()
    if target not in I386 or machine != "x86_64":
        raise Fault(Exit.ARCH, f"{fault}: no chroot, and so no emulation, here")
    if not _has_multilib():
        raise Fault(Exit.ARCH, f"{fault}: gcc makes no 32-bit programs here (Debian: gcc-multilib)")
    return BuildMode(prefix=("setarch", "i686"), rpmrc=_I386_RPMRC, wrapped=_I386_OPTIONS)


def _has_multilib() -> bool:
    try:
        names = ("crti.o", "libgcc.a")
        found = [output_of(["gcc", "-m32", f"-print-file-name={name}"]).strip() for name in names]
    except ReimzulError:
        return False
    # gcc prints the bare name of a file that it does not find
    return all(os.path.isabs(name) and os.path.exists(name) for name in found)


def wrap_programs(folder: Path, wrapped: Mapping[str, str]) -> None:
    """Put wrappers that add an option into the folder that comes first in PATH."""
    for name, option in wrapped.items():
        if program := shutil.which(name, path="/usr/bin:/bin"):
            wrapper = folder / name
            wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(program)} {option} "$@"\n')
            wrapper.chmod(0o755)


def find_unmet(requires: Iterable[str], provides: frozenset[str]) -> list[str]:
    """The BuildRequires, as the header has them, that nothing here satisfies."""
    return [requirement for requirement in requires if not _is_met(requirement, provides)]


def _is_met(requirement: str, provides: frozenset[str]) -> bool:
    # Any name of a rich dependency, "(a or b with c)", will do: the versions are another distribution's.
    is_rich = requirement.startswith("(")
    names = re.findall(r"[^\s()<>=]+(?:\([^)]*\))*", requirement) if is_rich else [requirement.split()[0]]
    return any(name.startswith("rpmlib(") or name in provides or _has(name) for name in names)


def _has(name: str) -> bool:
    name = re.sub(r"\((x86-(32|64)|[a-z0-9]+-(32|64))\)$", "", name)  # gcc(x86-64), from %{?_isa}
    if name.startswith("pkgconfig("):
        return any(_exists(f"{folder}/{name[10:-1]}.pc") for folder in _PKGCONFIG)
    equivalent = _EQUIVALENTS.get(name, name)
    if equivalent.startswith("/"):
        return _exists(equivalent)
    return shutil.which(equivalent) is not None or _is_installed(name)


def _exists(pattern: str) -> bool:
    return next(Path("/").glob(pattern.lstrip("/")), None) is not None


def _is_installed(name: str) -> bool:
    with contextlib.suppress(ReimzulError):
        if shutil.which("dpkg-query"):
            return output_of(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}", name]).startswith("ii")
        return bool(output_of(["rpm", "-q", "--whatprovides", name]))
    return False


def list_packages() -> str:
    """The host's packages as installed_pkgs.log has them: nevra, time of build or installation, bytes."""
    if shutil.which("dpkg-query"):
        form = "${Package}-${Version}.${Architecture} ${db-fsys:Last-Modified} ${Installed-Size}\\n"
        rows = (line.split() for line in output_of(["dpkg-query", "-W", "-f", form]).splitlines())
        # dpkg counts in KiB
        return "".join(f"{row[0]} {row[1]} {int(row[2]) * 1024} installed\n" for row in rows if len(row) == 3)
    return output_of(["rpm", "-qa", "--qf", "%{nevra} %{buildtime} %{size} installed\\n"])


def list_results(build: Path) -> Iterator[Path]:
    """The packages in rpmbuild's top directory, without the list of dynamic BuildRequires."""
    for folder in ("SRPMS", "RPMS"):
        yield from (path for path in sorted((build / folder).rglob("*.rpm")) if ".buildreqs." not in path.name)
