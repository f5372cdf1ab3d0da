# SPDX-License-Identifier: Apache-2.0
"""mock's rendered configuration, read as mock reads it: by exec in a function, then by Jinja and an ini parser."""

from __future__ import annotations

import ast
import configparser
from pathlib import Path
from typing import Any

import jinja2
import pytest

from reimzul.core.mock_config import (
    MockConfigError,
    Renderer,
    describe,
    farm_urls,
    fresh_code,
    list_repositories,
)

STORE = "http://localhost:11081/bstore"
HEAD = "config_opts['root'] = 'TARGETNAME'\nconfig_opts['releasever'] = '9'\nconfig_opts['base'] = 'http://repohost'\n"
UPSTREAM = "[baseos]\nbaseurl=http://mirror.example.org/9/\nmetadata_expire=6h\n"


class Aliased(dict[str, Any]):
    """config_opts of a new mock: four keys are one."""

    def _key(self, key: str) -> str:
        return "dnf.conf" if key in ("dnf4.conf", "dnf5.conf", "yum.conf") else key

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(self._key(key))

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(self._key(key), value)

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(self._key(key), default)


def run(text: str, config_opts: Any, times: int = 2) -> Any:
    """Run a configuration as mock runs it: what it sees of `config_opts` is a local of the function."""
    for _ in range(times):
        exec(text)
    return config_opts


@pytest.fixture
def renderer(tmp_path: Path) -> Renderer:
    (tmp_path / "site-defaults.cfg").write_text("# nothing\n")
    return Renderer(folder=tmp_path, repohost=STORE)


def render_text(renderer: Renderer, text: str) -> str:
    path = renderer.folder / "c9.x86_64.cfg"
    path.write_text(text)
    return renderer.render(path)


