# SPDX-License-Identifier: Apache-2.0
"""The demo: a farm starts, builds real packages, and a real dnf finds them in its repository."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attr

from devfarm.demo_sources import demo_srpms
from devfarm.dnf_client import Dnf, check_digests
from devfarm.farm import Farm
from devfarm.plan import Layout
from devfarm.processes import own_program
from reimzul.admin.lookup import BuildLegs, group_by_build, reading_history
from reimzul.admin.watch import LegRow, TableScreen, is_build_over, make_row
from reimzul.core.arch import read_arches
from reimzul.core.errors import ReimzulError
from reimzul.core.message import Status
from reimzul.core.process import output_of
from reimzul.core.validators import is_source_rpm
from reimzul.history import BuildFilter, BuildRecord, NoHistory
from reimzul.history.build_record import BuildState

TARGET = "demo.1"
#: Seconds without any news after which the demo gives up.
SILENCE_SECONDS = 1800
#: Seconds that staging for the signer may take once a build is published.
_STAGING_SECONDS = 30
_POLL_SECONDS = 0.25
_LAST_LINES = 25
#: rpmbuild's section in build.log, and mock's own step in state.log.
_PHASES = {
    "build.log": re.compile(
        r"^Executing\((%(?:prep|generate_buildrequires|conf|build|install|check))\):", re.MULTILINE
    ),
    "state.log": re.compile(r" - Start(?:\(\w+\))?: (.+)$", re.MULTILINE),
}
#: How much of a growing log is searched for its last phase, bytes.
_TAIL_BYTES = 256 * 1024
_STARTED = time.monotonic()


def print_title(text: str) -> None:
    print(f"\n\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def print_line(text: str) -> None:
    print(f"  {time.monotonic() - _STARTED:6.1f} s  {text}", flush=True)


def print_block(text: str) -> None:
    print("\n".join(f"  {line}" for line in text.rstrip().splitlines()), flush=True)


def run_demo(farm: Farm, cache: Path, srpm: Path | None) -> None:
    """Run all of it; `cache` has source rpms made before. Raises `ReimzulError` where a step fails."""
    print_title(f"A farm of {len(farm.hosts)} hosts on this machine, in {farm.layout.state}")
    farm.bring_up(print_line)
    print_title("Source rpms")
    packages = [srpm] if srpm else demo_srpms(cache, print_line)
    build_ids = [submit(farm, package) for package in packages]
    print_title("Builds")
    legs = follow(farm, build_ids)
    if failed := [leg for leg in legs if leg.state != BuildState.PUBLISHED]:
        for leg in failed:
            show_failure(farm, leg)
        raise ReimzulError(", ".join(f"{name_leg(leg)}: {leg.status}" for leg in failed))
    check_repository(farm, legs)
    print_places(farm.layout, legs, wait_for_staging(farm.layout, legs))


def submit(farm: Farm, srpm: Path) -> str:
    submitted = json.loads(output_of(farm.submit_command(srpm, TARGET, "--json")))
    (build,) = submitted["builds"]
    print_line(f"reimzul-submit -s {submitted['srpm']} -a {build['arch']} -t {TARGET} -d .demo")
    return str(build["build_id"])


def follow(farm: Farm, build_ids: Sequence[str]) -> list[BuildRecord]:
    """Show what happens until all builds are over, on a terminal as `reimzul watch` does; return their legs."""
    arches, screen, is_terminal = read_arches(), TableScreen(), sys.stdout.isatty()
    printed: set[str] = set()
    last_news, over = time.monotonic(), False
    while not over:
        time.sleep(_POLL_SECONDS)
        builds = read_builds(farm, build_ids)
        rows = [[make_leg_row(farm, leg) for leg in build.legs] for build in builds]
        if is_terminal:
            screen.show([row for legs in rows for row in legs], "")
        for line in describe_builds(builds, rows):
            if line not in printed:
                last_news = time.monotonic()
                printed.add(line)
                if not is_terminal:
                    print_line(line)
        ended = [is_build_over(build, legs, arches, gone=not build.main.pkgname) for build, legs in zip(builds, rows)]
        over = sum(ended) == len(build_ids)
        if time.monotonic() - last_news > SILENCE_SECONDS:
            raise ReimzulError(f"nothing has happened for {SILENCE_SECONDS} s; the logs are in {farm.layout.log}")
    return [leg for build in builds for leg in build.legs]


def read_builds(farm: Farm, build_ids: Sequence[str]) -> list[BuildLegs]:
    with contextlib.suppress(NoHistory), reading_history(f"sqlite:///{farm.layout.history}") as history:
        return group_by_build(leg for each in build_ids for leg in history.find_builds(BuildFilter(build_id=each), 50))
    return []


def make_leg_row(farm: Farm, leg: BuildRecord) -> LegRow:
    """A leg in `reimzul watch`'s table, with its phase from mock's logs: builders and demo share a machine."""
    row = make_row(leg, time.time(), None, None, None)
    if leg.status != Status.BUILDING:
        return row
    folders = (farm.layout.results(host.name) for host in farm.hosts if host.is_builder)
    paths = (path for folder in folders for path in folder.glob(f"builds/*{leg.attempt}*/{leg.arch}/result"))
    found = [phase for folder in paths for phase in _read_phases(folder)]
    return attr.evolve(row, words=found[0]) if found else row


def _read_phases(folder: Path) -> Iterator[str]:
    """The last phase of each of mock's logs in a result folder."""
    for name, pattern in _PHASES.items():
        with contextlib.suppress(OSError), (folder / name).open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
            yield from pattern.findall(log.read().decode(errors="replace"))[-1:]


