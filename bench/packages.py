# SPDX-License-Identifier: Apache-2.0
"""Targets with many packages in them, made in seconds: one package is built, the others are it under other names."""

from __future__ import annotations

import os
from pathlib import Path

from tests import srpms

#: A name whose digits are replaced, everywhere in the package; its length has to stay.
_NAME = b"bench-00000"
#: Places as a farm makes them, `<name>/<timestamp>/<version-release>.<arch>`.
_TIMESTAMP, _VERSION = "20200101000000", "1.0-1.noarch"


def fill(target: Path, count: int, scratch: Path) -> None:
    """Put `count` packages into a target, each in a place of its own.

    The digests in their headers are the first one's: createrepo_c reads headers without checking those, and nothing
    installs what a benchmark has made.
    """
    name = _NAME.decode()
    made = srpms.make_rpm(scratch, name, srpms.noarch(name)).read_bytes()
    for number in range(count):
        called = b"bench-%05d" % number
        place = target / called.decode() / _TIMESTAMP / _VERSION
        os.makedirs(place)
        (place / f"{called.decode()}-1.0-1.noarch.rpm").write_bytes(made.replace(_NAME, called))