def parse_config(text: str, **values: str) -> configparser.ConfigParser:
    """A configuration as dnf has it at last; no option stands twice in a section."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(jinja2.Template(text).render(**values))
    return parser


def conf(renderer: Renderer, text: str, key: str = "dnf.conf", **values: str) -> configparser.ConfigParser:
    """What dnf reads where the .cfg sets its configuration to that text."""
    done = run(render_text(renderer, f"{HEAD}config_opts[{key!r}] = '''[main]\n{text}'''\n"), {})
    return parse_config(done[key], base=STORE, **values)


# --- always fresh

OURS = {
    "repohost": "baseurl=http://repohost/repo/c9.x86_64/",
    "the store": "baseurl=http://localhost:11081/bstore/repo/c9.x86_64/",
    "loopback": "baseurl=http://127.0.0.1:11081/bstore/repo/c9.x86_64/",
    "IPv6's loopback": "baseurl=http://[::1]:11081/bstore/repo/c9.x86_64/",
    "capitals": "baseurl=http://LocalHost:11081/bstore/repo/c9.x86_64/",
    "spaces around": "baseurl = http://repohost/repo/c9.x86_64/",
    "yum's colon": "baseurl: http://repohost/repo/c9.x86_64/",
    "a mirror list": "mirrorlist=http://repohost/repo/mirrors",
    "a metalink": "metalink=http://repohost/repo/metalink",
    "the second URL": "baseurl=http://mirror.example.org/9/ http://repohost/repo/c9.x86_64/",
    "after a comma": "baseurl=http://mirror.example.org/9/,http://repohost/repo/c9.x86_64/",
    "a line that goes on": "baseurl=http://mirror.example.org/9/\n  http://repohost/repo/c9.x86_64/",
    "a line that begins empty": "baseurl=\n  http://repohost/repo/c9.x86_64/",
    "unexpanded": "baseurl={{ base }}/repo/c9.x86_64/",
    "unexpanded in the middle": "baseurl=http://{{ host }}/repo/c9.x86_64/",
    "a branch of Jinja": "{% if host %}\nbaseurl=http://repohost/repo/c9.x86_64/\n{% endif %}",
    "a branch in one line": "{% if not host %}mirrorlist=x{% else %}baseurl=http://repohost/repo/x/{% endif %}",
    "a URL that is a branch": "baseurl={% if host %}http://repohost/repo/c9.x86_64/{% endif %}",
}
EXPIRE = {
    "nothing": "{}",
    "before it": "metadata_expire=6h\n{}",
    "after it": "{}\nmetadata_expire=6h\n",
    "with a space": "metadata_expire = 6h\n{}\nskip_if_unavailable=1",
    "twice in a branch": "{{% if host %}}\nmetadata_expire=7d\n{{% else %}}\nmetadata_expire=never\n{{% endif %}}\n{}",
    "in a branch of one line": "{{% if host %}}metadata_expire=7d{{% endif %}}\n{}",
    "on a line of its own": "metadata_expire=\n   6h\n{}",
}


@pytest.mark.parametrize("says", EXPIRE.values(), ids=EXPIRE)
@pytest.mark.parametrize("option", OURS.values(), ids=OURS)
def test_a_repository_of_the_farm_is_always_fresh(renderer: Renderer, option: str, says: str) -> None:
    found = conf(
        renderer, f"metadata_expire=2d\n{UPSTREAM}[target]\nname=x\n{says.format(option)}\n[z]\n", host="localhost"
    )
    assert found["target"]["metadata_expire"] == "0"
    assert found["target"]["name"] == "x"
    assert found["main"]["metadata_expire"] == "2d"
    assert found["baseos"]["metadata_expire"] == "6h"


@pytest.mark.parametrize("key", ["dnf.conf", "dnf4.conf", "dnf5.conf", "yum.conf"])
def test_every_package_managers_configuration_is_looked_at(renderer: Renderer, key: str) -> None:
    assert conf(renderer, f"[target]\n{OURS['repohost']}", key)["target"]["metadata_expire"] == "0"


def test_new_mocks_whose_keys_are_one_and_old_ones_with_both(renderer: Renderer) -> None:
    two = "".join(f"config_opts[{key!r}] = '''[{key[:3]}]\n{OURS['repohost']}'''\n" for key in ("yum.conf", "dnf.conf"))
    text = render_text(renderer, two)
    assert list(run(text, Aliased())) == ["dnf.conf"]
    assert parse_config(run(text, Aliased())["dnf.conf"])["dnf"]["metadata_expire"] == "0"
    old = run(text, {})
    assert [parse_config(old[key])[key[:3]]["metadata_expire"] for key in ("yum.conf", "dnf.conf")] == ["0", "0"]


OTHERS = {
    "a mirror": "baseurl=http://mirror.example.org/9/",
    "a port that is another's": "baseurl=http://localhost:110811/bstore/",
    "a comment": "baseurl=http://mirror.example.org/9/\n#baseurl=http://repohost/repo/c9.x86_64/",
    "a comment with a semicolon": ";baseurl=http://repohost/repo/c9.x86_64/\nbaseurl=http://mirror.example.org/9/",
    "another option": "baseurl=http://mirror.example.org/9/\ngpgkey=http://repohost/key",
    "an option that goes on": "baseurl=http://mirror.example.org/9/\ngpgkey=x\n  http://repohost/key",
    "a URL with the store's in it": "baseurl=http://mirror.example.org/?at=http://repohost/",
}


@pytest.mark.parametrize("option", OTHERS.values(), ids=OTHERS)
def test_what_others_serve_is_left_as_it_is(renderer: Renderer, option: str) -> None:
    text = f"[main]\n[other]\nmetadata_expire=6h\n{option}\n[empty]\n\n# the end\n"
    done = run(render_text(renderer, f"config_opts['dnf.conf'] = '''{text}'''\n"), {})
    assert done["dnf.conf"] == text.replace("http://repohost", STORE)


def test_what_is_appended_sets_nothing_that_was_not_set(renderer: Renderer) -> None:
    assert list(run(render_text(renderer, HEAD), {})) == ["root", "releasever", "base"]


def test_the_text_is_the_same_each_time_and_python_3_6_can_read_it(renderer: Renderer) -> None:
    text = render_text(renderer, HEAD)
    assert text == render_text(renderer, HEAD)
    tree = ast.parse(text, feature_version=(3, 6))
    closed = (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.ClassDef)
    assert not [node for node in ast.walk(tree) if isinstance(node, closed)], "it would not see config_opts"


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("https://store.example.org/bstore", "https://store.example.org/bstore/repo/x/"),
        ("https://store.example.org/bstore", "https://store.example.org:443/bstore/repo/x/"),
        ("http://store.example.org:80/bstore", "http://store.example.org/bstore/repo/x/"),
        ("http://127.0.0.1:8000/bstore", "http://localhost:8000/bstore/repo/x/"),
    ],
)
def test_the_stores_urls_by_whatever_name(base: str, expected: str) -> None:
    assert expected.startswith(farm_urls(base))
    assert not "https://store.example.org/mirror/".startswith(farm_urls(base))


def test_repositories_are_read_as_dnf_reads_them() -> None:
    text = "[main]\nx=1\n[a]\nbaseurl = http://a/\n   http://b/\nmetadata_expire:1\nmetadata_expire=2\n#c\n"
    main, found = list_repositories(text)
    assert main.options == {"x": ["1"]}
    assert (found.name, found.list_urls(), found.last_value("metadata_expire")) == (
        "a",
        ["http://a/", "http://b/"],
        "2",
    )


# --- includes


def write(folder: Path, **texts: str) -> None:
    (folder / "templates").mkdir()
    for name, text in texts.items():
        (folder / "templates" / f"{name}.tpl").write_text(text)


def test_includes_are_inlined_and_rendered(renderer: Renderer) -> None:
    write(renderer.folder, outer="include('templates/inner.tpl')\nconfig_opts['outer'] = 'TARGETNAME'\n", inner=HEAD)
    text = render_text(renderer, "include('templates/outer.tpl')\nconfig_opts['own'] = 1\n")
    done = run(text, {})
    assert (done["root"], done["outer"], done["base"]) == ("reimzul-c9.x86_64", "reimzul-c9.x86_64", STORE)
    assert list(done) == ["root", "releasever", "base", "outer", "own"]
    assert "include(" not in text


def test_repositories_of_an_include_are_fresh(renderer: Renderer) -> None:
    write(renderer.folder, x=f"config_opts['dnf.conf'] = '''[main]\n[t]\nmetadata_expire=6h\n{OURS['repohost']}\n'''\n")
    done = run(render_text(renderer, "include('templates/x.tpl')\n"), {})
    assert parse_config(done["dnf.conf"])["t"]["metadata_expire"] == "0"


@pytest.mark.parametrize(
    "how", ['"{}"', "'{}'", "'templates' + '/x.tpl'", "os.path.join('templates', 'x.tpl')", "'{all}'"]
)
def test_what_is_included_is_an_expression(renderer: Renderer, how: str) -> None:
    write(renderer.folder, x=HEAD)
    name = how.format("templates/x.tpl", all=renderer.folder / "templates/x.tpl")
    assert run(render_text(renderer, f"  include({name})\n"), {})["releasever"] == "9"


def test_a_file_is_included_once_and_a_ring_ends(renderer: Renderer) -> None:
    write(renderer.folder, x="include('templates/y.tpl')\n", y="include('templates/x.tpl')\nconfig_opts['n'] += 1\n")
    ring = "config_opts['n'] = 0\ninclude('templates/x.tpl')\ninclude('templates/y.tpl')\n"
    assert run(render_text(renderer, ring), {})["n"] == 1


def test_a_comment_includes_nothing(renderer: Renderer) -> None:
    render_text(renderer, "# include('templates/none.tpl')\n")


def test_site_defaults_may_include_too(renderer: Renderer) -> None:
    write(renderer.folder, x="config_opts['dnf.conf'] = 'baseurl=http://repohost/'\n")
    (renderer.folder / "site-defaults.cfg").write_text("include('templates/x.tpl')\n")
    assert renderer.render_defaults() == f"config_opts['dnf.conf'] = 'baseurl={STORE}/'\n\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("include('templates/none.tpl')", "c9.x86_64.cfg: Could not find included config file: {}/templates/none.tpl"),
        ("include('/none/x.tpl')", "c9.x86_64.cfg: Could not find included config file: /none/x.tpl"),
        ("include('templates/x.tpl')", "x.tpl: Could not find included config file: {}/gone.tpl"),
        ("include(nothing)", "c9.x86_64.cfg: include(nothing): name 'nothing' is not defined"),
        ("include('x' 1)", "c9.x86_64.cfg: include('x' 1): "),
        ("include('templates/y.tpl')", "y.tpl: mock cannot include it: bad escape \\d"),
    ],
)
def test_an_include_that_cannot_be_is_named(renderer: Renderer, text: str, says: str) -> None:
    write(renderer.folder, x="include('gone.tpl')\n", y="x = r'\\d'\n")
    with pytest.raises(MockConfigError) as error:
        render_text(renderer, text)
    assert says.format(renderer.folder) in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\nconfig_opts['root' = 'x'\n", "Config error: c9.x86_64.cfg: "),
        ("x = 1\nconfig_opts['root' = 'x'\n", "(line 2): config_opts['root' = 'x'"),
        ("config_opts['dnf.conf'] = '''\n", "Config error: c9.x86_64.cfg: "),
        ("  x = 1\n", "unexpected indent (line 1): x = 1"),
        ("x = 1\\", "Config error: c9.x86_64.cfg: "),
        ("include('templates/x.tpl')\n", "Config error: x.tpl: "),
        ("if True:\n    include('templates/y.tpl')\n", "Config error: c9.x86_64.cfg: "),
        ("x = '\0'\n", "Config error: c9.x86_64.cfg: source code"),
    ],
)
def test_a_syntax_error_is_told_with_its_file_and_line(renderer: Renderer, text: str, says: str) -> None:
    write(renderer.folder, x="\n\nconfig_opts[\n", y="x = 1\ny = 2\n")
    with pytest.raises(MockConfigError) as error:
        render_text(renderer, text)
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1


# --- what doctor asks


def test_configurations_are_described_as_mock_has_them(renderer: Renderer) -> None:
    texts = {
        "good.x86_64": f"{HEAD}config_opts['dnf.conf'] = '[t]\\nbaseurl=http://repohost/repo/good.x86_64/'\n",
        "added.x86_64": f"{HEAD}config_opts['dnf.conf'] += '[t]'\nconfig_opts['plugin_conf']['x']['y'] = 1\n",
        "raises.x86_64": "config_opts['x'] = 1 / 0\n",
        "ends.x86_64": "raise SystemExit(4)\n",
        "rootless.x86_64": "# nothing\n",
        "asking.x86_64": "config_opts['x'] = [config_opts['y'] for n in '1']\n",
    }
    for name, text in texts.items():
        (renderer.folder / f"{name}.cfg").write_text(text)
    found = describe(renderer, [renderer.folder / f"{name}.cfg" for name in texts], renderer.folder)
    assert found["good.x86_64.cfg"] == {"dnf.conf": f"[t]\nmetadata_expire=0\nbaseurl={STORE}/repo/good.x86_64/"}
    assert found["added.x86_64.cfg"] == {"dnf.conf": "[t]"}
    assert found["raises.x86_64.cfg"] == {"error": "Config error: ZeroDivisionError: division by zero"}
    assert found["ends.x86_64.cfg"] == {"error": "Config error: SystemExit: 4"}
    assert "must be present" in found["rootless.x86_64.cfg"]["error"]


def test_what_mock_reads_of_the_user_counts(renderer: Renderer) -> None:
    config = renderer.folder / "c9.x86_64.cfg"
    config.write_text(HEAD)
    (renderer.folder / ".config").mkdir()
    (renderer.folder / ".config/mock.cfg").write_text("config_opts['dnf.conf'] = '[mine]'\n")
    assert describe(renderer, [config], renderer.folder)["c9.x86_64.cfg"] == {"dnf.conf": "[mine]"}


def test_the_code_is_flat_for_any_farm() -> None:
    assert "def " not in fresh_code(farm_urls(STORE))
