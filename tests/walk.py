# SPDX-License-Identifier: Apache-2.0
"""A working day on a farm, as `docs/operating.md` has it: `python -m tests.walk` runs it and updates the page.

A test runs it too and compares the page with the result: every command, its exit code, and its output apart from ids,
times and numbers.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attr

from devfarm.farm import Farm
from devfarm.plan import BSTORE, CONTROLLER
from reimzul.core.message import WorkerState
from reimzul.history.workers import WorkerStore
from tests import srpms
from tests.terminal import run_on_terminal
from tests.waiting import until

PAGE = Path(__file__).parents[1] / "docs" / "operating.md"
BEGIN, END = "<!-- the day: python -m tests.walk -->\n", "<!-- the day's end -->\n"
TARGET = "demo.1"
#: The terminal that outputs are made for.
COLUMNS = 116
#: The options that all submissions of the day have.
AS = f"-a x86_64 -t {TARGET} -d .demo"


@attr.frozen(kw_only=True)
class Step:
    """A command of the day, or words between two of them."""

    command: str = ""  #: {name} is the id of the build that was submitted under it, shortened
    words: str = ""
    code: int = 0
    name: str = ""  #: of the build that it submits
    host: str = CONTROLLER
    lines: bool = False  #: in a pipe, where what comes in between is another's each time: only its end is compared
    columns: int = 0  #: of a table that are compared; all
    any_order: bool = False  #: how fast the machine is decides the order of its lines
    before: Callable[[Day], None] | None = None  #: what to wait for first


class Day:
    """The day, on a farm that is up."""

    def __init__(self, farm: Farm, sources: Path) -> None:
        self.farm, self.sources = farm, sources
        self.ids: dict[str, str] = {}

    def run(self) -> Iterator[tuple[Step, str, str]]:
        """Each step with its command as it was typed, and what that printed."""
        for step in STEPS:
            if step.before:
                step.before(self)
            if not step.command:
                yield step, "", ""
                continue
            shortened = {name: build_id[:8] for name, build_id in self.ids.items()}
            typed = step.command.format(**shortened)
            code, said = self.type(typed, step)
            assert code == step.code, f"{typed}: {code}\n{said}"
            found = re.search(r"^([0-9a-f]{8,32})\s|\bbuild ([0-9a-f]{32})", said, re.MULTILINE)
            if step.name and found:
                self.ids[step.name] = found[1] or found[2]
            yield step, typed, said

    def type(self, typed: str, step: Step) -> tuple[int, str]:
        """Run a command as a person does; one filter behind it is this test's own, as no shell is asked."""
        command, _, through = typed.partition(" | ")
        program, *words = shlex.split(command)
        argv = [str(Path(sys.executable).with_name(program)), *words]
        env = {**os.environ, "REIMZUL_CONFIG": str(self.farm.ini(step.host)), "COLUMNS": str(COLUMNS), "TERM": "dumb"}
        if through or step.lines:
            code, said = _in_a_pipe(argv, self.sources, env)
        else:
            code, said = run_on_terminal(argv, self.sources, env, columns=COLUMNS)
        return code, "".join(f"{line}\n" for line in _filtered(said.splitlines(), through))

    def is_over(self, name: str) -> bool:
        """Whether a build has come to its end."""
        env = {**os.environ, "REIMZUL_CONFIG": str(self.farm.ini())}
        argv = [str(Path(sys.executable).with_name("reimzul")), "watch", self.ids[name], "--json"]
        return subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=False, timeout=120).returncode in (0, 1)

    def workers(self) -> dict[str, tuple[str, str]]:
        """The state of each builder's worker, and its phase."""
        seen = [each.heartbeat for each in WorkerStore(self.farm.layout.notifier / "presence.sqlite").load_workers()]
        return {each.host.split(".")[0]: (each.state, each.build.phase if each.build else "") for each in seen}

    def doing(self, builder: str) -> tuple[str, str]:
        """The same of one of them."""
        return self.workers().get(builder, ("", ""))


def _wait_until_drained(day: Day) -> None:
    states = {"builder1": WorkerState.DRAINED, "builder2": WorkerState.IDLE}
    until(lambda: {name: day.doing(name)[0] for name in states} == states, 60, "builder1 is drained, and builder2 free")


