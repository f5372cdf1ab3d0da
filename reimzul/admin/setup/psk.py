# SPDX-License-Identifier: Apache-2.0
"""Pre-shared keys: reading and writing them, a line `name:hex` each, and adding, replacing and revoking keys.

With them comes the key of events, a line `events:number:hex`. The controller has a new one first, beside the old one,
which ends a week later; bstore has one at a time, and signs with it. Builders never get it.

A key is never part of a message, whatever is wrong with it.
"""

from __future__ import annotations

import re
import secrets
import sys
import termios
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import attr
import click

from reimzul.core.errors import InputError, describe_os_error, translate_errors
from reimzul.core.event_signature import EVENT_KEY, add_new_key, parse_event_keys
from reimzul.core.validators import quoted

#: The owner of a key that no host has. stunnel does not start with an empty file: this key is in it from the beginning.
NOBODY = "localhost"
#: The owner of the controller's own key, by which it reads the store. No other host may have this name.
CONTROLLER = "controller"
#: The owner of the key of events. No host may have this name.
EVENTS = "events"
EVENT_KEYS = "/etc/reimzul/event-keys"
#: Days that an old key of events stays valid on the controller.
OVERLAP_DAYS = 7

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
#: stunnel wants 16 bytes at least: PSKsecrets in stunnel(8).
_SECRET = re.compile(r"(?:[0-9a-fA-F]{2}){16,128}\Z")
_FORMS = {EVENTS: (EVENT_KEY, "events:number:hex, with 64 hex digits")}


def parse_name(text: str) -> str:
    if not _NAME.match(text) or text in (NOBODY, CONTROLLER, EVENTS):
        right = (
            "letters, digits and ._-, beginning with a letter or digit, 64 at most; not localhost, controller or events"
        )
        raise InputError(f"{quoted(text)} is no name for a builder: {right}")
    return text


def new_secret() -> str:
    return secrets.token_hex(32)


def parse_keys(text: str, source: str) -> dict[str, str]:
    """A file's keys by their owners; empty lines are skipped. Raises `InputError`, which names `source`."""
    keys: dict[str, str] = {}
    for number, row in enumerate(text.splitlines(), 1):
        if not row.strip():
            continue
        owner, _, secret = row.strip().partition(":")
        pattern, form = _FORMS.get(owner, (_SECRET, "name:hex, with 32 hex digits or more"))
        if not _NAME.match(owner) or not pattern.match(secret):
            raise InputError(f"{source}, line {number}: not of the form {form}")
        if owner in keys:
            raise InputError(f"{source}, line {number}: a second key of {owner}")
        keys[owner] = secret.lower()
    return keys


def read_key_file(source: str) -> dict[str, str]:
    """The keys in a file; `-` is a pipe, or what a person types, unseen. Raises `InputError`."""
    if source == "-":
        if sys.stdin.isatty():
            return parse_keys(_read_unseen_lines(), "what was typed")
        return parse_keys(sys.stdin.read(), "standard input")
    try:
        return parse_keys(Path(source).read_text(encoding="utf-8"), source)
    except UnicodeDecodeError:
        raise InputError(f"{source}: not UTF-8") from None
    except OSError as error:
        raise InputError(f"{source}: {describe_os_error(error)}") from None


def _read_unseen_lines() -> str:
    """Lines typed or pasted without an echo, up to an empty one; getpass would drop all but the first of them."""
    before = termios.tcgetattr(sys.stdin)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        click.echo("Key, a line name:hex, or several; they are not shown, an empty line ends them:", err=True)
        return "\n".join(iter(lambda: sys.stdin.readline().strip(), ""))
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def format_keys(keys: Mapping[str, str]) -> str:
    return "".join(f"{owner}:{secret}\n" for owner, secret in keys.items())


def format_own_key(own: Mapping[str, str]) -> str:
    """The controller's own key file, with one key: stunnel uses the first. Empty without a key."""
    return format_keys({CONTROLLER: own[CONTROLLER]} if CONTROLLER in own else own)


