# SPDX-License-Identifier: Apache-2.0
"""The demo: a farm starts, builds real packages, and a real dnf finds them in its repository."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import attr

from devfarm.console import Console
from devfarm.demo_sources import demo_srpms
from devfarm.dnf_client import Dnf, check_digests
from devfarm.event_listener import Builds, EventListener, Leg, listen
from devfarm.farm import Farm
from devfarm.plan import Layout
from reimzul.core.errors import ReimzulError
from reimzul.core.message import Status
from reimzul.core.process import output_of
from reimzul.core.validators import is_source_rpm

TARGET = "demo.1"
#: Seconds without any news after which the demo gives up.
SILENCE_SECONDS = 1800
#: Seconds that staging for the signer may take once a build is published.
_STAGING_SECONDS = 30
_POLL_SECONDS = 0.1
_LAST_LINES = 25


@attr.frozen(kw_only=True)
class Demo:
    """One run of the demo."""

    farm: Farm
    cache: Path  #: source rpms made before
    console: Console

    def run(self, srpm: Path | None) -> None:
        """Run all of it. Raises `ReimzulError` where a step fails."""
        console = self.console
        console.print_title(f"A farm of {len(self.farm.hosts)} hosts on this machine, in {self.farm.layout.state}")
        self.farm.bring_up(console.print_line)
        console.print_title("Source rpms")
        packages = [srpm] if srpm else demo_srpms(self.cache, console.print_line)
        with listen(self.farm) as listener:
            builds = Builds(self.farm)
            for package in packages:
                self.submit(package, builds)
            console.print_title("Builds")
            self.follow(builds, listener)
        if builds.failed_legs:
            for leg in builds.failed_legs:
                self.show_failure(leg)
            raise ReimzulError(", ".join(f"{leg.name}: {leg.status}" for leg in builds.failed_legs))
        self.check_repository(builds)
        staged = self.wait_for_staging(builds)
        self.print_places(builds, staged)

    def submit(self, srpm: Path, builds: Builds) -> None:
        submitted = json.loads(output_of(self.farm.submit_command(srpm, TARGET, "--json")))
        for build in submitted["builds"]:
            builds.expect(build["build_id"], build["arch"])
            command = f"reimzul-submit -s {submitted['srpm']} -a {build['arch']} -t {TARGET} -d .demo"
            self.console.print_line(command)

    def follow(self, builds: Builds, listener: EventListener) -> None:
        """Print what happens until all builds are over."""
        last_news = time.monotonic()
        while not builds.all_over:
            for event in listener.read(_POLL_SECONDS):
                if leg := builds.apply(event):
                    self.console.print_line(describe_event(leg))
                    last_news = time.monotonic()
            for leg in builds.update_phases():
                last_news = time.monotonic()
                if not self.console.is_terminal:
                    self.console.print_line(f"{leg.name}: {leg.phase}")
            self.console.show_live([describe_progress(leg) for leg in builds.legs.values() if not leg.is_over])
            if time.monotonic() - last_news > SILENCE_SECONDS:
                logs = self.farm.layout.log
                raise ReimzulError(f"nothing has happened for {SILENCE_SECONDS} s; the logs are in {logs}")
        self.console.show_live([])

    def show_failure(self, leg: Leg) -> None:
        """Print why a build failed: its reason, where its logs are, and how they end."""
        event, console = leg.event, self.console
        assert event
        console.print_title(f"{leg.name} {leg.status}: {event.reason or 'no reason is given'}")
        if event.place:
            console.print_block(f"logs: {self.farm.layout.store.place(event.place)}")
        log = event.build_log or event.root_log
        console.print_block("\n".join(log.splitlines()[-_LAST_LINES:]))

    def check_repository(self, builds: Builds) -> None:
        """Have dnf list, download and check what was published. Raises `ReimzulError`."""
        console, farm = self.console, self.farm
        url = farm.repository(f"{TARGET}.{farm.arch}")
        dnf = Dnf(farm.layout.state / "dnf", url, farm.arch)
        console.print_title(f"dnf, with nothing but {url}")
        console.print_block(dnf.list_available())
        packages = dnf.download(farm.layout.state / "downloaded")
        built = {name for leg in builds.legs.values() for name in leg.rpms if not is_source_rpm(name)}
        if missing := built - {package.name for package in packages}:
            raise ReimzulError(f"dnf did not find all that was built: {', '.join(sorted(missing))}")
        check_digests(packages)
        console.print_line(f"dnf downloaded {len(packages)} packages; rpm finds all their digests right")

    def wait_for_staging(self, builds: Builds) -> list[Path]:
        """Wait for the folders for the signer. Raises `ReimzulError`."""
        deadline, tosign = time.monotonic() + _STAGING_SECONDS, self.farm.layout.store.tosign
        while True:
            folders = [path for leg in builds.legs.values() for path in tosign.glob(f"*/*.{leg.arch}.{leg.build_id}")]
            if len(folders) == len(builds.legs):
                return folders
            if time.monotonic() > deadline:
                raise ReimzulError(f"not all that was published is staged for signing: {tosign}")
            time.sleep(_POLL_SECONDS)

    def print_places(self, builds: Builds, staged: list[Path]) -> None:
        """Print where logs and packages are."""
        layout = self.farm.layout
        self.console.print_title("Where to find it")
        for leg in builds.legs.values():
            self.console.print_block(f"{leg.name}: packages and logs in {layout.store.place(leg.place)}")
        for folder in staged:
            self.console.print_block(f"to be signed: {folder}")
        self.console.print_block(f"downloaded by dnf: {layout.state / 'downloaded'}")
        self.console.print_block(f"one line an event: {layout.log / 'reimzul.log'}; the daemons' own logs beside it")


def describe_event(leg: Leg) -> str:
    """The last event of a leg, in a sentence."""
    event = leg.event
    assert event
    if event.status == Status.QUEUED:
        return f"{leg.name}: queued"
    if event.status == Status.BUILDING:
        skipped = "".join(f"; not for {arch}: {reason}" for arch, reason in event.skipped.items())
        return f"{leg.name}: building on {event.builder_fqdn}{skipped}"
    if event.status == Status.SUCCESS:
        return f"{leg.name}: built in {event.finished - event.started:.1f} s, uploaded: {', '.join(event.rpms)}"
    if event.status == Status.PUBLISHED:
        return f"{leg.name}: published in {event.target}"
    return f"{leg.name}: {event.status}: {event.reason}"


def describe_progress(leg: Leg) -> str:
    """The line of a leg that is not over."""
    where = f" on {leg.event.builder_fqdn}" if leg.event and leg.event.builder_fqdn else ""
    phase = f"  {leg.phase}" if leg.status == Status.BUILDING else ""
    return f"  {leg.seconds:6.1f} s  {leg.name}  {leg.status.lower()}{where}{phase}"


def remove_leftovers(layout: Layout) -> None:
    """Remove what nobody needs after a demo: keys, caches, checkouts."""
    made = [path for pattern in ("builder*", "roots*") for path in layout.state.glob(pattern)]
    for folder in (layout.keys, layout.tmp, layout.binlog, layout.state / "dnf", *made):
        shutil.rmtree(folder, ignore_errors=True)
