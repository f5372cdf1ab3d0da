# SPDX-License-Identifier: Apache-2.0
"""The source rpms of the demo: real programs, their sources from registries, the spec files from `specs/`.

GNU hello is compiled C, from the distribution's own source package; six is a noarch Python package, from PyPI; the
third is Reimzul itself, five packages of one source rpm, where we run from a checkout. The machine's own apt sources
are copied with `deb-src` in the place of `deb` into a private folder; the machine itself is not changed and root is
not needed. Where a distribution has no hello (EL), the demo goes on with what there is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable, Optional

import attr

from reimzul.core.errors import InputError, ProgramFailed, ReimzulError
from reimzul.core.process import output_of

#: The checkout we run from, where it is one.
CHECKOUT = Path(__file__).parents[2]
#: Seconds a registry may take.
PATIENCE = 300
_SIX = ("1.17.0", "ff70335d468e7eb6ec65b95b99d3a2836546063f63acc5171de367e834932a81")


@attr.frozen
class Tarball:
    """A program's upstream source, checked against what its registry says of it."""

    path: Path
    version: str


def demo_srpms(cache: Path, say: Callable[[str], None]) -> list[Path]:
    """The demo's source rpms, made where the cache does not have them. `say` is told what takes time.

    Raises `ReimzulError` where none could be made.
    """
    cache.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    made = [_one(name, fetch, cache, say, faults) for name, fetch in (("hello", hello), ("python-six", six))]
    found = [path for path in (*made, _itself(cache, say, faults)) if path]
    if not found:
        raise ReimzulError("no source for the demo: " + "; ".join(faults))
    return found


def _one(
    name: str, fetch: Callable[[Path], Tarball], cache: Path, say: Callable[[str], None], faults: list[str]
) -> Optional[Path]:
    kept = next(cache.glob(f"{name}-[0-9]*.src.rpm"), None)
    if kept and kept.stat().st_mtime > _spec(name).stat().st_mtime:
        return kept
    say(f"{name}: fetching the source")
    try:
        # In the cache's own folder: the last step is a rename, so two demos at once do not see half a file.
        with TemporaryDirectory(prefix=f".{name}-", dir=cache) as work:
            return _source_rpm(name, fetch(Path(work)), cache)
    except ReimzulError as error:
        say(f"{name}: left out, {error}")
        faults.append(f"{name}: {error}")
        return None


def _itself(cache: Path, say: Callable[[str], None], faults: list[str]) -> Optional[Path]:
    """Reimzul's own source rpm, always made anew: the checkout may have changed."""
    if not (CHECKOUT / "tools/rpm").is_file():
        return None
    try:
        return itself(cache)
    except ReimzulError as error:
        say(f"reimzul: left out, {error}")
        faults.append(f"reimzul: {error}")
        return None


def itself(folder: Path) -> Path:
    """A source rpm of the checkout we run from, in a folder. Raises `ReimzulError`."""
    settings = _settings_of_pip()
    said = output_of([CHECKOUT / "tools/rpm", "--source-only", "--out", folder], timeout=PATIENCE, env=settings)
    written = re.search(r"^rpm: (.+\.src\.rpm)$", said, re.MULTILINE)
    if not written:
        raise ReimzulError("tools/rpm made no source rpm")
    return Path(written[1])


def _settings_of_pip() -> dict[str, str]:
    # an index, a certificate: what pip was told by the environment
    return {name: text for name, text in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}


def _source_rpm(name: str, tarball: Tarball, cache: Path) -> Path:
    top = tarball.path.parent
    text = _spec(name).read_text(encoding="utf-8")
    spec = top / f"{name}.spec"
    spec.write_text(text.replace("@VERSION@", tarball.version).replace("@SOURCE@", tarball.path.name), encoding="utf-8")
    # Relative folders: rpmbuild would take a space in the path of ours for the end of it.
    macros = {"_topdir": ".", "_sourcedir": ".", "_srcrpmdir": ".", "dist": "%{nil}"}
    defines = [word for macro, value in macros.items() for word in ("--define", f"{macro} {value}")]
    said = output_of(["rpmbuild", "-bs", "--nodeps", *defines, spec.name], cwd=top)
    written = re.search(r"^Wrote: (.+\.src\.rpm)$", said, re.MULTILINE)
    if not written:
        raise ReimzulError(f"rpmbuild made no source rpm of {spec.name}")
    made = top / Path(written[1]).name
    return Path(shutil.move(os.fspath(made), cache / made.name))


