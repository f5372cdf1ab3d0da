# SPDX-License-Identifier: Apache-2.0
"""The demo: a farm starts, the farm's own commands build real packages on it, and a real dnf finds them.

The packages are GNU hello, compiled C from the distribution's own source package, one that needs hello, and Reimzul
itself. A source that cannot be had is left out, as hello on EL. The machine itself is not changed, and root is not
needed: its apt sources are copied with `deb-src` instead of `deb` into a private folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import textwrap
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable
from urllib.parse import quote

import attr
import click

from devfarm.farm import Farm
from devfarm.plan import Layout
from devfarm.processes import find_program, own_program
from reimzul.core.canary import build_srpm
from reimzul.core.errors import InputError, ProgramFailed, ReimzulError
from reimzul.core.http_client import HttpSession, NotFound
from reimzul.core.process import output_of, spawn, wait_until_exit
from reimzul.core.validators import is_source_rpm

TARGET = "demo.1"
#: The longest that all builds may take.
_BUILDS_SECONDS = 3600
#: Seconds that staging for the signer may take once a build is published.
_STAGING_SECONDS = 30
_DNF_SECONDS = 120
#: Seconds until all pages show what was built, and seconds that the web server has to answer.
_PAGES_SECONDS, _PAGE_SECONDS = 30, 5
#: A log may be larger than a page.
_MAX_PAGE_BYTES = 50_000_000
_POLL_SECONDS = 0.1
_LAST_LINES = 25
_STARTED = time.monotonic()


def print_title(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def print_line(text: str) -> None:
    """Print a line, with the seconds since the start."""
    click.echo(f"  {time.monotonic() - _STARTED:6.1f} s  {text}")


def print_block(text: str) -> None:
    """Print another program's output, indented."""
    click.echo(textwrap.indent(text.rstrip(), "  "))


