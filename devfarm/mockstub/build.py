# SPDX-License-Identifier: Apache-2.0
"""One build of the stand-in for mock, in mock's order: unpack the source rpm, make it again with the farm's macros,
check that its BuildRequires are met, build, and copy the packages out.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import attr

from devfarm.mockstub import host
from devfarm.mockstub.config import MockConfig
from devfarm.mockstub.logs import TITLE, Exit, Fault, Logs
from devfarm.mockstub.repositories import parse_found, search_command
from devfarm.mockstub.root import Bootstrap, Root
from reimzul.core.errors import InputError, TimedOut
from reimzul.core.process import run
from reimzul.core.rpm_header import read_header

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
                        stream.write(host.list_packages() + "".join(rows))
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
                host.set_up_i386(self.root)
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
            if not host.meets(requirement):
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
        prefix = host.I386_PREFIX if self.i386 else ()
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
