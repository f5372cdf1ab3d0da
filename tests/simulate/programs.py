# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the programs and servers that the daemons use: mock, rsync, createrepo_c, the http server, rpm headers.

A program is a generator of the seconds that it takes between its effects; what it returns is its exit code. It ends
with the daemon that runs it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import shutil
import types
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import attr

from tests.simulate import scheduler

Program = Generator[float, None, int]
#: Of each leg of a package what mock comes to, in the order of the attempts; built at last.
Outcomes = dict[str, list[str]]
#: What mock may come to.
BUILT, FAILED, UNFIT, NOBODY = "built", "failed", "unfit", "nobody"
BASE, UPLOAD = "http://localhost/bstore/", "rsync://localhost/reimzul-bstore/"
INCOMING = "http://localhost/incoming/"


#: How the names of those packages begin that are built on x86_64 and on i386; others exclude i386.
TWO_LEGS = "multi"


#: How the name of a package's seed ends: its requirements and outcomes are its own.
SEED = "~seed"
DISTTAG = ".x"


def package_text(name: str, arch: str, *, is_source: bool = False, release: str = "1") -> bytes:
    """A package: its header, and some content."""
    return f"SIM {name} 1 {release} {arch} {int(is_source)}\n".encode() + name.encode() * 20


@attr.frozen(kw_only=True)
class Start:
    """What mock found where it looked for what a package requires."""

    package: str
    unlisted: frozenset[str]  #: requirements that the repodata did not list
    at: float


@attr.frozen(kw_only=True)
class Requirements:
    """What the packages of a batch require of each other, by their names."""

    of_package: dict[str, frozenset[str]] = attr.field(factory=dict)
    old: frozenset[str] = frozenset()  #: what the target has from earlier, which no repodata here shows
    starts: list[Start] = attr.field(factory=list)