@attr.frozen(kw_only=True)
class Demo:
    farm: Farm
    cache: Path  #: source rpms made before

    def run(self, srpm: Path | None) -> None:
        """Run all of it. Raises `ReimzulError` where a step fails."""
        print_title(f"A farm of {len(self.farm.hosts)} hosts on this machine, in {self.farm.layout.state}")
        self.farm.bring_up(print_line)
        print_line(f"in a browser, until this ends: {self.farm.plan.pages_url}")
        print_title("Source rpms")
        packages = [srpm] if srpm else demo_srpms(self.cache, print_line)
        build_ids = [self.submit(package) for package in packages]
        print_title(f"$ reimzul watch {' '.join(build_id[:8] for build_id in build_ids)}")
        has_failed = self.watch(build_ids)
        legs = [leg for build_id in build_ids for leg in self.reimzul_json("show", build_id)["arches"]]
        if has_failed:
            failed = [leg for leg in legs if not leg["published"]]
            for leg in failed:
                self.show_failure(leg)
            raise ReimzulError(", ".join(f"{leg_name(leg)}: {leg['state']}" for leg in failed))
        self.check_repository(legs)
        self.check_pages(legs)
        self.print_places(legs, self.wait_for_staging(legs))

    def reimzul_command(self, command: str, *arguments: str) -> list[str]:
        return [own_program("reimzul"), command, *arguments, "--config", str(self.farm.ini())]

    def reimzul_json(self, command: str, *arguments: str) -> Any:
        return json.loads(output_of(self.reimzul_command(command, *arguments, "--json")))

    def submit(self, srpm: Path) -> str:
        """Submit a source rpm as anybody would; return the build's id."""
        (build,) = json.loads(output_of(self.farm.submit_command(srpm, TARGET, "--dep-wait", "--json")))["builds"]
        print_line(f"$ reimzul-submit -s {build['srpm']} -a {self.farm.arch} -t {TARGET} -d .demo --dep-wait")
        return str(build["build_id"])

    def watch(self, build_ids: list[str]) -> bool:
        """Let `reimzul watch` print what happens until all builds are over; return whether one failed."""
        with spawn(self.reimzul_command("watch", "--new", *build_ids), output=sys.stdout.fileno()) as process:
            if not wait_until_exit(process, _BUILDS_SECONDS):
                logs = self.farm.layout.log
                raise ReimzulError(f"the builds are not over after {_BUILDS_SECONDS} s; the logs are in {logs}")
        return process.returncode != 0

    def show_failure(self, leg: dict[str, Any]) -> None:
        """Print why a build failed, where its logs are, and how its log ends."""
        print_title(f"$ reimzul explain {leg['build_id'][:8]}")
        print_block(output_of(self.reimzul_command("explain", leg["build_id"])))
        if leg["place"]:
            print_block(f"logs: {self.farm.layout.store.place(leg['place'])}")
        log = output_of(self.reimzul_command("log", leg["build_id"], "--arch", leg["arch"]))
        print_block("\n".join(log.splitlines()[-_LAST_LINES:]))

    def check_repository(self, legs: list[dict[str, Any]]) -> None:
        """Have dnf list, download and check what was published. Raises `ReimzulError`."""
        farm = self.farm
        url = farm.repository(f"{TARGET}.{farm.arch}")
        dnf = Dnf(farm.layout.state / "dnf", url, farm.arch)
        print_title(f"dnf, with nothing but {url}")
        print_block(dnf.list_available())
        packages = dnf.download(farm.layout.state / "downloaded")
        built = {name for leg in legs for name in leg["rpms"] if not is_source_rpm(name)}
        if missing := built - {package.name for package in packages}:
            raise ReimzulError(f"dnf did not find all that was built: {', '.join(sorted(missing))}")
        check_digests(packages)
        print_line(f"dnf downloaded {len(packages)} packages; rpm finds all their digests right")

    def check_pages(self, legs: list[dict[str, Any]]) -> None:
        """Open the page of each build, and a log through it, as a browser does. Raises `ReimzulError`."""
        print_title("The pages")
        deadline, places = time.monotonic() + _PAGES_SECONDS, {leg["page"]: leg["place"] for leg in legs}
        with HttpSession(_PAGE_SECONDS) as session:
            for page, place in places.items():
                while not _is_shown_as_published(session, page):
                    if time.monotonic() > deadline:
                        raise ReimzulError(f"{page} does not show the build as published")
                    time.sleep(_POLL_SECONDS)
                session.get(f"{self.farm.plan.pages_url}bstore/{quote(place)}/build.log", _MAX_PAGE_BYTES)
                print_line(page)

    def wait_for_staging(self, legs: list[dict[str, Any]]) -> list[Path]:
        """Wait for the folders for the signer. Raises `ReimzulError`."""
        deadline, tosign = time.monotonic() + _STAGING_SECONDS, self.farm.layout.store.tosign
        while True:
            folders = [path for leg in legs for path in tosign.glob(f"*/*.{leg['arch']}.{leg['build_id']}")]
            if len(folders) == len(legs):
                return folders
            if time.monotonic() > deadline:
                raise ReimzulError(f"not all that was published is staged for signing: {tosign}")
            time.sleep(_POLL_SECONDS)

    def print_places(self, legs: list[dict[str, Any]], staged: list[Path]) -> None:
        layout = self.farm.layout
        print_title("Where to find it")
        for leg in legs:
            print_block(f"{leg_name(leg)}: packages and logs in {layout.store.place(leg['place'])}")
        for folder in staged:
            print_block(f"to be signed: {folder}")
        print_block(f"downloaded by dnf: {layout.state / 'downloaded'}")
        print_block(f"the pages, without logs: {layout.pages / 'index.html'}")
        print_block(f"one line an event: {layout.log / 'reimzul.log'}; the daemons' own logs beside it")


def _is_shown_as_published(session: HttpSession, page: str) -> bool:
    """Whether a page and the JSON beside it are there, and all of its build is published. Raises `HttpUnavailable`."""
    try:
        session.get(page, _MAX_PAGE_BYTES)
        shown = json.loads(session.get(f"{page.removesuffix('html')}json", _MAX_PAGE_BYTES))
    except NotFound:
        return False
    return all(leg["state"] == "published" for leg in shown["arches"])


