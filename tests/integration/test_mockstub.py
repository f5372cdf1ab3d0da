# SPDX-License-Identifier: Apache-2.0
"""The stand-in for mock against what mock really does: exit codes, files, phases, signals, leftovers.

Every case runs the installed program on a source rpm of its own making, with the host's rpmbuild.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from devfarm.mockstub import PROGRAM
from devfarm.mockstub.root import Root
from reimzul.core.rpm_header import read_header
from reimzul.worker.mock_result import Fault as VerdictFault
from reimzul.worker.mock_result import classify
from tests import srpms

X86 = pytest.mark.usefixtures("on_x86_64")


class Mock:
    """One machine's stand-in: its configuration, its roots, and where results go."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "config"
        self.roots = folder / "roots"
        self.caches = folder / "roots-cache"
        self.results = folder / "results"
        self.srpms = folder / "srpms"
        self.config.mkdir()
        (self.config / "logging.ini").touch()
        self.configure()

    def configure(self, text: str = "", *, root: str = "farm", arch: str = "x86_64") -> None:
        own = f"config_opts['root'] = {root!r}\nconfig_opts['target_arch'] = {arch!r}\n"
        (self.config / "mock.cfg").write_text(own + text)
        (self.config / "site-defaults.cfg").write_text(f"config_opts['basedir'] = {str(self.roots)!r}\n")

    @property
    def root(self) -> Root:
        return Root(self.roots / "farm")

    def source(self, name: str, spec: str) -> Path:
        return srpms.make_srpm(self.srpms, name, spec)

    def start(self, *words: object, env: Optional[dict[str, str]] = None) -> subprocess.Popen[str]:
        argv = [PROGRAM, "-r", "mock", f"--configdir={self.config}", *words]
        return subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **(env or {})},
        )  # fmt: skip

    def run(self, *words: object, env: Optional[dict[str, str]] = None) -> tuple[int, str]:
        """Called as the worker calls it; the exit code and stderr. stdout is always empty."""
        process = self.start(*self.usual_options(), *words, env=env)
        said, complaint = process.communicate(timeout=120)
        assert said == ""
        return process.returncode, complaint

    def usual_options(self) -> list[str]:
        return [f"--resultdir={self.results}", "--define", "dist .el7", "--cleanup-after"]

    def building(self, *words: object) -> subprocess.Popen[str]:
        """Start a slow build, and wait until it is in its %build."""
        process = self.start(*self.usual_options(), *words, self.source("slow", srpms.slow()))
        # tail ends by itself where the build ends before it ticks
        tail = ["tail", "-n", "+1", "-s", "0.1", "-F", f"--pid={process.pid}", f"{self.results}/build.log"]
        with subprocess.Popen(tail, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as watching:
            assert watching.stdout is not None
            assert any(line == "tick 1\n" for line in watching.stdout), process.communicate()
            watching.kill()
        return process

    def phases(self) -> list[str]:
        lines = (self.results / "state.log").read_text().splitlines()
        return [line.split(" - ", 1)[1] for line in lines]

    def packages(self) -> list[str]:
        return sorted(path.name for path in self.results.glob("*.rpm"))

    def log(self, name: str) -> str:
        return (self.results / f"{name}.log").read_text()


@pytest.fixture
def mock(tmp_path: Path) -> Iterator[Mock]:
    made = Mock(tmp_path)
    yield made
    for process, _ in made.root.processes():
        os.kill(process, signal.SIGKILL)


@pytest.fixture
def on_x86_64() -> None:
    assert os.uname().machine == "x86_64", "these tests build for x86_64 and i386"


def finish(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=30)
    return process.returncode


@X86
def test_a_package_is_built_and_all_of_mocks_files_are_there(mock: Mock) -> None:
    code, said = mock.run(mock.source("greeter", srpms.compiled()))

    assert code == 0, said
    assert mock.packages() == ["greeter-1.0-1.el7.src.rpm", "greeter-1.0-1.el7.x86_64.rpm"]
    others = sorted(path.name for path in mock.results.glob("*.log"))
    assert others == ["build.log", "installed_pkgs.log", "root.log", "state.log"]
    assert not mock.root.path.exists()
    left = sorted(path.name for path in mock.roots.iterdir() if path.is_dir())
    assert left == ["farm-bootstrap"]  # as with mock, --cleanup-after leaves it


def test_a_source_rpm_that_leaves_its_source_out_is_one(mock: Mock) -> None:
    srpm = srpms.make_srpm(mock.results.parent / "sources", "closed", srpms.lacking_source(), {"data": b"x"})
    code, said = mock.run(srpm)

    assert code == 0, said
    assert mock.packages() == ["closed-1.0-1.el7.noarch.rpm", "closed-1.0-1.el7.nosrc.rpm"]
    assert read_header(mock.results / "closed-1.0-1.el7.nosrc.rpm").nevra == "closed-1.0-1.el7.src"


@X86
def test_state_log_has_mocks_order(mock: Mock) -> None:
    mock.run(mock.source("greeter", srpms.compiled()))
    name = "greeter-1.0-1.src.rpm"

    assert mock.phases() == [
        "Mock Version: 6.7 (reimzul's stand-in for mock)",
        "Start(bootstrap): chroot init",
        "Start(bootstrap): installing dnf tooling",
        "Finish(bootstrap): installing dnf tooling",
        "Finish(bootstrap): chroot init",
        "Start: chroot init",
        "Start: installing minimal buildroot with the host's own packages",
        "Finish: installing minimal buildroot with the host's own packages",
        "Finish: chroot init",
        f"Start: build phase for {name}",
        f"Start: build setup for {name}",
        f"Finish: build setup for {name}",
        f"Start: rpmbuild {name}",
        "Start: Outputting list of installed packages",
        "Finish: Outputting list of installed packages",
        f"Finish: rpmbuild {name}",
        f"Finish: build phase for {name}",
        "Start: clean chroot",
        "Finish: clean chroot",
        "Finish: run",
    ]


def test_it_says_that_it_is_a_stand_in(mock: Mock) -> None:
    mock.run(mock.source("plain", srpms.noarch()))
    told = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True).stdout

    assert "stand-in for mock, NOT mock itself" in told
    assert "not mock but reimzul's stand-in" in mock.log("root")


