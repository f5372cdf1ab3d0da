# SPDX-License-Identifier: Apache-2.0
"""The man pages say all that the programs, the settings and docs/wire.md say, and roff reads none of it as its own."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.admin.main import COMMANDS
from reimzul.core.cli import EXIT_CODES
from reimzul.core.settings import all_sections, open_row, settings_of
from tools.manpages import commands, settings, wire
from tools.manpages.roff import Page, bold, escape, line

TREE = Path(__file__).parents[2]
PAGES = {page.file: page.text() for page in commands.pages()}


def plain(roff: str) -> str:
    """What a reader sees, near enough: signs for escapes, no fonts."""
    text = re.sub(r"\\f[BIR]|\\&", "", roff)
    for sign, escaped in {"-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", "\\": r"\e"}.items():
        text = text.replace(escaped, sign)
    return re.sub(r"\\\[u([0-9A-F]{4,6})\]", lambda found: chr(int(found[1], 16)), text)


def test_every_program_and_every_command_has_a_page() -> None:
    programs = re.findall(r"^(reimzul[\w-]*) = ", (TREE / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    named = [f"reimzul-{name}" for name in COMMANDS]
    assert {Path(file).stem for file in PAGES} == {*programs, *named}
    assert {Path(file).stem for file in PAGES if file.startswith("man8/")} == set(commands.DAEMONS)


def list_contexts(context: click.Context) -> list[click.Context]:
    """A command and all commands below it."""
    if not isinstance(context.command, click.Group):
        return [context]
    return [context, *(one for inner in commands.visible_contexts(context) for one in list_contexts(inner))]


@pytest.mark.parametrize("program", commands.PROGRAMS)
def test_every_option_and_argument_is_told(program: str) -> None:
    top = commands.find_context(commands.find_command(commands.PROGRAMS[program]), [program])
    for context in list_contexts(top):
        words = context.command_path.split()
        own = "-".join(words[:2]) if words[0] == "reimzul" else words[0]
        section = 8 if words[0] in commands.DAEMONS else 1
        text = plain(PAGES[f"man{section}/{own}.{section}"])
        assert context.command_path in text
        for parameter in context.command.get_params(context):
            hidden = isinstance(parameter, click.Option) and parameter.hidden
            if hidden or not isinstance(parameter, click.Option):
                continue
            for name in parameter.opts:
                assert re.search(rf"(^|[\s(/]){re.escape(name)}(?![\w-])", text, re.MULTILINE), f"{own}: {name}"


def test_the_commands_own_help_is_in_its_page() -> None:
    page = plain(PAGES["man1/reimzul-builds.1"])
    assert "reimzul builds --srpm 'time-*.el9*' --json" in page.partition(".SH EXAMPLES")[2]
    assert "only those that match all options" in page
    for code, means in re.findall(r"^ *(\d+)  (.+)$", EXIT_CODES, re.MULTILINE):
        assert f".TP\n{code}\n{means}\n" in page
    assert "reimzul.ini(5)" in page.partition(".SH SEE ALSO")[2]


def test_a_page_needs_no_see_also_of_itself() -> None:
    assert "reimzul(1)" not in plain(PAGES["man1/reimzul.1"]).partition(".SH SEE ALSO")[2]


def test_a_new_command_has_its_page_without_a_word_about_it() -> None:
    @click.group("new", epilog=EXIT_CODES)
    def new() -> None:
        """Do a new thing. And more.

        \b
        Example:
          new thing --far 3
        """

    @new.command("thing")
    @click.option("--far", metavar="METRES", required=True, help="How far.")
    @click.option("--secret", hidden=True)
    def thing(far: str, secret: str) -> None:
        """Really do it."""

    page = plain(commands.command_page("new", 1, new, ("new",), commands.first_sentence(new.help or "")).text())
    assert "new - do a new thing" in page
    assert re.search(r"^\.SS new thing\nnew thing --far METRES \[OPTIONS\]\n(\.PP\n)?Really do it", page, re.MULTILINE)
    assert "--far METRES\nHow far." in page
    assert "--secret" not in page
    assert "new thing --far 3" in page.partition(".SH EXAMPLES")[2]


def test_reimzul_ini_has_every_setting_with_its_default() -> None:
    text = plain(settings.page().text())
    for name, kind in all_sections().items():
        assert f".SS [{name}]\n" in text
        part = text.partition(f".SS [{name}]\n")[2].partition("\n.S")[0] + "\n"
        for row in settings_of(kind):
            assert f".TP\n{row.name} = {row.metadata['default']}".rstrip() in part
            assert " ".join(row.metadata["meaning"].replace("`", "").split())[:60] in part
        if free := open_row(kind):
            assert free.metadata["example"] in part


# --- reimzul-wire(7), before go-md2man


def test_no_table_and_no_link_of_the_tree_is_left() -> None:
    text = wire.markdown((TREE / "docs/wire.md").read_text(encoding="utf-8"))
    assert not re.search(r"^\|", text, re.MULTILINE)
    assert "](" not in text
    assert "# BuildRequest\n" in text


def test_a_row_becomes_a_term_and_what_is_said_of_it() -> None:
    table = "| field | what | |\n| --- | --- | --- |\n| `srpm` | a name | o, needed |\n| `tries` | some | |\n"
    assert wire.tables_to_lists(table).split("\n") == ["`srpm`", ": a name (o, needed)", "", "`tries`", ": some", ""]
    table = "| tube | carries | put by |\n| --- | --- | --- |\n| `tosign` | `SignRequest` | repogen |\n"
    assert wire.tables_to_lists(table).split("\n")[1] == ": carries: `SignRequest`; put by: repogen"


def test_every_row_of_the_wire_formats_tables_is_kept() -> None:
    source = (TREE / "docs/wire.md").read_text(encoding="utf-8")
    kept = wire.markdown(source)
    rows = re.findall(r"^\| (`?[^|]+?) \|", source, re.MULTILINE)
    assert len(rows) > 50
    heads = {"tube", "priority", "field", "topic"}
    lost = [row for row in rows if row not in heads and not re.match(r"-+$", row)
            and f"\n{wire.drop_links(row)}\n: " not in kept]  # fmt: skip
    assert not lost


# --- roff


@given(st.text())
def test_no_text_is_a_request_or_an_escape_of_roffs(text: str) -> None:
    roff = line(text)
    assert not roff.startswith((".", "'"))
    assert roff.isascii()
    assert "\n" not in roff
    assert re.fullmatch(r"(?:[^\\]|\\(?:e|-|&|\(aq|\(ga|\(ha|\(ti|f[BR]|\[u[0-9A-F]{4,6}\]))*", roff)


def test_what_is_typed_keeps_its_signs() -> None:
    assert escape("--now ~/x's `y` ^z") == r"\-\-now \(ti/x\(aqs \(gay\(ga \(haz"
    assert bold("a\\b") == r"\fBa\eb\fR"
    assert line("say `reimzul queues` …") == r"say \fBreimzul queues\fR \[u2026]"
    assert line(".SH is no request") == r"\&.SH is no request"


def test_lines_that_are_shown_as_they_stand_are() -> None:
    page = Page("name", 1, "about")
    page.heading("EXAMPLES")
    page.literal("  one\n\n.two")
    assert ".SH EXAMPLES\n.RS 4\n.nf\n  one\n\\&\n\\&.two\n.fi\n.RE\n" in page.text()


def test_a_build_that_is_repeated_dates_its_pages_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert '"1970-01-02"' in Page("name", 1, "about").text().splitlines()[2]
