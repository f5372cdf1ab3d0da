# SPDX-License-Identifier: Apache-2.0
"""`reimzul`: the command of the farm's operators. A subcommand's module is imported when the subcommand is run."""

from __future__ import annotations

import importlib

import click

from reimzul import __version__
from reimzul.admin.output import NearestGroup
from reimzul.core.cli import EXIT_CODES, NEEDS_CONTROLLER, run_command

#: Every subcommand: its name, its module in this package, the command in that module, and its line in `reimzul --help`.
COMMANDS = {
    "builds": ("builds", "command", "List builds and their results, newest first."),
    "show": ("builds", "show_command", "Show all details of a build: arches, attempts, times, files."),
    "explain": ("explain", "command", "Explain why a build is waiting, running or failed."),
    "watch": ("watch", "watch", "Follow builds until they are over."),
    "log": ("logs", "print_log", "Print or follow a log of a build."),
    "cancel": ("actions", "cancel", "End builds, waiting or running."),
    "retry": ("actions", "retry", "Submit builds again, on all arches or only where they failed."),
    "raise": ("actions", "raise_builds", "Move waiting builds to the front of the queue."),
    "batch": ("batch", "command", "Show and steer batches: many source rpms in a computed order."),
    "builders": ("builders", "list_builders", "List the workers: activity, last result, faults."),
    "drain": ("builders", "drain", "Let a builder take no more jobs."),
    "resume": ("builders", "resume", "Let a drained builder take jobs again."),
    "repogen": ("store", "repogen", "Regenerate a target's repodata."),
    "prune": ("store", "prune_builds", "Drop old builds from the repositories, on bstore."),
    "scratch": ("store", "scratch", "List and remove scratch builds, on bstore."),
    "causes": ("causes", "command", "Group failed builds by their cause."),
    "targets": ("targets", "command", "List targets: arches, builders, packages; show one with its .repo file."),
    "packages": ("targets", "packages_command", "List the latest published build of each package of a target."),
    "download": ("download", "command", "Download the packages or logs of a build, or of a target."),
    "stats": ("stats", "command", "Show builds, failures and times by arch, package and builder."),
    "metrics": ("metrics", "command", "Print statistics for Prometheus, as OpenMetrics text."),
    "queues": ("queues", "list_queues", "Show the jobs and watchers of each tube, and pending notifications."),
    "buried": ("queues", "list_buried", "List refused jobs and the reasons."),
    "kick": ("queues", "kick", "Put buried jobs back, to be tried again."),
    "discard": ("queues", "discard", "Delete buried jobs."),
    "override": ("builds", "override", "Set the state of a finished build by hand, with a reason."),
    "doctor": ("doctor.cli", "command", "Check this host's installation; send a canary through the farm."),
    "config": ("config_cmd", "config_group", "Check a configuration, or print a sample."),
    "setup": ("setup.cli", "command", "Set this host up for its role: configuration, keys, units."),
}
#: The subcommands for every host, or for bstore. The others need the history, incoming/ or the notifier's files.
WORK_ANYWHERE = frozenset(("repogen", "prune", "scratch", "doctor", "config", "setup"))


class CommandTable(NearestGroup):
    """The subcommands of the table; listing them imports none."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name not in WORK_ANYWHERE:
            ctx.meta[NEEDS_CONTROLLER] = f"`reimzul {name}`"
        return name, command, rest

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"reimzul.admin.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, _, about) in COMMANDS.items()])


@click.command(cls=CommandTable, name="reimzul", epilog=EXIT_CODES, no_args_is_help=False)
@click.version_option(__version__, "--version", message="%(prog)s %(version)s")
def reimzul() -> None:
    """Observe and operate the build farm.

    \b
    Examples:
      reimzul builds --state failed --arch x86_64
      reimzul queues
      reimzul buried
      reimzul kick --tube x86_64
      reimzul config check
    """


def main() -> None:
    run_command(reimzul, help_without_arguments=True)


if __name__ == "__main__":
    main()