def test_a_second_run_in_one_folder_doubles_the_logs(mock: Mock) -> None:
    source = mock.source("plain", srpms.noarch())
    mock.run(source)
    once = [phase for phase in mock.phases() if "installing dnf tooling" not in phase]
    mock.run(source)

    assert [phase for phase in mock.phases() if "installing dnf tooling" not in phase] == once * 2


@pytest.mark.parametrize("section", ["prep", "build", "install", "check", "files"])
def test_a_package_that_fails_ends_with_rpmbuilds_own_1(mock: Mock, section: str) -> None:
    code, said = mock.run(mock.source("broken", srpms.failing_build(section=section)))

    assert code == 1
    assert "Start: rpmbuild broken-1.0-1.src.rpm" in mock.phases()
    assert "Finish: run" not in mock.phases()
    assert "Child return code was: 1" in mock.log("build")
    assert (mock.results / "installed_pkgs.log").stat().st_size
    assert mock.packages() == []
    assert "ERROR: Command failed: \n # bash --login -c '/usr/bin/rpmbuild -bb  --target x86_64 --nodeps" in said
    assert not mock.root.path.exists()


SPEC_ERRORS = {
    "error macro": "%{error:this target has no okhere macro package}",
    "unknown tag": "Fnord: x",
    "bad dependency": "BuildRequires: >= 2",
    "source absent": "Source7: nowhere.tar.gz",
}


