# SPDX-License-Identifier: Apache-2.0
"""One build of the stand-in for mock, in mock's order: unpack the source rpm, make it again with the farm's macros,
check that its BuildRequires are met, build, and copy the packages out.

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
import time
from collections.abc import Sequence
from pathlib import Path

import attr

from devfarm.mockstub.config import I386, MockConfig, parse_found, search_command
from devfarm.mockstub.logs import TITLE, Exit, Fault, Logs
from devfarm.mockstub.root import Bootstrap, Root
from reimzul.core.errors import InputError, ReimzulError, TimedOut
from reimzul.core.process import output_of, run
from reimzul.core.rpm_header import read_header

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


#: rpmbuild's exit code when %generate_buildrequires asks for more packages.
MORE_REQUIRED = 11
#: A source rpm requires this if its spec has %generate_buildrequires.
_DYNAMIC = "rpmlib(DynamicBuildRequires)"
#: What rpmbuild makes of the BuildRequires that %generate_buildrequires asks for.
_ASKED = ".buildreqs.nosrc.rpm"
_EXPLANATION = (
    "this is not mock but reimzul's stand-in for it, for trying and testing: "
    "the host's own rpmbuild in a private folder, with the host's own packages and no chroot"
)


@attr.frozen(kw_only=True)
class Build:
    srpm: Path
    config: MockConfig
    i386: bool  #: built for 32-bit x86 by a 64-bit tool chain
    root: Root
    bootstrap: Bootstrap | None
    logs: Logs
    installed: dict[str, str] = attr.field(factory=dict)  #: from repositories: nevra -> bytes

    def run(self) -> None:
        """Build. Raises `Fault` with mock's exit code for the step that failed."""
        logs, name = self.logs, self.srpm.name
        for log in (logs.state, logs.root, logs.build):
            log.info(TITLE)
        logs.root.info(_EXPLANATION)
        if self.bootstrap is not None:
            self.bootstrap.prepare(logs)
        with logs.step("chroot init"):
            self.prepare_root()
        with logs.phase(f"build phase for {name}"):
            with logs.phase(f"build setup for {name}"):
                spec = self.unpack()
                self.rpmbuild("-bs", spec)
                self.check_requires(self.find_source())
            with logs.phase(f"rpmbuild {name}"):
                if any(each.startswith(_DYNAMIC) for each in read_header(self.find_source()).requires):
                    self.check_dynamic_requires(spec)
                with logs.phase("Outputting list of installed packages"):
                    rows = (f"{nevra} {time.time():.0f} {size} installed\n" for nevra, size in self.installed.items())
                    with (logs.folder / "installed_pkgs.log").open("a", encoding="utf-8") as stream:
                        stream.write(list_packages() + "".join(rows))
                self.rpmbuild("-bb", spec)
            logs.root.debug("Copying packages to result dir")
            for folder in ("SRPMS", "RPMS"):
                for package in (self.root.build / folder).rglob("*.rpm"):
                    if not package.name.endswith(_ASKED):
                        shutil.copy2(package, logs.folder)

    def prepare_root(self) -> None:
        """Make an empty root; its minimal packages are the host's."""
        with self.logs.step("installing minimal buildroot with the host's own packages"):
            if self.bootstrap is not None:
                self.bootstrap.check()
            self.root.kill_processes(self.logs)
            self.root.make(self.config.macros)
            if self.i386:
                set_up_i386(self.root)
            self.find_packages("@buildsys-build")

    def find_packages(self, requirement: str) -> dict[str, str]:
        """The newest packages of the repositories that meet a requirement: nevra -> bytes.

        Raises `Fault` where a repository can neither be read nor be skipped.
        """
        command = search_command(self.config, self.root.temporary, requirement)
        if not command:
            return {}
        output = self.root.temporary / "dnf.output"
        output.unlink(missing_ok=True)
        code = self.execute(command, output)
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            self.log_line(line)
        if code:
            raise _dnf_fault(shlex.join(command), lines)
        return parse_found(lines)

    def unpack(self) -> Path:
        """Install the source rpm into the root's top directory; return its spec file."""
        original = self.root.build / "originals" / self.srpm.name
        shutil.copyfile(self.srpm, original)
        output = self.root.temporary / "rpm-install"
        code = self.execute(["rpm", "-Uvh", "--nodeps", str(original)], output)
        text = output.read_text(encoding="utf-8", errors="replace")
        self.log_line(text)
        if code:
            raise Fault(Exit.SOURCE, f"Source RPM is not installable:\n{text}")
        specs = sorted((self.root.build / "SPECS").glob("*.spec"))
        if not specs:
            raise Fault(Exit.SOURCE, f"No SPEC file found in {self.srpm}")
        return specs[0]

    def find_source(self) -> Path:
        """The source rpm made in the root, whose release has the farm's dist tag."""
        made = (self.root.build / "SRPMS").glob("*src.rpm")
        return next(path for path in made if not path.name.endswith(_ASKED))

    def log_line(self, line: str) -> None:
        self.logs.root.debug("%s", line)

    def check_requires(self, package: Path) -> None:
        """Fail as dnf's builddep does where neither this host nor a repository has what the package requires."""
        self.log_line(f"checking the requirements of {package.name} (versions of the host's packages are ignored)")
        missing = []
        for requirement in read_header(package).requires:
            if not meets(requirement):
                found = self.find_packages(requirement)
                self.installed.update(found)
                missing += [] if found else [requirement]
        if not missing:
            return
        lines = [f"No matching package to install: '{name}'" for name in missing]
        lines += ["Not all dependencies satisfied", "Error: Some packages could not be found."]
        for line in lines:
            self.log_line(line)
        raise _dnf_fault(f"/usr/bin/dnf-3 builddep {package}", lines)

    def check_dynamic_requires(self, spec: Path) -> None:
        """Run %generate_buildrequires and check what it asks for."""
        argv = self.rpmbuild_argv("-br", spec)
        if self.execute(argv, self.logs.build_log) not in (0, MORE_REQUIRED):
            raise Fault(Exit.BUILD_REQUIRES, _failure(argv))
        if asked := next((self.root.build / "SRPMS").glob(f"*{_ASKED}"), None):
            self.logs.root.info("Going to install missing dynamic buildrequires")
            self.logs.build.info("Dynamic buildrequires detected")
            self.check_requires(asked)

    def rpmbuild(self, stage: str, spec: Path) -> None:
        argv = self.rpmbuild_argv(stage, spec)
        if code := self.execute(argv, self.logs.build_log):
            # the number of a signal is negative; mock passes on its low byte: 247 for KILL
            raise Fault(Exit.FAILED if stage == "-bs" else code % 256, _failure(argv))

    def rpmbuild_argv(self, stage: str, spec: Path) -> list[str]:
        prefix = I386_PREFIX if self.i386 else ()
        return [*prefix, "rpmbuild", stage, "--target", self.config.target, "--nodeps", str(spec)]

    def execute(self, argv: Sequence[str], output: Path) -> int:
        """Run a program in the root, log it as mock does, and return its exit status; rpmbuild has a time limit."""
        log = self.logs.build if output == self.logs.build_log else self.logs.root
        environment = self.root.environment()
        log.debug("Executing command: %s with env %s and shell False", _mock_argv(argv), environment)
        timeout = self.config.timeout or None
        try:
            code = run(argv, output=output, cwd=self.root.home, env=environment, timeout=timeout, grace=1)
        except TimedOut as error:
            command = shlex.join(_mock_argv(argv))
            raise Fault(Exit.TIMEOUT, f"Timeout({timeout}) expired for command:\n # {command}\n") from error
        finally:
            self.root.kill_processes(self.logs)
        log.debug("Child return code was: %d", code)
        return code


def _dnf_fault(command: str, lines: Sequence[str]) -> Fault:
    return Fault(Exit.DEPENDENCIES, "\n".join(["Command failed: ", f" # {command}", *lines, ""]))


def _failure(argv: Sequence[str]) -> str:
    return f"Command failed: \n # {shlex.join(_mock_argv(argv))}\n"


def _mock_argv(argv: Sequence[str]) -> list[str]:
    """The call as mock's logs show it: rpmbuild in a login shell, its stage followed by two spaces."""
    if "rpmbuild" not in argv:
        return list(argv)
    stage, *arguments = argv[argv.index("rpmbuild") + 1 :]
    return ["bash", "--login", "-c", f"/usr/bin/rpmbuild {stage}  {' '.join(arguments)}"]


def check_source(srpm: Path) -> None:
    """Raise `Fault`, before anything is logged, where the file is not a readable source rpm."""
    try:
        header = read_header(srpm)
    except InputError as error:
        reason = str(error).removeprefix(f"{srpm}: ")
        raise Fault(Exit.FAILED, f"Cannot find/open srpm: {srpm}. Error: {reason}") from error
    if not header.is_source:
        raise Fault(Exit.FAILED, f"File is not an srpm: {srpm}.")