@attr.frozen(kw_only=True)
class Programs:
    store: Path
    sources: dict[str, bytes]  #: incoming/
    outcomes: dict[str, Outcomes]  #: of each package
    requirements: Requirements = Requirements()
    faults: dict[str, float]  #: of rsync, createrepo_c and http: how often they fail

    def fails(self, what: str) -> bool:
        return scheduler.world.random.random() < self.faults.get(what, 0.0)

    # --- running

    def run(
        self,
        argv: Sequence[Any],
        *,
        output: Path | None = None,
        errors: Path | None = None,
        timeout: float | None = None,
        cancel: Any = None,
        begun: Callable[[int], None] | None = None,
        every: float = 0.25,
        **_: Any,
    ) -> int:
        """`core.process.run`."""
        from reimzul.core.errors import TimedOut

        world, words = scheduler.world, [os.fspath(word) for word in argv]
        name = Path(words[0]).name
        world.step(f"run {name}")
        for path in filter(None, (output, errors)):
            path.open("ab").close()
        if begun is not None:
            begun(0)
        program: Program = getattr(self, f"_{name}")(words)
        ends = world.now + (timeout or float("inf"))
        with contextlib.closing(program):
            while True:
                try:
                    ready_at = world.now + next(program)
                except StopIteration as end:
                    return int(end.value)
                while world.now < ready_at:
                    world.sleep(min(every, ready_at - world.now))
                    if cancel is not None:
                        cancel.raise_if_cancelled()
                    if world.now > ends:
                        raise TimedOut(name, timeout or 0)

    def _mock(self, words: list[str]) -> Program:
        results = Path(next(word for word in words if word.startswith("--resultdir=")).partition("=")[2])
        source = Path(words[-1])
        arch = next(word for word in words if word.startswith("--uniqueext=")).rpartition(".")[2]
        world, (package, _, release) = scheduler.world, source.name.removesuffix(".src.rpm").rsplit("-", 2)
        release += next(word for word in words if word.startswith("dist ")).removeprefix(f"dist {DISTTAG}")
        own = f"{package}{SEED}" if "--with" in words else package
        (results / "root.log").write_text("INFO: root\n")
        if missing := self._find_missing(own):
            yield 0.3
            return _fail_for_want(results, missing)
        outcomes = self.outcomes[own][arch]
        outcome = outcomes.pop(0) if outcomes else BUILT
        yield world.random.choice((0.5, 2.0, 5.0, 5.0, 150.0 if world.random.random() < 0.1 else 3.0))
        if outcome == UNFIT:
            (results / "root.log").write_text("the disk is broken\n")
            return 20
        if outcome == NOBODY:
            return 60
        (results / "state.log").write_text("2026-01-01 00:00:00,000 - Start: rpmbuild x.src.rpm\n")
        (results / "build.log").write_text("+ make\n")
        yield world.random.choice((0.5, 2.0))
        if outcome == FAILED:
            (results / "build.log").write_text("error: Bad exit status from /var/tmp/x (%build)\n")
            return 1
        text = package_text(package, "x86_64", is_source=True, release=release)
        (results / f"{package}-1-{release}.src.rpm").write_bytes(text)
        yield 0.1
        built = "i686" if arch == "i386" else arch
        (results / f"{package}-1-{release}.{built}.rpm").write_bytes(package_text(package, built, release=release))
        return 0

    def _find_missing(self, package: str) -> frozenset[str]:
        """Find what a package requires and no target has."""
        wanted = self.requirements.of_package.get(package)
        if not wanted:
            return frozenset()
        unlisted = wanted - self._list_provided()
        self.requirements.starts.append(Start(package=package, unlisted=unlisted, at=scheduler.world.now))
        return unlisted - self.requirements.old

    def _list_provided(self) -> set[str]:
        found: set[str] = set()
        for repomd in self.store.glob("repo/*/repodata/repomd.xml"):
            (href,) = re.findall(r'href="([^"]+)"', repomd.read_text())
            primary = gzip.decompress((repomd.parents[1] / href).read_bytes())
            found.update(re.findall(r'<rpm:entry name="([^"]+)"', primary.decode()))
        return found

    def _rsync(self, words: list[str]) -> Program:
        world, goal = scheduler.world, self.store / words[-1].removeprefix(UPLOAD)
        fails = self.fails("rsync")
        yield world.random.random() * 0.3
        goal.mkdir(exist_ok=True)
        for path in sorted(Path(words[-2]).iterdir()):
            if path.is_file():
                partial = goal / f".{path.name}.partial"
                partial.write_bytes(path.read_bytes())
                yield 0.05
                if fails and world.random.random() < 0.5:
                    return 12
                partial.replace(goal / path.name)
        return 12 if fails else 0

    def _createrepo_c(self, words: list[str]) -> Program:
        options = dict(zip(words, words[1:]))
        yield 0.1
        if "--pkglist" not in options:  # on one leg alone, to find out whether that is what it crashes at
            return 0
        target, output = Path(words[-1]), Path(options["--outputdir"]) / "repodata"
        names = Path(options["--pkglist"]).read_text().splitlines()
        yield scheduler.world.random.choice((0.2, 0.5, 3.0))
        if self.fails("createrepo_c"):
            return scheduler.world.random.choice((1, -9))
        paths = [path for path in names if (target / path).is_file()]
        packages = "".join(_primary_entry(path, (target / path).read_bytes()) for path in paths)
        text = gzip.compress(f'<metadata packages="{len(paths)}">\n{packages}</metadata>'.encode(), 1, mtime=0)
        name = f"{hashlib.sha256(text).hexdigest()}-primary.xml.gz"
        hidden = output.with_name(".repodata")
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir()
        (hidden / name).write_bytes(text)
        record = f'<data type="primary"><location href="repodata/{name}"/></data>'
        (hidden / "repomd.xml").write_text(f'<repomd xmlns="http://linux.duke.edu/metadata/repo">{record}</repomd>')
        yield 0.1
        if output.exists():
            output.rename(output.with_name("repodata.old.1.1"))
        hidden.rename(output)
        shutil.rmtree(output.with_name("repodata.old.1.1"), ignore_errors=True)
        return 0

    # --- servers

    def http_session(self) -> Any:
        """`core.http_client.HttpSession`."""
        from reimzul.core.http_client import Document, HttpUnavailable, NotFound

        def get_newer(url: str, limit: int, _: Document) -> Document:
            return Document(get(url, limit))

        def get(url: str, limit: int) -> bytes:
            scheduler.world.step("http get")
            if self.fails("http"):
                raise HttpUnavailable(f"{url}: no answer")
            try:
                return (self.store / url.removeprefix(BASE)).read_bytes()
            except OSError:
                raise NotFound(url) from None

        return contextlib.nullcontext(types.SimpleNamespace(get=get, get_newer=get_newer))

    @contextlib.contextmanager
    def open_url(self, url: str) -> Iterator[Any]:
        """`worker.download._open_url`."""
        scheduler.world.step("http source")
        if self.fails("http"):
            raise OSError("no answer")
        text = self.sources[url.removeprefix(INCOMING)]
        chunks = [text]
        yield types.SimpleNamespace(length=len(text), headers={}, read1=lambda _: chunks.pop() if chunks else b"")