def _spec(name: str) -> Path:
    return Path(__file__).with_name("specs") / f"{name}.spec"


def six(work: Path) -> Tarball:
    """six's source from PyPI."""
    version, digest = _SIX
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    argv += ["--no-binary", ":all:", "--dest", os.fspath(work), f"six=={version}"]
    output_of(argv, timeout=PATIENCE, env=_settings_of_pip())
    return Tarball(_checked(work / f"six-{version}.tar.gz", digest), version)


def hello(work: Path) -> Tarball:
    """GNU hello's source from the distribution."""
    if shutil.which("apt-get"):
        return _hello_of_debian(work)
    if shutil.which("dnf"):
        return _hello_of_fedora(work)
    raise InputError("neither apt-get nor dnf is here to fetch it with")


def _hello_of_debian(work: Path) -> Tarball:
    options = _private_apt(work)
    with contextlib.suppress(ProgramFailed):  # a third party's repository may have no sources; the main one has
        output_of(["apt-get", *options, "update"], cwd=work, timeout=PATIENCE)
    output_of(["apt-get", *options, "source", "--download-only", "hello"], cwd=work, timeout=PATIENCE)
    described = next(work.glob("hello_*.dsc"), None)
    matches = (re.fullmatch(r"hello_(.+)\.orig\.tar\.(gz|bz2|xz)", path.name) for path in work.iterdir())
    tarball = next(filter(None, matches), None)
    if not described or not tarball:
        raise ReimzulError("apt-get left no source package of hello")
    return Tarball(_checked(work / tarball[0], _digest(described, tarball[0])), tarball[1])


def _private_apt(work: Path) -> list[str]:
    """apt's options for a state of our own, with the machine's sources turned into sources of source packages."""
    parts = work / "sources"
    for folder in (parts, work / "state/lists/partial", work / "cache/archives/partial"):
        folder.mkdir(parents=True)
    for path in _apt_sources():
        text = path.read_text(encoding="utf-8", errors="replace")
        turned = re.sub(r"^Types:.*$", "Types: deb-src", text, flags=re.MULTILINE)
        (parts / path.name).write_text(re.sub(r"^deb\s", "deb-src ", turned, flags=re.MULTILINE), encoding="utf-8")
    settings = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": parts,
        "Dir::State": work / "state",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": work / "cache",
        "Acquire::Languages": "none",
        # As root apt would become a user who cannot read our private folder.
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _apt_sources() -> Iterator[Path]:
    etc = Path("/etc/apt")
    for pattern in ("sources.list", "sources.list.d/*.sources", "sources.list.d/*.list"):
        yield from sorted(etc.glob(pattern))


def _digest(described: Path, name: str) -> str:
    """A file's SHA-256 as a Debian source package's description has it."""
    text = described.read_text(encoding="utf-8")
    section = text.partition("\nChecksums-Sha256:")[2]
    found = re.search(rf"^ ([0-9a-f]{{64}}) \d+ {re.escape(name)}$", section, re.MULTILINE)
    if not found:
        raise ReimzulError(f"{described.name} has no SHA-256 of {name}")
    return found[1]


def _hello_of_fedora(work: Path) -> Tarball:
    # What dnf downloads it has checked; the distribution's own spec file is not ours.
    output_of(["dnf", "-q", "download", "--source", "--destdir", work, "hello"], cwd=work, timeout=PATIENCE)
    package = next(work.glob("hello-*.src.rpm"), None)
    if not package:
        raise ReimzulError("dnf left no source package of hello")
    output_of(["rpm", "-i", "--define", f"_topdir {work}", "--define", f"_sourcedir {work}", package], cwd=work)
    path = next(work.glob("hello-*.tar.*z*"), None)
    if not path:
        raise ReimzulError(f"{package.name} has no tarball")
    return Tarball(path, re.sub(r"^hello-|\.tar\..*$", "", path.name))


def _checked(path: Path, digest: str) -> Path:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise ReimzulError(f"{path.name} is not what its registry describes (SHA-256 {found}, not {digest})")
    return path
