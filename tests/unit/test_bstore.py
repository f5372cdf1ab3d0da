# SPDX-License-Identifier: Apache-2.0
"""Paths and URLs of the store: where a leg lies, and that nothing lies outside."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core import validators
from reimzul.core.store_paths import StorePaths, StoreUrls, leg_key, package_dir, spool_name
from tests.unit import strategies

STORE = StorePaths(Path("/srv/reimzul/bstore"))
URLS = StoreUrls("http://localhost:11081/bstore/", "rsync://localhost:11874/reimzul-bstore/")
BUILD, ATTEMPT = "0" * 32, "1763800001-0000000a"


def test_a_place_is_the_originals() -> None:
    place = package_dir("c7.1708.u.x86_64", "time", "20170913124500", "1.7-45.el7", "i386", scratch=False)
    assert place == "repo/c7.1708.u.x86_64/time/20170913124500/1.7-45.el7.i386"
    assert STORE.place(place) == STORE.target("c7.1708.u.x86_64") / "time/20170913124500/1.7-45.el7.i386"


def test_a_scratch_build_lies_beside_what_is_published() -> None:
    place = package_dir("c7.x86_64", "time", "20170913124500", "1.7-45", "i386", scratch=True)
    assert STORE.place(place).is_relative_to(STORE.scratch)


@given(strategies.targets, strategies.names, strategies.timestamps, strategies.names, strategies.arches, st.booleans())
def test_every_leg_has_a_place_inside_the_store(
    target: str, name: str, timestamp: str, evr: str, arch: str, scratch: bool
) -> None:
    place = package_dir(target, name, timestamp, evr, arch, scratch=scratch)
    assert validators.place(place) == place
    assert STORE.place(place).is_relative_to(STORE.scratch if scratch else STORE.target(target))


@pytest.mark.parametrize(
    "parts",
    [
        ("../x", "time", "20170913124500", "1-1", "i386"),
        ("c7", "../../etc", "20170913124500", "1-1", "i386"),
        ("c7", "time", "..", "1-1", "i386"),
        ("c7", "time", "20170913124500", "../1", "i386"),
        ("c7", "time", "20170913124500", "-1", "i386"),
        ("", "time", "20170913124500", "1-1", "i386"),
    ],
)
def test_no_place_is_made_of_what_leads_out(parts: tuple[str, str, str, str, str]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  each part has a message of its own
        package_dir(*parts, scratch=False)


def test_every_folder_lies_under_the_root_and_is_its_own() -> None:
    folders = STORE.folders()
    assert len(set(folders)) == len(folders)
    assert all(folder.is_relative_to(STORE.root) for folder in folders)
    assert STORE.lock("c7").parent in folders
    assert STORE.log("c7").parent in folders


@given(strategies.places)
def test_a_url_names_its_place(place: str) -> None:
    url = urlsplit(URLS.place(place))
    assert unquote(url.path) == f"/bstore/{place}/"
    assert not url.query
    assert not url.fragment


def test_urls_of_a_leg() -> None:
    assert URLS.target("c7+x") == "http://localhost:11081/bstore/repo/c7%2Bx/"
    assert URLS.manifest(BUILD, "i386") == f"http://localhost:11081/bstore/index/{BUILD}.i386/build.json"
    assert URLS.spool(BUILD, "i386", ATTEMPT).endswith(f"/reimzul-bstore/spool/{BUILD}.i386.{ATTEMPT}/")


def test_attempts_at_one_leg_have_folders_of_their_own() -> None:
    legs = [(BUILD, "i386", ATTEMPT), (BUILD, "i386", "1763800002-0000000a"), (BUILD, "x86_64", ATTEMPT)]
    assert len({spool_name(*leg) for leg in legs}) == 3
    assert len({leg_key(build, arch) for build, arch, _ in legs}) == 2
