# SPDX-License-Identifier: Apache-2.0
"""`reimzul`: what a person asks of the farm. Each command is a module of its own, imported when it is run."""

from __future__ import annotations

import importlib

import click

from reimzul import __version__
from reimzul.core.cli import EXIT_CODES, run_command

#: Every command: its name, the module of this package that has it as `command` (or `module:name`), and its help text.
COMMANDS = {
    "builds": ("builds", "List builds and their results, the newest first."),
    "show": ("builds:show_command", "Show everything about a build: legs, attempts, times, files."),
    "explain": ("explain", "Explain why a build is waiting, running or failed."),
    "watch": ("watch", "Builds as they go on, until they are over."),
    "log": ("log", "A log of a build, while it is written and afterwards."),
    "cancel": ("cancel", "End builds, whether they wait or run."),
    "retry": ("retry", "Submit builds again, or their failed legs alone."),
    "raise": ("raising", "Put waiting builds first."),
    "builders": ("builders", "Who is there, doing what, since when, and how well."),
    "drain": ("drain", "Have a builder take no more jobs."),
    "resume": ("resume", "Have a drained builder take jobs again."),
    "repogen": ("repogen", "Have a target indexed anew."),
    "prune": ("prune", "Drop old builds from the repositories, on bstore."),
    "scratch": ("scratch", "List scratch builds and take them away, on bstore."),
    "stats": ("stats", "Count builds, failures and times by arch, package and builder."),
    "metrics": ("metrics", "Print the same figures as OpenMetrics text, for Prometheus."),
    "queues": ("queues", "What waits in the tubes, who watches them, and who is still to be told."),
    "buried": ("buried", "Jobs that were refused and put aside, and why."),
    "kick": ("kick", "Put buried jobs back, to be tried again."),
    "discard": ("discard", "Delete buried jobs."),
    "override": ("override", "Set the status of a build to Override, with a comment."),
    "doctor": ("doctor.cli", "Look at every link and every part of this host; send a canary through the farm."),
    "config": ("settings", "Check a configuration, or print a sample."),
    "setup": ("setup.cli", "Set this host up for its role: configurations, keys, units."),
}


class Commands(click.Group):
    """The commands of the table; none is imported to list them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"reimzul.admin.{module}"), name or "command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])


@click.command(cls=Commands, name="reimzul", epilog=EXIT_CODES)
@click.version_option(__version__, "--version", message="%(prog)s %(version)s")
def reimzul() -> None:
    """Look at the build farm, and mend it.

    \b
    Examples:
      reimzul builds --status Failed --arch x86_64
      reimzul queues
      reimzul buried
      reimzul kick --tube x86_64
      reimzul config check
    """


def main() -> None:
    """The program."""
    run_command(reimzul, help_without_arguments=True)


if __name__ == "__main__":
    main()
