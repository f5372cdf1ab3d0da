# SPDX-License-Identifier: Apache-2.0
"""What is read of a primary.xml: provides, requires and files of each package, as createrepo_c writes them."""

from __future__ import annotations

import pytest

from reimzul.core.capability import Provide
from reimzul.core.http_client import HttpSession, HttpUnavailable
from reimzul.core.listed_packages import PackageContent, iterate_contents, iterate_packages, iterate_provides

URL = "http://bstore/repo/c9s.x86_64/"
REPOMD = b'<repomd><data type="primary"><location href="repodata/primary.xml"/></data></repomd>'
BINARY = """\
<package type="rpm">
  <name>liba-devel</name>
  <arch>x86_64</arch>
  <version epoch="1" ver="2.0" rel="3.el9"/>
  <size package="10" installed="10" archive="10"/>
  <location href="liba/20260101000000/2.0-3.el9.x86_64/liba%2Bdevel.rpm"/>
  <format>
    <rpm:sourcerpm>liba-2.0-3.el9.src.rpm</rpm:sourcerpm>
    <rpm:provides>
      <rpm:entry name="liba-devel" flags="EQ" epoch="1" ver="2.0" rel="3.el9"/>
      <rpm:entry name="pkgconfig(a)" flags="EQ" epoch="0" ver="2.0"/>
      <rpm:entry name="plain"/>
    </rpm:provides>
    <rpm:requires>
      <rpm:entry name="(b if c &gt;= 2)"/>
      <rpm:entry name="d" flags="GE" epoch="0" ver="1.0" pre="1"/>
    </rpm:requires>
    <rpm:conflicts><rpm:entry name="no"/></rpm:conflicts>
    <file>/usr/bin/a&amp;b</file>
    <file type="dir">/etc/a</file>
  </format>
</package>
"""
SOURCE = """\
<package type="rpm">
  <name>liba</name>
  <arch>src</arch>
  <version epoch="0" ver="2.0" rel="3.el9"/>
  <size package="10" installed="10" archive="10"/>
  <location href="liba/20260101000000/2.0-3.el9.x86_64/liba-2.0-3.el9.src.rpm"/>
  <format>
    <rpm:sourcerpm></rpm:sourcerpm>
    <rpm:requires><rpm:entry name="gcc"/></rpm:requires>
  </format>
</package>
"""


class Store(HttpSession):
    """Serves a primary.xml."""

    def __init__(self, packages: str, count: int) -> None:
        self.primary = f'<metadata packages="{count}">\n{packages}</metadata>'.encode()

    def get(self, url: str, limit: int) -> bytes:
        return REPOMD if url.endswith("repomd.xml") else self.primary


def read(packages: str, count: int, monkeypatch: pytest.MonkeyPatch) -> list[PackageContent]:
    monkeypatch.setattr("reimzul.core.listed_packages.fetch_repomd", lambda *_: REPOMD)
    return list(iterate_contents(Store(packages, count), URL))


def test_a_package_has_its_source_capabilities_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    binary, source = read(BINARY + SOURCE, 2, monkeypatch)
    assert binary == PackageContent(
        name="liba-devel",
        arch="x86_64",
        epoch="1",
        evr="2.0-3.el9",
        location="liba/20260101000000/2.0-3.el9.x86_64/liba+devel.rpm",
        source="liba",
        source_evr="2.0-3.el9",
        provides=(
            Provide("liba-devel", "EQ", "1:2.0-3.el9"), Provide("pkgconfig(a)", "EQ", "0:2.0"), Provide("plain"),
        ),
        requires=("(b if c >= 2)", "d >= 0:1.0"),
        files=("/usr/bin/a&b", "/etc/a"),
    )  # fmt: skip
    assert (source.is_source, source.source, source.source_evr) == (True, "liba", "2.0-3.el9")
    assert (source.requires, source.provides, source.files) == (("gcc",), (), ())
    assert not binary.is_source


def test_other_readers_see_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reimzul.core.listed_packages.fetch_repomd", lambda *_: REPOMD)
    store = Store(BINARY + SOURCE, 2)
    assert len(list(iterate_packages(store, URL))) == 2
    provided = [(arch, each.name) for arch, each in iterate_provides(store, URL)]
    names = ["liba-devel", "pkgconfig(a)", "plain", "/usr/bin/a&b", "/etc/a"]
    assert provided == [("x86_64", name) for name in names]


@pytest.mark.parametrize(("packages", "count"), [(BINARY, 2), (BINARY.replace("<arch>", "<arch >"), 1), ("", 1)])
def test_what_createrepo_c_does_not_write_is_refused(
    packages: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HttpUnavailable, match="not as createrepo_c writes it"):
        read(packages, count, monkeypatch)
