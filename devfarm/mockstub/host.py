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
from pathlib import Path

from devfarm.mockstub.config import I386
from devfarm.mockstub.logs import Exit, Fault
from devfarm.mockstub.root import Root
from reimzul.core.errors import ReimzulError
from reimzul.core.process import output_of

#: Before rpmbuild's command line where a 64-bit tool chain builds for 32-bit x86.
I386_PREFIX = ("setarch", "i686")
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


def check_arch(target: str) -> bool:
    """Whether a 64-bit tool chain builds for 32-bit x86. Raises `Fault` as mock where `target` cannot be built here."""
    machine = os.uname().machine
    fault = f"Cannot build target {target} on arch {machine}"
    if target in {machine, "noarch"} or {target, machine} <= I386:
        return False
    if target not in I386 or machine != "x86_64":
        raise Fault(Exit.ARCH, f"{fault}: no chroot, and so no emulation, here")
    if not _has_multilib():
        raise Fault(Exit.ARCH, f"{fault}: gcc makes no 32-bit programs here (Debian: gcc-multilib)")
    return True


def _has_multilib() -> bool:
    try:
        names = ("crti.o", "libgcc.a")
        found = [output_of(["gcc", "-m32", f"-print-file-name={name}"]).strip() for name in names]
    except ReimzulError:
        return False
    # gcc prints the bare name of a file that it does not find
    return all(os.path.isabs(name) and os.path.exists(name) for name in found)


def set_up_i386(root: Root) -> None:
    """Set flags and put wrappers that add an option into the folder that comes first in PATH."""
    (root.home / ".rpmrc").write_text(_I386_RPMRC, encoding="utf-8")
    for name, option in _I386_OPTIONS.items():
        if program := shutil.which(name, path="/usr/bin:/bin"):
            wrapper = root.programs / name
            wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(program)} {option} "$@"\n')
            wrapper.chmod(0o755)


def meets(requirement: str) -> bool:
    """Whether this host has a BuildRequires, as a header has it."""
    # Any name of a rich dependency, "(a or b with c)", will do: the versions are another distribution's.
    is_rich = requirement.startswith("(")
    names = re.findall(r"[^\s()<>=]+(?:\([^)]*\))*", requirement) if is_rich else [requirement.split()[0]]
    return any(name.startswith("rpmlib(") or _has(name) for name in names)


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
