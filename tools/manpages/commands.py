# SPDX-License-Identifier: Apache-2.0
"""The pages of the programs, made from their own help.

Every program of pyproject.toml has a page, and so has every command of `reimzul`, as reimzul-NAME(1); subcommands, as
`reimzul config check`, are parts of the page. A new command gets its page without a change here.
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

#: Program -> the module of its command. The daemons' pages are in section 8, for administrators.
PROGRAMS = {
    "reimzul": "reimzul.admin.main",
    "reimzul-submit": "reimzul.submit.cli",
    "reimzul-worker": "reimzul.worker.cli",
    "reimzul-repogen": "reimzul.repogen.cli",
    "reimzul-tosign": "reimzul.tosign.cli",
    "reimzul-notifier": "reimzul.notifier.cli",
    "reimzul-batch": "reimzul.batch.cli",
    "reimzul-irc": "reimzul.irc.cli",
    "reimzul-pages": "reimzul.pages.cli",
}
DAEMONS = (
    "reimzul-worker", "reimzul-repogen", "reimzul-tosign", "reimzul-notifier", "reimzul-batch", "reimzul-irc",
    "reimzul-pages",
)  # fmt: skip
_ALWAYS = ("reimzul(1)", "reimzul.ini(5)")


@attr.frozen
class Help:
    """A command's help, in its parts."""

    prose: list[str]
    literal: list[str]  #: preformatted blocks that belong to no section
    examples: list[str]
    notes: list[str]
    exits: list[tuple[str, str]]


def pages() -> Iterator[Page]:
    for name in PROGRAMS:
        yield program_page(name)
    for name, (_, _, about) in COMMANDS.items():
        yield command_page(f"reimzul-{name}", 1, find_command(PROGRAMS["reimzul"]), ("reimzul", name), about)


def find_command(module: str) -> click.Command:
    """The one command of a module that its `main` runs. Raises `LookupError` where there is no such."""
    inside = vars(importlib.import_module(module)).values()
    own = [thing for thing in inside if isinstance(thing, click.Command) and thing.callback]
    named = [command for command in own if (command.name or "").startswith("reimzul")]
    if len(named) != 1:
        raise LookupError(f"{module} has {len(named)} commands of a program's name, and should have one")
    return named[0]


def program_page(name: str) -> Page:
    command = find_command(PROGRAMS[name])
    return command_page(name, 8 if name in DAEMONS else 1, command, (name,), first_sentence(command.help or ""))


def command_page(name: str, section: int, top: click.Command, path: Sequence[str], about: str) -> Page:
    """The page of a program, or of one of its commands."""
    context = find_context(top, path)
    command = context.command
    page = Page(name, section, as_whatis(about))
    help_ = read_help(command)
    page.heading("SYNOPSIS")
    page.roff(format_synopsis(context))
    page.heading("DESCRIPTION")
    add_description(page, help_)
    page.heading("OPTIONS")
    add_options(page, context)
    if isinstance(command, click.Group):
        add_commands(page, context, help_, separate=name == "reimzul")
    add_endings(page, context, help_, f"{name}({section})")
    return page


def find_context(top: click.Command, path: Sequence[str]) -> click.Context:
    """The context of a command, down from its program. Raises `LookupError`."""
    top.context_settings["help_option_names"] = ["-h", "--help"]  # as run_command sets it
    context = click.Context(top, info_name=path[0], **top.context_settings)
    for name in path[1:]:
        group = context.command
        command = group.get_command(context, name) if isinstance(group, click.Group) else None
        if command is None:
            raise LookupError(f"{context.command_path} has no command {name}")
        context = click.Context(command, info_name=name, parent=context)
    return context


def add_commands(page: Page, context: click.Context, help_: Help, *, separate: bool) -> None:
    """Add a group's commands: a reference to their pages if these are separate, else all of each command."""
    page.heading("COMMANDS")
    for inner in visible_contexts(context):
        name, command = inner.info_name or "", inner.command
        if separate:
            page.entry(rf"{bold(f'reimzul-{name}')}(1)", [COMMANDS[name][2]])
            continue
        help_ = read_help(command)
        page.subheading(inner.command_path)
        page.roff(format_synopsis(inner))
        add_description(page, help_)
        add_options(page, inner)
        help_.examples.extend(help_.examples)
        help_.notes.extend(help_.notes)
        help_.exits.extend(help_.exits if not help_.exits else [])
        if isinstance(command, click.Group):
            add_commands(page, inner, help_, separate=False)