@pytest.mark.parametrize("line", SPEC_ERRORS.values(), ids=SPEC_ERRORS)
def test_a_spec_that_does_not_parse_ends_before_rpmbuild_starts(mock: Mock, tmp_path: Path, line: str) -> None:
    """As in the sample specerror; the source rpm is made where the spec parses, and %mini is not defined there."""
    spec = srpms.noarch("plain").replace("%description", f"%{{?mini:{line}}}\n\n%description", 1)
    srpm = mock.source("plain", spec)
    mock.configure("config_opts['macros']['%mini'] = '1'\n")

    code, said = mock.run(srpm)

    assert code == 1
    assert mock.phases()[-4:-2] == [f"Finish: build setup for {srpm.name}", f"Finish: build phase for {srpm.name}"]
    assert not any(phase.startswith("Start: rpmbuild") for phase in mock.phases())
    assert "ERROR: Command failed: \n # bash --login -c '/usr/bin/rpmbuild -bs  --target x86_64 --nodeps" in said
    call, _, output = mock.log("build").partition("'/usr/bin/rpmbuild -bs  --target x86_64 --nodeps ")
    assert "Executing command: ['bash', '--login', '-c', " in call
    assert "\nerror: " in output
    assert output.rstrip().endswith("Child return code was: 1")
    assert "\nerror: " not in mock.log("root")
    verdict = classify(code, mock.results)
    assert verdict.fault is VerdictFault.PACKAGE
    assert verdict.reason.startswith("rpmbuild -bs failed: ")


def test_another_arch_in_exclusivearch_ends_with_1(mock: Mock) -> None:
    code, _ = mock.run(mock.source("wrong", srpms.compiled("wrong", exclusive_arch="s390x")))

    assert code == 1
    assert "Architecture is not included: x86_64" in mock.log("build")


def test_buildrequires_nobody_provides_end_with_30(mock: Mock) -> None:
    code, said = mock.run(mock.source("wanting", srpms.missing_requires()))

    assert code == 30
    for text in (said, mock.log("root")):
        assert "No matching package to install: 'no-such-devel >= 3'" in text
        assert "Error: Some packages could not be found." in text
    assert not (mock.results / "installed_pkgs.log").exists()
    assert not any("rpmbuild" in phase for phase in mock.phases())


@pytest.mark.parametrize(
    ("requires", "met"),
    [
        ("gcc", True),
        ("/usr/bin/rpmbuild", True),
        ("/usr/bin/no-such-program", False),
        ("coreutils findutils", True),
        ("pkgconfig(no-such-module)", False),
        ("(gcc or no-such-compiler)", True),
        ("(no-such-compiler or another)", False),
        ("gcc(x86-64)", True),
    ],
)
def test_what_a_host_provides(mock: Mock, requires: str, met: bool) -> None:
    spec = srpms.noarch("asking").replace("BuildArch:", f"BuildRequires: {requires}\nBuildArch:")

    assert mock.run(mock.source("asking", spec))[0] == (0 if met else 30)


@pytest.mark.parametrize(("generate", "code"), [("exit 3", 10), ("echo no-such-dyn-dep", 30), ("echo gcc", 0)])
def test_dynamic_buildrequires(mock: Mock, generate: str, code: int) -> None:
    ended, _ = mock.run(mock.source("dynamic", srpms.dynamic(generate=generate)))

    assert ended == code
    assert ("No matching package to install: 'no-such-dyn-dep'" in mock.log("root")) == (code == 30)
    assert mock.packages() == (["dynamic-1.0-1.el7.noarch.rpm", "dynamic-1.0-1.el7.src.rpm"] if code == 0 else [])


def test_too_long_a_build_ends_with_11(mock: Mock) -> None:
    code, said = mock.run("--rpmbuild_timeout=1", mock.source("slow", srpms.slow()))

    assert code == 11
    assert "ERROR: Timeout(1) expired for command:\n # bash --login -c '/usr/bin/rpmbuild -bb" in said
    assert not list(mock.root.processes())


def test_a_spoilt_payload_ends_with_40(mock: Mock) -> None:
    spoilt = srpms.spoil_payload(mock.source("plain", srpms.noarch()), mock.srpms / "spoilt-1.0-1.src.rpm")
    code, said = mock.run(spoilt)

    assert code == 40
    assert "ERROR: Source RPM is not installable:" in said
    assert mock.phases()[-1] == "Finish: clean chroot"


