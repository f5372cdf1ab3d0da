# SPDX-License-Identifier: Apache-2.0
"""Five machines made into a farm by the commands of docs/install.md, as they are written there.

What a person types is written down with the time it took: the commands are counted.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attr

from devfarm.mockconfigs import MockConfigs
from tests import srpms
from tests.hosts import network, room
from tests.hosts.base import GIT_THERE, PACKAGES_THERE, SOURCES_THERE, WHEELS_THERE, Base, base
from tests.hosts.machine import DOMAIN, Machine
from tests.waiting import until

PROJECT = Path(__file__).parents[2]
NAMES = ("controller", "bstore", "b1", "b2", "customer")
BUILDERS = ("b1", "b2")
#: The target that docs/install.md submits to.
TARGET, ARCH, FOLLOWER = "test", "x86_64", "i386"
#: Where `reimzul setup bstore --public-port` serves repositories: what the customer has.
PUBLIC = 80
_INSTALL = PROJECT / "docs" / "install.md"
#: The last words of what setup asks.
_PASTE, _NO_URL = "an empty line ends them:", "for links (empty: none):"
#: Says a line in the report.
Tell = Callable[[str], None]
#: Seconds a build may take, on a machine that has other things to do.
BUILD = 600


@attr.frozen
class Typed:
    """One command line of a person."""

    machine: str
    line: str
    at: float  #: when, seconds since 1970
    seconds: float  #: how long it took
    shown: str  #: what the terminal showed, without keys
    part: str = ""  #: of the transcripts; empty: of installing


@attr.define
class Farm:
    """The machines, and what is asked of them as a farm."""

    folder: Path
    base: Base

    @property
    def typed(self) -> list[Typed]:
        """The commands that a person typed to set it up."""
        return [typed for typed in self.all_typed if not typed.part]

    @property
    def all_typed(self) -> list[Typed]:
        """All that a person typed."""
        return [Typed(**json.loads(row)) for row in self._typed.read_text().splitlines()]

    @property
    def _typed(self) -> Path:
        return self.folder / "typed"

    @property
    def shown(self) -> Mapping[Path, str]:
        """The part of this host that each machine sees."""
        return {
            self.base.packages: PACKAGES_THERE, self.base.wheels: WHEELS_THERE,
            self.folder / "git": GIT_THERE, self.folder / "srpms": SOURCES_THERE,
        }  # fmt: skip

    @property
    def machines(self) -> list[Machine]:
        """All five."""
        return [self[name] for name in NAMES]

    def __getitem__(self, name: str) -> Machine:
        number = NAMES.index(name) + 1
        shown = {} if name == "customer" else self.shown
        if name == "customer":  # it has the repository's URL, and packages of its distribution
            shown = {self.base.packages: PACKAGES_THERE}
        return Machine(name, number, self.folder, self.base.system, shown)

    @property
    def controller(self) -> Machine:
        """Where one submits."""
        return self["controller"]

    @property
    def bstore(self) -> Machine:
        """Where packages end up."""
        return self["bstore"]

    @property
    def builders(self) -> list[Machine]:
        """Both."""
        return [self[name] for name in BUILDERS]

    @property
    def farm(self) -> list[Machine]:
        """All but the customer."""
        return [machine for machine in self.machines if machine.name != "customer"]

    # --- making it ------------------------------------------------------------------------------------------------

    def make(self) -> None:
        """Boot five bare machines."""
        self._make_repositories()
        self._make_srpms()
        network.make_switch()
        hosts = {name: network.address(number) for number, name in enumerate(NAMES, 1)}
        for machine in self.machines:
            machine.make(hosts)
            shutil.copy(self.base.packages / "sources.list", machine.root / "etc/apt/sources.list")
            machine.boot()
        for machine in self.machines:
            machine.wait_up()
            machine.run("apt-get -q update")

    def _make_repositories(self) -> None:
        """The documents' git server: this checkout as it is, and configurations for mock."""
        checkout = self.folder / "git" / "reimzul"
        checkout.mkdir(parents=True)
        listed = _git(PROJECT, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ":!.*/")
        for name in filter(None, listed.split("\0")):
            source = PROJECT / name
            if source.is_file() or source.is_symlink():  # a deleted file that is not committed yet is listed too
                (checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, checkout / name, follow_symlinks=False)
        _git(checkout, "init", "--quiet")
        _git(checkout, "add", "--all")
        _git(checkout, "commit", "--quiet", "--message", "this checkout")
        configs = MockConfigs(self.folder / "git" / "mock_configs")
        configs.make(None)
        configs.add_target(TARGET, [ARCH, FOLLOWER])

    def _make_srpms(self) -> None:
        folder = self.folder / "srpms"
        folder.mkdir()
        for path in self.base.sources:
            shutil.copy(path, folder)
        srpms.make_srpm(folder, "some", srpms.noarch("some"))

    def install(self) -> None:
        """Do as docs/install.md says, from bare machines to the first package; what was typed is in `typed`."""
        documented = Documented.read()
        with ThreadPoolExecutor() as threads:
            names = (*BUILDERS, "bstore", "controller")
            for done in [threads.submit(self._install, name, documented) for name in names]:
                done.result()
        said = self.type("controller", documented.setup["controller"])
        keys = re.findall(r"^\S+:[0-9a-f]{32,}$", said, re.MULTILINE)
        self._set_up("bstore", documented, keys)  # a setup ends with doctor, who looks for it
        with ThreadPoolExecutor() as threads:
            for done in [threads.submit(self._set_up, name, documented, keys) for name in BUILDERS]:
                done.result()
        # a package of theirs
        self.controller.run(f"cp {SOURCES_THERE}/some-1.0-1.src.rpm reimzul/")
        for line in documented.use:
            self.type("controller", line)

    def _install(self, name: str, documented: Documented) -> None:
        self.type(name, documented.beforehand)
        for line in documented.install[_role(name)]:
            self.type(name, line)
        for line in documented.standin if name in BUILDERS else ():
            self.type(name, line)

    def _set_up(self, name: str, documented: Documented, keys: Sequence[str]) -> None:
        if name == "bstore":
            self.type(name, documented.setup["bstore"], (_PASTE, "\n".join(keys) + "\n\n"), (_NO_URL, "\n"))
            self.type(name, documented.public, (f"for links [http://bstore.{DOMAIN}/]:", "\n"))
        else:
            mine = next(key for key in keys if key.startswith(f"{name}:"))
            line = f"{documented.setup['builder'].replace('b1', name)} {documented.standin_option} --workers 2"
            self.type(name, line, (_PASTE, mine + "\n\n"))

    def type(self, name: str, line: str, *answers: tuple[str, str], part: str = "", code: int = 0) -> str:
        """A person types a line on a machine, and answers to what is shown; all of it. It is counted, and timed."""
        at = time.time()
        done = self[name].type(f"cd reimzul 2>/dev/null; {line}", answers, timeout=900, check=not code)
        assert done.code == code, done.said
        shown = re.sub(r"(:[0-9a-f]{4})[0-9a-f]{60}$", r"\1…", done.out, flags=re.MULTILINE)
        with self._typed.open("a") as typed:
            typed.write(json.dumps(attr.asdict(Typed(name, line, at, time.time() - at, shown, part))) + "\n")
        return done.out

    def write_transcript(self, title: str, *parts: str) -> Path:
        """Write what was typed and shown in these parts to a file that stays after the run."""
        folder = PROJECT / ".farm" / f"transcripts-{self.folder.name}"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"# {title}", ""]
        for typed in self.all_typed:
            if typed.part in parts:
                lines += [f"{typed.machine}$ {typed.line}", *typed.shown.rstrip("\n").splitlines(), ""]
        path = folder / f"{parts[-1]}.txt"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    # --- using it -------------------------------------------------------------------------------------------------

    def srpm(self, name: str, spec: str) -> str:
        """Make a source rpm that the controller can submit; its path there."""
        folder = self.folder / "srpms"
        made = next(folder.glob(f"{name}-1.0-1.src.rpm"), None) or srpms.make_srpm(folder, name, spec)
        return f"{SOURCES_THERE}/{made.name}"

    def slow(self, name: str, seconds: int) -> str:
        """A source rpm that sleeps in %build."""
        return self.srpm(name, srpms.slow(name, seconds))

    def submit(self, srpm: str, *words: str) -> str:
        """Submit a source rpm as anybody does; the build's id."""
        done = self.controller.run(f"reimzul-submit -s {srpm} -d .el9 -a {ARCH} -t {TARGET} --json {' '.join(words)}")
        return str(json.loads(done.out)["builds"][0]["build_id"])

    def legs(self, build: str) -> list[dict[str, Any]]:
        """The history's records of a build."""
        rows = self.controller.json(f"reimzul builds --build {build} --json")
        assert isinstance(rows, list)
        return rows

    def legs_of(self, srpm: str) -> list[dict[str, Any]]:
        """The same of all builds of a source rpm."""
        rows = self.controller.json(f"reimzul builds --srpm {srpm} --json")
        assert isinstance(rows, list)
        return rows

    def building_on(self, build: str, seconds: float = BUILD) -> Machine:
        """The machine that builds it, once one does."""

        def builder() -> Machine | None:
            names = [leg["builder"] or "" for leg in self.legs(build) if leg["state"] == "building"]
            return self[names[0].partition(".")[0]] if names else None

        return until(builder, seconds, f"{build} is being built")

    def published(self, build: str, seconds: float = BUILD) -> list[dict[str, Any]]:
        """Wait until all of a build is published; its legs."""

        def all_of_it() -> list[dict[str, Any]]:
            legs = self.legs(build)
            lost = [leg for leg in legs if leg["state"] not in ("queued", "building", "built", "published")]
            assert not lost, lost
            return legs if legs and all(leg.get("published") for leg in legs) else []

        return until(all_of_it, seconds, f"{build} is published; it is {self.legs(build)}")

    def once(self, build: str) -> None:
        """Fail where a published build did not show exactly once: its place, its packages, its words in the log."""
        store, log = self.bstore.root / "srv/reimzul/bstore", self.controller.read("/var/log/reimzul/reimzul.log")
        manifests = [json.loads(path.read_text()) for path in store.glob("repo/*/*/*/*/build.json")]
        listed = _list_places(store / "repo" / f"{TARGET}.{ARCH}")
        for leg in self.legs(build):
            mine = [one for one in manifests if one["request"]["build_id"] == build and one["arch"] == leg["arch"]]
            assert len(mine) == 1, mine
            counted = {name: listed.count(f"{leg['place']}/{name}") for name in leg["rpms"]}
            assert counted == dict.fromkeys(leg["rpms"], 1)
            about = f"SRPM {leg['srpm']} ({leg['timestamp']}) for arch {leg['arch']} "
            told = re.findall(rf"{re.escape(about)}.* status (\w+) ", log)
            assert told.count("Published") == 1, told
            assert told.count("Success") <= 1, told
            # a leg whose packages another leg of its build has published has nothing to be signed
            assert len(list(store.glob(f"tosign/*/*.{leg['arch']}.{build}"))) == bool(leg["rpms"])

    def wait_idle(self, seconds: float = BUILD) -> None:
        """Wait until all tubes are empty and no delivery is pending."""

        def idle() -> bool:
            said = self.controller.json("reimzul queues --json")
            assert isinstance(said, dict)
            busy = [row for row in said["tubes"] if row["ready"] or row["reserved"] or row["delayed"] or row["buried"]]
            return not busy and not said["pending"]

        until(idle, seconds, f"nothing is under way any more: {self.controller.run('reimzul queues').out}")

    def watchers(self, tube: str = ARCH) -> int:
        """How many watch a tube."""
        rows = self.controller.json("reimzul queues --json")
        assert isinstance(rows, dict), rows
        found = [row["watchers"] for row in rows["tubes"] if row["name"] == tube]
        return int(found[0]) if found else 0

    def doctor(self, name: str, *words: str, prefix: str = "") -> Diagnosis:
        """Run doctor on a machine."""
        done = self[name].run(f"{prefix} reimzul doctor --json {' '.join(words)}", check=False, timeout=300)
        assert done.code in (0, 1), done.said
        return Diagnosis(done.code, json.loads(done.out)["checks"])

    def heal(self) -> None:
        """Have all machines up, linked, and their units running."""
        for machine in self.farm:
            if machine.leader() is None:
                machine.boot()
            machine.mend_link()
        for machine in self.farm:
            machine.wait_up()
            machine.run("systemctl reset-failed; systemctl start multi-user.target", check=False)

    def keep(self) -> None:
        """Copy the journals of all machines to a folder that stays after the run."""
        goal = PROJECT / ".farm" / f"hosts-{time.strftime('%Y%m%d-%H%M%S')}"
        goal.mkdir(parents=True)
        for machine in self.machines:
            if machine.folder.exists():
                machine.keep(goal)
        print(f"\nfarm-test: what the machines said is in {goal}", flush=True)