def change_event_keys(present: str, given: str, wanted: bool) -> tuple[str, str]:
    """The controller's file after a key of events was made or, if it was made elsewhere, taken; and the key made.

    Both are empty where nothing changes. Raises `InputError`.
    """
    if not (given or wanted):
        return "", ""
    with translate_errors({ValueError: lambda error: InputError(f"{EVENT_KEYS}: {error}")}):
        *others, new = add_new_key(parse_event_keys(present.splitlines()), time.time(), OVERLAP_DAYS)
    if given:
        (new,) = parse_event_keys([given])
    keys = [*(key for key in others if key.number != new.number), new]
    return "".join(f"{key.to_line()}\n" for key in keys), "" if given else new.to_line()


def describe_keys(made: Mapping[str, str], bstore: str) -> list[str]:
    """A heading for keys that are printed: what each line is, and the hosts that need it."""
    about = {
        bstore: "bstore's key: for bstore",
        CONTROLLER: "the controller's own key, by which it reads the store: for bstore",
        EVENTS: "the key by which repogen signs events: for bstore",
    }
    return [
        "Keys, printed this once; keep them secret until they are where they belong:",
        *(
            f"  {owner}:…  {about.get(owner) or f'the key of builder {owner}: for bstore and {owner}'}"
            for owner in made
        ),
    ]


def list_owners(keys: Iterable[str]) -> list[str]:
    return sorted(owner for owner in keys if owner != NOBODY)


@attr.frozen(kw_only=True)
class KeyChanges:
    """What a person asks to change."""

    add: tuple[str, ...] = ()
    revoke: tuple[str, ...] = ()
    new_key: bool = False  #: replace the key of an owner that has one
    given: Mapping[str, str] | None = None  #: keys made elsewhere; None: they are made here
    taken: tuple[str, ...] = ()  #: owners whose given key replaces any other without `new_key`


@attr.frozen(kw_only=True)
class KeyResult:
    keys: Mapping[str, str] = attr.field(factory=dict)
    made: Mapping[str, str] = attr.field(factory=dict)  #: keys made here: they have to be printed
    revoked: bool = False  #: a key is no longer accepted: its host may be connected
    changed: bool = False


def apply_key_changes(changes: KeyChanges, present: Mapping[str, str]) -> KeyResult:
    """Raises `InputError` for an unknown owner to revoke, and for one to add that has a key already."""
    after, given = dict(present), changes.given
    for owner in changes.revoke:
        if owner not in after or owner == NOBODY:
            raise InputError(f"{owner} has no key here; these have: {', '.join(list_owners(after)) or 'nobody'}")
        del after[owner]
    for owner in (*changes.add, *changes.taken):
        if given is not None and owner not in given:
            raise InputError(f"there is no key of {owner} among those given; there is: {', '.join(given) or 'none'}")
        secret = new_secret() if given is None else given[owner]
        if after.get(owner, secret) != secret and not (changes.new_key or owner in changes.taken):
            raise InputError(f"{owner} has a key already; --new-key gives it another and shuts the present one out")
        after[owner] = secret
    return KeyResult(
        keys=after,
        made={owner: after[owner] for owner in changes.add} if given is None else {},
        revoked=any(after.get(owner) != secret for owner, secret in present.items()),
        changed=after != present,
    )


def apply_controller_changes(
    changes: KeyChanges, bstore: str | None, accepted: Mapping[str, str], own: Mapping[str, str]
) -> tuple[KeyResult, KeyResult]:
    """The keys that the controller accepts after the changes, and its own key. Raises `InputError`.

    `bstore` is the one among the added owners that is bstore. bstore's key and the controller's own are made together,
    as one command gives bstore both. Neither is printed a second time: who needs one again gets two new ones, except
    that a missing key of the controller is made alone.
    """
    lacks_own = not own or CONTROLLER in changes.revoke
    stays = bstore in accepted and bstore not in changes.revoke and not changes.new_key and changes.given is None
    theirs = attr.evolve(
        changes,
        add=tuple(owner for owner in changes.add if not (owner == bstore and stays and lacks_own)),
        revoke=tuple(owner for owner in changes.revoke if owner != CONTROLLER),
    )
    given = changes.given if CONTROLLER in (changes.given or ()) else None
    needs_own = bstore and (lacks_own or changes.given is None or given is not None)
    ours = KeyChanges(
        add=(CONTROLLER,) if needs_own else (),
        revoke=tuple(owner for owner in changes.revoke if owner == CONTROLLER),
        new_key=changes.new_key or given is None,
        given=given,
    )
    return apply_key_changes(theirs, accepted), apply_key_changes(ours, own)