def _is_slow(day: Day) -> None:
    until(lambda: "rpmbuild" in day.doing("builder2")[1], 60, "the long build is told to be at rpmbuild")
    _has_log(day)


def _at_rest(day: Day) -> None:
    until(lambda: day.is_over("again"), 120, "the build is over")
    until(
        lambda: {state for state, _ in day.workers().values()} == {WorkerState.IDLE}, 60, "both builders say they wait"
    )


def _all_there(day: Day) -> None:
    until(lambda: set(day.workers()) == {"builder1", "builder2"}, 60, "both builders have said that they are there")


def _has_log(day: Day) -> None:
    env = {**os.environ, "REIMZUL_CONFIG": str(day.farm.ini())}
    argv = [str(Path(sys.executable).with_name("reimzul")), "log", day.ids["slow"]]

    def ticks() -> bool:
        return b"tick 3" in subprocess.run(argv, env=env, capture_output=True, check=False).stdout

    until(ticks, 60, "the log of the long build can be read")


STEPS: Sequence[Step] = (
    Step(words="In the morning, who is there? (FAULTS are attempts that were the builder's own fault.)"),
    Step(command="reimzul builders", columns=3, before=_all_there),
    Step(words="A package to build. `--wait` follows it until it is published; in a pipe, a line for each change."),
    Step(command=f"reimzul-submit -s hello-1.0-1.src.rpm {AS} --wait", name="hello", lines=True),
    Step(command="reimzul show {hello}"),
    Step(words="The next one fails on one of its arches, and the exit code is 1. What is wrong?"),
    Step(command=f"reimzul-submit -s half-1.0-1.src.rpm {AS} --wait", name="half", code=1, lines=True),
    Step(command="reimzul explain {half}"),
    Step(command="reimzul log {half} --arch i386 | tail -3"),
    Step(words="What failed can be built again by itself; x86_64 is published and stays."),
    Step(command="reimzul retry {half} --failed", name="again"),
    Step(words="builder1 is to get a new disk. It finishes what it has, and takes nothing more."),
    Step(command='reimzul drain builder1 --why "new disk"', before=_at_rest),
    Step(command="reimzul builders", columns=3, before=_wait_until_drained),
    Step(words="With one builder left, a long build makes the others wait."),
    Step(command=f"reimzul-submit -s slow-1.0-1.src.rpm {AS}", name="slow"),
    Step(command=f"reimzul-submit -s hello-1.0-1.src.rpm {AS} --rebuild", name="second", before=_is_slow),
    Step(command=f"reimzul-submit -s tree-1.0-1.src.rpm {AS} --scratch", name="tree"),
    Step(command="reimzul explain {tree}"),
    Step(words="It is urgent: it goes first. And the long one, is it getting anywhere?"),
    Step(command="reimzul raise {tree}"),
    Step(command="reimzul log {slow} | tail -2"),
    Step(words="It is of the wrong branch, and ends within seconds; the others go on."),
    Step(command='reimzul cancel {slow} --why "wrong branch"'),
    Step(command="reimzul watch {tree} {second}", lines=True),
    Step(command="reimzul resume builder1"),
    Step(words="In the evening: what was done, and in figures. Prometheus has the same from `reimzul metrics`."),
    Step(command="reimzul builds", any_order=True),
    Step(command="reimzul stats --since 24h", any_order=True),
    Step(command="reimzul metrics | grep ^reimzul_day_builds"),
    Step(words="On bstore, what old builds take, and a scratch build that nobody needs any more."),
    Step(command="reimzul prune --target demo.1 --keep 1 --dry-run", host=BSTORE),
    Step(command="reimzul scratch list", host=BSTORE),
    Step(command="reimzul scratch rm {tree} --yes", host=BSTORE),
)


def sources(folder: Path) -> Path:
    """The day's source rpms."""
    for name, spec in (
        ("hello", srpms.compiled("hello")),
        ("half", srpms.fails_on("half", "i686")),
        ("slow", srpms.slow("slow", 600)),
        ("tree", srpms.noarch("tree")),
    ):
        srpms.make_srpm(folder, name, spec)
    return folder


