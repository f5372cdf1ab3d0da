# SPDX-License-Identifier: Apache-2.0
"""The demo as a newcomer runs it, with packages of the tests' own."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from pathlib import Path

import pytest

from devfarm import subreaper
from tests import srpms
from tests.integration.test_devfarm import DEVFARM, alive
from tests.waiting import until


def demo(folder: Path, srpm: Path) -> subprocess.CompletedProcess[str]:
    argv = [*DEVFARM, "demo", "--srpm", str(srpm)]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_the_demo_ends_with_dnfs_own_list(tmp_path: Path) -> None:
    seen = tmp_path / "seen"  # %build goes on when the demo has shown mock's phase, or after 20 s
    waits = f"%build\nfor each in $(seq 200); do test -e '{seen}' && break; sleep 0.1; done\n"
    spec = srpms.compiled("yours").replace("%build\n", waits)
    argv = [
        *DEVFARM,
        "demo",
        "--srpm",
        str(srpms.make_srpm(tmp_path / "my srpms", "yours", spec)),
    ]
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        said = ""
        for line in process.stdout:
            said += line
            if "rpmbuild" in line:
                seen.touch()
    assert process.returncode == 0, said
    assert re.search(r"^  yours\.x86_64 +1\.0-1\.demo +farm$", said, re.MULTILINE)
    assert seen.exists(), said
    (address,) = re.findall(r"^ .*in a browser, until this ends: (http://127\.0\.0\.1:\d+/)$", said, re.MULTILINE)
    assert re.search(
        rf"^The pages\n +\d+\.\d s  {address}builds/[0-9a-f]{{2}}/[0-9a-f]{{32}}\.html$", said, re.MULTILINE
    )
    named = re.findall(r"(/\S+/\.farm/\S+?)[;\s]", said)
    assert len(named) > 4
    assert [path for path in named if not Path(path).exists()] == []
    assert alive(str(tmp_path)) == []


def test_a_demo_whose_build_fails_shows_why(tmp_path: Path) -> None:
    done = demo(tmp_path, srpms.make_srpm(tmp_path, "broken", srpms.failing_build("broken")))
    assert done.returncode == 1
    assert "error: broken cannot do this" in done.stdout
    assert "broken 1.0-1.x86_64: failed" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert alive(str(tmp_path)) == []


def test_a_file_that_is_no_source_rpm_ends_the_demo_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "noise-1-1.src.rpm").write_bytes(b"noise")
    done = demo(tmp_path, tmp_path / "noise-1-1.src.rpm")
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "not an rpm package" in done.stderr


@pytest.mark.parametrize("whom", ["outer", "inner", "Ctrl-C"])
def test_nothing_is_left_of_a_demo_that_is_killed_while_it_builds(tmp_path: Path, whom: str) -> None:
    mark = str(random.randrange(10**6, 10**7))
    srpm = srpms.make_srpm(tmp_path, "endless", srpms.slow("endless").replace("sleep 1", f"sleep {mark}"))
    argv = [*DEVFARM, "demo", "--srpm", str(srpm)]
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True) as command:
        try:
            until(lambda: alive(f"sleep {mark}"), 30, "it builds")
            if whom == "Ctrl-C":
                os.killpg(command.pid, signal.SIGINT)
            else:
                os.kill(command.pid if whom == "outer" else subreaper.children(command.pid)[0], signal.SIGKILL)
            command.wait(60)
            until(lambda: not alive(str(tmp_path)) and not alive(f"sleep {mark}"), 30, "nothing is left")
        finally:
            command.kill()
