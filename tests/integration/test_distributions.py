# SPDX-License-Identifier: Apache-2.0
"""The source distribution and the wheel: what is in them, and that `reimzul setup` works from an installed wheel."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from reimzul import __version__
from tests.acceptance.private import PrivateMachine
from tests.setuphost import UNITS

TREE = Path(__file__).parents[2]
#: What no distribution has: git's own files, environments, caches and what was built.
LEFT_OUT = (
    ".git", ".gitignore", ".venv*", ".farm*", ".bench*", ".setup.lock", ".*_cache", ".hypothesis", ".coverage*",
    "build", "dist", "*.egg-info", "__pycache__", "*.rpm",
)  # fmt: skip


def run(*argv: str | Path, cwd: Path, **environment: str) -> str:
    env = {**os.environ, "PIP_NO_INDEX": "1", **environment}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, cwd=cwd, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout: building leaves nothing in the real one."""
    copy = tmp_path_factory.mktemp("tree") / "reimzul"
    shutil.copytree(TREE, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return copy


@pytest.fixture(scope="module")
def source(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    script = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", script, folder, cwd=tree)
    with tarfile.open(folder / f"reimzul-{__version__}.tar.gz") as archive:
        archive.extractall(folder)
    return folder / f"reimzul-{__version__}"


@pytest.fixture(scope="module")
def installed_wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel that was built from the source distribution, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    run(*pip, "--python", folder / "venv/bin/python", "install", "-q", "--no-deps", wheel, cwd=folder)
    return folder / "venv"


def files(folder: Path) -> set[str]:
    """A folder's files by their paths in it, through links."""
    return {
        os.path.relpath(os.path.join(top, name), folder)
        for top, _, names in os.walk(folder, followlinks=True)
        for name in names
    }


def test_the_source_distribution_has_every_file_of_the_checkout(tree: Path, source: Path) -> None:
    assert files(tree) - files(source) == set()


def test_an_installed_wheel_has_every_configuration_and_unit(installed_wheel: Path) -> None:
    (package,) = installed_wheel.glob("lib/python3.*/site-packages/reimzul")
    for folder in ("conf", "systemd"):
        for path in (TREE / folder).iterdir():
            assert (package / "data" / folder / path.name).read_bytes() == path.read_bytes()
    for folder in ("templates", "static"):
        for path in (TREE / "reimzul/pages" / folder).iterdir():
            assert (package / "pages" / folder / path.name).read_bytes() == path.read_bytes()


def test_the_description_on_pypi_is_the_readme_with_absolute_links(installed_wheel: Path) -> None:
    (file,) = installed_wheel.glob("lib/python3.*/site-packages/reimzul-*.dist-info/METADATA")
    metadata = email.message_from_string(file.read_text(encoding="utf-8"))
    description, readme = str(metadata.get_payload()), (TREE / "README.md").read_text(encoding="utf-8")
    urls = dict(row.split(", ") for row in metadata.get_all("Project-URL", []))
    address = urls["Changelog"].removesuffix("CHANGELOG.md")
    assert address.startswith(f"{urls['Source']}/")
    links = re.findall(r"\]\(([^)]+)\)", description)
    assert [link for link in links if not link.startswith("https://")] == []
    assert f"{address}docs/install.md" in links
    assert f"{address}docs/farm.svg" in links
    assert description.replace(f"]({address}", "](").strip() == readme.strip()
    assert metadata["Description-Content-Type"] == "text/markdown"


@pytest.mark.parametrize("role", ["controller", "bstore", "builder"])
def test_a_host_is_set_up_from_an_installed_wheel(installed_wheel: Path, tmp_path: Path, role: str) -> None:
    root = tmp_path / "root"
    (root / "usr/lib/systemd/system").mkdir(parents=True)
    for unit in UNITS:  # the distribution's services; a wheel brings no units
        if not unit.startswith("reimzul-"):
            (root / "usr/lib/systemd/system" / unit).write_text("[Service]\n")
    key = tmp_path / "key"
    key.write_text(f"b1:{'ab' * 32}\n")
    options: tuple[str | Path, ...] = (
        () if role == "controller" else ("--psk-file", key, "--controller", "c.example.org")
    )
    options += ("--bstore", "s.example.org") if role == "builder" else ()
    # the libraries are the ones the tests have; the package is not
    libraries = sysconfig.get_path("purelib")
    command = (installed_wheel / "bin/reimzul", "setup", role, "--root", root, *options)
    shown = run(*command, "--dry-run", cwd=tmp_path, PYTHONPATH=libraries)
    assert "+++ /etc/stunnel/reimzul.conf" in shown
    assert list(root.glob("etc/stunnel/*")) == []
    run(*command, cwd=tmp_path, PYTHONPATH=libraries)
    unit = {"controller": "notifier", "bstore": "signer", "builder": "worker@"}[role]
    text = (root / f"etc/systemd/system/reimzul-{unit}.service").read_text()
    assert f"\nExecStart={installed_wheel}/bin/reimzul-" in text
    assert (root / "etc/sysusers.d/reimzul.conf").exists()
    assert (root / "etc/tmpfiles.d/reimzul.conf").exists()


def test_user_and_folders_are_made_from_an_installed_wheel(installed_wheel: Path, tmp_path: Path) -> None:
    machine = PrivateMachine(tmp_path / "machine", TREE)
    done = machine.run(
        "mount -t tmpfs tmpfs /run\n"  # no systemd runs there, and the lock is the test's own
        "sed -i /^reimzul:/d /etc/passwd /etc/group\n"
        * (not os.geteuid())
        + f"{installed_wheel}/bin/reimzul setup controller\n"
        "stat -c '%n %U:%G %a' /etc/reimzul/reimzul.ini /srv/reimzul/notifier /etc/stunnel/reimzul-psk-all.txt\n",
        PYTHONPATH=sysconfig.get_path("purelib"),
        PATH=os.environ["PATH"],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    user = "reimzul" if not os.geteuid() else "root"  # in a user's namespace, both are the only user there is
    assert f"/etc/reimzul/reimzul.ini root:{user} 640\n" in done.stdout
    assert f"/srv/reimzul/notifier {user}:{user} 2750\n" in done.stdout
    assert "/etc/stunnel/reimzul-psk-all.txt root:root 600\n" in done.stdout
