# SPDX-License-Identifier: Apache-2.0
"""The controller's way to the store: its own key, which is made together with bstore's. Pure, but for chance.

bstore has to know both, and gets both by one command. So neither is ever printed a second time: who has to be told
gets new ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import attr

from reimzul.admin.setup import keys
from reimzul.admin.setup.keys import CONTROLLER
from reimzul.admin.setup.orders import Orders, Outcome, carried_out


def ordered(
    orders: Orders, bstore: str | None, accepted: Mapping[str, str], own: Mapping[str, str]
) -> tuple[Outcome, Outcome]:
    """The keys that the controller accepts after the orders, and its own. `bstore` is who of those added is bstore.

    Where only the controller's own is missing, only that is made. Raises `InputError`.
    """
    lacks = not own or CONTROLLER in orders.revoke
    stays = bstore in accepted and bstore not in orders.revoke and not orders.new_key and orders.given is None
    theirs = attr.evolve(
        orders,
        add=tuple(owner for owner in orders.add if not (owner == bstore and stays and lacks)),
        revoke=tuple(owner for owner in orders.revoke if owner != CONTROLLER),
    )
    given = orders.given if CONTROLLER in (orders.given or ()) else None
    wanted = bstore and (lacks or orders.given is None or given is not None)
    ours = Orders(
        add=(CONTROLLER,) if wanted else (),
        revoke=tuple(owner for owner in orders.revoke if owner == CONTROLLER),
        new_key=orders.new_key or given is None,
        given=given,
    )
    return carried_out(theirs, accepted), carried_out(ours, own)


def text_of(own: Mapping[str, str]) -> str:
    """The file of the controller's own key: stunnel uses the first in it. Empty where there is none."""
    return keys.text_of({CONTROLLER: own[CONTROLLER]} if CONTROLLER in own else own)