def _truncated(mock: Mock) -> Path:
    return srpms.truncate(mock.source("plain", srpms.noarch()), mock.srpms / "short-1.0-1.src.rpm")


def _garbage(mock: Mock) -> Path:
    path = mock.config / "garbage.src.rpm"
    path.write_bytes(b"no rpm" * 1000)
    return path


def _binary(mock: Mock) -> Path:
    return srpms.make_rpm(mock.srpms, "plain", srpms.noarch())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (_truncated, "Cannot find/open srpm"),
        (_garbage, "Cannot find/open srpm"),
        (_binary, "File is not an srpm"),
        (lambda mock: mock.srpms / "nosuch.src.rpm", "Cannot find/open srpm"),
        (lambda mock: "--frobnicate", "Cannot find/open srpm: --frobnicate"),
    ],
    ids=["truncated", "garbage", "binary", "absent", "unknown option"],
)
def test_what_is_no_source_rpm_ends_with_1_and_no_logs(mock: Mock, given: Callable[[Mock], Any], words: str) -> None:
    code, said = mock.run(given(mock))

    assert code == 1
    assert f"ERROR: {words}" in said
    assert not mock.results.exists()


def _no_config(mock: Mock) -> None:
    (mock.config / "mock.cfg").unlink()


def _no_defaults(mock: Mock) -> None:
    (mock.config / "site-defaults.cfg").unlink()


def _no_logging(mock: Mock) -> None:
    (mock.config / "logging.ini").unlink()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_no_config, 3),
        (_no_defaults, 3),
        (lambda mock: mock.configure("x = ("), 3),
        (lambda mock: mock.configure("raise ValueError(1)"), 3),
        (lambda mock: mock.configure("include('no-such.tpl')"), 3),
        (lambda mock: mock.configure(root=""), 3),
        (lambda mock: mock.configure("config_opts['rpmbuild_timeout'] = 'soon'"), 3),
        (_no_logging, 50),
    ],
    ids=["absent", "no defaults", "syntax", "raises", "include", "no root", "timeout", "no logging.ini"],
)
def test_a_bad_configuration(mock: Mock, spoil: Callable[[Mock], None], code: int) -> None:
    spoil(mock)

    assert mock.run(mock.source("plain", srpms.noarch()))[0] == code
    assert not mock.results.exists()


def test_a_call_without_a_source_rpm(mock: Mock) -> None:
    assert mock.run()[0] == 50


def test_a_configuration_as_mocks_own_are_written(mock: Mock) -> None:
    (mock.config / "base.tpl").write_text("config_opts['macros']['%vendor'] = 'A Farm'\n")
    mock.configure(
        "include('base.tpl')\n"
        "config_opts['plugin_conf']['tmpfs_opts']['required_ram_mb'] = 1\n"
        "config_opts['dnf.conf'] += '''[main]\n'''\n"
        "config_opts['environment']['LANG'] = os.environ.get('LANG', 'C')\n"
    )

    assert mock.run(mock.source("plain", srpms.noarch()))[0] == 0
    package = mock.results / "plain-1.0-1.el7.noarch.rpm"
    vendor = subprocess.run(["rpm", "-qp", "--qf", "%{vendor}", package], capture_output=True, text=True, check=True)
    assert vendor.stdout == "A Farm"


def test_a_root_that_rpmbuild_cannot_work_in_is_said(mock: Mock) -> None:
    mock.roots = mock.roots / "with space"
    mock.configure()
    code, said = mock.run(mock.source("plain", srpms.noarch()))

    assert code == 50
    assert "rpmbuild cannot work in" in said


