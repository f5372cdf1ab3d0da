# SPDX-License-Identifier: Apache-2.0
"""`reimzul-irc`: says results in IRC channels; on any host that reaches the MQTT broker."""

from __future__ import annotations

from pathlib import Path

import click

from reimzul.core.cli import EXIT_CODES, load_settings, run_command, shared_options
from reimzul.core.config import Settings
from reimzul.core.errors import ConfigError


@click.command("reimzul-irc", epilog=EXIT_CODES)
@shared_options
def herald(config: Path | None, verbose: bool) -> None:
    """Say every result of the farm in IRC channels, a line each.

    It hears them from the MQTT broker of [mqtt], which keeps what is published while IRC or this program is away.

    \b
    Example:
      reimzul-irc --config /etc/reimzul/reimzul.ini
    """
    settings = load_settings(config, verbose)
    say_results(settings)


def say_results(settings: Settings) -> None:
    """Run until told to stop. Raises `ConfigError`."""
    if settings.mqtt.ca_cert is None:
        raise ConfigError("[mqtt] ca_cert: has to be set")
    try:
        from reimzul.irc.herald import Herald
    except ImportError as error:
        raise ConfigError(f"a library is not installed ({error}): pip install 'reimzul[irc]'") from error
    Herald(settings).run()


def main() -> None:
    """The program."""
    run_command(herald)


if __name__ == "__main__":
    main()
