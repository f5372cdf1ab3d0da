# SPDX-License-Identifier: Apache-2.0
"""mock's configuration for a leg: retargeted, picked by the original's rule, rendered once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reimzul.worker.configs import Configs, NoConfig, State, retargeted

TEXT = """\
config_opts['root'] = 'TARGETNAME'
config_opts['yum.conf'] = '''
baseurl=http://repohost/repo/c7.1708.u.x86_64/
baseurl=http://repohost/repo/c7.1708.x86_64/
'''
"""


@pytest.fixture
def configs(tmp_path: Path) -> Configs:
    """A checkout with the companions and one target."""
    folder = tmp_path / "checkout" / "mock"
    folder.mkdir(parents=True)
    for name in ("site-defaults.cfg", "logging.ini", "c7.1708.u.x86_64.cfg", "c7.1708.u.i386.cfg"):
        (folder / name).write_text(f"# {name}\n{TEXT}")
    return Configs(
        checkout=tmp_path / "checkout",
        rendered=tmp_path / "rendered",
        repohost="http://localhost:11081/bstore",
        pull_timeout=10,
    )


# --- the target of a leg


@pytest.mark.parametrize(
    ("target", "arch", "other"),
    [
        ("c7.1708.u.x86_64", "i386", "c7.1708.u.i386"),
        ("c7.1708.u.x86_64", "x86_64", "c7.1708.u.x86_64"),
        ("c7.x86_64.next.x86_64", "i386", "c7.x86_64.next.i386"),
        ("x86_64-c7", "i386", "i386-c7"),
        ("c7", "i386", "c7"),
    ],
)
def test_a_target_gets_the_legs_arch_in_the_place_of_its_own(target: str, arch: str, other: str) -> None:
    assert retargeted(target, "x86_64", arch) == other


# --- picking


def picked(configs: Configs, arch: str, name: str = "time") -> str | None:
    path = configs.pick(name, "1.7-45.el7", "c7.1708.u.x86_64", "x86_64", arch)
    return path.name if path else None


def test_a_leg_has_the_configuration_of_its_target_and_arch(configs: Configs) -> None:
    assert picked(configs, "x86_64") == "c7.1708.u.x86_64.cfg"
    assert picked(configs, "i386") == "c7.1708.u.i386.cfg"


def test_a_package_with_a_configuration_of_its_own_has_that(configs: Configs) -> None:
    (configs.folder / "time-1.7-45.el7.i386.cfg").touch()
    assert picked(configs, "i386") == "time-1.7-45.el7.i386.cfg"
    assert picked(configs, "x86_64") == "c7.1708.u.x86_64.cfg"
    assert picked(configs, "i386", "other") == "c7.1708.u.i386.cfg"


def test_an_arch_without_a_configuration_has_none(configs: Configs) -> None:
    assert picked(configs, "noarch") is None
    (configs.folder / "c7.1708.u.noarch.cfg").mkdir()
    assert picked(configs, "noarch") is None


# --- rendering


def rendered(configs: Configs) -> Path:
    return configs.render(configs.folder / "c7.1708.u.x86_64.cfg")


def test_the_farms_words_are_put_in(configs: Configs) -> None:
    text = (rendered(configs) / "mock.cfg").read_text()
    assert "config_opts['root'] = 'reimzul-c7.1708.u.x86_64'" in text
    assert "baseurl=http://localhost:11081/bstore/repo/c7.1708.u.x86_64/" in text
    assert "baseurl=http://localhost:11081/bstore/repo/c7.1708.x86_64/" in text
    assert "repohost" not in text and "TARGETNAME" not in text


def test_what_mock_wants_beside_it_is_there(configs: Configs) -> None:
    folder = rendered(configs)
    assert sorted(path.name for path in folder.iterdir()) == ["logging.ini", "mock.cfg", "site-defaults.cfg"]
    assert (folder / "logging.ini").read_text() == (configs.folder / "logging.ini").read_text()


def test_each_configuration_has_a_folder_of_its_own(configs: Configs) -> None:
    assert rendered(configs) != configs.render(configs.folder / "c7.1708.u.i386.cfg")


def test_the_same_text_is_not_written_again(configs: Configs) -> None:
    files = [rendered(configs) / name for name in ("mock.cfg", "site-defaults.cfg", "logging.ini")]
    for path in files:
        os.utime(path, (1_000_000, 1_000_000))  # mock drops its root cache where the configuration is newer
    os.utime(configs.folder / "c7.1708.u.x86_64.cfg")
    rendered(configs)
    assert [path.stat().st_mtime for path in files] == [1_000_000] * 3


def test_a_text_that_changed_is_written(configs: Configs) -> None:
    path = rendered(configs) / "mock.cfg"
    (configs.folder / "c7.1708.u.x86_64.cfg").write_text("# new\n")
    rendered(configs)
    assert path.read_text() == "# new\n"
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("missing", ["site-defaults.cfg", "logging.ini"])
def test_a_checkout_without_a_companion_serves_no_build(configs: Configs, missing: str) -> None:
    configs.check()
    (configs.folder / missing).unlink()
    with pytest.raises(NoConfig, match=f"has no {missing}"):
        configs.check()
    with pytest.raises(NoConfig, match="c7.1708.u.x86_64.cfg cannot be rendered"):
        rendered(configs)


def test_a_configuration_that_is_not_text_is_the_builders_fault(configs: Configs) -> None:
    (configs.folder / "c7.1708.u.x86_64.cfg").write_bytes(b"\xff\xfe")
    with pytest.raises(NoConfig):
        rendered(configs)


def test_a_folder_that_is_no_checkout_is_used_as_it_is(configs: Configs) -> None:
    assert configs.pull() == State("not a git checkout")
