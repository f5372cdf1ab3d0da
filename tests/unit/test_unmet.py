# SPDX-License-Identifier: Apache-2.0
"""What a build waits for, as the package managers' messages have it."""

from __future__ import annotations

from collections.abc import Sequence

import attr
import pytest

from reimzul.core.message import MAX_MISSING, BuildRequest
from reimzul.worker.unmet import UnmetRequirements, describe_missing, find_unmet

REQUEST = BuildRequest(
    srpm="d-1-1.src.rpm", arch="x86_64", target="c9.x86_64", disttag=".el9", submitter="root", build_id="0" * 32
)
MEMBER = attr.evolve(REQUEST, batch="5f0c12ab")
PATIENT = attr.evolve(REQUEST, dep_wait=3600)

#: After a new soname of libfoo: bar-devel is still the old build's.
SONAME = (
    "Error: \n Problem: package bar-devel-1-1.el9.x86_64 requires libfoo.so.1()(64bit), "
    "but none of the providers can be installed\n"
    "  - cannot install both libfoo-1:2.0-1.el9.x86_64 from target and libfoo-1:1.0-1.el9.x86_64 from base\n"
    "  - package bar-devel-1-1.el9.x86_64 requires (a-b-c.d and e), but none of the providers can be installed\n"
    "  - conflicting requests\n"
)
BROKEN_PACKAGE = (
    "Failed to resolve the transaction:\nProblem: conflicting requests\n"
    "  - nothing provides libfoo.so.1()(64bit) needed by bar-devel-1-1.el9.x86_64 from target\n"
)
ZYPPER = "Problem: nothing provides 'foo-devel >= 2' needed by the to be installed bar-devel-1-1.x86_64\n"
OWN = "Problem: conflicting requests\n  - nothing provides requirement foo >= 2 needed by d-1-1.src from @commandline\n"


#: The BuildRequires of two lines of dnf 4.
DNF = "No matching package to install: 'b-devel >= 2'\nNo matching package to install: 'a'\n"
LIBFOO = "libfoo.so.1()(64bit)"


@pytest.mark.parametrize(
    ("output", "batch", "single"),
    [
        (DNF, ["a", "b-devel >= 2"], ["a", "b-devel >= 2"]),
        (SONAME, ["conflict: bar-devel", "conflict: libfoo"], []),
        (BROKEN_PACKAGE, ["conflict: bar-devel", f"conflict: {LIBFOO}"], [LIBFOO]),
        (ZYPPER, ["conflict: bar-devel", "conflict: foo-devel >= 2"], ["foo-devel >= 2"]),
        (OWN, ["foo >= 2"], ["foo >= 2"]),
        (
            BROKEN_PACKAGE + DNF,
            ["a", "b-devel >= 2", "conflict: bar-devel", f"conflict: {LIBFOO}"],
            ["a", "b-devel >= 2", LIBFOO],
        ),
        ("Problem: conflicting requests\n", [], []),
        ("Error: Some packages could not be found.\n", [], []),
        ("Installing package gcc-1-1.x86_64 and make-1-1.x86_64\n", [], []),
    ],
    ids=["own", "soname", "broken package", "zypper", "of the source", "both", "unnamed", "no name", "no problem"],
)
def test_what_a_build_waits_for(output: str, batch: Sequence[str], single: Sequence[str]) -> None:
    unmet = find_unmet(output)
    assert list(unmet.missing_for(MEMBER)) == batch
    assert list(unmet.missing_for(PATIENT)) == single
    assert unmet.missing_for(REQUEST) == (), "without a batch or --dep-wait it fails"


def test_a_list_without_end_is_cut() -> None:
    unmet = UnmetRequirements(unprovided=tuple(f"c{number}" for number in range(1000)))
    assert len(unmet.missing_for(MEMBER)) == len(unmet.missing_for(PATIENT)) == MAX_MISSING


def test_what_a_build_waits_for_is_described_for_people() -> None:
    assert describe_missing(["a", "b >= 2"]) == "a, b >= 2, which nobody provides"
    assert describe_missing(["a", "conflict: b", "conflict: c"]) == (
        "a, which nobody provides; a new build of b or c, which cannot be installed"
    )
