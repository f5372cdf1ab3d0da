# SPDX-License-Identifier: Apache-2.0
"""Orders about the keys a host accepts: who comes in, who is shut out, whose key is another. Pure, but for chance."""

from __future__ import annotations

from collections.abc import Mapping

import attr

from reimzul.admin.setup import keys
from reimzul.core.errors import InputError


@attr.frozen(kw_only=True)
class Orders:
    """What a person wants of the keys."""

    add: tuple[str, ...] = ()
    revoke: tuple[str, ...] = ()
    new_key: bool = False  #: who has a key already gets another
    given: Mapping[str, str] | None = None  #: keys made elsewhere; None: they are made here
    taken: tuple[str, ...] = ()  #: whose given key is taken, whatever they had


@attr.frozen(kw_only=True)
class Outcome:
    """The keys as they are to be."""

    keys: Mapping[str, str]
    made: Mapping[str, str]  #: those nobody else knows yet
    cut: bool  #: a key is no longer accepted
    changed: bool  #: they are not as they were


def carried_out(orders: Orders, present: Mapping[str, str]) -> Outcome:
    """The keys after the orders. Raises `InputError` for a stranger to be shut out, and one who is in already."""
    after, made, cut = dict(present), {}, False
    for owner in orders.revoke:
        if owner not in after or owner == keys.NOBODY:
            known = ", ".join(keys.owners(after)) or "nobody"
            raise InputError(f"{owner} has no key here; these have: {known}")
        del after[owner]
        cut = True
    for owner in (*orders.add, *orders.taken):
        secret = _secret(orders, owner)
        if after.get(owner) == secret:
            continue
        if owner in after and not (orders.new_key or owner in orders.taken):
            raise InputError(f"{owner} has a key already; --new-key gives it another and shuts the present one out")
        cut = cut or owner in after
        after[owner] = secret
        if orders.given is None:
            made[owner] = secret
    return Outcome(keys=after, made=made, cut=cut, changed=after != present)


def _secret(orders: Orders, owner: str) -> str:
    if orders.given is None:
        return keys.new()
    if owner not in orders.given:
        there = ", ".join(orders.given) or "none"
        raise InputError(f"there is no key of {owner} among those given; there is: {there}")
    return orders.given[owner]
