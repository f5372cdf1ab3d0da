# SPDX-License-Identifier: Apache-2.0
"""What the documents say is there: programs, options, files, links, settings, fields of messages, exit codes."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import attr
import click
import pytest

from reimzul.admin.main import COMMANDS
from reimzul.core import batch_event, batch_message, config, json_message, message, settings
from reimzul.core.cli import EXIT_CODES
from reimzul.core.manifest import File, Manifest

TREE = Path(__file__).parents[2]
PAGES = [TREE / "README.md", TREE / "CONTRIBUTING.md", *sorted((TREE / "docs").glob("*.md"))]
#: Our programs whose options click knows: name -> module and attribute of its command.
PROGRAMS = {
    "reimzul-worker": ("reimzul.worker.cli", "command"),
    "reimzul-repogen": ("reimzul.repogen.cli", "command"),
    "reimzul-tosign": ("reimzul.tosign.cli", "command"),
    "reimzul-notifier": ("reimzul.notifier.cli", "command"),
    "reimzul-batch": ("reimzul.batch.cli", "command"),
    "reimzul-submit": ("reimzul.submit.cli", "command"),
    "reimzul": ("reimzul.admin.main", "reimzul"),
}
_MARKDOWN_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_SHELL_OPERATORS = ("|", ">", ">>", "<", ";")


def read_page(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def blocks_of(page: Path) -> list[str]:
    """The command lines in a page that are indented; continued lines are joined."""
    return [code.replace("\\\n", " ") for code in re.findall(r"^    (.+(?:\\\n.+)*)$", read_page(page), re.MULTILINE)]


def code_of(page: Path) -> list[str]:
    """Every command line in a page: of code spans, and of blocks."""
    return [*_CODE.findall(read_page(page)), *blocks_of(page)]


def calls(codes: Iterable[str]) -> Iterator[list[str]]:
    """The calls of our programs in command lines, as words."""
    for code in codes:
        for piece in re.split(r"\s+#\s|&&|\s{2,}", code):
            try:
                words = shlex.split(piece)
            except ValueError:
                continue
            words = words[words[0] == "$" :] if words else []
            if words[:2] == ["sudo", "-u"]:
                words = words[3:]
            if words and Path(words[0]).name in PROGRAMS:
                yield [Path(words[0]).name, *itertools.takewhile(lambda word: word not in _SHELL_OPERATORS, words[1:])]


def command_of(program: str) -> click.Command:
    module, name = PROGRAMS[program]
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, click.Command)
    return found


def takes_values(command: click.Command) -> set[str]:
    """The options of a command that need a value."""
    options = [each for each in command.params if isinstance(each, click.Option)]
    return {name for each in options if not (each.is_flag or each.count) for name in each.opts}


def check_call(words: list[str], *, is_complete: bool) -> None:
    """Walk down the subcommands, then let click parse the rest, without running anything."""
    command, rest = command_of(words[0]), words[1:]
    context = click.Context(command, info_name=words[0])
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        below = command.get_command(context, rest[0])
        assert below is not None, f"{shlex.join(words)}: no command {rest[0]}"
        command, rest = below, rest[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    if isinstance(command, click.Group):
        return  # a family of commands that is only named
    if not is_complete and rest and rest[-1] in takes_values(command):
        rest = rest[:-1]  # the sentence is about the option
    try:
        command.make_context(command.name, list(rest), parent=context.parent)
    except click.UsageError as error:
        if is_complete or not isinstance(error, click.MissingParameter):
            pytest.fail(f"{shlex.join(words)}: {error.format_message()}")
    except click.exceptions.Exit:
        pass  # --help


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_in_a_page_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code in a sentence may leave out arguments."""
    monkeypatch.setattr(click.Path, "convert", lambda _, path, *__: path)  # the files are the reader's
    for words in calls(code_of(page)):
        check_call(words, is_complete=False)
    for words in calls(blocks_of(page)):
        check_call(words, is_complete=True)


@pytest.mark.parametrize(
    "line",
    [
        "reimzul bilds", "reimzul builds --targt c9s", "reimzul builds --state paused", "reimzul builds c9s",
        "reimzul log 72b893f8 biuld", "reimzul builders --forget", "reimzul packages",
        "reimzul scratch rm --older week",
    ],
)  # fmt: skip
def test_a_wrong_command_line_in_a_page_is_found(line: str) -> None:
    with pytest.raises((pytest.fail.Exception, AssertionError)):
        check_call(line.split(), is_complete=True)