def farm(folder: Path) -> Farm:
    """The farm of the day."""
    return Farm(folder, builders=2, targets=(TARGET,))


# --- running commands


def _in_a_pipe(argv: Sequence[str], folder: Path, env: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=180, check=False)
    return done.returncode, done.stdout + done.stderr


def _filtered(lines: Sequence[str], through: str) -> Sequence[str]:
    if not through:
        return lines
    program, word = through.split()
    return lines[-int(word[1:]) :] if program == "tail" else [line for line in lines if re.search(word, line)]


# --- on the page


def text(told: Iterator[tuple[Step, str, str]], folder: Path) -> str:
    """The day as the page has it."""
    parts = []
    for step, typed, said in told:
        if step.words:
            parts.append(f"\n{step.words}\n\n")
            continue
        shown = said.replace(str(folder), "/srv/farm")
        parts.append("".join(f"    {line}".rstrip() + "\n" for line in [f"$ {typed}", *shown.splitlines()]) + "\n")
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).strip("\n") + "\n"


def blocks(day: str) -> list[tuple[str, list[str]]]:
    """The commands of a day's text, and the lines of their outputs."""
    found: list[tuple[str, list[str]]] = []
    for line in day.splitlines():
        if line.startswith("    $ "):
            found.append((line[6:], []))
        elif line.startswith("    ") and found:
            found[-1][1].append(line[4:])
    return found


#: Patterns of text that differs each time, and what they are replaced by before the comparison; in this order.
_VOLATILE = (
    (r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}$", "SHA256"),
    (r"\b\d{9,12}-[0-9a-f]{8}\b", "ATTEMPT"),
    (r"\b[0-9a-f]{32}\b", "ID"),
    (r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "TIME"),
    (r"\b\d{14}\b", "STAMP"),
    (r"\.cfg [0-9a-f]{12}\b", ".cfg COMMIT"),
    (r"rpm-tmp\.\w+", "rpm-tmp"),
    (r"\bspare\d+\b", "SLOT"),
    (r"\b[0-9a-f]{8}\b", "ID"),
    (r"\b\d+ (?:d \d+ h|h \d+ min|min \d+ s)\b", "SPAN"),
    (r"\b\d+(?:\.\d)? s\b", "SPAN"),
    (r"\b[\d.]+ (?:bytes|[KMGT]iB)", "SIZE"),
    (r"127\.0\.0\.1:\d+", "HOST"),
    (r"\bbuilder\d\.farm\.test\b", "BUILDER"),
    (r"\bby \w+\b", "by WHO"),
    (r"\b(?:job|priority) \d+", "N"),
    (r"\b\d[\d,.]*\b", "N"),
    (r"\s+", " "),
)


def alike(line: str) -> str:
    """A line without what is another's each time."""
    for pattern, word in _VOLATILE:
        line = re.sub(pattern, word, line)
    return line.strip()


def compared(step: Step, lines: Sequence[str]) -> list[str]:
    """The part of a step's output that is the same each time."""
    if step.lines:
        return sorted({alike(line) for line in lines if "\thttp://" in line})
    if step.columns:
        lines = [" ".join(line.split()[: step.columns]) for line in lines]
    found = [alike(line) for line in lines if line.strip()]
    once = [line for number, line in enumerate(found) if line not in found[:number]]
    return sorted(once) if step.any_order else once


def of_page() -> str:
    """The day as the page has it now."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    """Run it, and write it."""
    with tempfile.TemporaryDirectory(prefix="reimzul-walk-") as name:
        folder = Path(name)
        (folder / "srpms").mkdir()
        with farm(folder / "farm") as up:
            began = time.monotonic()
            day = text(Day(up, sources(folder / "srpms")).run(), folder / "farm")
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert rest, f"{PAGE} has no line {BEGIN}"
    PAGE.write_text(head + BEGIN + "\n" + day + "\n" + END + rest.partition(END)[2], encoding="utf-8")
    print(f"a day of {time.monotonic() - began:.0f} s is in {PAGE}")


if __name__ == "__main__":
    main()
