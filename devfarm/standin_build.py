# SPDX-License-Identifier: Apache-2.0
"""One build of the stand-in for mock, in mock's order: unpack the source rpm, make it anew with the farm's macros,
look whether its BuildRequires are met, build, and hand over the packages.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import attr

from devfarm import standin_host as host
from devfarm.standin_bootstrap import Bootstrap
from devfarm.standin_config import Chroot
from devfarm.standin_faults import Exit, Fault
from devfarm.standin_logs import EXPLANATION, TITLE, Logs
from devfarm.standin_repos import Package, Repositories, choose, install, read_capability
from devfarm.standin_root import Root
from reimzul.core.errors import InputError, TimedOut
from reimzul.core.process import run
from reimzul.core.rpm_header import read_header

#: What rpmbuild exits with when it only found out what else it needs.
MORE_REQUIRED = 11
#: What rpm makes a source rpm require whose spec has %generate_buildrequires.
_DYNAMIC = "rpmlib(DynamicBuildRequires)"


@attr.frozen(kw_only=True)
class Build:
    """One source rpm in one root."""

    srpm: Path
    chroot: Chroot
    way: host.Way
    root: Root
    bootstrap: Optional[Bootstrap]
    logs: Logs
    installed: dict[str, Package] = attr.field(factory=dict)  #: from repositories, by name

    def run(self) -> None:
        """The whole way. Raises `Fault` with mock's exit code for where it ended."""
        self.announce()
        if self.bootstrap is not None:
            self.bootstrap.prepare(self.logs)
        with self.logs.step("chroot init"):
            self.prepare()
        with self.logs.phase(f"build phase for {self.srpm.name}"):
            with self.logs.phase(f"build setup for {self.srpm.name}"):
                spec = self.unpack()
                self.rebuild_source(spec)
                self.check_requires(self.source())
            with self.logs.phase(f"rpmbuild {self.srpm.name}"):
                self.rpmbuild(spec)
            self.hand_over()

    def announce(self) -> None:
        """Say first what builds here."""
        self.logs.state.info(TITLE)
        self.logs.root.info(TITLE)
        self.logs.root.info(EXPLANATION)
        self.logs.build.info(TITLE)

    def prepare(self) -> None:
        """An empty root, and a note of the machine it is on."""
        with self.logs.step("installing minimal buildroot with the host's own packages"):
            if self.bootstrap is not None:
                self.bootstrap.check()
            self.root.end_processes(self.logs)
            self.root.make(self.chroot.macros, self.way.rpmrc)
            host.wrap_programs(self.root.programs, self.way.wrapped)
            self.repositories().load("/usr/bin/dnf-3 install @buildsys-build", self.say)
        self.logs.root.debug("enabled HW Info plugin")
        _append(self.logs.folder / "hw_info.log", host.hardware(self.root.path))

    def unpack(self) -> Path:
        """Install the source rpm into the root's top directory; its spec file's path."""
        original = self.root.build / "originals" / self.srpm.name
        shutil.copyfile(self.srpm, original)
        said = self.root.scratch / "rpm-install"
        code = self.execute(["rpm", "-Uvh", "--nodeps", str(original)], said)
        words = said.read_text(encoding="utf-8", errors="replace")
        self.logs.root.debug("%s", words)
        if code:
            raise Fault(Exit.SOURCE, f"Source RPM is not installable:\n{words}")
        specs = sorted((self.root.build / "SPECS").glob("*.spec"))
        if not specs:
            raise Fault(Exit.SOURCE, f"No SPEC file found in {self.srpm}")
        return specs[0]

    def rebuild_source(self, spec: Path) -> None:
        """Make the source rpm anew: its release is what the farm's dist tag makes it."""
        argv = self.argv("-bs", spec)
        if self.execute(argv, self.logs.build_log):
            raise Fault(Exit.FAILED, failure(argv))

    def source(self) -> Path:
        """The source rpm made by `rebuild_source`."""
        made = (self.root.build / "SRPMS").glob("*src.rpm")
        return next(path for path in made if not path.name.endswith(".buildreqs.nosrc.rpm"))

    def repositories(self) -> Repositories:
        """The repositories of the configuration."""
        target = self.chroot.target
        arches = host.I386 if target in host.I386 else {target}
        variables = {"basearch": "i386" if target in host.I386 else target, "releasever": self.chroot.releasever}
        cache = self.chroot.cache / "dnf_cache"
        return Repositories(conf=self.chroot.conf, cache=cache, arches={*arches, "noarch"}, variables=variables)

    def say(self, line: str) -> None:
        """Log a line of dnf's."""
        self.logs.root.debug("%s", line)

    def check_requires(self, package: Path) -> None:
        """Raise as dnf's builddep does where neither a repository nor this host has what the package asks for."""
        command = f"/usr/bin/dnf-3 builddep {package}"
        packages = self.repositories().load(command, self.say)
        self.say(f"looking for what {package.name} asks for (of the host's packages no versions are compared)")
        elsewhere = []
        for words in read_header(package).requires:
            found = choose(read_capability(words), packages)
            if found:
                install(found, packages, self.installed)
            else:
                elsewhere.append(words)
        missing = host.unmet(elsewhere, self.chroot.provides)
        if not missing:
            return
        lines = [f"No matching package to install: '{name}'" for name in missing]
        lines += ["Not all dependencies satisfied", "Error: Some packages could not be found."]
        for line in lines:
            self.say(line)
        raise Fault(Exit.DEPENDENCIES, "\n".join(["Command failed: ", f" # {command}", *lines, ""]))

    def rpmbuild(self, spec: Path) -> None:
        """The package itself, its dynamic BuildRequires first."""
        if any(words.startswith(_DYNAMIC) for words in read_header(self.source()).requires):
            self.ask_dynamically(spec)
        with self.logs.phase("Outputting list of installed packages"):
            ours = "".join(package.line for package in self.installed.values())
            _append(self.logs.folder / "installed_pkgs.log", host.packages() + ours)
        argv = self.argv("-bb", spec)
        if code := self.execute(argv, self.logs.build_log):
            # a signal's number is below zero, and mock passes on its low byte: 247 for KILL
            raise Fault(code % 256, failure(argv))

    def ask_dynamically(self, spec: Path) -> None:
        """Run %generate_buildrequires, and check what it asks for."""
        argv = self.argv("-br", spec)
        code = self.execute(argv, self.logs.build_log)
        if code not in (0, MORE_REQUIRED):
            raise Fault(Exit.BUILD_REQUIRES, failure(argv))
        if asked := next((self.root.build / "SRPMS").glob("*.buildreqs.nosrc.rpm"), None):
            self.logs.root.info("Going to install missing dynamic buildrequires")
            self.logs.build.info("Dynamic buildrequires detected")
            self.check_requires(asked)

    def hand_over(self) -> None:
        """Copy the packages to the result folder."""
        self.logs.root.debug("Copying packages to result dir")
        for package in host.results(self.root.build):
            shutil.copy2(package, self.logs.folder)

    def argv(self, stage: str, spec: Path) -> list[str]:
        """rpmbuild's command line for a stage."""
        return [*self.way.prefix, "rpmbuild", stage, "--target", self.chroot.target, "--nodeps", str(spec)]

    def execute(self, argv: Sequence[str], output: Path) -> int:
        """Run a program in the root, told of in the logs as mock tells it; rpmbuild within its time."""
        teller = self.logs.build if output == self.logs.build_log else self.logs.root
        environment = self.root.environment()
        teller.debug("Executing command: %s with env %s and shell False", as_mock_calls(argv), environment)
        timeout = self.chroot.timeout or None
        try:
            code = run(argv, output=output, cwd=self.root.home, env=environment, timeout=timeout, grace=1)
        except TimedOut as error:
            raise Fault(Exit.TIMEOUT, f"Timeout({timeout}) expired for command:\n # {call_of(argv)}\n") from error
        finally:
            self.root.end_processes(self.logs)
        teller.debug("Child return code was: %d", code)
        return code


def failure(argv: Sequence[str]) -> str:
    """What mock says of a command that failed."""
    return f"Command failed: \n # {call_of(argv)}\n"


def as_mock_calls(argv: Sequence[str]) -> list[str]:
    """The call as mock's logs have it: rpmbuild by a login shell, its stage followed by two spaces."""
    if "rpmbuild" not in argv:
        return list(argv)
    stage, *words = argv[argv.index("rpmbuild") + 1 :]
    return ["bash", "--login", "-c", f"/usr/bin/rpmbuild {stage}  {' '.join(words)}"]


def call_of(argv: Sequence[str]) -> str:
    """The same in one line, as mock says it on stderr."""
    return shlex.join(as_mock_calls(argv))


def check_source(srpm: Path) -> None:
    """Raise, before anything is logged, where the file is no source rpm that can be read."""
    try:
        header = read_header(srpm)
    except InputError as error:
        why = str(error).removeprefix(f"{srpm}: ")
        raise Fault(Exit.FAILED, f"Cannot find/open srpm: {srpm}. Error: {why}") from error
    if not header.is_source:
        raise Fault(Exit.FAILED, f"File is not an srpm: {srpm}.")


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)