def test_one_root_is_one_builds_and_another_name_is_another_root(mock: Mock) -> None:
    source = mock.source("plain", srpms.noarch())
    first = mock.building()
    mock.results = mock.results.with_name("second")

    code, said = mock.run(source)
    assert code == 60
    assert "ERROR: Build root is locked by another process" in said
    assert not mock.results.exists()
    assert mock.run("--uniqueext", "b2", source)[0] == 0

    first.terminate()
    assert finish(first) == 143


def test_rpmbuild_killed_as_by_a_lack_of_memory_ends_with_247(mock: Mock) -> None:
    process = mock.building()
    for number, words in mock.root.processes():
        if words.startswith("rpmbuild"):
            os.kill(number, signal.SIGKILL)

    assert finish(process) == 247
    assert "Child return code was: -9" in mock.log("build")
    assert not list(mock.root.processes())


def test_term_leaves_the_root_and_no_process(mock: Mock) -> None:
    process = mock.building()
    process.terminate()

    assert finish(process) == 143
    assert mock.phases()[-2:] == ["Finish: rpmbuild slow-1.0-1.src.rpm", "Finish: build phase for slow-1.0-1.src.rpm"]
    assert mock.root.path.exists()
    assert not list(mock.root.processes())
    assert finish(mock.start("--clean")) == 0
    assert not mock.root.path.exists()


def test_int_cleans_up(mock: Mock) -> None:
    process = mock.building()
    process.send_signal(signal.SIGINT)

    assert finish(process) == 7
    assert not mock.root.path.exists()
    assert not list(mock.root.processes())


def test_after_kill_rpmbuild_lives_on_until_orphanskill(mock: Mock) -> None:
    process = mock.building()
    process.kill()
    process.communicate()
    assert any(words.startswith("rpmbuild") for _, words in mock.root.processes())

    assert finish(mock.start("--orphanskill")) == 0
    assert not list(mock.root.processes())


def test_the_next_build_in_a_root_ends_what_a_killed_one_left(mock: Mock) -> None:
    process = mock.building()
    process.kill()
    process.communicate()

    assert mock.run(mock.source("plain", srpms.noarch()))[0] == 0
    assert not list(mock.root.processes())