@attr.frozen
class Diagnosis:
    """The findings of doctor."""

    code: int
    checks: list[dict[str, Any]]

    @property
    def failed(self) -> list[str]:
        """The checks that fail."""
        return [check["name"] for check in self.checks if check["level"] == "FAIL"]

    @property
    def text(self) -> str:
        """All but what is well."""
        rows = [check for check in self.checks if check["level"] != "ok"]
        return "\n".join(f"  {row['level']} {row['name']}: {row['message']} ({row['remedy']})" for row in rows)

    def words(self, name: str) -> str:
        """The message of a check."""
        return str(self._check(name)["message"])

    def remedy(self, name: str) -> str:
        """The hint of a check."""
        return str(self._check(name)["remedy"])

    def level(self, name: str) -> str:
        """How bad a check is."""
        return str(self._check(name)["level"])

    def _check(self, name: str) -> dict[str, Any]:
        return next(check for check in self.checks if check["name"] == name)


def _role(name: str) -> str:
    return "builder" if name in BUILDERS else name


@attr.frozen
class Documented:
    """The commands of docs/install.md."""

    beforehand: str
    install: Mapping[str, Sequence[str]]  #: what installs each role
    setup: Mapping[str, str]  #: what sets it up
    standin: Sequence[str]  #: what a builder without mock needs first
    standin_option: str
    use: Sequence[str]  #: the first package
    public: str  #: what offers it to everybody

    @classmethod
    def read(cls) -> Documented:
        """From "Four machines": a block for each role."""
        text = _INSTALL.read_text(encoding="utf-8").partition("## Four machines")[2].partition("\n## ")[0]
        blocks = [[row.strip() for row in block.splitlines()] for block in re.findall(r"(?:^    .+\n)+", text, re.M)]
        by_role = {row.split("ROLE=")[1]: block for block in blocks for row in block if "ROLE=" in row}
        (use,) = (block for block in blocks if any("reimzul-submit" in row for row in block))
        (standin,) = (block for block in blocks if any("standin" in row for row in block))
        (option,) = re.findall(r"`(--set worker\.mock=\S+)`", text)
        (public,) = (row for block in blocks for row in block if "--public-port" in row)
        packages = re.search(r"`(apt-get install [^`]+)`", text)
        assert packages, text
        assert set(by_role) == {"controller", "bstore", "builder"}, text
        return cls(
            beforehand=packages[1],
            install={role: block[:-1] for role, block in by_role.items()},
            setup={role: block[-1] for role, block in by_role.items()},
            standin=standin,
            standin_option=option,
            use=use,
            public=public,
        )


def _list_places(repository: Path) -> list[str]:
    """The places of all packages that a repository's index lists, in the store."""
    found = re.search(r'href="([^"]+primary.xml.gz)"', (repository / "repodata/repomd.xml").read_text())
    assert found
    index = gzip.decompress((repository / found[1]).read_bytes()).decode()
    return [f"repo/{repository.name}/{place}" for place in re.findall(r'<location [^>]*href="([^"]+)"', index)]


def bring_up_farm(folder: Path) -> Farm:
    """A farm in the room of this run: the one that is there, or a new one."""
    farm = Farm(folder, base())
    if not (folder / room.UP).exists():
        try:
            farm.make()
            farm.install()
        except BaseException:
            farm.keep()
            raise
        (folder / room.UP).touch()
    return farm


def _git(folder: Path, *words: str) -> str:
    argv = ["git", "-C", str(folder), "-c", "user.name=farm test", "-c", "user.email=farm@example.org", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
