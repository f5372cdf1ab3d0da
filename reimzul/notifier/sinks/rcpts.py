# SPDX-License-Identifier: Apache-2.0
"""Who gets a mail: the recipients of the arch, and by setting who submitted the build."""

from __future__ import annotations

import logging

from reimzul.core import validators
from reimzul.core.config import MailRcptsSettings, MailSettings, parse_address
from reimzul.core.message import BuilderEvent, BuildEvent

log = logging.getLogger(__name__)


class Recipients:
    """The table of [mail_rcpts], and what it does not say."""

    def __init__(self, mail: MailSettings, rcpts: MailRcptsSettings) -> None:
        self._mail = mail
        self._by_arch = rcpts.arches
        self._said: set[str] = set()

    def of(self, event: BuildEvent | BuilderEvent) -> list[str]:
        """The addresses of a result, each once. That an arch has no line is said once.

        Of a builder they are those of all its arches.
        """
        if isinstance(event, BuilderEvent):
            return list(dict.fromkeys(one for arch in event.arches for one in self._by_arch.get(arch, ())))
        if event.arch not in self._by_arch and event.arch not in self._said:
            self._said.add(event.arch)
            log.warning("[mail_rcpts] has no line for %s: its results are mailed to nobody there", event.arch)
        return list(dict.fromkeys([*self._by_arch.get(event.arch, ()), *self._submitter(event)]))

    def _submitter(self, event: BuildEvent) -> list[str]:
        if not self._mail.to_submitter:
            return []
        name = event.submitter if "@" in event.submitter else f"{event.submitter}@{self._mail.submitter_domain}"
        try:
            return [parse_address(name)]
        except ValueError:
            if event.submitter not in self._said:
                self._said.add(event.submitter)
                log.warning("%s is no mail address: the submitter is not mailed", validators.quoted(name))
            return []
