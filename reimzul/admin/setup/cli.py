# SPDX-License-Identifier: Apache-2.0
"""`reimzul setup`: the commands for the controller, bstore and builders."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import attr
import click

from reimzul.admin.output import NearestGroup, print_json, refuse_others
from reimzul.admin.setup import apply, ini, mqtt, psk, removal, roles
from reimzul.admin.setup.apply import ApplyOptions, MissingAnswer
from reimzul.admin.setup.files import RootNeeded, System
from reimzul.admin.setup.psk import CONTROLLER, KeyChanges, KeyResult
from reimzul.admin.setup.roles import RoleOptions, RolePlan, Step
from reimzul.core import validators
from reimzul.core.cli import EXIT_CODES, local_hostname
from reimzul.core.errors import EXIT_FAILED, InputError
from reimzul.core.formatting import join_words
from reimzul.core.option_types import NearestChoice, WholeNumber
from reimzul.core.setting_parsers import parse_optional_url, url_parser

#: The most instances by default, as in the original's README; builders with few cores get fewer.
DEFAULT_WORKERS, DEFAULT_REPOGEN_WORKERS = 4, 3


def _common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in reversed((
        click.option("--dry-run", is_flag=True, help="Show what would be changed, and change nothing."),
        click.option(
            "--remove", "removes", is_flag=True, help="Stop and disable the role's units; remove what setup wrote."
        ),
        click.option("--yes", is_flag=True, help="Do not ask: replace changed files, change a name, remove the role."),
        click.option("--json", "as_json", is_flag=True, help="With --dry-run or --list: print JSON."),
        click.option(
            "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE",
            help="Change a setting in /etc/reimzul/reimzul.ini. May be repeated.",
        ),
        click.option(
            "--root", metavar="FOLDER", default=Path("/"),
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Set up the image below FOLDER: write and enable, start nothing.",
        ),
    )):  # fmt: skip
        function = decorate(function)
    return function


def _key_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in reversed((
        click.option("--add-builder", multiple=True, metavar="NAME", help="Accept a builder's key. May be repeated."),
        click.option("--revoke", multiple=True, metavar="NAME", help="Revoke a host's key and disconnect it."),
        click.option("--new-key", is_flag=True, help="With --add-…: replace the key of a host that has one."),
        click.option(
            "--new-event-key", is_flag=True, help="Replace the key of events: on the controller, then on bstore."
        ),
        click.option("--list", "list_keys", is_flag=True, help="List the hosts that have a key here."),
        click.option("--psk-file", metavar="FILE", help="Read keys made elsewhere, a line name:hex each; - is stdin."),
        # of the versions that let workers of the original upload; accepted until 0.3
        click.option("--original-workers", type=NearestChoice(["on", "off"]), hidden=True),
    )):  # fmt: skip
        function = decorate(function)
    return function


def _public_url_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--public-url", metavar="URL",
        help="Have links for people begin with URL; '' is bstore's name and public port. bstore's setup asks for it.",
    )(function)  # fmt: skip


@click.group("setup", cls=NearestGroup, epilog=EXIT_CODES)
def command() -> None:
    """Set this host up for its role: configurations, keys, units. Safe to run again.

    Changes to existing files are shown, and need consent. Re-running changes only what differs, and restarts only the
    services affected. At the end it prints what reimzul doctor finds to fail on this host; the exit code is 1 then.

    \b
    Examples:
      reimzul setup controller --add-bstore bstore.example.org --add-builder b1
      reimzul setup bstore --controller controller.example.org --psk-file -
      reimzul setup builder --controller controller.example.org --bstore bstore.example.org --psk-file - \\
        --mock-configs https://git.example.org/mock_configs
      reimzul setup builder --remove --dry-run
    """


@command.command("controller", epilog=EXIT_CODES)
@click.option("--add-bstore", metavar="NAME", help="Accept bstore's key. NAME is its host name unless --bstore has it.")
@click.option("--controller", metavar="HOST", help="This host's name as the others know it, for the lines printed.")
@click.option("--bstore", metavar="HOST", help="bstore's host name, if it is not the NAME of --add-bstore.")
@_public_url_option
@click.option("--mock-configs", metavar="URL", help="For the builders' lines printed: mock's configurations, in git.")
@click.option("--mqtt", "with_mqtt", is_flag=True, help="Set up mosquitto, its certificates, and [mqtt].")
@click.option("--mqtt-listen", metavar="ADDRESS", help="Where mosquitto listens, if not on loopback: 0.0.0.0 is all.")
@click.option("--pages-port", type=WholeNumber(0, 65535), metavar="PORT", help="Serve the farm's pages; 0: stop.")
@_key_options
@_common_options
def controller(
    add_bstore: str | None, controller: str | None, bstore: str | None, mock_configs: str | None,
    public_url: str | None, with_mqtt: bool, mqtt_listen: str | None, pages_port: int | None, **given: Any,
) -> int:  # fmt: skip
    """Set up the controller: beanstalkd, nginx for incoming/, stunnel, the notifier, reimzul-batch.

    The key of each host is made here: --add-builder and --add-bstore print it once, a line each, on stdout. What each
    key is, and the commands to run with it on the other hosts, are printed on stderr. On a host that is set up they
    change only the keys. Adding bstore also makes the controller's own key, by which it reads the store: bstore needs
    that line too.

    \b
    Examples:
      reimzul setup controller
      reimzul setup controller --add-bstore bstore.example.org --add-builder b1 --add-builder b2
      reimzul setup controller --revoke b2
      reimzul setup controller --pages-port 80
      reimzul setup controller --list
    """
    setup = _SetupRun("controller", add_bstore=add_bstore, **given, public_url=public_url)
    if setup.is_answered():
        return 0
    result, own = setup.change_controller_keys(add_bstore)
    event_keys, made = setup.change_event_keys(add_bstore in result.made)
    result = attr.evolve(result, made={**result.made, **({psk.EVENTS: made} if made else {})})
    store = setup.find_bstore(bstore, add_bstore)
    names = {
        "CONTROLLER": _parse_host(controller or local_hostname()),
        "BSTORE": _parse_host(store or "BSTORE"),
    }
    if bstore and not (own.keys or setup.given["add_builder"]):
        raise click.UsageError("--bstore goes with --add-bstore: without a key of its own it has no way to bstore")
    peers = {"BSTORE": _parse_host(store)} if own.keys and store else {}
    setup.require_known_hosts(peers)
    configs = roles.parse_git_url(mock_configs) if mock_configs else "URL"
    options = RoleOptions(keys=result, own_key=psk.format_own_key(own.keys), hosts=peers, event_keys=event_keys)
    key_change = setup.only_keys and not (with_mqtt or mqtt_listen or pages_port is not None)
    if key_change:
        plan = roles.plan_keys("controller", setup.system, options, new_own_key=own.changed)
    else:
        listen = _parse_host(mqtt_listen) if mqtt_listen else None
        services, settings = mqtt.plan_broker(setup.system, with_mqtt, listen, controller, setup.settings)
        settings = {("batch", "enabled"): "true", **settings}
        options = attr.evolve(options, services=services, settings=settings)
        plan = roles.plan_role("controller", setup.system, setup.add_pages(options, pages_port, names["CONTROLLER"]))
    folders = () if key_change else roles.batch_folder_steps(setup.system)
    setup.carry_out(plan, result.made, add_bstore or "", first=folders)
    setup.print_commands_for_others(result, add_bstore, {**names, "URL": configs})
    # a store that has just been added is set up after this host
    return 0 if key_change else setup.verify(() if peers and not own.made else ("link.store",))


@command.command("bstore", epilog=EXIT_CODES)
@click.option("--controller", metavar="HOST", help="The controller's host name.")
@click.option("--name", metavar="NAME", help="Whose key in --psk-file is this host's own, if there are several.")
@click.option("--repogen-workers", type=WholeNumber(1, 64), metavar="N", help="How many publish at once; by default 3.")
@click.option("--public-port", type=WholeNumber(0, 65535), metavar="PORT", help="Serve repo/ to all; 0: stop that.")
@_public_url_option
@_key_options
@_common_options
def bstore(
    controller: str | None, name: str | None, repogen_workers: int | None, public_port: int | None,
    public_url: str | None, **given: Any,
) -> int:  # fmt: skip
    """Set up bstore: rsyncd, nginx for the store, stunnel, repogen, the signer.

    Its own key, the controller's and those of the builders come from the controller. On a host that is set up,
    --add-builder and --revoke change only the keys.

    \b
    Examples:
      reimzul setup bstore --controller controller.example.org --psk-file -
      reimzul setup bstore --add-builder b3 --psk-file -
      reimzul setup bstore --revoke b3
    """
    setup = _SetupRun("bstore", **given, public_url=public_url)
    if setup.is_answered():
        return 0
    result, system = setup.change_bstore_keys(), setup.system
    if setup.only_keys and not (controller or name or repogen_workers or public_port is not None or setup.own_keys()):
        options = RoleOptions(keys=result, event_keys=setup.given_event_key())
        setup.carry_out(roles.plan_keys("bstore", system, options), result.made)
        return 0
    identity = setup.ask_identity(name, controller=controller)
    port = roles.current_port(system, roles.PUBLIC) if public_port is None else public_port
    made_url = roles.find_public_url(public_url, port, identity["own_key"].partition(":")[0], system)
    url = setup.ask_public_url(made_url, port) if public_url is None else made_url
    options = RoleOptions(
        keys=result,
        settings=setup.settings,
        event_keys=setup.given_event_key(),
        **identity,
        public_port=port,
        public_url=url,
        instances=repogen_workers or len(system.instances("reimzul-repogen-worker")) or DEFAULT_REPOGEN_WORKERS,
    )
    setup.carry_out(roles.plan_role("bstore", system, options), result.made, first=roles.folder_steps(system))
    if url and ((public_port, public_url) != (None, None) or url != made_url):
        setup.options.print(f"links that people get begin with {options.public_url}")
    old_uploads = roles.find_old_uploads(system)
    if old_uploads:
        setup.options.print(f"workers of the original are no longer supported: {old_uploads} will not be published")
    return setup.verify()


@command.command("builder", epilog=EXIT_CODES)
@click.option("--controller", metavar="HOST", help="The controller's host name.")
@click.option("--bstore", metavar="HOST", help="bstore's host name.")
@click.option("--name", metavar="NAME", help="This builder's name, whose key is in --psk-file.")
@click.option("--psk-file", metavar="FILE", help="Read this builder's key, a line name:hex; - is stdin.")
@click.option("--workers", type=WholeNumber(1, 256), metavar="N", help="How many build at once; by default 1 to 4.")
@click.option("--mock-configs", metavar="URL", help="Clone the git repository of mock's configurations.")
@_common_options
def builder(
    controller: str | None, bstore: str | None, name: str | None, workers: int | None, mock_configs: str | None,
    **given: Any,
) -> int:  # fmt: skip
    """Set up a builder: stunnel and the workers.

    The key comes from the controller: reimzul setup controller --add-builder NAME.

    \b
    Example:
      reimzul setup builder --name b3 --controller controller.example.org --bstore bstore.example.org --psk-file - \\
        --mock-configs https://git.example.org/mock_configs
    """
    setup = _SetupRun("builder", **given)
    if setup.is_answered():
        return 0
    identity = setup.ask_identity(name, controller=controller, bstore=bstore)
    default = min(DEFAULT_WORKERS, max(1, (os.cpu_count() or 1) // 2))
    instances = workers or len(setup.system.instances("reimzul-worker")) or default
    options = RoleOptions(**identity, settings=setup.settings, instances=instances)
    plan = roles.plan_role("builder", setup.system, options)
    setup.carry_out(plan, {}, first=roles.clone_steps(setup.system, mock_configs))
    return setup.verify()


def _parse_host(text: str) -> str:
    """A host name, or an IPv4 address. Raises `InputError`."""
    try:
        return validators.host(text)
    except ValueError as error:
        raise InputError(str(error)) from None


class _SetupRun:
    """One call: its options, its host, and the keys it was given."""

    def __init__(
        self, role: str, *, dry_run: bool, removes: bool, yes: bool, as_json: bool, settings: Sequence[str], root: Path,
        psk_file: str | None, original_workers: str | None = None, public_url: str | None = None, **given: Any,
    ) -> None:  # fmt: skip
        lists = bool(given.get("list_keys"))
        if lists:
            refuse_others("--list", "list_keys", "as_json", "root")
        if removes:
            refuse_others("--remove", "removes", "dry_run", "yes", "as_json", "root")
        if os.geteuid() and not dry_run and root == Path("/"):
            raise RootNeeded
        if original_workers:
            click.echo("warning: --original-workers has no effect any more, and is an error from 0.3 on", err=True)
        self.role, self.removes, self.given = role, removes, given
        self.system = System.at_root(root.resolve())
        changes_nothing = dry_run or lists
        self.lock = (
            None if changes_nothing else click.get_current_context().with_resource(apply.lock_setup(self.system))
        )
        self.settings = dict(map(ini.parse_setting, settings))
        if public_url is not None:
            self.settings["bstore", "public_url"] = public_url.strip()
        tunnels = self.system.text(roles.TUNNELS) or ""
        present, self.hosts = roles.find_role(tunnels), roles.find_hosts(tunnels)
        if present not in ("", role):
            raise InputError(f"this host is set up as {present} ({roles.TUNNELS}): a host has one role")
        changes_keys = any(given.get(option) for option in ("add_builder", "add_bstore", "revoke", "new_event_key"))
        self.only_keys = bool(present) and changes_keys and not self.settings
        if psk_file and role == "controller" and not changes_keys:
            raise click.UsageError("--psk-file goes with --add-builder or --add-bstore")
        if given.get("new_key") and not changes_keys:
            raise click.UsageError("--new-key goes with --add-builder or --add-bstore")
        if as_json and not changes_nothing:
            raise click.UsageError("--json goes with --dry-run or --list")
        self.keys = None if psk_file is None else psk.read_key_file(psk_file)
        self.options = ApplyOptions(yes=yes, as_json=as_json, to_stderr=changes_keys and role == "controller")

    def is_answered(self) -> bool:
        """Whether the keys were listed or the role removed, as asked; nothing is set up then."""
        if self.given.get("list_keys"):
            self.print_owners()
            return True
        if self.removes:
            found = removal.plan_removal(self.role, self.system)
            if self.lock is None:
                removal.show_removal(found, self.options)
            else:
                removal.remove_role(self.role, self.system, found, self.options)
        return self.removes

    def print_owners(self) -> None:
        owners = psk.list_owners(roles.current_accepted_keys(self.system))
        if self.options.as_json:
            print_json({"names": owners})
        else:
            click.echo("".join(f"{owner}\n" for owner in owners), nl=False)

    def change_bstore_keys(self) -> KeyResult:
        """The keys that bstore accepts: with the builders' changes, and the controller's key if it was given."""
        self._ask_keys()
        if self.keys is None and (self.given["add_builder"] or self.given["new_event_key"]):
            raise MissingAnswer("missing, and there is no terminal to ask on: --psk-file FILE")
        if self.given["new_event_key"] and not self.given_event_key():
            raise InputError("there is no line events:number:hex among the keys given: the controller makes it")
        taken = (CONTROLLER,) if CONTROLLER in (self.keys or ()) else ()
        changes = attr.evolve(self._key_changes(self.given["add_builder"]), taken=taken)
        return psk.apply_key_changes(changes, roles.current_accepted_keys(self.system))

    def change_controller_keys(self, bstore: str | None) -> tuple[KeyResult, KeyResult]:
        """The keys that the controller accepts, with all keys to be printed; and its own key."""
        changes = self._key_changes((*((bstore,) if bstore else ()), *self.given["add_builder"]))
        own = psk.parse_keys(self.system.text(roles.OWN_KEY) or "", roles.OWN_KEY)
        theirs, ours = psk.apply_controller_changes(changes, bstore, roles.current_accepted_keys(self.system), own)
        return attr.evolve(theirs, made={**theirs.made, **ours.made}), ours

    def change_event_keys(self, bstore_is_new: bool) -> tuple[str, str]:
        """The controller's keys of events, and the one made: bstore gets it with its own, or with --new-event-key."""
        present, given = self.system.text(psk.EVENT_KEYS) or "", (self.keys or {}).get(psk.EVENTS, "")
        return psk.change_event_keys(present, given, bstore_is_new or self.given["new_event_key"])

    def add_pages(self, options: RoleOptions, port: int | None, own_name: str) -> RoleOptions:
        """The options with the pages at a port, at none with 0, or with None as they are; links lead to them."""
        url = roles.find_pages_url(port, own_name, self.system)
        if url and ("pages", "url") not in options.settings and port != roles.current_port(self.system, roles.PAGES):
            url = self._ask_url("URL of the pages as people reach them, for links", url, url_parser("http"))
        settings = {**({} if url is None else {("pages", "url"): url}), **options.settings}
        if port and url:
            self.options.print(f"links that people get lead to {settings['pages', 'url']}")
        port = roles.current_port(self.system, roles.PAGES) if port is None else port
        return attr.evolve(options, pages_port=port, settings=settings)

    def ask_public_url(self, made: str, port: int) -> str:
        """What links to the store begin with: as a person answers at the first run and at a new port, else `made`."""
        is_new = not self.hosts or (port and port != roles.current_port(self.system, roles.PUBLIC))
        if not is_new or roles.current_setting(self.system, "bstore", "public_url"):
            return made
        url = self._ask_url("URL of the folder above repo/ as people reach it, for links", made, parse_optional_url)
        if url != made:
            self.settings["bstore", "public_url"] = url
        return url

    def _ask_url(self, question: str, made: str, parse: Callable[[str], str]) -> str:
        """A person's answer; `made` is the default, also where nobody can be asked."""

        def check(answer: str) -> str:
            try:
                return parse(answer)
            except ValueError as error:
                raise click.UsageError(str(error)) from None

        if self.options.yes or not sys.stdin.isatty():
            return made
        question += "" if made else " (empty: none)"
        return str(click.prompt(question, default=made, show_default=bool(made), value_proc=check, err=True))

    def given_event_key(self) -> str:
        """bstore's file of the key of events, if the key was given."""
        return "".join(f"{secret}\n" for owner, secret in (self.keys or {}).items() if owner == psk.EVENTS)

    def _key_changes(self, add: Sequence[str]) -> KeyChanges:
        return KeyChanges(
            add=tuple(map(psk.parse_name, add)),
            revoke=self.given["revoke"],
            new_key=self.given["new_key"],
            given=self.keys,
        )

    def find_bstore(self, given: str | None, added: str | None) -> str:
        """bstore's host name; empty while it is unknown. A bstore that has a key keeps the name it had."""
        present = self.hosts.get("BSTORE", "")
        return given or (present if added in roles.current_accepted_keys(self.system) else "") or added or present

    def own_keys(self) -> dict[str, str]:
        """The keys given that could be this host's own."""
        others = (CONTROLLER, psk.EVENTS, *self.given.get("add_builder", ()))
        return {owner: secret for owner, secret in (self.keys or {}).items() if owner not in others}

    def ask_identity(self, name: str | None, **peers: str | None) -> dict[str, Any]:
        """The hosts this one connects to, and its own key: as given, as in the last run, or as a person answers.

        `peers` are given host names by roles. Raises `MissingAnswer` with all that is missing.
        """
        hosts, missing = {}, []
        for role, given in peers.items():
            host = given or self.hosts.get(role.upper(), "")
            if host or sys.stdin.isatty():
                hosts[role.upper()] = _parse_host(host or str(click.prompt(f"Host name of the {role}", err=True)))
            else:
                missing.append(f"--{role} HOST")
        own = self._choose_own_key(name)
        self._require_same_identity(own)
        if not own:
            missing.append("--psk-file FILE (the controller makes the key: docs/install.md)")
        if missing:
            raise MissingAnswer(f"missing, and there is no terminal to ask on: {', '.join(missing)}")
        self.require_known_hosts(hosts)
        return {"hosts": hosts, "own_key": own}

    def require_known_hosts(self, hosts: Mapping[str, str]) -> None:
        """Raises `InputError` for a new name that this host cannot look up; an image is set up for another host."""
        if self.system.running:
            apply.require_known_hosts(name for role, name in hosts.items() if self.hosts.get(role) != name)

    def _require_same_identity(self, own: str) -> None:
        """Raises `InputError` where this host would get another name, unless a person has agreed."""
        present = psk.parse_keys(self.system.text(roles.OWN_KEY) or "", roles.OWN_KEY)
        named, known = self.settings.get(("worker", "fqdn")), roles.current_setting(self.system, "worker", "fqdn")
        rows = (
            (roles.OWN_KEY, ", ".join(present), own.partition(":")[0]),
            (f"[worker] fqdn in {roles.SETTINGS}", known, known if named is None else named),
        )
        for where, before, after in rows:
            if before and before != after and not self.options.yes:
                raise InputError(
                    f"this host is {before} ({where}), and would become {after or 'nameless'}: its builds, its drain "
                    "flag and its key go by that name; --yes changes it. Nothing was changed"
                )

    def _choose_own_key(self, name: str | None) -> str:
        """The text of this host's own key file, from the keys given or the present file; empty without any."""
        self._ask_keys()
        own = self.own_keys() or psk.parse_keys(self.system.text(roles.OWN_KEY) or "", roles.OWN_KEY)
        if not own:
            return ""
        if name is None and len(own) != 1:
            raise InputError(f"several keys could be this host's own; choose one with --name: {', '.join(own)}")
        owner = psk.parse_name(name or next(iter(own)))
        if owner not in own:
            raise InputError(f"the key is not that of {owner}, but of {', '.join(own)}")
        return psk.format_keys({owner: own[owner]})

    def _ask_keys(self) -> None:
        """Have a person type the keys of builders to add, and this host's own if it has none."""
        needed = (
            self.given.get("add_builder") or self.given.get("new_event_key") or self.system.text(roles.OWN_KEY) is None
        )
        if needed and self.keys is None and sys.stdin.isatty():
            self.keys = psk.read_key_file("-")

    def carry_out(self, plan: RolePlan, made: Mapping[str, str], bstore: str = "", first: Iterable[Step] = ()) -> None:
        """Show the plan, or apply it. Keys that were made are printed as soon as their file is written."""
        work = apply.prepare(self.system, plan, self.lock, first)
        if self.lock is None:
            apply.show(work, self.options)
            return
        apply.require_consent(self.system, work, self.options)
        apply.write_files(self.system, work, self.options, self.lock)
        if made:
            self.options.print(*psk.describe_keys(made, bstore))
        click.echo(psk.format_keys(made), nl=False)
        apply.run_steps(self.system, work, self.options, self.lock)

    def print_commands_for_others(self, result: KeyResult, add_bstore: str | None, names: dict[str, str]) -> None:
        if self.lock is None:
            return
        controller = f"--controller {names['CONTROLLER']}"
        builders = [owner for owner in result.made if owner not in (add_bstore, CONTROLLER, psk.EVENTS)]
        added = "".join(f" --add-builder {owner}" for owner in builders)
        added += " --new-key" if added and self.given["new_key"] else ""
        first = f" {controller} --name {add_bstore}" if add_bstore in result.made else ""
        if psk.EVENTS in result.made and not first:
            first = " --new-event-key"
        owners = [owner for owner in (add_bstore or "", CONTROLLER, psk.EVENTS, *builders) if owner in result.made]
        if owners:
            self._print_command("bstore", f"bstore{first}{added}", owners)
        for owner in builders:
            peers = f"{controller} --bstore {names['BSTORE']} --mock-configs {names['URL']}"
            self._print_command(owner, f"builder --name {owner} {peers}", [owner])
        if builders and names["URL"] == "URL":
            self.options.print("URL is your git repository of mock's configurations (docs/install-builder.md)")
        for owner in self.given["revoke"]:
            condition = "" if owner == CONTROLLER else f", if {owner} was a builder"
            self.options.print(f"on bstore{condition}:\n  reimzul setup bstore --revoke {owner}")

    def verify(self, ignored: Sequence[str] = ()) -> int:
        """Print what doctor finds to fail on this host; returns the exit code."""
        if self.lock is None:
            return 0
        failed = apply.report_failures(lambda: apply.examine_host(self.system, self.role), self.options, ignored)
        return EXIT_FAILED if failed else 0

    def _print_command(self, where: str, arguments: str, owners: Sequence[str]) -> None:
        lines = f"line{'s' if len(owners) > 1 else ''} of {join_words(owners)}"
        self.options.print(f"on {where}, with the {lines}:\n  reimzul setup {arguments} --psk-file -")
