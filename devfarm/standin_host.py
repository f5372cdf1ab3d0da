# SPDX-License-Identifier: Apache-2.0
"""What this host has for a build of the stand-in for mock: arches it can really build, and BuildRequires it meets.

mock installs what a package asks for. Here nothing is installed: the host has it or not. On a host whose rpmdb is
empty (Debian) a name is looked up as a file, a program, a pkg-config module, and a package of the host's own kind;
versions are not compared, since they are another distribution's.
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

from devfarm.standin_faults import Exit, Fault
from reimzul.core.errors import ReimzulError
from reimzul.core.process import output_of

#: 32-bit x86, by the names rpm has for it.
I386 = frozenset({"i386", "i486", "i586", "i686", "athlon"})
#: What a 64-bit compiler and its like need to hear to make 32-bit programs.
_THIRTY_TWO = {
    **dict.fromkeys(("gcc", "cc", "g++", "c++", "cpp", "gfortran"), "-m32"),
    **dict.fromkeys(("x86_64-linux-gnu-gcc", "x86_64-linux-gnu-g++", "x86_64-linux-gnu-cpp"), "-m32"),
    "as": "--32",
    "ld": "-m elf_i386",
}
#: What the names of Fedora's packages are on any host: a program, or a file (a glob).
_KNOWN_AS = {
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


#: rpm's own flags for i386 are for a 386, which no glibc of today runs on.
_RPMRC = "".join(f"optflags: {arch} -O2 -g -m32 -march=i686 -mtune=generic\n" for arch in sorted(I386))


@attr.frozen
class Way:
    """How this host builds for an arch: what goes before rpmbuild, what rpm and the compilers are told."""

    prefix: tuple[str, ...] = ()
    rpmrc: str = ""
    wrapped: Mapping[str, str] = attr.field(factory=dict)  #: programs, and the option each gets first


def way_to(target: str, legal_hosts: Iterable[str]) -> Way:
    """How to build for `target` here. Raises `Fault` as mock does where this machine cannot."""
    machine = os.uname().machine
    legal = tuple(legal_hosts)
    if legal and machine not in legal:
        raise Fault(
            Exit.ARCH,
            f"Cannot build target {target} on arch {machine}, because it is not listed in legal_host_arches {legal}",
        )
    if target in {machine, "noarch"} or {target, machine} <= I386:
        return Way()
    if target in I386 and machine == "x86_64":
        return _thirty_two(target)
    raise Fault(Exit.ARCH, f"Cannot build target {target} on arch {machine}: no chroot, and so no emulation, here")


def _thirty_two(target: str) -> Way:
    if not _has_multilib():
        raise Fault(
            Exit.ARCH,
            f"Cannot build target {target} on arch x86_64: gcc makes no 32-bit programs here (Debian: gcc-multilib)",
        )
    return Way(prefix=("setarch", "i686"), rpmrc=_RPMRC, wrapped=_THIRTY_TWO)


def _has_multilib() -> bool:
    try:
        names = ("crti.o", "libgcc.a")
        found = [output_of(["gcc", "-m32", f"-print-file-name={name}"]).strip() for name in names]
    except ReimzulError:
        return False
    # What it does not find it prints as it was asked.
    return all(os.path.isabs(name) and os.path.exists(name) for name in found)


def wrap_programs(folder: Path, wrapped: Mapping[str, str]) -> None:
    """Put programs with an option of ours into a folder that comes first in PATH, so that no build misses it."""
    for name, option in wrapped.items():
        if real := shutil.which(name, path="/usr/bin:/bin"):
            wrapper = folder / name
            wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(real)} {option} "$@"\n')
            wrapper.chmod(0o755)


def unmet(requires: Iterable[str], provides: frozenset[str]) -> list[str]:
    """The BuildRequires, as the header has them, that nothing here satisfies."""
    return [words for words in requires if not _met(words, provides)]


def _met(words: str, provides: frozenset[str]) -> bool:
    # A rich dependency, "(a or b with c)": any of its names will do, as what is meant is another distribution's.
    names = re.findall(r"[^\s()<>=]+(?:\([^)]*\))*", words) if words.startswith("(") else [words.split()[0]]
    return any(name.startswith("rpmlib(") or name in provides or _has(name) for name in names)


def _has(name: str) -> bool:
    name = re.sub(r"\((x86-(32|64)|[a-z0-9]+-(32|64))\)$", "", name)  # gcc(x86-64), as %{?_isa} says it
    if name.startswith("pkgconfig("):
        return _is_there(f"{folder}/{name[10:-1]}.pc" for folder in _PKGCONFIG)
    known = _KNOWN_AS.get(name, name)
    if known.startswith("/"):
        return _is_there([known])
    return shutil.which(known) is not None or _is_installed(name)


def _is_there(patterns: Iterable[str]) -> bool:
    return any(next(Path("/").glob(pattern.lstrip("/")), None) for pattern in patterns)


def _is_installed(name: str) -> bool:
    with contextlib.suppress(ReimzulError):
        if shutil.which("dpkg-query"):
            return output_of(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}", name]).startswith("ii")
        return bool(output_of(["rpm", "-q", "--whatprovides", name]))
    return False


def packages() -> str:
    """The host's packages as installed_pkgs.log has them: nevra, time of build or installation, size."""
    if shutil.which("dpkg-query"):
        form = "${Package}-${Version}.${Architecture} ${db-fsys:Last-Modified} ${Installed-Size}\\n"
        rows = (line.split() for line in output_of(["dpkg-query", "-W", "-f", form]).splitlines())
        # dpkg counts in KiB
        return "".join(f"{row[0]} {row[1]} {int(row[2]) * 1024} installed\n" for row in rows if len(row) == 3)
    return output_of(["rpm", "-qa", "--qf", "%{nevra} %{buildtime} %{size} installed\\n"])


def hardware(root: Path) -> str:
    """What hw_info.log says of this machine."""
    return "\n\n".join(
        f"{title}:\n{_said(argv)}"
        for title, argv in (
            ("CPU info", ["lscpu"]),
            ("Memory", ["free", "--human"]),
            ("Storage (chroot, cache_topdir)", ["df", "-H", "-T", str(root)]),
        )
    )


def _said(argv: list[str]) -> str:
    try:
        return output_of(argv)
    except ReimzulError as error:
        return f"{error}\n"


def results(build: Path) -> Iterator[Path]:
    """The packages that rpmbuild left in its top directory; not the list of what a build asks for dynamically."""
    for folder in ("SRPMS", "RPMS"):
        yield from (path for path in sorted((build / folder).rglob("*.rpm")) if ".buildreqs." not in path.name)
