# SPDX-License-Identifier: Apache-2.0
"""Whether a builder's faults stand out from its peers'. Pure.

Only packages count that others have tried as well: a package that no builder can build says nothing of any of them,
and a builder that is alone with its packages has nobody to be held against.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attr

#: The rate of faults that is everybody's, at the least: a farm without any faults has one in twenty.
_USUAL = 0.05


@attr.frozen(kw_only=True)
class Tried:
    """A try of a builder at a package."""

    builder: str
    package: str  #: with its target and arch
    fault: bool  #: it was the builder's


@attr.frozen(kw_only=True)
class Standing:
    """A builder's tries at what others have tried too, and theirs."""

    tries: int
    faults: int
    others_tries: int
    others_faults: int

    @property
    def rate(self) -> float:
        """Its faults, of 1."""
        return self.faults / self.tries if self.tries else 0.0

    @property
    def others_rate(self) -> float:
        """Theirs, and never less than is usual."""
        return max(_USUAL, self.others_faults / self.others_tries if self.others_tries else 0.0)

    def stands_out(self, faults: int, ratio: int) -> bool:
        """Whether it has so many faults, and so many times as often as its peers."""
        return self.faults >= faults and self.rate >= ratio * self.others_rate

    @property
    def words(self) -> str:
        """For a person."""
        return (
            f"{self.faults} of its {self.tries} tries at packages that others tried too were its own fault; "
            f"of the {self.others_tries} of others {self.others_faults} were theirs"
        )


def standing(rows: Iterable[Tried], builder: str) -> Standing:
    """How a builder stands."""
    rows = list(rows)
    mine = _packages([row for row in rows if row.builder == builder])
    others = _packages([row for row in rows if row.builder != builder])
    common = [row for row in rows if row.package in mine & others]
    own = [row.fault for row in common if row.builder == builder]
    theirs = [row.fault for row in common if row.builder != builder]
    return Standing(tries=len(own), faults=sum(own), others_tries=len(theirs), others_faults=sum(theirs))


def _packages(rows: Sequence[Tried]) -> set[str]:
    return {row.package for row in rows}
