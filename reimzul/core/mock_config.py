# SPDX-License-Identifier: Apache-2.0
"""mock's configuration as the farm renders it: includes inlined, the farm's URLs put in, its repositories kept fresh.

A mock configuration is Python text that mock runs by `exec` inside a function whose local is `config_opts`. All builds
of a target share dnf's cache, and dnf believes cached metadata for 48 hours: a package that was just published would
not be found. So the rendered text ends with code that sets `metadata_expire=0` for every repository of the farm.

What a builder lacks of mock and its configurations is found here too: workers and doctor check the same.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attr

from reimzul.core.errors import ReimzulError, describe_os_error

#: The keys of `config_opts` that hold a package manager's configuration. New mocks make them aliases of one another.
CONF_KEYS = ("dnf.conf", "dnf4.conf", "dnf5.conf", "yum.conf")
#: The host that stands for the store in a configuration.
REPOHOST = "http://repohost"
SITE_DEFAULTS = "site-defaults.cfg"
#: Options of a repository that hold URLs.
URL_OPTIONS = ("baseurl", "mirrorlist", "metalink")
#: mock's own expression, in its config.py.
_INCLUDE = re.compile(r"^\s*include\((.*)\)", re.MULTILINE)
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class MockConfigError(ReimzulError):
    """A configuration that mock could not read."""


# --- always fresh

#: Flat statements of Python 3.6: `exec` in a function gives functions and comprehensions no sight of its locals.
#: The text is unexpanded Jinja, so it is walked line by line; a line is cut at Jinja's tags.
_FRESH = """
# Added by reimzul: the repositories of the farm are asked for new metadata at every use.
_fresh_urls = {urls!r}
for _fresh_key in {keys!r}:
    if not isinstance(config_opts.get(_fresh_key), str):
        continue
    _fresh_sections, _fresh_before, _fresh_text = set(), set(), []
    for _fresh_pass in (1, 2):
        _fresh_section, _fresh_option, _fresh_start, _fresh_done = 0, '', -1, -1
        for _fresh_number, _fresh_line in enumerate(config_opts[_fresh_key].split('\\n')):
            _fresh_kept, _fresh_dropped = '', False
            if '{{%' in _fresh_line:
                _fresh_done = -1
            for _fresh_index, _fresh_piece in enumerate(
                    _fresh_line.replace('{{%', '\\n{{%').replace('%}}', '%}}\\n').split('\\n')):
                _fresh_word = _fresh_piece.replace(':', '=').split('=')[0]
                _fresh_name, _fresh_value = _fresh_word.strip().lower(), _fresh_piece
                if not _fresh_name or _fresh_line.lstrip()[0] in '#;' or _fresh_piece.startswith('{{%'):
                    _fresh_kept += _fresh_piece
                    continue
                if _fresh_name.startswith('['):
                    _fresh_section, _fresh_option = _fresh_section + 1, ''
                elif (_fresh_name in {options!r} or not _fresh_index and not _fresh_piece[0].isspace()):
                    _fresh_option, _fresh_start = _fresh_name, _fresh_number
                    _fresh_value = _fresh_piece[len(_fresh_word) + 1:]
                if _fresh_option in {url_options!r}:
                    for _fresh_url in _fresh_value.replace(',', ' ').split():
                        if '{{{{' in _fresh_url or _fresh_url.lower().startswith(_fresh_urls):
                            _fresh_sections.add(_fresh_section)
                            _fresh_before.add(_fresh_start)
                if _fresh_option == 'metadata_expire' and _fresh_section in _fresh_sections:
                    _fresh_dropped = True
                    continue
                _fresh_kept += _fresh_piece
            if _fresh_pass == 1:
                continue
            if _fresh_number in _fresh_before and _fresh_done != _fresh_section:
                _fresh_text.append('metadata_expire=0')
                _fresh_done = _fresh_section
            if _fresh_kept or not _fresh_dropped:
                _fresh_text.append(_fresh_kept)
    config_opts[_fresh_key] = '\\n'.join(_fresh_text)
"""


def farm_urls(store: str) -> tuple[str, ...]:
    """What the URLs of the farm's repositories begin with, in lower case: by `[bstore] base_url` without `repo/`,
    and by every name of the loopback where stunnel listens there.
    """
    parts = urlsplit(store)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    local = host in _LOOPBACK
    usual = _DEFAULT_PORTS.get(parts.scheme)
    ports = [f":{parts.port or usual}", *([""] if parts.port in (None, usual) else [])]
    path = "/" if local else f"{parts.path.rstrip('/')}/"
    names = _LOOPBACK if local else (host,)
    found = [REPOHOST, *(f"{parts.scheme}://{name}{port}{path}" for name in names for port in ports)]
    return tuple(dict.fromkeys(url.lower() for url in found))


def fresh_code(urls: tuple[str, ...]) -> str:
    """The code that makes the farm's repositories fresh, to be appended to a configuration; the same for one farm."""
    options = (*URL_OPTIONS, "metadata_expire")
    return _FRESH.format(urls=urls, keys=CONF_KEYS, options=options, url_options=URL_OPTIONS)


