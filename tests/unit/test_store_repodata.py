# SPDX-License-Identifier: Apache-2.0
"""New repodata in place of old: exchanged in one step, or in two where that cannot be; its records; its hook."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from reimzul.admin.doctor import FAIL, OK, Result, run_checks
from reimzul.admin.doctor.host import find_host, store_checks
from reimzul.core.config import load_file
from reimzul.core.errors import InputError
from reimzul.core.roles import BSTORE
from reimzul.core.settings import RepogenSettings as Settings
from reimzul.core.store_paths import StorePaths
from reimzul.store import createrepo, repodata
from reimzul.store.repodata import (
    add_records,
    check_type,
    drop_records,
    guess_type,
    read_addition,
    read_records,
)
from tests import uploads
from tests.ini import write_ini
from tests.uploads import TARGET

_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<repomd xmlns="http://linux.duke.edu/metadata/repo">\n'


def make_repodata(folder: Path, files: dict[str, str], packages: str = "") -> Path:
    """Repodata with a record for each type and its file."""
    folder.mkdir(parents=True)
    records = ""
    for type_, name in files.items():
        (folder / name).write_text(f"{type_} {packages}")
        records += f'  <data type="{type_}">\n    <location href="repodata/{name}"/>\n  </data>\n'
    (folder / "repomd.xml").write_text(f"{_HEAD}{records}</repomd>\n")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return uploads.make_store(tmp_path)


def source(store: StorePaths, name: str) -> Path:
    return make_repodata(store.cache / name, {"primary": f"{'a' * 64}-{name}.xml"}, name)


def live(store: StorePaths) -> Path:
    return store.target(TARGET) / "repodata"


def types(folder: Path) -> list[str]:
    return [record.type for record in read_records(folder)]


def show(store: StorePaths, name: str, now: float = 1000.0, **more: Any) -> None:
    store.target(TARGET).mkdir(exist_ok=True)
    repodata.make_draft(store, TARGET, source(store, name), now, **more).publish()


def no_exchange(one: Path, other: Path) -> None:
    raise OSError(errno.EINVAL, "the file system cannot")


# --- exchange


@pytest.mark.parametrize("can", [True, False])
def test_new_repodata_takes_the_place_of_old(store: StorePaths, monkeypatch: pytest.MonkeyPatch, can: bool) -> None:
    if not can:
        monkeypatch.setattr(repodata, "exchange_names", no_exchange)
    show(store, "one")
    show(store, "two")
    assert (live(store) / f"{'a' * 64}-two.xml").read_text() == "primary two"
    assert [path.name for path in store.target(TARGET).iterdir()] == ["repodata"]


def test_two_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    inodes = one.stat().st_ino, two.stat().st_ino
    repodata.exchange_names(one, two)
    assert (two.stat().st_ino, one.stat().st_ino) == inodes
    with pytest.raises(FileNotFoundError):
        repodata.exchange_names(one, tmp_path / "three")


@pytest.mark.parametrize("error", [AttributeError("renameat2"), MemoryError(), OSError("no such library")])
def test_a_host_without_it_raises_what_the_fallback_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ctypes.CDLL", fails)
    with pytest.raises(OSError) as raised:  # noqa: PT011  its errno is checked below
        repodata.exchange_names(tmp_path, tmp_path)
    assert raised.value.errno in repodata._CANNOT_EXCHANGE


def test_killed_between_the_two_renames_the_old_repodata_comes_back(
    store: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(store, "one")
    rename, renames = os.rename, []

    def dies(*names: Any) -> None:
        renames.append(names)
        if len(renames) == 2:
            raise uploads.Died
        rename(*names)

    with monkeypatch.context() as patch:
        patch.setattr(repodata, "exchange_names", no_exchange)
        patch.setattr(os, "rename", dies)
        with pytest.raises(uploads.Died):
            show(store, "two")
    assert not live(store).exists()
    repodata.recover_interrupted_run(store.target(TARGET))
    assert (live(store) / f"{'a' * 64}-one.xml").exists()
    assert [path.name for path in store.target(TARGET).iterdir()] == ["repodata"]


# --- retention


def test_a_file_stays_until_two_minutes_after_it_was_replaced(store: StorePaths) -> None:
    show(store, "one", 1000.0)
    old = live(store) / f"{'a' * 64}-one.xml"
    for number, now in enumerate((5000.0, 5060.0, 5120.0)):
        show(store, f"new{number}", now)
        assert old.read_text() == "primary one"
    show(store, "last", 5120.5)
    assert not old.exists()
    assert sorted(path.name[65:] for path in live(store).glob("a*")) == ["last.xml", "new0.xml", "new1.xml", "new2.xml"]


def test_what_is_named_again_is_replaced_again(store: StorePaths) -> None:
    for name, now in (("one", 0.0), ("two", 100.0)):
        show(store, name, now)
    again = store.cache / "one"
    repodata.make_draft(store, TARGET, again, 200.0).publish()
    for name, now in (("three", 300.0), ("four", 400.0)):
        show(store, name, now)
    assert (live(store) / f"{'a' * 64}-one.xml").exists(), "it was replaced at 300, not at 100"


@pytest.mark.parametrize("kept", ["", "{", '{"replaced": 7, "hook": []}', '{"replaced": {"x": "y"}, "hook": []}'])
def test_old_metadata_nobody_knows_of_goes_after_two_minutes(store: StorePaths, kept: str) -> None:
    """As createrepo_c of before left it, or where the record is damaged."""
    show(store, "one", 1000.0)
    (live(store) / f"{'b' * 64}-primary.xml.gz").write_text("old")
    store.retained_record(TARGET).write_text(kept)
    show(store, "two", 1010.0)
    assert (live(store) / f"{'b' * 64}-primary.xml.gz").exists()
    show(store, "three", 1131.0)
    assert not (live(store) / f"{'b' * 64}-primary.xml.gz").exists()


def test_a_clock_that_was_put_back_keeps_nothing_for_ever(store: StorePaths) -> None:
    for name, now in (("one", 90_000.0), ("two", 90_001.0), ("three", 100.0), ("four", 221.0)):
        show(store, name, now)
    assert not (live(store) / f"{'a' * 64}-one.xml").exists()


def test_a_persons_file_stays_and_a_signature_does_not(store: StorePaths) -> None:
    show(store, "one")
    for name in ("README", "repomd.xml.asc", "repomd.xml.key", "repomd.xml.sig"):
        (live(store) / name).write_text(name)
    (live(store) / "folder").mkdir()
    show(store, "two", 99_999.0)
    there = {path.name for path in live(store).iterdir()}
    assert {name for name in there if not name.startswith("a")} == {"README", "repomd.xml"}


def test_what_the_hook_wrote_is_not_carried_over(store: StorePaths) -> None:
    store.target(TARGET).mkdir()
    new = repodata.make_draft(store, TARGET, source(store, "one"), 1.0)
    (new.folder / "SHA256SUMS").write_text("1")
    new.publish()
    assert (live(store) / "SHA256SUMS").exists()
    show(store, "two", 2.0)
    assert not (live(store) / "SHA256SUMS").exists()


# --- records


def test_additional_records_are_merged_and_one_whose_file_is_missing_is_dropped(
    store: StorePaths, caplog: pytest.LogCaptureFixture
) -> None:
    made = {"primary": "p1", "filelists_db": "f1", "other_zck": "o1"}
    make_repodata(live(store), {**made, "group": "comps.xml", "updateinfo": "u", "modules": "m"})
    (live(store) / "u").unlink()
    show(store, "two")
    assert types(live(store)) == ["primary", "group", "modules"]
    assert (live(store) / "comps.xml").exists()
    assert (live(store) / "m").exists()
    assert "its metadata updateinfo is dropped: u: no such file or directory" in caplog.text
    assert ElementTree.parse(live(store) / "repomd.xml").getroot().tag.endswith("repomd")


def test_a_record_outside_repodata_is_dropped_and_one_createrepo_c_makes_wins(store: StorePaths) -> None:
    make_repodata(live(store), {"primary": "p1", "group_gz": "old.gz", "updateinfo": "x"})
    repomd = live(store) / "repomd.xml"
    repomd.write_text(repomd.read_text().replace("repodata/x", "../../../etc/passwd"))
    made = make_repodata(store.cache / "made", {"primary": "p2", "group": "new.xml"})
    repodata.make_draft(store, TARGET, made, 1.0).publish()
    assert types(live(store)) == ["primary", "group"]


def test_metadata_replaces_its_kind_in_all_forms(store: StorePaths) -> None:
    make_repodata(live(store), {"primary": "p1", "group": "c.xml", "group_gz": "c.xml.gz", "modules": "m"})
    addition = read_addition("comps.xml", b"<comps/>", "group")
    repodata.make_draft(store, TARGET, live(store), 1.0, addition=addition).publish()
    assert types(live(store)) == ["primary", "modules", "group"]
    assert gzip.decompress((live(store) / addition.record.file).read_bytes()) == b"<comps/>"
    repodata.make_draft(store, TARGET, live(store), 2.0, without=["group", "modules"]).publish()
    assert types(live(store)) == ["primary"]


def test_a_record_describes_its_file() -> None:
    made = read_addition("comps.xml", b"<comps/>", "group")
    sha256 = hashlib.sha256(made.content).hexdigest()
    assert made.record.file == f"{sha256}-comps.xml.gz"
    element = ElementTree.fromstring(made.record.text)
    told = {child.tag: child.text for child in element}
    assert told["checksum"] == sha256
    assert told["open-checksum"] == hashlib.sha256(b"<comps/>").hexdigest()
    assert (told["size"], told["open-size"]) == (str(len(made.content)), "8")
    packed = read_addition(f"{sha256}-modules.yaml.xz", b"xz", "modules")
    assert packed.content == b"xz"
    assert packed.record.file.endswith("-modules.yaml.xz")
    assert packed.record.file.count("-") == 1
    assert "open-size" not in packed.record.text


def test_text_is_escaped_and_attributes_stay(tmp_path: Path) -> None:
    folder = tmp_path / "repodata"
    folder.mkdir()
    data = '<data type="x"><location href="repodata/a&amp;b"/><note lang="&quot;">&lt;1 &amp; 2</note></data>'
    (folder / "repomd.xml").write_text(f"{_HEAD}{data}</repomd>")
    (record,) = read_records(folder)
    assert record.file == "a&b"
    assert ElementTree.canonicalize(record.text) == ElementTree.canonicalize(data)
    text = add_records(f"{_HEAD}</repomd>\n", [record])
    (folder / "repomd.xml").write_text(text)
    assert read_records(folder) == [record]
    assert "<data" not in drop_records(text, ["x"])


@pytest.mark.parametrize(
    ("name", "type_"),
    [("comps.xml", "group"), ("comps-f40.x86_64.xml", "group"), ("updateinfo.xml.gz", "updateinfo"),
     (f"{'a' * 64}-modules.yaml", "modules"), ("productid", "productid")],
)  # fmt: skip
def test_a_name_tells_the_type(name: str, type_: str) -> None:
    assert guess_type(name) == type_


@pytest.mark.parametrize("given", ["primary", "filelists_db", "other_zck", "filelists-ext", "", "a b", "-x", "x" * 65])
def test_types_that_nobody_may_add_are_refused(given: str) -> None:
    with pytest.raises(InputError):
        check_type(given)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [("comps.xml", b"", "is empty"), ("comps.xml", b"<comps>", "is not well-formed XML"), ("a b.xml", b"<a/>", "name"),
     (".comps.xml", b"<a/>", "name"), ("primary.xml", b"<a/>", "made by createrepo_c itself")],
)  # fmt: skip
def test_files_that_are_no_metadata_are_refused(name: str, raw: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_addition(name, raw, "")


# --- the hook


def test_the_folder_is_the_hooks_last_word_unless_another_names_it(tmp_path: Path) -> None:
    signs = Settings(after_createrepo=("gpg", "{repodata}/repomd.xml", "{target}"))
    assert createrepo.hook_argv(signs, tmp_path, TARGET) == ["gpg", f"{tmp_path}/repomd.xml", TARGET]
    assert createrepo.hook_argv(Settings(after_createrepo=("sign",)), tmp_path, TARGET) == ["sign", str(tmp_path)]


def test_failures_are_counted_and_pauses_grow(tmp_path: Path) -> None:
    path = tmp_path / "c7.hook"
    assert createrepo.read_failure(path) is None
    pauses = [createrepo.record_failure(path, "no key").pause for _ in range(8)]
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300]
    failure = createrepo.read_failure(path)
    assert failure
    assert failure.reason == "no key"
    assert 299 < failure.seconds_to_retry(failure.at + 0.5) < 300
    assert failure.seconds_to_retry(failure.at - 86400) == 0.0, "the clock was put back"
    path.write_text("{")
    assert createrepo.read_failure(path) is None


@pytest.mark.parametrize("harm", ["repomd.xml", "a" * 64 + "-one.xml"])
def test_repodata_that_the_hook_spoilt_is_found(store: StorePaths, harm: str) -> None:
    store.target(TARGET).mkdir()
    new = repodata.make_draft(store, TARGET, source(store, "one"), 1.0)
    assert new.find_damage() == ""
    (new.folder / harm).unlink()
    assert "its repomd.xml" in new.find_damage()


def test_the_doctor_names_the_target_whose_hook_fails(store: StorePaths, tmp_path: Path) -> None:
    def check(*argv: str) -> Result:
        hook_line = " ".join(argv)
        ini = write_ini(
            tmp_path / "doctor.ini",
            {"bstore": {"root": store.root}, "repogen": {"after_createrepo": hook_line}},
        )
        checks = store_checks(find_host(load_file(ini), ini, (BSTORE,), None))
        (found,) = run_checks([check for check in checks if check.name == "after_createrepo"])
        return found

    assert check().level == OK
    assert check("sh", "-c", "true").level == OK
    createrepo.record_failure(store.hook(TARGET), "sign exited with 2: no key")
    found = check("sh")
    assert found.level == FAIL
    assert f"{TARGET} keeps its old repodata" in found.message
    assert "no key" in found.message
    assert f"reimzul repogen {TARGET}" in found.hint
    assert check("/nowhere/sign").level == FAIL