def _file_of(package: Path, name: str) -> bytes:
    """A file out of an rpm's payload."""
    with package.open("rb") as stream:
        archive = subprocess.run(["rpm2archive", "-"], stdin=stream, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile(name)
        assert member is not None
        return member.read()


@X86
@pytest.mark.parametrize(("arch", "bits"), [("x86_64", 2), ("i386", 1), ("i686", 1)])
def test_a_compiled_package_is_really_for_its_arch(mock: Mock, arch: str, bits: int) -> None:
    mock.configure(arch=arch)
    code, said = mock.run(mock.source("greeter", srpms.compiled()))

    assert code == 0, said
    package = mock.results / f"greeter-1.0-1.el7.{arch}.rpm"
    assert read_header(package).arch == arch
    program = _file_of(package, "./usr/bin/greeter")
    assert program[:4] == b"\x7fELF"
    assert program[4] == bits  # ELFCLASS32, ELFCLASS64


@X86
def test_without_a_32_bit_compiler_i386_is_refused(mock: Mock, tmp_path: Path) -> None:
    compiler = tmp_path / "bin" / "gcc"
    compiler.parent.mkdir()
    compiler.write_text('#!/bin/sh\necho "${2#-print-file-name=}"\n')  # what gcc prints for what it has not
    compiler.chmod(0o755)
    mock.configure(arch="i386")
    code, said = mock.run(mock.source("greeter", srpms.compiled()), env={"PATH": f"{compiler.parent}:/usr/bin:/bin"})

    assert code == 6
    assert "Cannot build target i386 on arch x86_64" in said
    assert not mock.results.exists()


@X86
def test_an_arch_this_machine_cannot_build_is_refused(mock: Mock) -> None:
    mock.configure(arch="s390x")

    assert mock.run(mock.source("plain", srpms.noarch()))[0] == 6


# --- bootstrap roots


def bootstrap(mock: Mock, extension: str = "") -> Path:
    return mock.roots / (f"farm-bootstrap-{extension}" if extension else "farm-bootstrap")


def test_a_bootstrap_root_is_made_once_for_each_extension(mock: Mock) -> None:
    source = mock.source("plain", srpms.noarch())
    for extension in ("a", "a", "b"):
        assert mock.run(source, f"--uniqueext={extension}")[0] == 0
    assert mock.phases().count("Start(bootstrap): installing dnf tooling") == 2
    assert mock.phases().count("Finish(bootstrap): chroot init") == 3
    assert [bootstrap(mock, extension).is_dir() for extension in "ab"] == [True, True]


@pytest.mark.parametrize("how", ["option", "configuration"])
def test_a_bootstrap_root_may_be_unwanted(mock: Mock, how: str) -> None:
    if how == "configuration":
        mock.configure("config_opts['use_bootstrap'] = False\n")
    words = ["--no-bootstrap-chroot"] if how == "option" else []
    assert mock.run(*words, mock.source("plain", srpms.noarch()))[0] == 0
    assert not bootstrap(mock).exists()


@pytest.mark.parametrize("harm", ["rpmdb", "package manager"])
def test_a_bootstrap_root_is_neither_updated_nor_repaired(mock: Mock, harm: str) -> None:
    source = mock.source("plain", srpms.noarch())
    assert mock.run(source)[0] == 0
    if harm == "rpmdb":
        (bootstrap(mock) / "root" / "var" / "lib" / "rpm" / "rpmdb.sqlite").write_text("noise")
    else:
        mock.configure("config_opts['package_manager'] = 'dnf5'\n")
    for _ in range(2):
        assert mock.run(source)[0] == 30
    assert not any("build setup" in phase for phase in mock.phases()[-4:])
    assert finish(mock.start("--clean")) == 0
    assert bootstrap(mock).exists(), "--clean removes the main root alone"


def test_one_bootstrap_root_is_removed_by_its_own_name(mock: Mock) -> None:
    source = mock.source("plain", srpms.noarch())
    for extension in ("a", "b"):
        assert mock.run(source, f"--uniqueext={extension}")[0] == 0
    mock.configure(root="farm-bootstrap")
    assert finish(mock.start("--clean", "--no-bootstrap-chroot", "--uniqueext=a")) == 0
    assert [bootstrap(mock, extension).exists() for extension in "ab"] == [False, True]


@pytest.mark.parametrize("name", ["farm", "farm-bootstrap"])
def test_either_root_in_use_ends_with_60(mock: Mock, name: str) -> None:
    source = mock.source("plain", srpms.noarch())
    assert mock.run(source)[0] == 0
    with Root(mock.roots / name).lock():
        assert mock.run(source)[0] == 60
    assert mock.run(source)[0] == 0


@pytest.mark.parametrize(("words", "lives"), [((), False), (("--no-bootstrap-chroot",), True)])
def test_orphanskill_looks_into_the_bootstrap_root_where_there_is_one(
    mock: Mock, words: tuple[str, ...], lives: bool
) -> None:
    assert mock.run(mock.source("plain", srpms.noarch()))[0] == 0
    with subprocess.Popen(["sleep", "60"], env={"REIMZUL_STANDIN_ROOT": str(bootstrap(mock))}) as dnf:
        assert finish(mock.start("--orphanskill", *words)) == 0
        assert (dnf.poll() is None) is lives
        dnf.kill()


def test_caches_of_one_name_are_removed_by_scrub(mock: Mock) -> None:
    for name in ("farm", "farm-bootstrap", "other"):
        (mock.caches / name).mkdir(parents=True)
    assert finish(mock.start("--scrub=cache")) == 0
    assert sorted(path.name for path in (mock.caches).iterdir()) == ["farm-bootstrap", "other"]


def test_it_says_where_its_root_is(mock: Mock) -> None:
    said, _ = mock.start("--print-root-path", "--uniqueext=a").communicate(timeout=30)
    assert said == f"{mock.roots}/farm-a/root/\n"