def describe_builds(builds: Sequence[BuildLegs], rows: Sequence[Sequence[LegRow]]) -> Iterator[str]:
    """What is to be said of builds now, a line each."""
    for build, legs in zip(builds, rows):
        for leg, row in zip(build.legs, legs):
            name = name_leg(leg)
            if leg.is_queued:
                yield f"{name}: queued"
            elif leg.status == Status.BUILDING:
                skipped = "".join(f"; not for {arch}: {reason}" for arch, reason in leg.skipped.items())
                yield f"{name}: building on {leg.builder_fqdn}{skipped}"
                if row.words != "builds":  # no phase is known yet
                    yield f"{name}: {row.words}"
            elif leg.status == Status.SUCCESS:
                yield f"{name}: built in {leg.finished - leg.started:.1f} s, uploaded: {', '.join(leg.rpms)}"
                if leg.published:
                    yield f"{name}: published in {leg.target}"
            else:
                yield f"{name}: {leg.status}: {leg.reason}"


def name_leg(leg: BuildRecord) -> str:
    return f"{leg.pkgname} {leg.evr}.{leg.arch}" if leg.pkgname else f"{leg.srpm} for {leg.arch}"


def show_failure(farm: Farm, leg: BuildRecord) -> None:
    """Print why a build failed: its reason, where its logs are, and how they end."""
    print_title(f"{name_leg(leg)} {leg.status}: {leg.reason or 'no reason is given'}")
    if leg.place:
        print_block(f"logs: {farm.layout.store.place(leg.place)}")
    with contextlib.suppress(ReimzulError):  # it may have none
        argv = [own_program("reimzul"), "log", leg.build_id, "--arch", leg.arch, "--config", str(farm.ini())]
        print_block("\n".join(output_of(argv).splitlines()[-_LAST_LINES:]))


def check_repository(farm: Farm, legs: Sequence[BuildRecord]) -> None:
    """Have dnf list, download and check what was published. Raises `ReimzulError`."""
    url = farm.repository(f"{TARGET}.{farm.arch}")
    dnf = Dnf(farm.layout.state / "dnf", url, farm.arch)
    print_title(f"dnf, with nothing but {url}")
    print_block(dnf.list_available())
    packages = dnf.download(farm.layout.state / "downloaded")
    built = {name for leg in legs for name in leg.rpms if not is_source_rpm(name)}
    if missing := built - {package.name for package in packages}:
        raise ReimzulError(f"dnf did not find all that was built: {', '.join(sorted(missing))}")
    check_digests(packages)
    print_line(f"dnf downloaded {len(packages)} packages; rpm finds all their digests right")


def wait_for_staging(layout: Layout, legs: Sequence[BuildRecord]) -> list[Path]:
    """Wait for the folders for the signer. Raises `ReimzulError`."""
    deadline, tosign = time.monotonic() + _STAGING_SECONDS, layout.store.tosign
    while True:
        folders = [path for leg in legs for path in tosign.glob(f"*/*.{leg.arch}.{leg.build_id}")]
        if len(folders) == len(legs):
            return folders
        if time.monotonic() > deadline:
            raise ReimzulError(f"not all that was published is staged for signing: {tosign}")
        time.sleep(_POLL_SECONDS)


def print_places(layout: Layout, legs: Sequence[BuildRecord], staged: Sequence[Path]) -> None:
    print_title("Where to find it")
    for leg in legs:
        print_block(f"{name_leg(leg)}: packages and logs in {layout.store.place(leg.place)}")
    for folder in staged:
        print_block(f"to be signed: {folder}")
    print_block(f"downloaded by dnf: {layout.state / 'downloaded'}")
    print_block(f"one line an event: {layout.log / 'reimzul.log'}; the daemons' own logs beside it")


def remove_leftovers(layout: Layout) -> None:
    """Remove what nobody needs after a demo: keys, caches, checkouts."""
    made = [path for pattern in ("builder*", "roots*") for path in layout.state.glob(pattern)]
    for folder in (layout.keys, layout.tmp, layout.binlog, layout.state / "dnf", *made):
        shutil.rmtree(folder, ignore_errors=True)
