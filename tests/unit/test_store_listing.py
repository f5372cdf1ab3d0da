# SPDX-License-Identifier: Apache-2.0
"""What a target's repodata lists, read from files as createrepo_c leaves them; its command line; what a kill leaves."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import Callable

import pytest

from reimzul.core.errors import ConfigError, RetryLater
from reimzul.core.manifest import read_manifest
from reimzul.core.settings import RepogenSettings as Settings
from reimzul.core.store_paths import StorePaths
from reimzul.store import listing as listing_module
from reimzul.store import repodata
from reimzul.store.createrepo import CreaterepoRunner, last_lines
from reimzul.store.listing import Listing, ListingCache, StoredLeg
from tests import uploads
from tests.uploads import TARGET

_REPOMD = """<?xml version="1.0" encoding="UTF-8"?>
<repomd xmlns="http://linux.duke.edu/metadata/repo" xmlns:rpm="http://linux.duke.edu/metadata/rpm">
<data type="filelists"><location href="repodata/f-filelists.xml.gz"/></data>
<data type="primary"><checksum type="sha256">00</checksum><location href="repodata/{name}"/></data>
</repomd>"""
_PACKAGE = """<package type="rpm"><name>n</name><arch>x86_64</arch>
<checksum type="sha256" pkgid="YES">{sha256}</checksum><summary>a &lt;b&gt;</summary>
<location xml:base="http://x/" href="{path}"/>
<format><rpm:provides><rpm:entry name="n"/></rpm:provides><file>/usr/bin/checksum</file></format></package>"""


def make_repodata(folder: Path, packages: dict[str, str], suffix: str = ".gz") -> None:
    compressors: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".xml": bytes,
    }  # fmt: skip
    body = "".join(_PACKAGE.format(path=path, sha256=sha256) for path, sha256 in packages.items())
    text = (
        '<metadata xmlns="http://linux.duke.edu/metadata/common" '
        f'xmlns:rpm="http://linux.duke.edu/metadata/rpm">{body}</metadata>'
    )
    name = "p-primary.xml" + (suffix if suffix != ".xml" else "")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(compressors[suffix](text.encode()))
    (folder / "repomd.xml").unlink(missing_ok=True)
    (folder / "repomd.xml").write_text(_REPOMD.format(name=name))


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return uploads.make_store(tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".xml"])
def test_every_compression_python_knows_is_read(tmp_path: Path, suffix: str) -> None:
    packages = {"n/20240102030405/1-1.x86_64/n-1-1.x86_64.rpm": "ab" * 32, "n/2/c++-1.rpm": "cd" * 32}
    make_repodata(tmp_path / "repodata", packages, suffix)
    assert listing_module.read_listing(tmp_path / "repodata") == packages


def test_escaped_paths_are_the_files(tmp_path: Path) -> None:
    make_repodata(tmp_path, {"n/1/c%2B%2B-1%7Erc1.rpm": "ab" * 32})
    assert list(listing_module.read_listing(tmp_path)) == ["n/1/c++-1~rc1.rpm"]


@pytest.mark.parametrize("piece", [40, 333, 1 << 20])
def test_the_quick_reader_finds_what_the_parser_does(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(listing_module, "PIECE_BYTES", piece)
    packages = {f"n{number}/1/1-1.noarch/n{number}%7E-1.noarch.rpm": f"{number:064x}" for number in range(50)}
    body = "".join(_PACKAGE.format(path=path, sha256=sha256) for path, sha256 in packages.items())
    attributes = 'xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="x" packages='
    text = f'<metadata {attributes}"50">{body}</metadata>'.encode()
    quick = listing_module._scan_primary(io.BytesIO(text))
    assert quick == (None if piece == 40 else listing_module._parse_primary(io.BytesIO(text)))
    assert listing_module._scan_primary(io.BytesIO(text.replace(b'"50"', b'"51"'))) is None, (
        "one was not found: parse it"
    )


def test_a_listing_is_read_once_for_each_repodata(store: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.target(TARGET) / "repodata"
    listings = ListingCache(store)
    reads: list[Path] = []
    read_listing = listing_module.read_listing

    def count_read(folder: Path) -> dict[str, str]:
        reads.append(folder)
        return read_listing(folder)

    monkeypatch.setattr(listing_module, "read_listing", count_read)
    assert listings.visible(TARGET).packages == {}
    make_repodata(folder, {"a": "1"})
    assert listings.visible(TARGET).packages == listings.visible(TARGET).packages == {"a": "1"}
    make_repodata(folder, {"a": "1", "b": "2"})
    assert listings.visible(TARGET).packages == {"a": "1", "b": "2"}
    assert len(reads) == 2


def test_only_a_few_targets_are_kept_in_memory(store: StorePaths) -> None:
    listings = ListingCache(store)
    for number in range(10):
        make_repodata(store.target(f"t{number}") / "repodata", {"a": "1"})
        assert listings.visible(f"t{number}").packages
    assert len(listings._cached) == 4


@pytest.mark.parametrize("damage", ["repomd.xml", "p-primary.xml.gz"])
@pytest.mark.parametrize("content", [b"", b"<", b"\x1f\x8b\x08junk", gzip.compress(b"<a>", mtime=0)[:-3], None])
def test_damaged_repodata_lists_nothing(store: StorePaths, damage: str, content: bytes | None) -> None:
    folder = store.target(TARGET) / "repodata"
    make_repodata(folder, {"a": "1"})
    (folder / damage).unlink()
    if content is not None:
        (folder / damage).write_bytes(content)
    assert ListingCache(store).visible(TARGET) == Listing({})
    with pytest.raises(RetryLater, match="cannot be read"):
        ListingCache(store).read_new(TARGET)


def test_a_leg_is_listed_when_all_of_it_is(store: StorePaths) -> None:
    rpms = {"a-1-1.x86_64.rpm": (b"a", "a-1-1.x86_64"), "b-1-1.x86_64.rpm": (b"b", "b-1-1.x86_64")}
    asked = uploads.upload(store, rpms)
    leg = StoredLeg(manifest=read_manifest(uploads.spool_of(store, asked)), place=asked.place)
    whole = listing_module.listed_paths(leg)
    assert list(whole) == [f"hello/20240102030405/1-1.x86_64/{name}" for name in rpms]
    first, second = whole
    half, wrong = {first: whole[first]}, {**whole, second: "00" * 32}
    assert Listing(whole).has(leg)
    assert not Listing(whole).has_wrong_checksum(leg)
    assert not Listing(half).has(leg)
    assert not Listing(half).has_wrong_checksum(leg)
    assert not Listing(wrong).has(leg)
    assert Listing(wrong).has_wrong_checksum(leg)


def test_settings_reach_the_command_line(store: StorePaths) -> None:
    settings = Settings(database=True, cores=3, arguments=("--distro", "el7"))
    argv = [str(word) for word in CreaterepoRunner(store=store, settings=settings).argv(TARGET)]
    assert argv[0] == "createrepo_c"
    assert argv[-1] == str(store.target(TARGET))
    assert argv[-3:-1] == ["--distro", "el7"]
    assert "--database" in argv
    assert argv[argv.index("--workers") + 1] == "3"
    assert "--update" not in CreaterepoRunner(store=store, settings=settings).argv(TARGET, full_rebuild=True)


@pytest.mark.parametrize(
    "word",
    [
        "-x", "--excludes=*.src.rpm", "--checksum=sha512", "--location-prefix", "--duplicated-nevra=keep-last",
        "--duplicated-nevra", "-qo", "-dS", "--version", "-h", "--ignore-lock", "--set-timestamp-to-revision", "--",
        "--general-compress-type=zstd", "--general-compress-type",
    ],
)  # fmt: skip
def test_arguments_that_hide_packages_are_refused(store: StorePaths, word: str) -> None:
    with pytest.raises(ConfigError, match="arguments: " + word.replace("*", r"\*")):
        CreaterepoRunner(store=store, settings=Settings(arguments=(word, "x")))


@pytest.mark.parametrize(
    "words",
    [
        ("-qd",), ("-u", "http://x/"), ("--general-compress-type", "xz"), ("--compress-type=zstd",), ("--xz",),
        ("--zck",), ("--repomd-checksum=sha512",), ("--local-sqlite",), ("--changelog-limit", "10"),
    ],
)  # fmt: skip
def test_arguments_that_hide_nothing_are_taken(store: StorePaths, words: tuple[str, ...]) -> None:
    assert CreaterepoRunner(store=store, settings=Settings(arguments=words)).settings.arguments == words


def test_what_a_killed_createrepo_c_moved_away_comes_back(tmp_path: Path) -> None:
    for leftover in (".repodata", "repodata.old.7.20240102"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "repomd.xml").write_text(leftover)
    repodata.recover_interrupted_run(tmp_path)
    assert (tmp_path / "repodata" / "repomd.xml").read_text() == "repodata.old.7.20240102"
    (tmp_path / "repodata.old.8.20240103").mkdir()
    repodata.recover_interrupted_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["repodata"]


def test_the_end_of_a_log_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log) == ""
    log.write_bytes(b"x" * 9000 + b"\n1\n2\n\xff3\n")
    assert last_lines(log) == "1 / 2 / �3"