def leg_name(leg: dict[str, Any]) -> str:
    return f"{leg['pkgname']} {leg['evr']}.{leg['arch']}" if leg["pkgname"] else f"{leg['srpm']} for {leg['arch']}"


def remove_leftovers(layout: Layout) -> None:
    """Remove what nobody needs after a demo: keys, caches, checkouts."""
    made = [path for pattern in ("builder*", "roots*") for path in layout.state.glob(pattern)]
    for folder in (layout.keys, layout.tmp, layout.binlog, layout.state / "dnf", *made):
        shutil.rmtree(folder, ignore_errors=True)


@attr.frozen
class Dnf:
    """A real dnf that lists, downloads and checks what a repository has; its installroot keeps it from this machine."""

    root: Path  #: its installroot, with all that it stores
    url: str
    arch: str

    def list_available(self) -> str:
        return self._run("list", "--available")

    def list_nevras(self) -> list[str]:
        """name-version-release.arch of each package."""
        form = "%{name}-%{version}-%{release}.%{arch}\n"
        return sorted(set(self._run("repoquery", "--qf", form).split()))

    def download(self, folder: Path) -> list[Path]:
        """Download all packages; dnf compares each with its checksum in the repodata."""
        folder.mkdir(parents=True, exist_ok=True)
        self._run("download", f"--destdir={folder}", "*")
        return sorted(folder.glob("*.rpm"))

    def _run(self, command: str, *arguments: str) -> str:
        self.root.mkdir(parents=True, exist_ok=True)
        config = self.root / "dnf.conf"
        # these paths begin at the installroot; metadata expires at once, since the farm publishes meanwhile
        config.write_text(
            "[main]\nreposdir=/none\ncachedir=/cache\nlogdir=/log\npersistdir=/state\nplugins=1\n"
            f"[farm]\nname=the farm\nbaseurl={self.url}\nenabled=1\ngpgcheck=0\nmetadata_expire=0\n",
            encoding="utf-8",
        )
        argv = [find_program("dnf"), command, "--quiet", f"--config={config}", f"--installroot={self.root}"]
        argv += ["--releasever=1", f"--forcearch={self.arch}", *arguments]
        return output_of(argv, timeout=_DNF_SECONDS, env={"no_proxy": "*", "NO_PROXY": "*"})


def check_digests(packages: list[Path]) -> None:
    """Have rpm check the header and payload digests of packages. Raises `ReimzulError` where one is wrong."""
    output = output_of([find_program("rpmkeys"), "--checksig", "--nosignature", *packages])
    if output.count("digests OK") != len(packages):
        raise ReimzulError(f"rpm finds wrong digests in what dnf downloaded: {output}")


# --- its source rpms

CHECKOUT = Path(__file__).parents[1]
#: Seconds that a registry may take.
_REGISTRY_SECONDS = 300
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
    output = output_of(argv, timeout=_REGISTRY_SECONDS, env=env)
    return Path(_find(r"^rpm: (.+\.src\.rpm)$", output, "tools/rpm made no source rpm")[1])


def make_user_srpm(cache: Path) -> Path:
    """Make the source rpm that needs hello."""
    with TemporaryDirectory(prefix=".user-", dir=cache) as name:
        folder = Path(name)
        shutil.copy(_USER_SPEC, folder)
        return _store(build_srpm(folder / _USER_SPEC.name), cache)


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
        return _store(build_srpm(folder / _SPEC.name), cache)


def _store(srpm: Path, cache: Path) -> Path:
    return srpm.replace(cache / srpm.name)


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
            output_of(["apt-get", *options, "update"], cwd=folder, timeout=_REGISTRY_SECONDS)
        argv = ["apt-get", *options, "source", "--download-only", "hello"]
        output_of(argv, cwd=folder, timeout=_REGISTRY_SECONDS)
    elif shutil.which("dnf"):
        # the distribution's spec file is not used
        output_of(["dnf", "-q", "download", "--source", "hello"], cwd=folder, timeout=_REGISTRY_SECONDS)
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
