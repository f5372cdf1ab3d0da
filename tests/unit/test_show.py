# SPDX-License-Identifier: Apache-2.0
"""What `reimzul show` prints of a build's files."""

from __future__ import annotations

import pytest

from reimzul.admin.builds import format_build
from reimzul.admin.lookup import group_by_build
from reimzul.core.manifest import File, Manifest
from reimzul.core.message import BuildRequest
from reimzul.history.build_record import apply_events
from tests.events import ATTEMPT, BEGINNING, build_id, event

SHA256 = "0123456789abcdef" * 4


def make_manifest() -> Manifest:
    return Manifest(
        request=BuildRequest(
            srpm="a-1-1.src.rpm",
            arch="x86_64",
            target="c9s.x86_64",
            disttag=".el9",
            submitter="me",
            build_id=build_id(1),
            timestamp="20251122000001",
        ),
        attempt=ATTEMPT,
        status="Success",
        arch="x86_64",
        builder_fqdn="b1.example.org",
        pkgname="a",
        evr="1-1",
        started=BEGINNING,
        finished=BEGINNING + 60,
        files=(
            File(name="build.log", size=3, sha256=SHA256),
            File(name="a-1-1.x86_64.rpm", size=3 << 20, sha256=SHA256),
        ),
    )


@pytest.mark.parametrize("in_full", [False, True])
def test_the_name_of_a_file_is_before_its_size_and_its_checksum(in_full: bool) -> None:
    (build,) = group_by_build(apply_events({}, [event("Published")]).values())
    assert build.build_id == build_id(1)
    lines = list(format_build(build, {"x86_64": make_manifest()}, {}, checksums=in_full))
    assert lines[0] == f"build {build_id(1)}"
    checksum = SHA256 if in_full else SHA256[:12]
    assert lines[-2:] == [
        f"    build.log            3 bytes  {checksum}",
        f"    a-1-1.x86_64.rpm     3.0 MiB  {checksum}",
    ]
    assert in_full or max(map(len, lines[-2:])) <= 80