def test_commands_are_found_in_pages_at_all() -> None:
    found = [" ".join(words[:3]) for page in PAGES for words in calls(code_of(page))]
    assert "reimzul builds --status" in found
    assert "reimzul-submit -s some-1.0-1.src.rpm" in found
    assert len(found) > 25


def test_the_page_of_commands_has_an_example_of_every_command() -> None:
    examples = {" ".join(words[:2]) for words in calls(code_of(TREE / "docs" / "commands.md"))}
    for name in COMMANDS:
        assert any(example == f"reimzul {name}" for example in examples), name
    programs = re.findall(r"^(reimzul[\w-]*) = ", (TREE / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    text = (TREE / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [name for name in programs if f"`{name}" not in text] == []


def test_make_targets_in_pages_exist() -> None:
    known = set(re.findall(r"^([a-z-]+):", (TREE / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    known |= {f"bench-{path.stem}" for path in (TREE / "bench").glob("[a-z]*.py")}  # by the rule bench-%
    for page in PAGES:
        for code in code_of(page):
            for target in re.findall(r"(?:^|\s)make ([a-z-]+)", code):
                assert target in known, f"{page.name}: make {target}"


def slug(heading: str) -> str:
    """A heading as GitHub makes its anchor."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _MARKDOWN_LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        goal = (page.parent / path) if path else page
        assert goal.exists(), f"{page.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", goal.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_this_tree_that_a_page_names_are_there(page: Path) -> None:
    named = r"(?<![\w/.-])((?:conf|systemd|docs|tests|tools|reimzul/core)/[\w@.{},/-]*[\w}])"
    for code in code_of(page):
        for path in re.findall(named, code):
            if "," not in path:
                assert (TREE / path).exists(), f"{page.name}: {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_a_page_names_exist(page: Path) -> None:
    for code in code_of(page):
        for section, key in re.findall(r"\[([a-z_]+)\](?: ([a-z_]+))?", code):
            assert section in settings.all_sections(), f"{page.name}: {code}"
            keys = {row.name for row in settings.settings_of(settings.all_sections()[section])}
            assert not key or key in keys, f"{page.name}: {code}"


def test_the_sample_has_every_setting() -> None:
    sample = (TREE / "conf/reimzul.ini.sample").read_text(encoding="utf-8")
    assert sample == config.sample_text(), "reimzul config sample > conf/reimzul.ini.sample"


def test_the_page_of_commands_has_every_exit_code() -> None:
    told = re.findall(
        r"^\| (\d+) \| (.+) \|$", (TREE / "docs" / "commands.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert told == re.findall(r"^ *(\d+)  (.+)$", EXIT_CODES, re.MULTILINE)


MESSAGES = [
    message.BuildRequest, message.BuildEvent, message.Refusal, message.BuilderEvent, message.WorkerHeartbeat,
    message.RepogenRequest, message.SignRequest, batch_message.BatchRequest, batch_message.BatchOrder,
    batch_event.BatchEvent,
]  # fmt: skip


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_the_wire_format_names_every_field(kind: type[json_message.Message]) -> None:
    rows = table(kind.__name__)
    told = {name for names, _ in rows for name in names}
    assert told == {field.name for field in attr.fields(kind)} - {"extra"}
    needed = {name for names, mark in rows if "needed" in mark for name in names}
    assert needed - {"status"} == {f.name for f in attr.fields(kind) if f.default is attr.NOTHING} - {"status"}


def test_the_wire_format_names_every_field_of_the_manifest() -> None:
    told = {name for names, _ in table("build.json, the manifest") for name in names}
    assert told == {field.name for field in attr.fields(Manifest)} - {"extra"}
    section = wire_section("build.json, the manifest")
    assert all(f"`{field.name}`" in section for field in attr.fields(File))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_the_wire_formats_examples_are_messages(kind: type[json_message.Message]) -> None:
    examples = re.findall(r"^```json\n(.*?)^```$", wire_section(kind.__name__), re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        assert not kind.decode(example.encode()).extra


def wire_section(title: str) -> str:
    """The part of docs/wire.md under a heading."""
    found = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)",
        (TREE / "docs/wire.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    assert found, title
    return found[1]


def table(title: str) -> list[tuple[list[str], str]]:
    """The rows of the section's table: the fields of the first column, and the last column."""
    rows = re.findall(r"^\| (`.*?) \|(.*)\|$", wire_section(title), re.MULTILINE)
    return [(_CODE.findall(first), rest.rpartition("|")[2] if "|" in rest else "") for first, rest in rows]
