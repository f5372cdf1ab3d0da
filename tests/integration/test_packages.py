# SPDX-License-Identifier: Apache-2.0
"""The packages of reimzul.spec: what is in each, what each asks for, and that what they install runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from reimzul import __version__

TREE = Path(__file__).parents[2]
ROLES = ("common", "controller", "worker", "bstore", "pages", "irc")
#: Requirements of a package beyond Python, itself and rpm; test_spec.py compares libraries with pyproject.toml.
ASKS = {
    "common": {"stunnel", "openssl", "python3-rpm", "shadow-utils", "systemd"},
    "controller": {"reimzul-pages", "beanstalkd", "nginx", "rpm-build", "python3-paho-mqtt"},
    "worker": {"mock", "rsync", "git-core", "shadow-utils"},
    "bstore": {"createrepo_c", "rsync-daemon", "nginx"},
    "pages": {"nginx", "python3-jinja2"},
    "irc": {"python3-irc", "python3-paho-mqtt"},
}
PROGRAMS = {
    "common": {"reimzul"},
    "controller": {"reimzul-submit", "reimzul-notifier", "reimzul-batch"},
    "worker": {"reimzul-worker"},
    "bstore": {"reimzul-repogen", "reimzul-tosign"},
    "pages": {"reimzul-pages"},
    "irc": {"reimzul-irc"},
}
UNITS = {
    "common": {"reimzul.target"},
    "controller": {
        "reimzul-metrics.service",
        "reimzul-metrics.timer",
        "reimzul-notifier.service",
        "reimzul-batch.service",
    },
    "worker": {"reimzul-worker@.service"},
    "bstore": {"reimzul-repogen-worker@.service", "reimzul-signer.service"},
    "pages": {"reimzul-pages.service"},
    "irc": {"reimzul-irc.service"},
}


def output(*argv: str | Path, env: Mapping[str, str] | None = None) -> str:
    """The output of a program, run where no module of the checkout is found before an installed one."""
    whole = {**os.environ, **(env or {})}
    return subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True, timeout=300, env=whole, cwd="/").stdout


class Packages:
    """The packages, as rpm describes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = {role: folder / f"reimzul-{role}-{__version__}-1.noarch.rpm" for role in ROLES}
        self.files = {role: output("rpm", "-qpl", path).split() for role, path in self.paths.items()}

    def query(self, role: str, form: str) -> list[str]:
        return output("rpm", "-qp", "--qf", form, self.paths[role]).splitlines()

    def unpack(self, where: Path, *roles: str) -> None:
        """Some of them, into one folder."""
        for path in (self.paths[role] for role in roles):
            output("rpm2archive", path)
            with tarfile.open(f"{path}.tgz") as archive:
                archive.extractall(where)


