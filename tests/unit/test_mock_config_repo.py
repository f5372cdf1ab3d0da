# SPDX-License-Identifier: Apache-2.0
"""mock's configuration for a leg: retargeted, picked by the original's rule, rendered once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reimzul.core.errors import TimedOut
from reimzul.core.process import output_of
from reimzul.worker.mock_config import CheckoutState, MockConfigRepo, MockConfigUnusable, replace_target_arch

TEXT = """\
config_opts['root'] = 'TARGETNAME'
config_opts['yum.conf'] = '''
baseurl=http://repohost/repo/c7.1708.u.x86_64/
baseurl=http://repohost/repo/c7.1708.x86_64/
'''
"""


@pytest.fixture
def configs(tmp_path: Path) -> MockConfigRepo:
    """A checkout with the companions and one target."""
    folder = tmp_path / "checkout" / "mock"
    folder.mkdir(parents=True)
    for name in ("site-defaults.cfg", "logging.ini", "c7.1708.u.x86_64.cfg", "c7.1708.u.i386.cfg"):
        (folder / name).write_text(f"# {name}\n{TEXT}")
    return MockConfigRepo(
        checkout=tmp_path / "checkout",
        rendered_folder=tmp_path / "rendered",
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
    assert replace_target_arch(target, "x86_64", arch) == other


# --- picking


def pick_config(configs: MockConfigRepo, arch: str, name: str = "time") -> str | None:
    path = configs.find_config(name, "1.7-45.el7", "c7.1708.u.x86_64", "x86_64", arch)
    return path.name if path else None


def test_a_leg_has_the_configuration_of_its_target_and_arch(configs: MockConfigRepo) -> None:
    assert pick_config(configs, "x86_64") == "c7.1708.u.x86_64.cfg"
    assert pick_config(configs, "i386") == "c7.1708.u.i386.cfg"


def test_a_package_with_a_configuration_of_its_own_has_that(configs: MockConfigRepo) -> None:
    (configs.folder / "time-1.7-45.el7.i386.cfg").touch()
    assert pick_config(configs, "i386") == "time-1.7-45.el7.i386.cfg"
    assert pick_config(configs, "x86_64") == "c7.1708.u.x86_64.cfg"
    assert pick_config(configs, "i386", "other") == "c7.1708.u.i386.cfg"


def test_an_arch_without_a_configuration_has_none(configs: MockConfigRepo) -> None:
    assert pick_config(configs, "noarch") is None
    (configs.folder / "c7.1708.u.noarch.cfg").mkdir()
    assert pick_config(configs, "noarch") is None


# --- rendering


def render_config(configs: MockConfigRepo) -> Path:
    return configs.render(configs.folder / "c7.1708.u.x86_64.cfg")


def test_the_farms_words_are_put_in(configs: MockConfigRepo) -> None:
    text = (render_config(configs) / "mock.cfg").read_text()
    assert "config_opts['root'] = 'reimzul-c7.1708.u.x86_64'" in text
    assert "baseurl=http://localhost:11081/bstore/repo/c7.1708.u.x86_64/" in text
    assert "baseurl=http://localhost:11081/bstore/repo/c7.1708.x86_64/" in text
    assert "repohost" not in text
    assert "TARGETNAME" not in text


def test_what_mock_wants_beside_it_is_there(configs: MockConfigRepo) -> None:
    folder = render_config(configs)
    assert sorted(path.name for path in folder.iterdir()) == ["logging.ini", "mock.cfg", "site-defaults.cfg"]
    assert (folder / "logging.ini").read_text() == (configs.folder / "logging.ini").read_text()


def test_each_configuration_has_a_folder_of_its_own(configs: MockConfigRepo) -> None:
    assert render_config(configs) != configs.render(configs.folder / "c7.1708.u.i386.cfg")


def test_the_same_text_is_not_written_again(configs: MockConfigRepo) -> None:
    files = [render_config(configs) / name for name in ("mock.cfg", "site-defaults.cfg", "logging.ini")]
    for path in files:
        os.utime(path, (1_000_000, 1_000_000))  # mock drops its root cache where the configuration is newer
    os.utime(configs.folder / "c7.1708.u.x86_64.cfg")
    render_config(configs)
    assert [path.stat().st_mtime for path in files] == [1_000_000] * 3


def test_a_text_that_changed_is_written(configs: MockConfigRepo) -> None:
    path = render_config(configs) / "mock.cfg"
    (configs.folder / "c7.1708.u.x86_64.cfg").write_text("# new\n")
    render_config(configs)
    assert path.read_text().startswith("# new\n")
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("missing", ["site-defaults.cfg", "logging.ini"])
def test_a_checkout_without_a_companion_serves_no_build(configs: MockConfigRepo, missing: str) -> None:
    configs.check_required_files()
    (configs.folder / missing).unlink()
    with pytest.raises(MockConfigUnusable, match=f"has no {missing}"):
        configs.check_required_files()
    with pytest.raises(MockConfigUnusable, match="c7.1708.u.x86_64.cfg cannot be rendered"):
        render_config(configs)


def test_a_configuration_that_is_not_text_is_the_builders_fault(configs: MockConfigRepo) -> None:
    (configs.folder / "c7.1708.u.x86_64.cfg").write_bytes(b"\xff\xfe")
    with pytest.raises(MockConfigUnusable):
        render_config(configs)


def test_a_folder_that_is_no_checkout_is_used_as_it_is(configs: MockConfigRepo) -> None:
    assert configs.pull() == CheckoutState("not a git checkout")


# --- a pull that was broken off


def git(folder: Path, *words: str) -> str:
    me = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
    return output_of(["git", "-C", folder, *me, *words]).strip()


@pytest.fixture
def upstream(configs: MockConfigRepo, tmp_path: Path) -> Path:
    """What the checkout was cloned from; it has one commit more than that, with a changed file and a new one."""
    folder = tmp_path / "upstream"
    configs.checkout.rename(folder)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    git(tmp_path, "clone", "--quiet", str(folder), str(configs.checkout))
    (folder / "mock" / "site-defaults.cfg").write_text("# second\n")
    (folder / "mock" / "new.cfg").write_text("# second\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "second")
    return folder


def half_pulled(configs: MockConfigRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull of ours whose git is killed while it moves the tree."""
    sound = MockConfigRepo._git

    def raise_timeout(self: MockConfigRepo, *words: str) -> str:
        if words[0] != "merge":
            return sound(self, *words)
        (self.folder / "site-defaults.cfg").write_text("# seco")
        (self.folder / "new.cfg").write_text("# s")
        (self.checkout / ".git" / "index.lock").touch()
        raise TimedOut("git", 10)

    with monkeypatch.context() as patched:
        patched.setattr(MockConfigRepo, "_git", raise_timeout)
        assert not configs.pull().is_current


