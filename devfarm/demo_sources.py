# SPDX-License-Identifier: Apache-2.0
"""The source rpms of the demo: real programs, their sources from registries, the spec files from `specs/`.

GNU hello is compiled C, from the distribution's own source package; six is a noarch Python package, from PyPI; the
third is Reimzul itself, five packages of one source rpm. The machine's apt sources are copied with `deb-src` instead
of `deb` into a private folder; the machine itself is not changed, and root is not needed. A source that cannot be had
is left out, as hello on EL.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable, NamedTuple

from reimzul.core.errors import InputError, ProgramFailed, ReimzulError
from reimzul.core.process import output_of

CHECKOUT = Path(__file__).parents[1]
#: Seconds that a registry may take.
TIMEOUT_SECONDS = 300
_SIX_VERSION = "1.17.0"
_SIX_SHA256 = "ff70335d468e7eb6ec65b95b99d3a2836546063f63acc5171de367e834932a81"


class Tarball(NamedTuple):
    """A program's upstream source; apt, dnf or pip has compared it with its registry's checksum."""

    path: Path
    version: str


def demo_srpms(cache: Path, report: Callable[[str], None]) -> list[Path]:
    """The demo's source rpms, made where the cache does not have them. Raises `ReimzulError` if none can be made."""
    cache.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], Path]] = {
        "hello": lambda: _make_cached("hello", fetch_hello, cache, report),
        "python-six": lambda: _make_cached("python-six", fetch_six, cache, report),
        "reimzul": lambda: make_own_srpm(cache),  # always again: the checkout may have changed
    }
    made, faults = [], []
    for name, make in makers.items():
        try:
            made.append(make())
        except ReimzulError as error:
            report(f"{name}: left out, {error}")
            faults.append(f"{name}: {error}")
    if not made:
        raise ReimzulError("no source for the demo: " + "; ".join(faults))
    return made


def _make_cached(name: str, fetch: Callable[[Path], Tarball], cache: Path, report: Callable[[str], None]) -> Path:
    cached = next(cache.glob(f"{name}-[0-9]*.src.rpm"), None)
    if cached and cached.stat().st_mtime > _spec(name).stat().st_mtime:
        return cached
    report(f"{name}: fetching the source")
    # in the cache's own folder: the last step is a rename, so two demos at once do not see half a file
    with TemporaryDirectory(prefix=f".{name}-", dir=cache) as folder:
        return _make_srpm(name, fetch(Path(folder)), cache)


def make_own_srpm(folder: Path) -> Path:
    argv = [os.fspath(CHECKOUT / "tools/rpm"), "--source-only", "--out", os.fspath(folder)]
    output = output_of(argv, timeout=TIMEOUT_SECONDS, env=_pip_settings())
    return Path(_find(r"^rpm: (.+\.src\.rpm)$", output, "tools/rpm made no source rpm")[1])


def _pip_settings() -> dict[str, str]:
    """pip's settings in the environment, as an index or a certificate."""
    return {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}


def _make_srpm(name: str, tarball: Tarball, cache: Path) -> Path:
    folder = tarball.path.parent
    text = _spec(name).read_text(encoding="utf-8")
    spec = folder / f"{name}.spec"
    spec.write_text(text.replace("@VERSION@", tarball.version).replace("@SOURCE@", tarball.path.name), encoding="utf-8")
    # relative folders: rpmbuild would end a path at a space
    macros = {"_topdir": ".", "_sourcedir": ".", "_srcrpmdir": ".", "dist": "%{nil}"}
    defines = [word for macro, value in macros.items() for word in ("--define", f"{macro} {value}")]
    output = output_of(["rpmbuild", "-bs", "--nodeps", *defines, spec.name], cwd=folder)
    fault = f"rpmbuild made no source rpm of {spec.name}"
    made = folder / Path(_find(r"^Wrote: (.+\.src\.rpm)$", output, fault)[1]).name
    return made.replace(cache / made.name)


def _find(pattern: str, text: str, fault: str) -> re.Match[str]:
    found = re.search(pattern, text, re.MULTILINE)
    if not found:
        raise ReimzulError(fault)
    return found


def _spec(name: str) -> Path:
    return Path(__file__).with_name("specs") / f"{name}.spec"


def fetch_six(folder: Path) -> Tarball:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"six=={_SIX_VERSION} --hash=sha256:{_SIX_SHA256}\n")
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    argv += ["--no-binary", ":all:", "--dest", os.fspath(folder), "--requirement", os.fspath(wanted)]
    output_of(argv, timeout=TIMEOUT_SECONDS, env=_pip_settings())
    return Tarball(folder / f"six-{_SIX_VERSION}.tar.gz", _SIX_VERSION)


def fetch_hello(folder: Path) -> Tarball:
    if shutil.which("apt-get"):
        return _fetch_hello_from_debian(folder)
    if shutil.which("dnf"):
        return _fetch_hello_from_fedora(folder)
    raise InputError("neither apt-get nor dnf is installed to fetch it with")


def _fetch_hello_from_debian(folder: Path) -> Tarball:
    options = _private_apt_options(folder)
    with contextlib.suppress(ProgramFailed):  # a third party's repository may have no sources; the main one has
        output_of(["apt-get", *options, "update"], cwd=folder, timeout=TIMEOUT_SECONDS)
    argv = ["apt-get", *options, "source", "--download-only", "hello"]
    output_of(argv, cwd=folder, timeout=TIMEOUT_SECONDS)
    names, fault = "\n".join(os.listdir(folder)), "apt-get left no source package of hello"
    tarball = _find(r"^hello_(.+)\.orig\.tar\.(gz|bz2|xz)$", names, fault)
    return Tarball(folder / tarball[0], tarball[1])


def _private_apt_options(folder: Path) -> list[str]:
    """apt's options for a state of our own, with the machine's sources made into sources of source packages."""
    parts = folder / "sources"
    for each in (parts, folder / "state/lists/partial", folder / "cache/archives/partial"):
        each.mkdir(parents=True)
    patterns = ("sources.list", "sources.list.d/*.sources", "sources.list.d/*.list")
    for path in (path for pattern in patterns for path in sorted(Path("/etc/apt").glob(pattern))):
        text = path.read_text(encoding="utf-8", errors="replace")
        text = re.sub(r"^Types:.*$", "Types: deb-src", text, flags=re.MULTILINE)
        (parts / path.name).write_text(re.sub(r"^deb\s", "deb-src ", text, flags=re.MULTILINE), encoding="utf-8")
    settings = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": parts,
        "Dir::State": folder / "state",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "none",
        # as root apt would become a user who cannot read the private folder
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _fetch_hello_from_fedora(folder: Path) -> Tarball:
    # the distribution's spec file is not used
    argv = ["dnf", "-q", "download", "--source", "--destdir", os.fspath(folder), "hello"]
    output_of(argv, cwd=folder, timeout=TIMEOUT_SECONDS)
    package = _find(r"^hello-.+\.src\.rpm$", "\n".join(os.listdir(folder)), "dnf left no source package of hello")[0]
    output_of(["rpm", "-i", "--define", f"_topdir {folder}", "--define", f"_sourcedir {folder}", package], cwd=folder)
    tarball = _find(r"^hello-(.+)\.tar\..*z", "\n".join(os.listdir(folder)), f"{package} has no tarball")
    return Tarball(folder / tarball[0], tarball[1])