@pytest.fixture(scope="module")
def packages(internet: None, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    folder = tmp_path_factory.mktemp("rpm") / "with a space"
    said = output(TREE / "tools/rpm", "--out", folder)
    assert sorted(re.findall(r"^rpm: (.+)$", said, re.MULTILINE)) == sorted(map(str, folder.iterdir()))
    return Packages(folder)


@pytest.fixture(scope="module")
def root(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the packages install."""
    folder = tmp_path_factory.mktemp("root")
    packages.unpack(folder, *ROLES)
    return folder


def python_path(root: Path) -> str:
    return str(next((root / "usr/lib").glob("python3.*/site-packages")))


# --- what is in them


def test_six_packages_and_their_source_are_made(packages: Packages) -> None:
    names = {f"reimzul-{role}-{__version__}-1.noarch.rpm" for role in ROLES} | {f"reimzul-{__version__}-1.src.rpm"}
    assert {path.name for path in packages.folder.glob("*.rpm")} == names


@pytest.mark.parametrize("role", ROLES)
def test_a_package_asks_for_what_its_role_needs(packages: Packages, role: str) -> None:
    asked = {line.split()[0] for line in packages.query(role, "[%{REQUIRENEVRS}\n]")}
    libraries = {name for name in asked if name.startswith("python3-")}
    assert asked >= ASKS[role]
    own = {name for name in asked if not re.match(r"rpmlib\(|config\(|python\(|/|python3-|reimzul-common$", name)}
    assert own == {name for name in ASKS[role] if not name.startswith("python3-")}
    assert role == "common" or "reimzul-common" in asked
    assert role in ("common", "controller", "pages", "irc") or not libraries


def test_no_file_is_in_two_packages(packages: Packages) -> None:
    every = [path for paths in packages.files.values() for path in paths]
    assert sorted(every) == sorted(set(every))


def test_every_module_is_in_a_package_but_those_for_trying(packages: Packages) -> None:
    ours = {str(path.relative_to(TREE)) for path in (TREE / "reimzul").rglob("*") if path.is_file()}
    ours = {path for path in ours if "__pycache__" not in path}
    ours |= {
        f"reimzul/data/{folder}/{path.name}" for folder in ("conf", "systemd") for path in (TREE / folder).iterdir()
    }
    packaged = {path.partition("/site-packages/")[2] for paths in packages.files.values() for path in paths}
    modules = {path for path in packaged if path.startswith("reimzul/") and "__pycache__" not in path}
    modules -= {str(parent) for path in modules for parent in Path(path).parents}
    assert {path for path in modules if not path.startswith("reimzul/bundled/")} == ours


@pytest.mark.parametrize("role", ROLES)
def test_programs_units_and_pages_are_in_the_package_of_their_role(packages: Packages, role: str) -> None:
    files = packages.files[role]
    assert {Path(path).name for path in files if path.startswith("/usr/bin/")} == PROGRAMS[role]
    assert {Path(path).name for path in files if path.startswith("/usr/lib/systemd/")} == UNITS[role]
    pages = {re.sub(r"\.[158](\.\w+)?$", "", Path(path).name) for path in files if "/man/man" in path}
    assert pages >= PROGRAMS[role]


def test_what_every_host_needs_is_in_common(packages: Packages) -> None:
    files = set(packages.files["common"])
    templates = {f"/usr/share/doc/reimzul/conf/{path.name}" for path in (TREE / "conf").iterdir()}
    documents = {f"/usr/share/doc/reimzul/docs/{path.name}" for path in (TREE / "docs").glob("*.md")}
    assert files >= templates | documents
    assert {"/usr/lib/sysusers.d/reimzul.conf", "/usr/lib/tmpfiles.d/reimzul.conf"} <= files
    assert {"/usr/share/licenses/reimzul/LICENSE", "/usr/share/licenses/reimzul/LICENSE.greenstalk"} <= files
    assert "/usr/lib/sysusers.d/reimzul-builder.conf" in packages.files["worker"]


def test_the_settings_are_the_farms_to_read_and_kept_over_an_upgrade(packages: Packages) -> None:
    form = "[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILEFLAGS:fflags}\n]"
    settings = [line for line in packages.query("common", form) if line.startswith("/etc/reimzul/reimzul.ini ")]
    assert settings == ["/etc/reimzul/reimzul.ini -rw-r----- root reimzul cn"]


def test_only_the_settings_are_anybody_elses_than_roots(packages: Packages) -> None:
    for role in ROLES:
        for line in packages.query(role, "[%{FILENAMES} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILEMODES:octal}\n]"):
            path, owner, mode = line.split()
            assert owner == "root:root" or path == "/etc/reimzul/reimzul.ini", line
            assert not int(mode, 8) & 0o6022, line


@pytest.mark.parametrize("role", ROLES)
def test_nothing_is_enabled_by_installing(packages: Packages, role: str) -> None:
    scripts = output("rpm", "-qp", "--scripts", packages.paths[role])
    assert not re.search(r"systemctl.* (enable|start)\b", scripts)
    assert "%" not in scripts  # a macro that this rpm does not know is left as it stands


# --- what they install


def test_units_and_templates_name_what_the_packages_install(root: Path) -> None:
    texts = {path: path.read_text() for path in (root / "usr/lib/systemd/system").iterdir()}
    programs = {path: re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE) for path, text in texts.items()}
    started = [program for found in programs.values() for program in found]
    assert len(started) == 8
    for program in started:
        assert program.startswith("/usr/bin/")
        assert os.access(root / program[1:], os.X_OK), program
    assert not [path for path, text in texts.items() if "/usr/local/" in text]


def test_documents_that_units_name_are_there(root: Path) -> None:
    for unit in (root / "usr/lib/systemd/system").iterdir():
        for words in re.findall(r"^Documentation=(.+)$", unit.read_text(), re.MULTILINE):
            for address in words.split():
                kind, _, goal = address.partition(":")
                if kind == "file":
                    assert (root / goal.lstrip("/")).exists(), f"{unit.name}: {address}"
                elif kind == "man":
                    name, section = re.fullmatch(r"(.+)\((\d)\)", goal).groups()  # type: ignore[union-attr]
                    found = list((root / f"usr/share/man/man{section}").glob(f"{name}.{section}*"))
                    assert found or not name.startswith("reimzul"), f"{unit.name}: {address}"


def run_installed(root: Path, program: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """An installed program, run by the python its first line names, with nothing of the checkout's."""
    path = root / "usr/bin" / program
    python = path.read_text().partition("\n")[0].removeprefix("#!").split()[0]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": python_path(root), "LANG": "C.UTF-8", **environment}
    return subprocess.run(
        [python, path, *words], capture_output=True, text=True, timeout=60, cwd=root, env=env, check=False
    )


@pytest.mark.parametrize("program", [name for names in PROGRAMS.values() for name in sorted(names)])
def test_an_installed_program_prints_its_version(root: Path, program: str) -> None:
    done = run_installed(root, program, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{program} {__version__}\n", "")


IMPORT_ALL = """\
import importlib, pathlib, reimzul, sys
top = pathlib.Path(reimzul.__file__).parent
sys.path.insert(0, str(top / "bundled"))
for path in sorted(path for room in sys.argv[1:] for path in (top / room).rglob("*.py")):
    name = ".".join(("reimzul", *path.relative_to(top).with_suffix("").parts))
    if name == "reimzul.core.mqtt":  # for the notifier and its doctor alone, whose package has paho
        continue
    importlib.import_module(name.removesuffix(".__init__"))
    print(name)
"""


@pytest.mark.parametrize(("role", "rooms"), [("common", ("core", "admin", "store")), ("worker", ("worker",)),
                                         ("bstore", ("repogen", "tosign")), ("controller", ("submit",))])  # fmt: skip
def test_a_host_of_one_role_has_all_that_its_programs_import(
    packages: Packages, tmp_path: Path, role: str, rooms: tuple[str, ...]
) -> None:
    packages.unpack(tmp_path, *{"common", role})
    env = {"PYTHONPATH": python_path(tmp_path)}
    imported = output("/usr/bin/python3", "-s", "-B", "-c", IMPORT_ALL, *rooms, env=env).split()
    assert len(imported) > 2


def test_an_installed_program_reads_settings_and_speaks_with_beanstalkd(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "reimzul.ini"
    file.write_text("[beanstalkd]\nport = 1\n")  # where nobody listens
    done = run_installed(root, "reimzul", "config", "check", "--config", str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}: no faults\n"), done.stderr
    done = run_installed(root, "reimzul", "queues", "--config", str(file))
    assert done.returncode == 5, done.stderr  # 5 is beanstalkd's absence: greenstalk itself was found
    assert len(done.stderr.splitlines()) == 1


def test_the_bundled_library_is_nobody_elses(root: Path) -> None:
    script = "import importlib.util, reimzul; print(importlib.util.find_spec('greenstalk'))"
    found = output("/usr/bin/python3", "-s", "-c", script, env={"PYTHONPATH": python_path(root)}).strip()
    assert found == "None" or "bundled" not in found


def completed(root: Path, *words: str) -> list[str]:
    """The completions that bash offers for the last word of a line."""
    program = words[0]
    script = (
        f'source "$1"; shift; COMP_WORDS=("$@") COMP_CWORD={len(words) - 1}; compopt() {{ :; }}\n'
        f'_{program.replace("-", "_")}_completion {program}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    env = {"PATH": f"{root}/usr/bin:/usr/bin:/bin", "PYTHONPATH": python_path(root)}
    file = root / "usr/share/bash-completion/completions" / program
    return output("bash", "--norc", "-c", script, "bash", file, *words, env=env).split()


def test_bash_completes_commands_and_options(root: Path) -> None:
    assert {"builds", "buried"} <= set(completed(root, "reimzul", "bu"))
    assert completed(root, "reimzul", "over") == ["override"]
    assert completed(root, "reimzul", "builds", "--su") == ["--submitter"]
    assert completed(root, "reimzul-submit", "--scr") == ["--scratch"]


def test_zsh_finds_its_completions_by_their_first_line(root: Path) -> None:
    for program in ("reimzul", "reimzul-submit"):
        text = (root / f"usr/share/zsh/site-functions/_{program}").read_text()
        assert text.startswith(f"#compdef {program}\n")
        assert "zsh_complete" in text


def test_rpm_installs_and_erases_them_without_a_trace(packages: Packages, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("rpm gives files to root, and that takes root")
    rpm, lean = ["rpm", "--root", str(tmp_path), "--nosignature"], ["--nodeps", "--noscripts"]
    output(*rpm, "-i", *lean, *packages.paths.values())
    assert os.access(tmp_path / "usr/bin/reimzul-worker", os.X_OK)
    assert output(*rpm, "-qa").count("reimzul-") == len(ROLES)
    output(*rpm, "-e", *lean, *(f"reimzul-{role}" for role in ROLES))
    left = [path for path in tmp_path.rglob("*reimzul*")]
    assert left == []


# --- tools/rpm


def copy_of_the_tree(where: Path) -> Path:
    """The checkout's files, as a source tarball that was unpacked has them: no git, no environments."""
    for path in ("reimzul", "devfarm", "tools", "conf", "systemd", "docs", "tests/unit"):
        shutil.copytree(TREE / path, where / path, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("reimzul.spec", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy2(TREE / name, where)
    shutil.copytree(TREE / "build/sources", where / "build/sources", ignore=shutil.ignore_patterns(".fetch*"))
    return where


def test_a_tree_without_git_at_a_path_with_spaces_makes_a_source_rpm(packages: Packages, tmp_path: Path) -> None:
    tree = copy_of_the_tree(tmp_path / "a tree & more")
    (tree / ".venv-py39").mkdir()
    (tree / ".venv-py39/left").write_text("out")
    output(tree / "tools/rpm", "--source-only")
    made = tree / f"build/rpm/reimzul-{__version__}-1.src.rpm"
    assert output("rpm", "-qpl", made).split() == sorted(output("rpm", "-qpl", made).split())
    output("rpm2archive", made)
    with tarfile.open(f"{made}.tgz") as archive:
        archive.extractall(tmp_path / "sources")
    with tarfile.open(tmp_path / f"sources/reimzul-{__version__}.tar.gz") as archive:
        names = archive.getnames()
        assert {member.uname for member in archive.getmembers()} == {"root"}
    assert f"reimzul-{__version__}/reimzul/core/message.py" in names
    assert f"reimzul-{__version__}/reimzul.spec" in names
    assert not [name for name in names if re.search(r"/(build|\.venv[^/]*|__pycache__)/", name)]


def test_a_bundled_library_with_a_wrong_checksum_is_downloaded_again(tmp_path: Path, packages: Packages) -> None:
    tree = copy_of_the_tree(tmp_path / "tree")
    wheel = next((tree / "build/sources").glob("*.whl"))
    wheel.write_bytes(b"noise")
    # pip finds nothing here, whatever index this machine has set
    env = {**os.environ, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    argv: list[str | Path] = [tree / "tools/rpm", "--source-only"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env=env, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"rpm: greenstalk cannot be fetched from PyPI: .+\n", done.stderr)
    assert not list((tree / "build/rpm").glob("*.rpm"))


def test_a_spec_that_does_not_build_leaves_rpmbuilds_own_words(tmp_path: Path, packages: Packages) -> None:
    tree = copy_of_the_tree(tmp_path / "tree")
    (tree / "systemd/reimzul-signer.service").unlink()
    done = subprocess.run([tree / "tools/rpm"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "rpm: rpmbuild failed: build/rpm/rpmbuild.log"
    assert "reimzul-signer" in (tree / "build/rpm/rpmbuild.log").read_text()


@pytest.mark.parametrize("words", [["--fast"], ["--out"], ["--out", ""]], ids=str)
def test_wrong_usage_of_tools_rpm_is_one_line(words: list[str]) -> None:
    done = subprocess.run([TREE / "tools/rpm", *words], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(("role", "unit"), [("worker", "reimzul-worker"), ("bstore", "reimzul-repogen-worker")])
def test_removing_a_package_stops_all_its_instances(role: str, unit: str, tmp_path: Path) -> None:
    """Its scriptlet with a real systemctl, offline; what needs a running systemd is left out of it."""
    spec = output("rpmspec", "-P", TREE / "reimzul.spec")
    script = spec.partition(f"\n%preun {role}\n")[2].partition("\n%")[0]
    assert f"systemctl stop '{unit}@*.service'" in script
    units = tmp_path / "etc" / "systemd" / "system"
    units.mkdir(parents=True)
    shutil.copy(TREE / "systemd" / f"{unit}@.service", units)
    offline = f"--root={tmp_path}"
    output("systemctl", offline, "enable", *(f"{unit}@{number}" for number in (1, 2, 7)))
    links = [path for path in units.rglob(f"{unit}@*.service") if path.is_symlink()]
    assert len(links) >= 3
    script = re.sub(r"systemctl stop [^;]+;", "", script.replace("[ -d /run/systemd/system ]", "true"))
    script = script.replace("systemctl ", f"systemctl {offline} ").replace("--now ", "")
    subprocess.run(["sh", "-c", script, "preun", "0"], check=True, timeout=60)
    assert not [path for path in links if path.is_symlink()]