def test_a_pull_that_was_broken_off_is_made_good_by_the_next(
    configs: MockConfigRepo, upstream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_pulled(configs, monkeypatch)
    assert configs.pull() == CheckoutState(git(upstream, "rev-parse", "HEAD")[:12])
    assert (configs.folder / "site-defaults.cfg").read_text() == "# second\n"
    assert not git(configs.checkout, "status", "--porcelain")
    (upstream / "mock" / "new.cfg").write_text("# third\n")
    git(upstream, "commit", "--quiet", "-a", "-m", "third")
    assert configs.pull() == CheckoutState(git(upstream, "rev-parse", "HEAD")[:12])


def test_commits_made_here_outlive_a_pull_that_was_broken_off(
    configs: MockConfigRepo, upstream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_pulled(configs, monkeypatch)
    (configs.checkout / ".git" / "index.lock").unlink()
    git(configs.checkout, "commit", "--quiet", "-a", "-m", "ours")
    ours = git(configs.checkout, "rev-parse", "HEAD")
    assert configs.pull() == CheckoutState(ours[:12], is_current=False)


def test_what_was_changed_by_hand_outlives_a_pull_that_fails_by_itself(configs: MockConfigRepo, upstream: Path) -> None:
    (configs.folder / "site-defaults.cfg").write_text("# by hand\n")
    for _ in range(2):
        assert not configs.pull().is_current
        assert (configs.folder / "site-defaults.cfg").read_text() == "# by hand\n"