def visible_contexts(context: click.Context) -> Iterator[click.Context]:
    group = context.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command and not command.hidden:
            yield click.Context(command, info_name=name, parent=context)


def add_description(page: Page, help_: Help) -> None:
    page.paragraphs(help_.prose)
    for block in help_.literal:
        page.literal(block)


def add_options(page: Page, context: click.Context) -> None:
    given = [each for each in context.command.get_params(context) if isinstance(each, click.Option)]
    for declared, help_ in filter(None, (each.get_help_record(context) for each in given)):
        page.entry(format_declaration(declared), [" ".join(help_.split())] if help_ else [])


def format_declaration(declared: str) -> str:
    """Format `-s, --srpm SRPM` with the options in bold and the values in italics."""
    words = re.findall(r"--?[\w-]+|[\w:-]+|\W", declared)
    return "".join(bold(word) if word.startswith("-") else italic(word) if word[0].isalnum() else escape(word)
                   for word in words)  # fmt: skip


def format_synopsis(context: click.Context) -> str:
    """Format a command's call: its required options, then click's own usage."""
    command = context.command
    needed = [each for each in command.get_params(context) if isinstance(each, click.Option) and each.required]
    words = [bold(context.command_path)]
    # click's own metavar for an option without one has another signature in each version
    words += [f"{bold(each.opts[0])} {italic(each.metavar or str(each.name).upper())}" for each in needed]
    words += [format_declaration(piece) for piece in command.collect_usage_pieces(context)]
    return " ".join(words)


def add_endings(page: Page, context: click.Context, help_: Help, own: str) -> None:
    """Add examples, notes, exit codes, environment, files and other pages."""
    if help_.examples:
        page.heading("EXAMPLES")
        page.literal("\n".join(help_.examples))
    if help_.notes:
        page.heading("NOTES")
        page.paragraphs(help_.notes)
    if help_.exits:
        page.heading("EXIT STATUS")
        for code, means in help_.exits:
            page.entry(bold(code), [means])
    settings = takes_config(context)
    if settings:
        page.heading("ENVIRONMENT")
        page.entry(bold(FILE_VARIABLE), [f"The settings to use without --config, instead of {DEFAULT_FILE}."])
        page.heading("FILES")
        page.entry(italic(str(DEFAULT_FILE)), ["The settings: reimzul.ini(5). Without the file the defaults hold."])
    page.see_also(see for see in (*_ALWAYS, "reimzul-wire(7)") if see != own)


def takes_config(context: click.Context) -> bool:
    """Whether a command or one of its subcommands takes --config."""
    if any("--config" in each.opts for each in context.command.params):
        return True
    return isinstance(context.command, click.Group) and any(takes_config(inner) for inner in visible_contexts(context))


# --- the parts of a help


def read_help(command: click.Command) -> Help:
    """Parse a command's help and epilog. `\\b` begins a preformatted block, as click has it."""
    help_ = Help([], [], [], [], [])
    body = inspect.cleandoc(command.help or "").partition("\f")[0]
    for text in split_paragraphs(body):
        if not take_literal(help_, text):
            help_.prose.append(text)
    for text in split_paragraphs(inspect.cleandoc(command.epilog or "")):
        if not take_literal(help_, text):
            help_.notes.append(text)
    return help_


def split_paragraphs(text: str) -> list[str]:
    return [block for block in re.split(r"\n\s*\n", text) if block.strip()]


def take_literal(help_: Help, block: str) -> bool:
    """Add a preformatted block to the section it belongs to; return whether the block is one."""
    if not block.startswith("\b"):
        return False
    title, _, rest = block.lstrip("\b\n").partition("\n")
    rows = inspect.cleandoc(rest)
    if title.rstrip(":") in ("Example", "Examples"):
        help_.examples.extend(rows.splitlines())
    elif title.rstrip(":") == "Exit codes":
        help_.exits.extend(re.findall(r"^\s*(\d+)  (.+)$", rest, re.MULTILINE))
    else:
        help_.literal.append(block.lstrip("\b\n"))
    return True


def first_sentence(text: str) -> str:
    flat = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", flat)[0]


def as_whatis(about: str) -> str:
    """A sentence as whatis(1) shows it: without capital and full stop."""
    about = about.rstrip(".")
    return about if about[1:2].isupper() else about[:1].lower() + about[1:]
