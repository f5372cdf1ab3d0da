# SPDX-License-Identifier: Apache-2.0
"""Reading headers of real packages, whole, cut short and damaged."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reimzul.core.errors import InputError, ProgramNotFound
from reimzul.core.rpm_header import Header, compare_versions, import_rpm, read_header, read_source_header
from tests import srpms

EPOCH = srpms.noarch("aged", version="2.0~rc1").replace("License:", "Epoch: 3\nLicense:", 1)

on_one_package = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="session")
def made_packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real packages of the kinds a farm meets."""
    folder = tmp_path_factory.mktemp("headers")
    limited = srpms.compiled("limited", exclusive_arch="x86_64 %{arm}", exclude_arch="s390x")
    return {
        "hello": srpms.make_srpm(folder, "hello", srpms.compiled("hello", requires="gcc >= 4, make")),
        "aged": srpms.make_srpm(folder, "aged", EPOCH),
        "limited": srpms.make_srpm(folder, "limited", limited),
        "binary": srpms.make_rpm(folder, "aged", EPOCH),
        "long": srpms.make_srpm(folder, "long", srpms.noarch("n" * 201)),
    }


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to be spoilt."""
    return tmp_path_factory.mktemp("spoilt") / "spoilt.src.rpm"


def refusal(path: Path) -> str:
    """What reading it is answered with: one line that names the file."""
    with pytest.raises(InputError) as refused:
        read_header(path)
    said = str(refused.value)
    assert said.startswith(f"{path}: ")
    assert said.isprintable()
    return said[len(f"{path}: ") :]


# --- whole packages


def test_a_source_rpm(made_packages: dict[str, Path]) -> None:
    header = read_source_header(made_packages["hello"])
    assert header.is_source
    assert header.epoch is None
    assert (header.name, header.version, header.release, header.evr) == ("hello", "1.0", "1", "1.0-1")
    assert header.nevra == "hello-1.0-1.src"
    assert {"gcc >= 4", "make"} <= set(header.requires)
    assert header.exclusive_arch == header.exclude_arch == header.build_archs == ()


def test_an_epoch_is_told_in_the_nevra_alone(made_packages: dict[str, Path]) -> None:
    header = read_source_header(made_packages["aged"])
    assert (header.epoch, header.evr, header.nevra) == (3, "2.0~rc1-1", "aged-3:2.0~rc1-1.src")
    assert header.build_archs == ("noarch",)


def test_arches_are_told_with_their_macros_expanded(made_packages: dict[str, Path]) -> None:
    header = read_source_header(made_packages["limited"])
    assert header.exclusive_arch[0] == "x86_64"
    assert "armv7hl" in header.exclusive_arch
    assert header.exclude_arch == ("s390x",)


def test_a_binary_rpm_is_read_and_is_no_source(made_packages: dict[str, Path]) -> None:
    header = read_header(made_packages["binary"])
    assert not header.is_source
    assert header.arch == "noarch"
    assert header.nevra == "aged-3:2.0~rc1-1.noarch"
    with pytest.raises(InputError, match=r"a binary rpm \(aged-3:2.0~rc1-1.noarch\), not a source rpm$"):
        read_source_header(made_packages["binary"])


# --- no packages


def test_what_is_not_there_or_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.src.rpm") == "no such file or directory"
    assert refusal(tmp_path) == "is a directory"
    os.mkfifo(tmp_path / "pipe.src.rpm")
    assert refusal(tmp_path / "pipe.src.rpm") == "illegal seek"


def test_a_name_too_long_for_a_place_is_refused(made_packages: dict[str, Path]) -> None:
    assert refusal(made_packages["long"]).endswith("is longer than 200 characters")


@given(content=st.binary(max_size=300))
@on_one_package
def test_noise_is_no_package(scratch: Path, content: bytes) -> None:
    for lead in (b"", b"\xed\xab\xee\xdb"):
        scratch.write_bytes(lead + content)
        assert refusal(scratch) in ("not an rpm package", "truncated or damaged (error reading package header)")


@pytest.mark.parametrize("keep", [0, 3, 4, 95, 96, 104, 111, 112, 200, 1000, -1000, -8, -1])
def test_a_package_cut_short_is_told_from_no_package(made_packages: dict[str, Path], scratch: Path, keep: int) -> None:
    whole = made_packages["hello"].read_bytes()
    scratch.write_bytes(whole[:keep])
    begins = "not an rpm package" if 0 <= keep < 4 else "truncated"
    assert refusal(scratch).startswith(begins)
    if keep == -1:
        assert refusal(scratch) == f"truncated: {len(whole) - 1} of {len(whole)} bytes"


@given(st.data())
@on_one_package
def test_wherever_it_is_cut_it_is_refused(made_packages: dict[str, Path], scratch: Path, data: st.DataObject) -> None:
    whole = made_packages["hello"].read_bytes()
    scratch.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refusal(scratch)


@given(st.data())
@on_one_package
def test_damage_is_refused_or_does_no_harm(made_packages: dict[str, Path], scratch: Path, data: st.DataObject) -> None:
    damaged = bytearray(made_packages["hello"].read_bytes())
    places = st.integers(0, len(damaged) - 1) | st.integers(0, 2000)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=20)):
        damaged[place] = byte
    scratch.write_bytes(damaged)
    try:
        assert isinstance(read_header(scratch), Header)
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017  damage may hit what nobody reads


def test_damage_to_the_header_itself_is_always_seen(made_packages: dict[str, Path], scratch: Path) -> None:
    whole = made_packages["hello"].read_bytes()
    at = whole.rindex(b"A package for tests")  # its description, under the header's digest
    scratch.write_bytes(whole[:at] + b"B" + whole[at + 1 :])
    assert refusal(scratch).startswith("truncated or damaged")


# --- the host


def test_librpm_says_nothing_on_our_stderr(
    made_packages: dict[str, Path], scratch: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scratch.write_bytes(made_packages["hello"].read_bytes()[:1000])
    refusal(scratch)
    assert capfd.readouterr() == ("", "")


def test_no_descriptor_is_left_open(made_packages: dict[str, Path], scratch: Path) -> None:
    scratch.write_bytes(b"noise")
    before = os.listdir("/proc/self/fd")
    for path in (made_packages["hello"], scratch):
        with contextlib.suppress(InputError):
            read_header(path)
    assert os.listdir("/proc/self/fd") == before


def test_a_python_without_the_bindings_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rpm", None)
    with pytest.raises(ProgramNotFound, match="install python3-rpm"):
        import_rpm()


# --- headers that rpm reads, and that no rpmbuild makes


GOOD = {"name": "hello", "version": "1", "release": "1", "arch": "x86_64"}


def test_a_forged_header_with_all_fields_is_read(tmp_path: Path) -> None:
    assert read_source_header(srpms.forge_srpm(tmp_path / "f.src.rpm", GOOD)).nevra == "hello-1-1.src"


@pytest.mark.parametrize("field", GOOD)
@pytest.mark.parametrize("value", [None, "", "../x", "-x", "a\u202eb", "a b", "(none)", "x" * 300])
def test_a_header_without_a_name_or_with_a_bad_one_is_refused(tmp_path: Path, field: str, value: str | None) -> None:
    fields = {**GOOD, field: value} if value is not None else {k: v for k, v in GOOD.items() if k != field}
    if (field, value) in (("release", "-x"),):  # 1--x is a name, if an odd one
        return
    said = refusal(srpms.forge_srpm(tmp_path / "f.src.rpm", {key: str(given) for key, given in fields.items()}))
    assert said.startswith("its header cannot be used: ")
    assert f"it has no {field}" in said or value


@pytest.mark.parametrize(
    ("one", "other", "order"),
    [
        ("1.2-3.el9", "1.10-1", -1),
        ("1:1.0", "2.0", 1),
        ("1.2-3", "1.2", 0),
        ("1.2-3", "1.2-4", -1),
        ("1.0~rc1-1", "1.0-1", -1),
    ],
)
def test_versions_are_compared_as_rpm_does(one: str, other: str, order: int) -> None:
    assert compare_versions(one, other) == order
    assert compare_versions(other, one) == -order
