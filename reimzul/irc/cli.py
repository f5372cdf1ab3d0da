# SPDX-License-Identifier: Apache-2.0
"""`reimzul-irc`: announces results in IRC channels; runs on any host that reaches the MQTT broker."""

from __future__ import annotations

from typing import NoReturn

from reimzul.core.cli import daemon_command, run_command
from reimzul.core.errors import ConfigError
from reimzul.core.settings import Settings


@daemon_command("reimzul-irc")
def command(settings: Settings) -> None:
    """Announce every result of the farm in IRC channels, a line each.

    Results come from the MQTT broker of [mqtt], which keeps what is published while IRC or this program is away.

    \b
    Example:
      reimzul-irc --config /etc/reimzul/reimzul.ini
    """
    if settings.mqtt.ca_cert is None:
        raise ConfigError("[mqtt] ca_cert: is not set; it names the certificate of the broker's CA")
    try:
        from reimzul.irc.bot import IrcBot
    except ImportError as error:
        raise ConfigError(f"a library is not installed ({error}): pip install 'reimzul[irc]'") from error
    IrcBot(settings).run()


def main() -> NoReturn:
    run_command(command)
