# SPDX-License-Identifier: Apache-2.0
"""The stand-in for mock and its repositories: what dnf finds, keeps, skips and fails at, in dnf's own lines."""

from __future__ import annotations

import http.server
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import srpms, webserver
from tests.conftest import free_port
from tests.integration.test_mockstub import Mock

HOUR = 3600  # seconds


@pytest.fixture
def mock(tmp_path: Path) -> Mock:
    return Mock(tmp_path)


class Repository:
    """A repository on a web server."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder / "repo"
        self.folder.mkdir()
        self.url = f"http://127.0.0.1:{port}/repo/"

    def publish(self, name: str, version: str) -> None:
        srpms.make_rpm(self.folder, name, srpms.noarch(name, version=version))
        subprocess.run(["createrepo_c", "--quiet", self.folder], check=True)

    def section(self, *more: str) -> str:
        return f"[target]\nname=target\nbaseurl={self.url}\n" + "".join(f"{line}\n" for line in more)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    server: http.server.ThreadingHTTPServer = webserver.serve(tmp_path)
    yield Repository(tmp_path, server.server_address[1])
    webserver.close(server)


def build(mock: Mock, requires: str, *sections: str, main: str = "", unique: str = "") -> tuple[int, list[str]]:
    """Build what requires something; the exit code, and which packages of repositories it got."""
    mock.configure(f"config_opts['dnf.conf'] = '''[main]\n{main}\n{''.join(sections)}'''\n")
    spec = srpms.noarch("user").replace("BuildArch:", f"BuildRequires: {requires}\nBuildArch:")
    (mock.results / "installed_pkgs.log").unlink(missing_ok=True)
    code, _ = mock.run(f"--uniqueext={unique or 'one'}", mock.source("user", spec))
    try:
        lines = mock.log("installed_pkgs").splitlines()
    except FileNotFoundError:
        return code, []
    return code, [line.split()[0] for line in lines if line.startswith("libfoo")]


def age(mock: Mock, hours: float) -> None:
    """Let what is cached have been downloaded that long ago."""
    found = list((mock.roots.parent / "roots-cache" / "farm").rglob("*primary.xml.gz"))
    assert found
    for path in found:
        os.utime(path, (time.time() - hours * HOUR,) * 2)


def test_the_newest_that_satisfies_is_taken(mock: Mock, repository: Repository) -> None:
    for version in ("1.0", "1.10", "1.9"):
        repository.publish("libfoo", version)
    everything = repository.section()
    assert build(mock, "libfoo", everything) == (0, ["libfoo-1.10-1.noarch"])
    assert build(mock, "libfoo < 1.10", everything) == (0, ["libfoo-1.9-1.noarch"])
    assert build(mock, "libfoo = 1.0", everything) == (0, ["libfoo-1.0-1.noarch"])
    assert build(mock, "libfoo >= 1.9-2", everything) == (0, ["libfoo-1.10-1.noarch"])
    assert build(mock, "/usr/bin/gcc", everything) == (0, [])
    assert build(mock, "libfoo > 1.10", everything) == (30, [])
    assert "DEBUG build.py" in mock.log("root")
    assert "No matching package to install: 'libfoo > 1.10'" in mock.log("root")
    assert build(mock, "libfoo", repository.section("enabled=0")) == (30, [])


@pytest.mark.parametrize(
    ("main", "option", "hours", "stale"),
    [
        ("", "", 47, True),
        ("", "", 49, False),
        ("metadata_expire=1h", "", 2, False),
        ("metadata_expire=1h", "metadata_expire=3h", 2, True),
        ("", "metadata_expire=0", 2 / HOUR, False),  # dnf compares whole seconds
        ("", "metadata_expire=never", 999, True),
        ("metadata_expire=never", "metadata_expire=60", 1, False),
    ],
)
def test_metadata_is_believed_until_it_expires(
    mock: Mock, repository: Repository, main: str, option: str, hours: float, stale: bool
) -> None:
    repository.publish("libfoo", "1.0")
    assert build(mock, "libfoo", repository.section(option), main=main)[1] == ["libfoo-1.0-1.noarch"]
    repository.publish("libfoo", "2.0")
    age(mock, hours)
    # the cache is the root name's: another extension has it too
    _, found = build(mock, "libfoo", repository.section(option), main=main, unique="two")
    assert found == ["libfoo-1.0-1.noarch" if stale else "libfoo-2.0-1.noarch"]


def test_a_repository_that_may_be_skipped_is_as_dnf_skips_it(mock: Mock, repository: Repository) -> None:
    code, _ = build(mock, "libfoo-devel >= 1.0", repository.section("skip_if_unavailable=1"))
    lines = re.findall(r"^DEBUG \S+:\d+:  (.*)", mock.log("root"), re.MULTILINE)
    assert code == 30
    # as real mock's root.log has them
    skipped = [
        "Errors during downloading metadata for repository 'target':",
        f"  - Status code: 404 for {repository.url}repodata/repomd.xml (IP: 127.0.0.1)",
        "Error: Failed to download metadata for repo 'target': Cannot download repomd.xml: "
        "Cannot download repodata/repomd.xml: All mirrors were tried",
        "Ignoring repositories: target",
    ]
    missing = ["No matching package to install: 'libfoo-devel >= 1.0'", "Not all dependencies satisfied"]
    said = [line for line in lines if line in [*skipped, *missing, "Error: Some packages could not be found."]]
    assert said == [*skipped, *skipped, *missing, "Error: Some packages could not be found."]
    assert "Finish: build setup for user-1.0-1.src.rpm" in mock.phases()
    assert build(mock, "gcc", repository.section("skip_if_unavailable=1"))[0] == 0


def test_a_repository_that_may_not_be_skipped_fails_before_the_build(mock: Mock, repository: Repository) -> None:
    assert build(mock, "gcc", repository.section())[0] == 30
    assert not [phase for phase in mock.phases() if "build setup" in phase]
    assert "Ignoring repositories" not in mock.log("root")
    assert "Status code: 404 for" in mock.log("root")
    assert build(mock, "gcc", repository.section(), main="skip_if_unavailable=true")[0] == 0


def test_a_server_that_is_away_and_a_file_that_is_gone(mock: Mock, repository: Repository) -> None:
    assert build(mock, "gcc", f"[x]\nbaseurl=http://127.0.0.1:{free_port()}/\n")[0] == 30
    assert "  - Curl error (7): Couldn't connect to server for http://127.0.0.1:" in mock.log("root")
    repository.publish("libfoo", "1.0")
    next(repository.folder.glob("repodata/*primary.xml.gz")).unlink()
    assert build(mock, "gcc", repository.section())[0] == 30
    assert "Yum repo downloading error: Downloading error(s): repodata/" in mock.log("root")
    (repository.folder / "repodata/repomd.xml").write_text("no XML")
    assert build(mock, "gcc", repository.section())[0] == 30
    assert "Failed to download metadata for repo 'target': repomd.xml parser error" in mock.log("root")


def test_what_is_not_read_fails_nothing(mock: Mock) -> None:
    others = "[a]\nbaseurl=https://mirror.invalid/\n[b]\nmirrorlist=http://mirror.invalid/\n[c]\nname=c\n"
    assert build(mock, "gcc", others)[0] == 0


def test_the_configuration_is_run_as_mock_runs_it(mock: Mock) -> None:
    mock.configure("x = [config_opts['root'] for each in '1']\n")  # a comprehension does not see a function's locals
    code, said = mock.run(mock.source("plain", srpms.noarch()))
    assert code == 3
    assert "ERROR: Config error: " in said
    assert "name 'config_opts' is not defined" in said
    mock.configure("include('gone.tpl')\n")
    code, said = mock.run(mock.source("plain", srpms.noarch()))
    assert code == 3
    assert "Could not find included config file: " in said
