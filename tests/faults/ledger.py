# SPDX-License-Identifier: Apache-2.0
"""The builds submitted in a trial, and the result that each must have."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import attr

from reimzul.core.message import Status

#: Where builds go; two, so that both repogens have something to do.
TARGETS = ("one.1", "two.1")
ARCH, FOLLOWER = "x86_64", "i386"


@attr.frozen(kw_only=True)
class Recipe:
    """A kind of build: its source, how each leg ends, and what else there is about it."""

    source: str  #: `compiled` has two legs, `plain` is noarch and has one
    legs: Mapping[str, str]  #: arch -> status it ends with
    scratch: bool = False
    faults: int = 0  #: how many tries are the builder's fault
    faulty: tuple[str, ...] = ()  #: of which legs alone; empty: of all


_GOOD, _BAD = Status.SUCCESS, Status.FAILED
RECIPES = (
    Recipe(source="plain", legs={ARCH: _GOOD}),
    Recipe(source="plain", legs={ARCH: _GOOD}),
    Recipe(source="compiled", legs={ARCH: _GOOD, FOLLOWER: _GOOD}),
    Recipe(source="compiled", legs={ARCH: _GOOD, FOLLOWER: _GOOD}),
    Recipe(source="compiled", legs={ARCH: _GOOD, FOLLOWER: _BAD}),
    Recipe(source="plain", legs={ARCH: _BAD}),
    Recipe(source="plain", legs={ARCH: _GOOD}, scratch=True),
)
#: Each try that is a builder's fault is followed by a pause of ten seconds: not in every trial.
UNFIT = Recipe(source="plain", legs={ARCH: _GOOD}, faults=1)


@attr.define(kw_only=True)
class Build:
    """One build of a trial, and how it was submitted."""

    name: str  #: its disttag, and its submitter: what it is known by everywhere
    recipe: Recipe
    target: str
    seconds: tuple[float, ...]  #: how long mock takes, at the first try, at the second, …
    door: str = "put"  #: `submit` by the program, `put` as it does, `original` as the original's client did
    ttr: int = 120
    accepted: bool = False  #: whether submit confirmed it; one that was not confirmed may be queued all the same
    build_id: str = ""  #: as it was submitted, or as history says; an original client's has none at first
    legs: dict[str, str] = attr.field(factory=dict)  #: arch -> status it has to end with
    cancelled: bool = False  #: a person has tried to: each leg may be cancelled, or be what it would have been

    def __attrs_post_init__(self) -> None:
        self.legs = self.legs or dict(self.recipe.legs)

    def may_end(self, ended: Mapping[str, str]) -> bool:
        """Whether its legs may have ended so, by arch; one that was cancelled may never have had the others."""
        if not self.cancelled:
            return ended == self.legs
        fine = all(status in (Status.CANCELLED, self.legs.get(arch)) for arch, status in ended.items())
        return fine and bool(ended) and (ended.keys() == self.legs.keys() or Status.CANCELLED in ended.values())

    @property
    def disttag(self) -> str:
        """The key of its plan for mock."""
        return f".{self.name}"

    def plan(self, rpms: Mapping[str, list[Path]]) -> dict[str, object]:
        """The plan for mock; `rpms` are the packages of each leg, by arch."""
        legs = {
            arch: {
                "rpms": [str(path) for path in rpms[arch]] if status == _GOOD else [],
                "code": 0 if status == _GOOD else 10,
                "logs": "hello" if status == _GOOD else "failbuild",
            }
            for arch, status in self.recipe.legs.items()
        }
        return {"seconds": self.seconds, "faults": self.recipe.faults, "faulty": self.recipe.faulty, "legs": legs}


def some_builds(chance: random.Random, trial: str, count: int) -> list[Build]:
    """A handful, as the generator says."""
    builds = []
    for number in range(count):
        recipe = UNFIT if chance.random() < 0.02 else chance.choice(RECIPES)
        door = chance.choices(("put", "submit", "original"), (6, 2, 2))[0]
        builds.append(
            Build(
                name=f"{trial}n{number}",
                recipe=recipe,
                target=chance.choice(TARGETS),
                seconds=(round(chance.triangular(0.2, 3.0, 0.4), 2), round(chance.uniform(0.2, 0.6), 2)),
                door="put" if recipe.scratch and door == "original" else door,
                ttr=chance.choice((10, 120)),
            )
        )
    return builds
