# SPDX-License-Identifier: Apache-2.0
"""A mock on PATH that does what a test wrote down, and records how it was called."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.python import PYTHON

SAMPLES = Path(__file__).parent / "samples" / "mock-logs"

_PROGRAM = """#!{python}
import json, os, shutil, sys, time
home = {home!r}
argv = sys.argv[1:]
if "--print-root-path" not in argv:
    with open(home + "/calls", "a") as calls:
        calls.write(json.dumps(argv) + "\\n")
given = dict(word.lstrip("-").split("=", 1) for word in argv if word.startswith("--") and "=" in word)
if "--clean" in argv or "--orphanskill" in argv:
    sys.exit(0)
name = os.path.basename(given["configdir"])
if "--print-root-path" in argv:
    print(home + "/roots/reimzul-" + name + "/root/")
    sys.exit(0)
with open(home + "/plans.json") as plans:
    plan = json.load(plans).get(name) or {{}}
results = given["resultdir"]
open(home + "/started." + name, "w").close()
for log in os.listdir({samples!r} + "/" + plan.get("logs", "hello")):
    if log != "exit-code":
        shutil.copy({samples!r} + "/" + plan.get("logs", "hello") + "/" + log, results)
deadline = time.time() + plan.get("seconds", 0)
given_up = deadline + 300  # whoever forgot us
flags = [home + "/" + flag for flag in plan.get("until", ())]
while time.time() < deadline or (time.time() < given_up and not all(map(os.path.exists, flags))):
    time.sleep(0.02)
for rpm in plan.get("rpms", ()):
    shutil.copy(rpm, results)
sys.exit(plan.get("code", 0))
"""


class ScriptedMock:
    """A program called mock in a folder of its own."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.path = home / "mock"
        self.samples(SAMPLES)
        self._plans: dict[str, Any] = {}
        self._write()

    def samples(self, folder: Path) -> None:
        """Where the logs of its runs are taken from."""
        self.path.write_text(_PROGRAM.format(python=PYTHON, home=str(self.home), samples=str(folder)))
        self.path.chmod(0o755)

    def plan(
        self,
        config: str,
        *,
        rpms: Iterable[Path] = (),
        code: int = 0,
        logs: str = "hello",
        seconds: float = 0,
        until: Iterable[str] = (),
    ) -> None:
        """What a run with the configuration `config` does: how long it takes, what it leaves, how it ends.

        `until` names files in our home that have to be there before it ends; each run makes `started.<config>`.
        """
        self._plans[config] = {
            "rpms": [str(rpm) for rpm in rpms],
            "code": code,
            "logs": logs,
            "seconds": seconds,
            "until": list(until),
        }
        self._write()

    def started(self, config: str) -> bool:
        """Whether a run with that configuration has begun."""
        return (self.home / f"started.{config}").exists()

    def let_go(self, flag: str) -> None:
        """Make a file that runs wait for."""
        (self.home / flag).touch()

    def calls(self) -> list[list[str]]:
        """Every argument list it was called with; not the questions after a root's path."""
        path = self.home / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def builds(self) -> list[list[str]]:
        """The calls that build."""
        return [call for call in self.calls() if "--clean" not in call and "--orphanskill" not in call]

    def _write(self) -> None:
        (self.home / "plans.json").write_text(json.dumps(self._plans))
