# SPDX-License-Identifier: Apache-2.0
"""What persons do to a farm while things die around them: they cancel, retry and drain, by the installed command."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from devfarm.processes import own_program
from reimzul.core import control
from reimzul.core.beanstalk import drain_tube
from reimzul.core.canary import PACKAGE as CANARY
from reimzul.core.errors import ReimzulError
from tests.faults import checks
from tests.faults.ground import Ground
from tests.faults.ledger import ARCH, FOLLOWER, TARGETS, Build, Recipe
from tests.waiting import until

#: Seconds a command may take: it connects, asks, and waits for the end of a running build.
_PATIENCE = 60
#: Seconds until a builder has seen that it is to take nothing: it looks before each reserve, which waits a second.
_SEEN = 3.0


def command(ground: Ground, who: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`reimzul …` on the controller."""
    argv = [own_program("reimzul"), *words, "--config", str(ground.farm.ini())]
    env = {"PATH": "/usr/bin:/bin", "LOGNAME": who, "HOME": "/"}
    return subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE, env=env, check=False)


@contextmanager
def kill_meanwhile(ground: Ground, chance: random.Random) -> Iterator[str]:
    """One of our daemons, or beanstalkd, is killed at some moment of the block; sometimes none is."""
    victim = chance.choice([*ground.daemons(), "beanstalkd", "none"])
    moment = chance.uniform(0, 2.5)

    def strike() -> None:
        time.sleep(moment)
        if victim != "none":
            ground.farm.kill(victim)

    striking = threading.Thread(target=strike)
    striking.start()
    try:
        yield f"SIGKILL to {victim} after {moment:.1f} s" if victim != "none" else "nothing killed"
    finally:
        striking.join()


def cancel_some(ground: Ground, chance: random.Random, builds: list[Build]) -> str:
    """Cancel some of the builds, each at any moment of its life, and once more."""
    mine = [build for build in builds if build.door != "original"]
    victims = chance.sample(mine, min(len(mine), chance.choice((1, 1, 2))))
    for build in victims:
        build.cancelled = True
    codes = []
    for build in victims:
        until(lambda: build.accepted, 60, "it is submitted")  # noqa: B023
        time.sleep(chance.uniform(0, 2.0))
        for _ in range(chance.choice((1, 2))):
            codes.append(command(ground, "admin", "cancel", build.build_id, "--timeout", "5").returncode)
    return f"{len(victims)} builds cancelled, exit codes {codes}"


def retry_one(ground: Ground, chance: random.Random, builds: list[Build], name: str) -> str:
    """Submit a build again that is over; the new one has to end as the old one did."""
    mine = [build for build in builds if build.door != "original" and not build.recipe.faults]
    if not mine:
        return "nothing to be submitted again"
    build = chance.choice(mine)
    until(lambda: _is_over(ground, build), 60, f"{build.name} is over")
    done = command(ground, name, "retry", build.build_id, "--json")
    if done.returncode == 0:
        builds.append(
            Build(
                name=name,
                recipe=build.recipe,
                target=build.target,
                seconds=build.seconds,
                accepted=True,
                build_id=json.loads(done.stdout)[0]["build_id"],
            )
        )
    return f"retry of {build.name}: exit code {done.returncode} {done.stderr[-200:]}"


def _is_over(ground: Ground, build: Build) -> bool:
    known = checks.history(ground).get(build.name, [])
    ended = {each.arch: each.status for each in known}
    return bool(build.build_id) and ended == build.legs


def drain_one(ground: Ground, chance: random.Random, name: str) -> tuple[str, list[Build], list[str]]:
    """Drain a builder, submit builds, resume it: what was done, the builds, and which of them it began all the same."""
    victim = chance.choice([host for host in ground.farm.hosts if host.is_builder]).fqdn
    done = [command(ground, "admin", "drain", victim, "--force")]
    with ground.broker() as broker:
        holds = until(lambda: control.drain_flag(broker, victim), 30, "the mark is there")
    time.sleep(_SEEN)
    recipe = Recipe(source="plain", legs={ARCH: "Success"})
    builds = [
        Build(name=f"{name}d{number}", recipe=recipe, target=TARGETS[number % 2], seconds=(0.5,)) for number in range(4)
    ]
    with kill_meanwhile(ground, chance) as words:
        for build in builds:
            _insist(ground, build)
        until(lambda: all(ground.calls(build) for build in builds), 90, "all have begun")
    wrong = [f"{build.name} on {call.host}" for build in builds for call in ground.calls(build) if call.host == victim]
    with ground.broker() as broker:
        still = control.drain_flag(broker, victim)
    if still != holds:
        wrong.append(f"the mark is {still}, and was {holds}")
    done.append(command(ground, "admin", "resume", victim))
    with ground.broker() as broker:
        control.clear_flag(broker, drain_tube(victim))
    return f"{victim} drained, {words}, exit codes {[each.returncode for each in done]}", builds, wrong


def _insist(ground: Ground, build: Build) -> None:
    """Submit a source rpm until it is reported as queued, each time under another name."""
    deadline = time.monotonic() + _PATIENCE
    while not build.accepted and time.monotonic() < deadline:
        try:
            ground.submit(build)
        except Exception:  # noqa: BLE001  under faults a submission fails in any way, and is repeated
            time.sleep(0.3)


def break_one(ground: Ground, chance: random.Random, name: str) -> tuple[str, list[Build]]:
    """Break a builder, repair it in quarantine, and wait until a canary lifts that; return the steps and builds."""
    victim = chance.choice([host for host in ground.farm.hosts if host.is_builder]).fqdn
    recipe = Recipe(source="plain", legs={ARCH: "Success"})
    sources = (recipe, Recipe(source="compiled", legs={ARCH: "Success", FOLLOWER: "Success"}))
    _plan_canary(ground, recipe)
    builds = [
        Build(name=f"{name}q{number}", recipe=sources[number % 2], target=TARGETS[number % 2], seconds=(0.3,))
        for number in range(8)
    ]
    (ground.home / "unfit").write_text(victim)
    for build in builds:
        _insist(ground, build)
    with kill_meanwhile(ground, chance) as words:
        until(lambda: _is_quarantined(ground, victim) is True, 120, f"{victim} is in quarantine")
    (ground.home / "unfit").unlink()
    with kill_meanwhile(ground, chance) as more:
        until(lambda: _is_quarantined(ground, victim) is False, 150, f"{victim} is let back")
    return f"{victim} broken and mended, {words}, {more}", builds


def _plan_canary(ground: Ground, recipe: Recipe) -> None:
    sample = Build(name="canary", recipe=recipe, target=TARGETS[0], seconds=(0.2,))
    plan = ground.home / "plans" / f"{sample.disttag}.json"
    plan.write_text(json.dumps(sample.plan(dict.fromkeys((ARCH, FOLLOWER), ground.binary_rpms[CANARY]))))


def _is_quarantined(ground: Ground, host: str) -> bool | None:
    """Whether it is in quarantine; None where beanstalkd is away."""
    with contextlib.suppress(ReimzulError), ground.broker() as broker:
        found = control.drain_flag(broker, host)
        return found is not None and found.is_quarantine
    return None
