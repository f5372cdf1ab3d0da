# SPDX-License-Identifier: Apache-2.0
"""The pages of the programs, out of their own help: what `--help` says is all there is to say.

Every program of pyproject.toml has one, and every command of `reimzul`, as reimzul-NAME(1); the commands below those,
as `reimzul config check`, are parts of its page. A new command has its page without a word here.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence

import attr
import click

from reimzul.admin.main import COMMANDS
from reimzul.core.config import DEFAULT_FILE, FILE_VARIABLE
from tools.manpages.roff import Page, bold, escape, italic

#: Programs whose command click knows, and the module it is in. The daemons' pages are of section 8, for administrators.
PROGRAMS = {
    "reimzul": "reimzul.admin.main",
    "reimzul-submit": "reimzul.submit.cli",
    "reimzul-worker": "reimzul.worker.cli",
    "reimzul-repogen": "reimzul.repogen.cli",
    "reimzul-tosign": "reimzul.tosign.cli",
    "reimzul-notifier": "reimzul.notifier.cli",
    "reimzul-irc": "reimzul.irc.cli",
}
DAEMONS = ("reimzul-worker", "reimzul-repogen", "reimzul-tosign", "reimzul-notifier", "reimzul-irc")
_ALWAYS = ("reimzul(1)", "reimzul.ini(5)")


@attr.frozen
class Help:
    """A command's help, in its parts."""

    prose: list[str]
    literal: list[str]  #: blocks that are shown as they stand, and belong to no section
    examples: list[str]
    notes: list[str]
    exits: list[tuple[str, str]]


def pages() -> Iterator[Page]:
    """Every page of this module."""
    for name in PROGRAMS:
        yield program(name)
    for name, (_, about) in COMMANDS.items():
        yield of_command(f"reimzul-{name}", 1, found(PROGRAMS["reimzul"]), ("reimzul", name), about)


def found(module: str) -> click.Command:
    """The one command of a module that its `main` runs. Raises `LookupError` where there is no such."""
    inside = vars(importlib.import_module(module)).values()
    own = [thing for thing in inside if isinstance(thing, click.Command) and thing.callback]
    named = [command for command in own if (command.name or "").startswith("reimzul")]
    if len(named) != 1:
        raise LookupError(f"{module} has {len(named)} commands of a program's name, and should have one")
    return named[0]


def program(name: str) -> Page:
    """The page of a program."""
    command = found(PROGRAMS[name])
    return of_command(name, 8 if name in DAEMONS else 1, command, (name,), first_sentence(command.help or ""))


def of_command(name: str, section: int, top: click.Command, path: Sequence[str], about: str) -> Page:
    """The page of a program, or of one of its commands."""
    context = walk(top, path)
    command = context.command
    page = Page(name, section, in_a_row(about))
    told = read_help(command)
    page.heading("SYNOPSIS")
    page.roff(synopsis(context))
    page.heading("DESCRIPTION")
    describe(page, told)
    page.heading("OPTIONS")
    options(page, context)
    if isinstance(command, click.Group):
        below(page, context, told, separate=name == "reimzul")
    endings(page, context, told, f"{name}({section})")
    return page


def walk(top: click.Command, path: Sequence[str]) -> click.Context:
    """The context of a command, down from its program. Raises `LookupError`."""
    top.context_settings["help_option_names"] = ["-h", "--help"]  # as core.command.entry sets it
    context = click.Context(top, info_name=path[0], **top.context_settings)
    for name in path[1:]:
        group = context.command
        command = group.get_command(context, name) if isinstance(group, click.Group) else None
        if command is None:
            raise LookupError(f"{context.command_path} has no command {name}")
        context = click.Context(command, info_name=name, parent=context)
    return context


def below(page: Page, context: click.Context, told: Help, *, separate: bool) -> None:
    """A group's commands: where they have pages of their own, those are named, else all of each."""
    page.heading("COMMANDS")
    for inner in inside(context):
        name, command = inner.info_name or "", inner.command
        if separate:
            page.entry(rf"{bold(f'reimzul-{name}')}(1)", [COMMANDS[name][1]])
            continue
        help_ = read_help(command)
        page.subheading(inner.command_path)
        page.roff(synopsis(inner))
        describe(page, help_)
        options(page, inner)
        told.examples.extend(help_.examples)
        told.notes.extend(help_.notes)
        told.exits.extend(help_.exits if not told.exits else [])
        if isinstance(command, click.Group):
            below(page, inner, told, separate=False)


