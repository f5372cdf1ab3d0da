# SPDX-License-Identifier: Apache-2.0
"""`reimzul setup`: the command lines of a host's set-up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, TypeVar

import attr
import click

from reimzul.admin.output import print_json
from reimzul.admin.setup import asking, ini, keys, mqtt, roles, way
from reimzul.admin.setup.act import Manner, agree, prepare, show, take_steps, write_files
from reimzul.admin.setup.begun import Pending, begun
from reimzul.admin.setup.checkout import cloning
from reimzul.admin.setup.orders import Orders, Outcome, carried_out
from reimzul.admin.setup.roles import Plan, Wishes
from reimzul.admin.setup.system import RootNeeded, System
from reimzul.admin.setup.units import Step, making
from reimzul.core.cli import EXIT_CODES, local_hostname
from reimzul.core.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

#: How many run at once where nothing is said: as the original's README has it, fewer where there are few cores.
WORKERS, REPOGEN_WORKERS = 4, 3


def _shared(function: F) -> F:
    for decorate in (
        click.option("--dry-run", is_flag=True, help="Show what would be changed, and change nothing."),
        click.option("--yes", is_flag=True, help="Replace what differs without asking."),
        click.option("--json", "as_json", is_flag=True, help="With --dry-run or --list: the same for a program."),
        click.option(
            "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE",
            help="A setting of /etc/reimzul/reimzul.ini; all else in it stays. May be given several times.",
        ),
        click.option(
            "--root", metavar="FOLDER", default=Path("/"),
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Set up the system below FOLDER, an image: write and enable, start nothing.",
        ),
    ):  # fmt: skip
        function = decorate(function)
    return function


def _originals_option(function: F) -> F:
    words = "Whether workers of the original are still there (docs/upgrading.md)."
    return click.option("--original-workers", type=click.Choice(["on", "off"]), help=words)(function)


def _key_options(function: F) -> F:
    for decorate in (
        click.option("--add-builder", multiple=True, metavar="NAME", help="Let a builder in. May be repeated."),
        click.option("--revoke", multiple=True, metavar="NAME", help="Shut a host out, at once."),
        click.option("--new-key", is_flag=True, help="With --add-…: another key for who has one already."),
        click.option("--list", "listed", is_flag=True, help="Who has a key here."),
        click.option("--psk-file", metavar="FILE", help="Keys made elsewhere, a line name:hex each; - is stdin."),
    ):
        function = decorate(function)
    return function


@click.group("setup", epilog=EXIT_CODES)
def command() -> None:
    """Set this host up for its role: configurations, keys, units. Safe to run again.

    It shows what it would change of files that are there, and asks; run again, it changes only what differs.

    \b
    Examples:
      reimzul setup controller --add-bstore bstore.example.org --add-builder b1
      reimzul setup bstore --controller controller.example.org --psk-file -
      reimzul setup builder --controller controller.example.org --bstore bstore.example.org --psk-file -
    """


@command.command("controller", epilog=EXIT_CODES)
@_key_options
@_shared
@_originals_option
@click.option("--add-bstore", metavar="NAME", help="Let bstore in: its host name, or the one of --bstore.")
@click.option("--controller", metavar="HOST", help="This host's name as the others know it, for the lines printed.")
@click.option("--bstore", metavar="HOST", help="bstore's host name, if it is not the NAME of --add-bstore.")
@click.option("--mqtt", "with_mqtt", is_flag=True, help="Set up mosquitto, its certificates, and [mqtt].")
@click.option("--mqtt-listen", metavar="ADDRESS", help="Where mosquitto listens, if not on loopback: 0.0.0.0 is all.")
def controller(
    add_bstore: str | None, controller: str | None, bstore: str | None, with_mqtt: bool, mqtt_listen: str | None,
    **given: Any,
) -> None:  # fmt: skip
    """Set up the controller: beanstalkd, nginx for incoming/, stunnel, the notifier.

    The key of each host is made here: --add-builder and --add-bstore print it, a line each, on stdout and once, and
    on stderr what to run with it. On a host that is set up they change nothing but the keys. With bstore's the
    controller gets a key of its own, to read the store by: for bstore that is another line.

    \b
    Examples:
      reimzul setup controller
      reimzul setup controller --add-bstore bstore.example.org --add-builder b1 --add-builder b2
      reimzul setup controller --revoke b2
      reimzul setup controller --list
    """
    run = _Run("controller", add_bstore=add_bstore, **given)
    if run.listed():
        return
    outcome, own = run.orders_with_own(add_bstore)
    store = run.bstore(bstore, add_bstore)
    hosts = {"CONTROLLER": asking.host(controller or local_hostname()), "BSTORE": asking.host(store or "BSTORE")}
    if bstore and not (own.keys or run.given["add_builder"]):
        raise click.UsageError("--bstore goes with --add-bstore: without a key of its own it has no way to bstore")
    reaches = {"own_key": way.text_of(own.keys), "hosts": {"BSTORE": store} if own.keys and store else {}}
    if run.only_keys and not (with_mqtt or mqtt_listen):
        planned = roles.keys_and_way if own.changed else roles.keys_only
        run.carry_out(planned(run.system, run.wishes(outcome, **reaches)), outcome)
    else:
        listen = asking.host(mqtt_listen) if mqtt_listen else None
        broker = mqtt.wishes(run.system, with_mqtt, listen, controller, run.settings)
        wishes = run.wishes(outcome, **reaches, **broker.as_wishes(run.settings))
        run.carry_out(roles.plan("controller", run.system, wishes), outcome)
    run.tell(outcome, add_bstore, hosts)


@command.command("bstore", epilog=EXIT_CODES)
@_key_options
@_shared
@click.option("--controller", metavar="HOST", help="The controller's host name.")
@click.option("--name", metavar="NAME", help="Whose key in --psk-file is this host's own, where there are several.")
@click.option("--repogen-workers", type=click.IntRange(1, 64), metavar="N", help="How many publish at once; 3.")
@_originals_option
@click.option("--public-port", type=click.IntRange(0, 65535), metavar="PORT", help="Serve repo/ to all; 0: no more.")
def bstore(
    controller: str | None, name: str | None, repogen_workers: int | None, public_port: int | None, **given: Any
) -> None:
    """Set up bstore: rsyncd, nginx for the store, stunnel, repogen, the signer.

    Its own key, the controller's and those of the builders come from the controller. On a host that is set up,
    --add-builder and --revoke change nothing but the keys.

    \b
    Examples:
      reimzul setup bstore --controller controller.example.org --psk-file -
      reimzul setup bstore --add-builder b3 --psk-file -
      reimzul setup bstore --revoke b3
    """
    run = _Run("bstore", **given)
    if run.listed():
        return
    outcome = run.orders()
    if run.only_keys and not (controller or name or repogen_workers or public_port is not None or run.more()):
        run.carry_out(roles.keys_only(run.system, run.wishes(outcome)), outcome)
        return
    questions = asking.Questions()
    hosts = {"CONTROLLER": run.host(questions, controller, "CONTROLLER")}
    own = run.own_key(questions, name)
    questions.done()
    wishes = run.wishes(
        outcome, hosts=hosts, own_key=own,
        public_port=roles.public_port(run.system) if public_port is None else public_port,
        originals=roles.original_workers(run.system, run.settings),
        instances=repogen_workers or len(run.system.instances("reimzul-repogen-worker")) or REPOGEN_WORKERS,
    )  # fmt: skip
    made = run.system.running and roles.folders_missing(run.system)
    run.carry_out(roles.plan("bstore", run.system, wishes), outcome, [making(roles.FOLDERS)] if made else [])


@command.command("builder", epilog=EXIT_CODES)
@_shared
@click.option("--controller", metavar="HOST", help="The controller's host name.")
@click.option("--bstore", metavar="HOST", help="bstore's host name.")
@click.option("--name", metavar="NAME", help="This builder's name, whose key is in --psk-file.")
@click.option("--psk-file", metavar="FILE", help="This builder's key, a line name:hex; - is stdin.")
@click.option("--workers", type=click.IntRange(1, 256), metavar="N", help="How many build at once.")
@click.option("--mock-configs", metavar="URL", help="The git repository of mock's configurations, to be cloned.")
def builder(
    controller: str | None, bstore: str | None, name: str | None, workers: int | None, mock_configs: str | None,
    **given: Any,
) -> None:  # fmt: skip
    """Set up a builder: stunnel and the workers.

    The key comes from the controller: reimzul setup controller --add-builder NAME.

    \b
    Example:
      reimzul setup builder --name b3 --controller controller.example.org --bstore bstore.example.org --psk-file -
    """
    run = _Run("builder", **given)
    questions = asking.Questions()
    hosts = {
        "CONTROLLER": run.host(questions, controller, "CONTROLLER"),
        "BSTORE": run.host(questions, bstore, "BSTORE"),
    }
    own = run.own_key(questions, name)
    questions.done()
    usual = min(WORKERS, max(1, (os.cpu_count() or 1) // 2))
    wishes = Wishes(
        hosts=hosts, own_key=own, settings=run.settings,
        instances=workers or len(run.system.instances("reimzul-worker")) or usual,
    )  # fmt: skip
    run.carry_out(roles.plan("builder", run.system, wishes), None, cloning(run.system, mock_configs))


def _refuse_contradictions(role: str, about_keys: bool, **given: Any) -> None:
    if given["psk_file"] and role == "controller" and not about_keys:
        raise click.UsageError("--psk-file goes with --add-builder or --add-bstore")
    if given.get("new_key") and not about_keys:
        raise click.UsageError("--new-key goes with --add-builder or --add-bstore")
    if given["as_json"] and not (given["dry_run"] or given.get("listed")):
        raise click.UsageError("--json goes with --dry-run or --list")


class _Run:
    """One call: its options, the host it is about, and the keys it was given."""

    def __init__(
        self, role: str, *, dry_run: bool, yes: bool, as_json: bool, settings: Sequence[str], root: Path,
        psk_file: str | None, original_workers: str | None = None, **given: Any,
    ) -> None:  # fmt: skip
        if os.geteuid() and not dry_run and root == Path("/"):
            raise RootNeeded
        self.given = given
        self.system = System.below(root.resolve())
        self.begun = None if dry_run else click.get_current_context().with_resource(begun(self.system))
        self.settings = dict(map(ini.parse, settings))
        if original_workers:
            self.settings[("farm", "original_workers")] = "true" if original_workers == "on" else "false"
        there, self.hosts = roles.remembered(self.system)
        if there not in ("", role):
            raise InputError(f"this host is set up as {there} ({roles.TUNNELS}): a host has one role")
        about_keys = any(given.get(order) for order in ("add_builder", "add_bstore", "revoke"))
        self.only_keys = bool(there) and about_keys and not self.settings
        _refuse_contradictions(role, about_keys, dry_run=dry_run, as_json=as_json, psk_file=psk_file, **given)
        self.keys = asking.key_file(psk_file)
        self.manner = Manner(dry_run=dry_run, yes=yes, as_json=as_json, quiet=about_keys and role == "controller")

    def listed(self) -> bool:
        """Whether a list was asked for, which it has then been given."""
        if not self.given["listed"]:
            return False
        owners = keys.owners(self._accepted())
        if self.manner.as_json:
            print_json({"names": owners})
        else:
            for owner in owners:
                click.echo(owner)
        return True

    def orders(self) -> Outcome:
        """What becomes of the keys that bstore accepts: of the builders', and of the controller's if it is given."""
        add = self.given["add_builder"]
        if self.keys is None and (add or self.system.text(roles.OWN_KEY) is None):
            if asking.on_terminal():
                self.keys = asking.key_file("-")
            elif add:
                raise asking.NobodyToAsk("missing, and there is no terminal to ask on: --psk-file FILE")
        orders = self._orders(add)
        taken = (keys.CONTROLLER,) if keys.CONTROLLER in (self.keys or ()) else ()
        return carried_out(attr.evolve(orders, taken=taken), self._accepted())

    def orders_with_own(self, bstore: str | None) -> tuple[Outcome, Outcome]:
        """What becomes of the keys that the controller accepts, with all that is to be printed; and of its own."""
        orders = self._orders((*((bstore,) if bstore else ()), *self.given["add_builder"]))
        own = keys.parse(self.system.text(roles.OWN_KEY) or "", roles.OWN_KEY)
        theirs, ours = way.ordered(orders, bstore, self._accepted(), own)
        return attr.evolve(theirs, made={**theirs.made, **ours.made}), ours

    def _orders(self, add: Sequence[str]) -> Orders:
        names = tuple(map(keys.name, add))
        return Orders(add=names, revoke=self.given["revoke"], new_key=self.given["new_key"], given=self.keys)

    def _accepted(self) -> dict[str, str]:
        return roles.first_keys(self.system.text(roles.ACCEPTED))

    def bstore(self, given: str | None, added: str | None) -> str:
        """bstore's host name; empty where it is not known yet. One that stays keeps the name it was given before."""
        there = self.hosts.get("BSTORE", "")
        return given or (there if added in self._accepted() else "") or added or there

    def more(self) -> bool:
        """Whether a bstore was told more than about others' keys: its own is among those given."""
        return bool(set(self.keys or ()) - {keys.CONTROLLER, *self.given["add_builder"]})

    def wishes(self, outcome: Outcome, **more: Any) -> Wishes:
        """The wishes of a host that accepts keys."""
        return Wishes(**{
            "accepted": keys.text_of(outcome.keys), "cut": outcome.cut, "settings": self.settings, **more,
        })  # fmt: skip

    def host(self, questions: asking.Questions, given: str | None, which: str) -> str:
        """A peer's host name."""
        option = f"--{which.lower()} HOST"
        return questions.ask(given, self.hosts.get(which, ""), option, f"Host name of the {which.lower()}", asking.host)

    def own_key(self, questions: asking.Questions, name: str | None) -> str:
        """The text of this host's own key file: of the key given, or the one that is there."""
        theirs = (keys.CONTROLLER, *self.given.get("add_builder", ()))
        own = {owner: secret for owner, secret in (self.keys or {}).items() if owner not in theirs}
        there = self.system.text(roles.OWN_KEY)
        if not own and there is None and self.keys is None and asking.on_terminal():
            own = asking.key_file("-") or {}
        if not own and there is None:
            questions.missing.append("--psk-file FILE (the controller makes the key: docs/install.md)")
            return ""
        own = own or keys.parse(there or "", roles.OWN_KEY)
        if name is None and len(own) != 1:
            raise InputError(f"whose key is this host's own? --name says it: {', '.join(own)}")
        owner = keys.name(name or next(iter(own)))
        if owner not in own:
            raise InputError(f"the key is not that of {owner}, but of {', '.join(own)}")
        return keys.text_of({owner: own[owner]})

    def carry_out(self, plan: Plan, outcome: Outcome | None, first: Sequence[Step] = ()) -> None:
        """Show it, or do it; keys that were made are printed as soon as they are written down."""
        left = self.begun.pending() if self.begun else Pending()
        work = prepare(self.system, plan, left, first)
        if self.begun is None:
            show(work, self.manner)
            return
        agree(work, self.manner)
        write_files(self.system, work, self.manner, self.begun)
        for owner, secret in outcome.made.items() if outcome else ():
            click.echo(keys.line(owner, secret))
        take_steps(self.system, work, self.manner, self.begun)

    def tell(self, outcome: Outcome, add_bstore: str | None, hosts: dict[str, str]) -> None:
        """What is to be run elsewhere after the keys have changed here."""
        if self.manner.dry_run:
            return
        reach = f"--controller {hosts['CONTROLLER']}"
        builders = [owner for owner in outcome.made if owner not in (add_bstore, keys.CONTROLLER)]
        ours = [keys.CONTROLLER] if keys.CONTROLLER in outcome.made else []
        added = "".join(f" --add-builder {owner}" for owner in builders)
        added += " --new-key" if added and self.given["new_key"] else ""
        if add_bstore in outcome.made:
            self._advise("bstore", f"bstore {reach} --name {add_bstore}{added}", [add_bstore, *ours, *builders])
        elif builders or ours:
            self._advise("bstore", f"bstore{added}", [*ours, *builders])
        for owner in builders:
            self._advise(owner, f"builder --name {owner} {reach} --bstore {hosts['BSTORE']}", [owner])
        for owner in self.given["revoke"]:
            which = "" if owner == keys.CONTROLLER else f", if {owner} was a builder"
            self.manner.say(f"on bstore{which}:\n  reimzul setup bstore --revoke {owner}")

    def _advise(self, where: str, words: str, owners: Sequence[str | None]) -> None:
        lines = "line" if len(owners) == 1 else "lines"
        names = " and ".join(filter(None, owners))
        self.manner.say(f"on {where}, with the {lines} of {names}:\n  reimzul setup {words} --psk-file -")
