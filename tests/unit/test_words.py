# SPDX-License-Identifier: Apache-2.0
"""The word `leg` is ours: no help text, man page, message or user document has it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.unit.test_docs import PAGES, PROGRAMS, command_of
from tools.manpages import commands, settings

TREE = Path(__file__).parents[2]
#: Documents for those who change the code, or write programs that speak with ours.
_FOR_DEVELOPERS = ("architecture.md", "wire.md", "glossary.md", "testing.md", "CONTRIBUTING.md")
_LEG = re.compile(r"\blegs?\b", re.IGNORECASE)


def walk_commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield each command below this one with its help, hidden options included."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below
            yield from walk_commands(below, click.Context(below, info_name=name, parent=context))


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_help_has_the_word(program: str) -> None:
    command = command_of(program)
    helps = dict(walk_commands(command, click.Context(command, info_name=program)))
    assert len(helps) > (20 if program == "reimzul" else 0)
    assert [path for path, text in helps.items() if _LEG.search(text)] == []


_FOR_USERS = [each for each in PAGES if each.name not in _FOR_DEVELOPERS]


@pytest.mark.parametrize("page", _FOR_USERS, ids=lambda page: page.name)
def test_no_document_for_users_has_the_word(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if _LEG.search(line)] == []


def test_no_man_page_of_a_program_or_of_the_settings_has_the_word() -> None:
    pages = [*commands.pages(), settings.page()]
    assert [page.file for page in pages if _LEG.search(page.text())] == []


def _find_messages(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield the texts of a module that may be shown: all with a space that are no docstring."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, nodes) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings and " " in str(node.value):
            yield node


def test_no_message_has_the_word() -> None:
    modules = sorted((TREE / "reimzul").rglob("*.py"))
    texts = [
        (path.name, text.lineno, text.value)
        for path in modules
        for text in _find_messages(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert len(texts) > 1_000
    assert [text for text in texts if _LEG.search(str(text[2]))] == []