# --- rendering


@attr.frozen(kw_only=True)
class Renderer:
    """Renders the configurations of one checkout for one farm."""

    folder: Path  #: mock's --configdir in the checkout: relative includes are looked up in it
    repohost: str  #: what http://repohost stands for: the store's URL without its last slash

    def render(self, config: Path) -> str:
        """A target's configuration in one text. Raises `MockConfigError`, `OSError`, `UnicodeDecodeError`."""
        text = f"{self._expand(config).rstrip()}\n{fresh_code(farm_urls(self.repohost))}"
        return text.replace(REPOHOST, self.repohost).replace("TARGETNAME", f"reimzul-{config.stem}")

    def render_defaults(self) -> str:
        """site-defaults.cfg: mock would not find its includes beside the rendered configuration. Raises as `render`."""
        return self._expand(self.folder / SITE_DEFAULTS).replace(REPOHOST, self.repohost)

    def _expand(self, config: Path) -> str:
        parts: dict[str, str] = {}
        text = inline_includes(config, self.folder, parts)
        fault = _syntax_fault(config.name, text)
        if fault:  # name the file and the line that has it
            faults = (_syntax_fault(os.path.basename(path), part) for path, part in parts.items())
            raise MockConfigError(f"Config error: {next(filter(None, faults), fault)}")
        return text


def inline_includes(config: Path, folder: Path, parts: dict[str, str]) -> str:
    """A configuration's text with its includes in their places, as mock does it; `parts` gets each file's own text.

    Raises `MockConfigError` that names the file which includes, and the one which is missing.
    """

    def inline(path: str, wanted_by: str) -> str:
        if path in parts:
            return ""  # mock warns, and skips it
        if not os.path.exists(path):
            raise MockConfigError(f"{wanted_by}: Could not find included config file: {path}")
        parts[path] = text = Path(path).read_text(encoding="utf-8")
        for argument in _INCLUDE.findall(text):
            included = os.path.join(folder, _evaluate(argument, path, folder))
            text = _substitute(inline(included, os.path.basename(path)), text, included)
        return text

    return inline(str(config), config.name)


def _substitute(included: str, text: str, path: str) -> str:
    try:
        return _INCLUDE.sub(included, text, count=1)  # mock has re.sub work on the backslashes of what is included
    except (re.error, IndexError) as error:
        raise MockConfigError(f"{path}: mock cannot include it: {error}") from error


def _evaluate(argument: str, path: str, folder: Path) -> str:
    """What stands between the brackets of an include: an expression, which mock evaluates too."""
    try:
        return str(eval(argument, {"os": os, "re": re, "config_file": path, "search_path": str(folder)}))
    except Exception as error:  # whatever an expression raises is the configuration's fault
        raise MockConfigError(f"{os.path.basename(path)}: include({argument}): {error}") from error


