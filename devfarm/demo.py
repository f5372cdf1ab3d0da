# SPDX-License-Identifier: Apache-2.0
"""The show: a farm comes up, builds real packages, and a real dnf finds them in its repository."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import attr

from devfarm.customer import Dnf, check
from devfarm.farm import Farm
from devfarm.follow import Builds, Ears, Leg, listening
from devfarm.plan import Layout
from devfarm.screen import Screen
from devfarm.sources import demo_srpms
from reimzul.core.errors import ReimzulError
from reimzul.core.message import Status
from reimzul.core.process import output_of
from reimzul.core.validators import is_source_rpm

TARGET = "demo.1"
#: Seconds without any news after which the demo gives up.
SILENCE = 1800
#: Seconds that staging for the signer may take once a build is published.
_STAGING = 30
_LOOK = 0.1  # seconds
_LAST_LINES = 25


@attr.frozen(kw_only=True)
class Demo:
    """One run of it."""

    farm: Farm
    cache: Path  #: sources fetched before
    screen: Screen

    def run(self, srpm: Path | None) -> None:
        """All of it. Raises `ReimzulError` in a line where something does not work out."""
        screen = self.screen
        screen.title(f"A farm of {len(self.farm.hosts)} hosts on this machine, in {self.farm.layout.state}")
        self.farm.up(screen.say)
        screen.title("Source rpms")
        packages = [srpm] if srpm else demo_srpms(self.cache, screen.say)
        with listening(self.farm) as ears:
            builds = Builds(self.farm)
            for package in packages:
                self.submit(package, builds)
            screen.title("Builds")
            self.follow(builds, ears)
        self.prove(builds)

    def submit(self, srpm: Path, builds: Builds) -> None:
        """Submit a source rpm as anybody does."""
        said = json.loads(output_of(self.farm.submit_command(srpm, TARGET, "--json")))
        for build in said["builds"]:
            builds.expect(build["build_id"], build["arch"])
            self.screen.say(f"reimzul-submit -s {said['srpm']} -a {build['arch']} -t {TARGET} -d .demo")

    def follow(self, builds: Builds, ears: Ears) -> None:
        """Say what happens until all has ended. Raises `ReimzulError` where a build is lost."""
        news = time.monotonic()
        while not builds.ended:
            told = []
            for event in ears.hear(_LOOK):
                if leg := builds.heed(event):
                    self.screen.say(sentence(leg))
                    told.append(leg)
            changed = builds.look()
            for leg in changed:
                if not self.screen.live:
                    self.screen.say(f"{leg.name}: {leg.phase}")
            self.screen.show([under_way(leg) for leg in builds.legs.values() if not leg.ended])
            if told or changed:
                news = time.monotonic()
            if time.monotonic() - news > SILENCE:
                raise ReimzulError(f"nothing has happened for {SILENCE} s; the logs are in {self.farm.layout.log}")
        self.screen.show([])
        for leg in builds.lost:
            self.explain(leg)
        if builds.lost:
            raise ReimzulError(", ".join(f"{leg.name}: {leg.status}" for leg in builds.lost))

    def explain(self, leg: Leg) -> None:
        """Why a build was lost: its reason, where its logs are, and how they end."""
        assert leg.event
        screen = self.screen
        screen.title(f"{leg.name} {leg.status}: {leg.event.reason or 'no reason is given'}")
        if leg.event.place:
            screen.text(f"logs: {self.farm.layout.store.place(leg.event.place)}")
        said = leg.event.build_log or leg.event.root_log
        screen.text("\n".join(said.splitlines()[-_LAST_LINES:]))

    def prove(self, builds: Builds) -> None:
        """Have dnf find and take what was published, and say where all of it lies."""
        screen, farm = self.screen, self.farm
        target = f"{TARGET}.{farm.arch}"
        dnf = Dnf(farm.layout.state / "dnf", farm.repository(target), farm.arch)
        screen.title(f"dnf, with nothing but {farm.repository(target)}")
        screen.text(dnf.listing())
        packages = dnf.download(farm.layout.state / "downloaded")
        built = {name for leg in builds.legs.values() for name in leg.rpms if not is_source_rpm(name)}
        if missing := built - {package.name for package in packages}:
            raise ReimzulError(f"dnf did not find all that was built: {', '.join(sorted(missing))}")
        check(packages)
        screen.say(f"{len(packages)} packages downloaded by dnf; rpm finds all their digests right")
        staged = self.staged(builds)
        screen.title("Where it lies")
        self.places(builds, staged)

    def staged(self, builds: Builds) -> list[Path]:
        """The folders that wait for the signer, once all are there. Raises `ReimzulError`."""
        deadline = time.monotonic() + _STAGING
        while True:
            tosign = self.farm.layout.store.tosign
            folders = [path for leg in builds.legs.values() for path in tosign.glob(f"*/*.{leg.arch}.{leg.build_id}")]
            if len(folders) == len(builds.legs):
                return folders
            if time.monotonic() > deadline:
                raise ReimzulError(f"not all that was published is staged for signing: {tosign}")
            time.sleep(_LOOK)

    def places(self, builds: Builds, staged: Sequence[Path]) -> None:
        """Where logs, packages and what is to be signed can be found."""
        layout = self.farm.layout
        for leg in builds.legs.values():
            self.screen.text(f"{leg.name}: packages and logs in {layout.store.place(leg.place)}")
        for folder in staged:
            self.screen.text(f"to be signed: {folder}")
        self.screen.text(f"what dnf downloaded: {layout.state / 'downloaded'}")
        self.screen.text(f"one line an event: {layout.log / 'reimzul.log'}; the daemons' own logs beside it")


def sentence(leg: Leg) -> str:
    """What was last told of a leg, for people."""
    event = leg.event
    assert event
    if event.status == Status.QUEUED:
        return f"{leg.name}: queued"
    if event.status == Status.BUILDING:
        not_built = "".join(f"; not for {arch}: {why}" for arch, why in event.skipped.items())
        return f"{leg.name}: building on {event.builder_fqdn}{not_built}"
    if event.status == Status.SUCCESS:
        return f"{leg.name}: built in {event.finished - event.started:.1f} s, uploaded: {', '.join(event.rpms)}"
    if event.status == Status.PUBLISHED:
        return f"{leg.name}: published in {event.target}"
    return f"{leg.name}: {event.status}: {event.reason}"


def under_way(leg: Leg) -> str:
    """What a build is at, while it is."""
    where = f" on {leg.event.builder_fqdn}" if leg.event and leg.event.builder_fqdn else ""
    phase = f"  {leg.phase}" if leg.status == Status.BUILDING else ""
    return f"  {leg.seconds:6.1f} s  {leg.name}  {leg.status.lower()}{where}{phase}"


def tidy(layout: Layout) -> None:
    """Take away what nobody looks at after a demo: keys that open nothing any more, caches, checkouts."""
    made = [path for pattern in ("builder*", "roots*") for path in layout.state.glob(pattern)]
    for folder in (layout.keys, layout.tmp, layout.binlog, layout.state / "dnf", *made):
        shutil.rmtree(folder, ignore_errors=True)