def inside(context: click.Context) -> Iterator[click.Context]:
    """The contexts of a group's commands that are shown."""
    group = context.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command and not command.hidden:
            yield click.Context(command, info_name=name, parent=context)


def describe(page: Page, told: Help) -> None:
    """The prose of a help, and what stands in it as it is."""
    page.paragraphs(told.prose)
    for block in told.literal:
        page.literal(block)


def options(page: Page, context: click.Context) -> None:
    """The options of a command, each with its help."""
    given = [each for each in context.command.get_params(context) if isinstance(each, click.Option)]
    for declared, help_ in filter(None, (each.get_help_record(context) for each in given)):
        page.entry(declaration(declared), [" ".join(help_.split())] if help_ else [])


def declaration(declared: str) -> str:
    """`-s, --srpm SRPM` with the options in bold, and what stands for something in italics."""
    words = re.findall(r"--?[\w-]+|[\w:-]+|\W", declared)
    return "".join(bold(word) if word.startswith("-") else italic(word) if word[0].isalnum() else escape(word)
                   for word in words)  # fmt: skip


def synopsis(context: click.Context) -> str:
    """How a command is called: what it needs by name, then what click says of the rest."""
    command = context.command
    needed = [each for each in command.get_params(context) if isinstance(each, click.Option) and each.required]
    words = [bold(context.command_path)]
    # click's own metavar for an option without one has another signature in each version
    words += [f"{bold(each.opts[0])} {italic(each.metavar or str(each.name).upper())}" for each in needed]
    words += [declaration(piece) for piece in command.collect_usage_pieces(context)]
    return " ".join(words)


def endings(page: Page, context: click.Context, told: Help, own: str) -> None:
    """What pages end with: examples, notes, exit codes, environment, files, other pages."""
    if told.examples:
        page.heading("EXAMPLES")
        page.literal("\n".join(told.examples))
    if told.notes:
        page.heading("NOTES")
        page.paragraphs(told.notes)
    if told.exits:
        page.heading("EXIT STATUS")
        for code, means in told.exits:
            page.entry(bold(code), [means])
    settings = takes_config(context)
    if settings:
        page.heading("ENVIRONMENT")
        page.entry(bold(FILE_VARIABLE), [f"The settings, where --config is not given, instead of {DEFAULT_FILE}."])
        page.heading("FILES")
        page.entry(italic(str(DEFAULT_FILE)), ["The settings: reimzul.ini(5). Where there are none the defaults hold."])
    page.see_also(see for see in (*_ALWAYS, "reimzul-wire(7)") if see != own)


def takes_config(context: click.Context) -> bool:
    """Whether a command, or one below it, takes --config."""
    if any("--config" in each.opts for each in context.command.params):
        return True
    return isinstance(context.command, click.Group) and any(takes_config(inner) for inner in inside(context))


# --- what a help has to say


def read_help(command: click.Command) -> Help:
    """A command's help and what stands under it. `\\b` begins what is shown as it stands, as click has it."""
    told = Help([], [], [], [], [])
    body = inspect.cleandoc(command.help or "").partition("\f")[0]
    for text in blocks(body):
        if not special(told, text):
            told.prose.append(text)
    for text in blocks(inspect.cleandoc(command.epilog or "")):
        if not special(told, text):
            told.notes.append(text)
    return told


def blocks(text: str) -> list[str]:
    """Paragraphs, as the empty lines between them make them."""
    return [block for block in re.split(r"\n\s*\n", text) if block.strip()]


def special(told: Help, block: str) -> bool:
    """Whether a block is no prose, and was put where it belongs."""
    if not block.startswith("\b"):
        return False
    title, _, rest = block.lstrip("\b\n").partition("\n")
    rows = inspect.cleandoc(rest)
    if title.rstrip(":") in ("Example", "Examples"):
        told.examples.extend(rows.splitlines())
    elif title.rstrip(":") == "Exit codes":
        told.exits.extend(re.findall(r"^\s*(\d+)  (.+)$", rest, re.MULTILINE))
    else:
        told.literal.append(block.lstrip("\b\n"))
    return True


def first_sentence(text: str) -> str:
    """The first sentence of a help."""
    flat = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", flat)[0]


def in_a_row(about: str) -> str:
    """A sentence as the line under NAME has it: no capital, no full stop, and nothing that whatis(1) cuts at."""
    about = about.rstrip(".")
    return about if about[1:2].isupper() else about[:1].lower() + about[1:]
