# SPDX-License-Identifier: Apache-2.0
"""`reimzul-irc`: announces results in IRC channels; runs on any host that reaches the MQTT broker."""

from __future__ import annotations

from pathlib import Path

import click

from reimzul.core.cli import EXIT_CODES, load_settings, run_command, shared_options
from reimzul.core.errors import ConfigError


@click.command("reimzul-irc", epilog=EXIT_CODES)
@shared_options
def command(config: Path | None, verbose: bool) -> None:
    """Announce every result of the farm in IRC channels, a line each.

    Results come from the MQTT broker of [mqtt], which keeps what is published while IRC or this program is away.

    \b
    Example:
      reimzul-irc --config /etc/reimzul/reimzul.ini
    """
    settings = load_settings(config, verbose)
    if settings.mqtt.ca_cert is None:
        raise ConfigError("[mqtt] ca_cert: is not set; it names the certificate of the broker's CA")
    try:
        from reimzul.irc.bot import IrcBot
    except ImportError as error:
        raise ConfigError(f"a library is not installed ({error}): pip install 'reimzul[irc]'") from error
    IrcBot(settings).run()


def main() -> None:
    run_command(command)


if __name__ == "__main__":
    main()
