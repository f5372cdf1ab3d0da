# SPDX-License-Identifier: Apache-2.0
"""The source rpms of the demo: GNU hello, compiled C from the distribution's own source package, one that needs hello,
and Reimzul itself.

The machine's apt sources are copied with `deb-src` instead of `deb` into a private folder; the machine itself is not
changed, and root is not needed. A source that cannot be had is left out, as hello on EL.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

from reimzul.core.errors import InputError, ProgramFailed, ReimzulError
from reimzul.core.process import output_of

CHECKOUT = Path(__file__).parents[1]
#: Seconds that a registry may take.
TIMEOUT_SECONDS = 300
_SPEC = Path(__file__).with_name("hello.spec")
_USER_SPEC = Path(__file__).with_name("hello-user.spec")


def demo_srpms(cache: Path, report: Callable[[str], None]) -> list[Path]:
    """The demo's source rpms, made where the cache does not have them. Raises `ReimzulError` if none can be made."""
    cache.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], Path]] = {
        "hello": lambda: make_hello_srpm(cache, report),
        "reimzul": lambda: make_own_srpm(cache),  # always again: the checkout may have changed
    }
    made, faults = [], []
    for name, make in makers.items():
        try:
            made.append(make())
        except ReimzulError as error:
            report(f"{name}: left out, {error}")
            faults.append(f"{name}: {error}")
    if any(path.name.startswith("hello-") for path in made):
        made.insert(0, make_user_srpm(cache))  # submitted first: its build waits for hello
    if not made:
        raise ReimzulError("no source for the demo: " + "; ".join(faults))
    return made


def make_own_srpm(folder: Path) -> Path:
    argv: list[str | Path] = [CHECKOUT / "tools/rpm", "--source-only", "--out", folder]
    # pip's settings, as an index or a certificate
    env = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
    output = output_of(argv, timeout=TIMEOUT_SECONDS, env=env)
    return Path(_find(r"^rpm: (.+\.src\.rpm)$", output, "tools/rpm made no source rpm")[1])


def make_user_srpm(cache: Path) -> Path:
    """Make the source rpm that needs hello."""
    with TemporaryDirectory(prefix=".user-", dir=cache) as name:
        folder = Path(name)
        shutil.copy(_USER_SPEC, folder)
        return _make_srpm(folder, _USER_SPEC.name, cache)


def make_hello_srpm(cache: Path, report: Callable[[str], None]) -> Path:
    cached = next(cache.glob("hello-[0-9]*.src.rpm"), None)
    if cached and cached.stat().st_mtime > _SPEC.stat().st_mtime:
        return cached
    report("hello: fetching the source")
    # in the cache's own folder: the last step is a rename, so two demos at once do not see half a file
    with TemporaryDirectory(prefix=".hello-", dir=cache) as name:
        folder = Path(name)
        fetch_hello(folder)
        names = "\n".join(os.listdir(folder))
        tarball = _find(r"^hello[-_]([0-9.]+?)(\.orig)?\.tar\.(gz|bz2|xz)$", names, "the source package has no tarball")
        text = _SPEC.read_text(encoding="utf-8").replace("@VERSION@", tarball[1]).replace("@SOURCE@", tarball[0])
        (folder / _SPEC.name).write_text(text, encoding="utf-8")
        return _make_srpm(folder, _SPEC.name, cache)


def _make_srpm(folder: Path, spec: str, cache: Path) -> Path:
    """Make a source rpm from a spec file in a folder, and move it to the cache."""
    # relative folders: rpmbuild would end a path at a space
    macros = {"_topdir": ".", "_sourcedir": ".", "_srcrpmdir": "made", "dist": "%{nil}"}
    defines = [word for macro, value in macros.items() for word in ("--define", f"{macro} {value}")]
    output_of(["rpmbuild", "-bs", "--nodeps", *defines, spec], cwd=folder)
    (made,) = (folder / "made").iterdir()
    return made.replace(cache / made.name)


def _find(pattern: str, text: str, fault: str) -> re.Match[str]:
    found = re.search(pattern, text, re.MULTILINE)
    if not found:
        raise ReimzulError(fault)
    return found


def fetch_hello(folder: Path) -> None:
    """Put hello's tarball into a folder; apt or dnf compares it with its registry's checksum."""
    if shutil.which("apt-get"):
        options = _private_apt_options(folder)
        with contextlib.suppress(ProgramFailed):  # a third party's repository may have no sources; the main one has
            output_of(["apt-get", *options, "update"], cwd=folder, timeout=TIMEOUT_SECONDS)
        argv = ["apt-get", *options, "source", "--download-only", "hello"]
        output_of(argv, cwd=folder, timeout=TIMEOUT_SECONDS)
    elif shutil.which("dnf"):
        # the distribution's spec file is not used
        output_of(["dnf", "-q", "download", "--source", "hello"], cwd=folder, timeout=TIMEOUT_SECONDS)
        packages = folder.glob("hello-*.src.rpm")
        output_of(["rpm", "-i", "--define", f"_topdir {folder}", "--define", f"_sourcedir {folder}", *packages])
    else:
        raise InputError("neither apt-get nor dnf is installed to fetch it with")


def _private_apt_options(folder: Path) -> list[str]:
    """apt's options for a state of our own, with the machine's sources made into sources of source packages."""
    parts = folder / "sources"
    for each in (parts, folder / "state/lists/partial", folder / "cache/archives/partial"):
        each.mkdir(parents=True)
    patterns = ("sources.list", "sources.list.d/*.sources", "sources.list.d/*.list")
    for path in (path for pattern in patterns for path in Path("/etc/apt").glob(pattern)):
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