def _syntax_fault(name: str, text: str) -> str:
    try:
        compile(text, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"{name}: {error.msg} (line {error.lineno}): {(error.text or '').strip()}"
    except ValueError as error:  # a null byte, before Python 3.12
        return f"{name}: {error}"
    return ""


# --- what a configuration says of repositories


@attr.frozen(kw_only=True)
class Repository:
    name: str
    options: dict[str, list[str]]  #: every value of an option, in order

    def list_urls(self) -> list[str]:
        """All URLs it may be downloaded from, mirror lists included."""
        values = (value for option in URL_OPTIONS for value in self.options.get(option, []))
        return [url for value in values for url in value.replace(",", " ").split()]

    def last_value(self, option: str, default: str = "") -> str:
        return self.options.get(option, [default])[-1]


def list_repositories(text: str) -> Iterator[Repository]:
    """The sections of a dnf.conf or yum.conf, `main` among them; lines that are none of an ini's are left out."""
    section, option = Repository(name="", options={}), ""
    for line in text.splitlines():
        words = line.strip()
        if not words or words[0] in "#;" or words.startswith("{%"):
            continue
        if words.startswith("["):
            yield from [section] if section.name else []
            section, option = Repository(name=words.strip("[]"), options={}), ""
        elif line[0].isspace():
            if option:
                section.options[option][-1] += f" {words}"
        else:
            name, _, value = words.replace(":", "=", 1).partition("=") if _is_colon(words) else words.partition("=")
            option = name.strip().lower()
            section.options.setdefault(option, []).append(value.strip())
    yield from [section] if section.name else []


def _is_colon(words: str) -> bool:
    return 0 <= words.find(":") < (words.find("=") if "=" in words else len(words))


def execute(text: str, options: Any, name: str) -> None:
    """Run a configuration as mock does: its names are a function's locals. Raises whatever it raises."""
    exec(compile(text, name, "exec", dont_inherit=True), {"os": os, "re": re, "sys": sys}, {"config_opts": options})


# --- for `reimzul doctor`: one process that runs configurations as the user whose they are


class Options(dict[str, Any]):
    """mock's `config_opts`, where what was never set can be added to."""

    def __missing__(self, key: str) -> Any:
        self[key] = "" if key.endswith((".conf", "_cmd", "_packages")) else Options()
        return self[key]


def user_files(home: Path) -> list[Path]:
    return [home / ".mock/user.cfg", home / ".config/mock.cfg"]


def describe(renderer: Renderer, configs: Iterable[Path], home: Path) -> dict[str, dict[str, str]]:
    """Each configuration's repositories as mock would have them, by its keys; or what is wrong, as `error`."""
    return {config.name: _describe_or_fault(renderer, config, home) for config in configs}


def _describe_or_fault(renderer: Renderer, config: Path, home: Path) -> dict[str, str]:
    try:
        return _run(renderer, config, home)
    except MockConfigError as error:
        return {"error": str(error)}
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a configuration raises is its fault
        return {"error": f"Config error: {type(error).__name__}: {error}"}


def _run(renderer: Renderer, config: Path, home: Path) -> dict[str, str]:
    options = Options()
    texts = [renderer.render_defaults(), renderer.render(config)]
    texts += [inline_includes(path, renderer.folder, {}) for path in user_files(home) if path.exists()]
    for text in texts:
        execute(text, options, config.name)
    if not options.get("root"):
        raise MockConfigError("Error in configuration - option config_opts['root'] must be present in your config.")
    return {key: options[key] for key in CONF_KEYS if isinstance(options.get(key), str) and options[key]}


def main(words: list[str]) -> None:
    """Print as JSON what `describe` finds: the arguments are the folder, the user's home and the store's URL."""
    folder, home, store = words
    configs = sorted(path for path in Path(folder).glob("*.cfg") if path.name != SITE_DEFAULTS)
    with contextlib.redirect_stdout(sys.stderr):  # a configuration may print
        found = describe(Renderer(folder=Path(folder), repohost=store), configs, Path(home))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])


#: The program that takes mock's place where there is no mock.
STANDIN = "reimzul-standin-mock"
#: What mock wants beside a target's configuration.
REQUIRED_FILES = (SITE_DEFAULTS, "logging.ini")
#: The stand-in builds with the host's own programs: what shows that one is here, and its package on Debian.
_STANDIN_NEEDS = (
    ("rpmbuild", "rpm"), ("dnf", "dnf"), ("gcc", "gcc"), ("patch", "patch"), ("/usr/include/stdio.h", "libc6-dev"),
)  # fmt: skip
#: The same where x86_64 builds i386 too.
_MULTILIB = ("/usr/lib/gcc/x86_64-*/*/32/libgcc.a", "gcc-multilib")


def is_standin(mock: str) -> bool:
    return Path(mock).name == STANDIN


def find_missing_mock(mock: str) -> str:
    """Why no build can start; empty if mock is installed, and the stand-in finds what it builds with."""
    if shutil.which(mock) is None:
        return f"mock is not installed: there is no program {mock}"
    if is_standin(mock) and (packages := list_missing_packages()):
        return f"{STANDIN} lacks what it builds with: {', '.join(packages)}"
    return ""


def list_missing_packages() -> list[str]:
    """The packages, by Debian's names, that the stand-in lacks on this host."""
    needs = (*_STANDIN_NEEDS, *((_MULTILIB,) if os.uname().machine == "x86_64" else ()))
    return [package for probe, package in needs if not _is_present(probe)]


def _is_present(probe: str) -> bool:
    """Whether a program, or a file (a glob), is on this host."""
    return bool(glob.glob(probe)) if probe.startswith("/") else shutil.which(probe) is not None


def find_missing_configs(checkout: Path) -> str:
    """Why no build can find its configuration; empty if there are some."""
    folder = checkout / "mock"
    try:
        return next(_list_missing_configs(folder), "")
    except OSError as error:  # as a folder that this user may not enter
        return f"no mock configurations: {folder}: {describe_os_error(error)}"


def _list_missing_configs(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"no mock configurations: {folder} does not exist"
    elif missing := [name for name in REQUIRED_FILES if not (folder / name).is_file()]:
        yield f"no mock configurations: {folder} has no {' and no '.join(missing)}"
    elif all(file.name == SITE_DEFAULTS for file in folder.glob("*.cfg")):
        yield f"no mock configurations: {folder} has no target's .cfg"
