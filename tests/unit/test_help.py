# SPDX-License-Identifier: Apache-2.0
"""Every command's help has one style: a sentence in the imperative, examples that parse, a text for each option."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from reimzul.core.cli import EXIT_CODES
from tools.manpages import commands


def _list_contexts(context: click.Context) -> list[click.Context]:
    if not isinstance(context.command, click.Group):
        return [context]
    return [context, *(one for inner in commands.visible_contexts(context) for one in _list_contexts(inner))]


ALL = {
    each.command_path: each
    for program in commands.PROGRAMS
    for each in _list_contexts(commands.find_context(commands.find_command(commands.PROGRAMS[program]), [program]))
}
named = pytest.mark.parametrize("name", ALL)


@named
def test_every_option_has_a_help_that_is_a_sentence(name: str) -> None:
    options = [each for each in ALL[name].command.get_params(ALL[name]) if isinstance(each, click.Option)]
    without = {each.opts[-1]: each.help for each in options if not (each.help or "").endswith(".") and not each.hidden}
    assert without == {}


@named
def test_the_help_fits_a_terminal_and_cuts_no_sentence(name: str) -> None:
    shown = ALL[name].get_help()
    assert not re.search(r"[a-z, ]\.\.\.", shown), "a list of commands shows whole sentences"
    about = shown.partition("\n  Example")[0]
    assert [line for line in about.splitlines() if len(line) > 80] == []


@named
def test_the_help_ends_with_the_exit_codes(name: str) -> None:
    assert ALL[name].command.epilog, name
    assert EXIT_CODES.splitlines()[2] in ALL[name].get_help()


def _examples() -> list[tuple[str, str]]:
    found = []
    for name, context in ALL.items():
        text = context.get_help().replace("\\\n", " ")
        for block in re.findall(r"^  Examples?:\n((?:    .+\n?)+)", text, re.MULTILINE):
            found += [(name, line.strip()) for line in block.splitlines()]
    return found


def test_every_command_has_an_example() -> None:
    assert ALL.keys() - {name for name, _ in _examples()} == set()


@pytest.mark.parametrize(("name", "line"), _examples(), ids=lambda given: given[:60])
def test_an_example_is_a_command_line_that_is_accepted(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in re.findall(r"\S+\.(?:src\.rpm|xml)", line):
        (tmp_path / Path(file).name).touch()
    words = shlex.split(line.rpartition(" | ")[2].partition(" > ")[0])
    assert words[0] in commands.PROGRAMS, line
    context = commands.find_context(commands.find_command(commands.PROGRAMS[words[0]]), [words[0]])
    command, rest = context.command, words[1:]
    while isinstance(command, click.Group) and rest:
        _, command, rest = command.resolve_command(context, rest)  # type: ignore[assignment]
        context = click.Context(command, parent=context, info_name=command.name)
    command.make_context(str(command.name), rest, parent=context.parent, resilient_parsing=False)