def _fail_for_want(results: Path, missing: frozenset[str]) -> int:
    """Leave what mock leaves if nobody provides what the package requires; return its exit code."""
    lines = "".join(f"DEBUG util.py:460:  No matching package to install: '{each}'\n" for each in sorted(missing))
    (results / "root.log").write_text(f"{lines}DEBUG util.py:460:  Not all dependencies satisfied\n")
    (results / "state.log").write_text("2026-01-01 00:00:00,000 - Start: build setup for x.src.rpm\n")
    return 30


def _primary_entry(path: str, package: bytes) -> str:
    """An entry of primary.xml; a package provides its name."""
    checksum, name, arch = hashlib.sha256(package).hexdigest(), *(package.split()[each].decode() for each in (1, 4))
    return (
        f'<package><arch>{arch}</arch><checksum type="sha256" pkgid="YES">{checksum}</checksum>'
        f'<location href="{path}"/>'
        f'<format><rpm:provides><rpm:entry name="{name}"/></rpm:provides></format></package>\n'
    )


def read_header(path: Path) -> Any:
    """`core.rpm_header.read_header`."""
    from reimzul.core.errors import InputError
    from reimzul.core.rpm_header import Header

    words = path.read_bytes().partition(b"\n")[0].decode().split()
    if words[:1] != ["SIM"]:
        raise InputError(f"{path}: not an rpm package")
    _, name, version, release, arch, is_source = words
    if is_source == "1":
        return source_header(name, release)
    source = f"{name}-{version}-{release}.src.rpm"
    return Header(
        name=name, epoch=None, version=version, release=release, arch=arch, is_source=False, source_rpm=source
    )


def source_header(name: str, release: str = "1") -> Any:
    from reimzul.core.rpm_header import Header

    allowed = () if name.startswith(TWO_LEGS) else ("x86_64",)
    return Header(
        name=name, epoch=None, version="1", release=release, arch="x86_64", is_source=True, exclusive_arch=allowed
    )


class Roots:
    """`worker.roots.MockRoots`, without roots."""

    @contextlib.contextmanager
    def prepare_root(self, configdir: Path, extension: str, _: Any) -> Iterator[Any]:
        from reimzul.worker.roots import MockRoot

        yield MockRoot(configdir=str(configdir), uniqueext=extension, base="", name="sim")

    def extensions(self, arch: str) -> Generator[str, None, None]:
        yield f"reimzul-sim.{arch}"

    def nothing(self, *_: Any) -> None:
        """No root, so nothing to record or to clean."""

    record_start = record_end = clean = recover = nothing


@attr.frozen
class Configs:
    """`worker.mock_config.MockConfigRepo`, with one configuration that needs no rendering."""

    folder: Path

    def pull(self) -> Any:
        from reimzul.worker.mock_config import CheckoutState

        scheduler.world.sleep(scheduler.world.random.random())
        return CheckoutState("simulated")

    def check_required_files(self) -> None:
        """They are there."""

    def find_config(self, *_: str) -> Path:
        return self.folder / "mock.cfg"

    def render(self, config: Path) -> Path:
        return config.parent
