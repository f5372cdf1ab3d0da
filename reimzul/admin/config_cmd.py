# SPDX-License-Identifier: Apache-2.0
"""`reimzul config`: checks a configuration, or prints a sample."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import click

from reimzul.admin.output import NearestGroup, json_option, print_json
from reimzul.core.arch import read_arches
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.config import DEFAULT_FILE, find_file, sample_text
from reimzul.core.errors import EXIT_CONFIG, ConfigError
from reimzul.core.settings import MailSettings, MqttSettings, Settings


@click.group("config", cls=NearestGroup, epilog=EXIT_CODES)
def config_group() -> None:
    """Check a configuration, or print a sample.

    \b
    Example:
      reimzul config check --config ./reimzul.ini
    """


@config_group.command("check", epilog=EXIT_CODES)
@json_option("an object: file, errors, warnings")
@shared_options
def check(config: Path | None, verbose: bool, as_json: bool) -> int:
    """List all faults of the configuration, one a line, and exit with 3; without faults, name the file in use.

    A missing file that a setting names is only a warning: it may exist on the host that the setting is for.

    \b
    Examples:
      reimzul config check
      reimzul config check --config ./reimzul.ini --json
    """
    file, errors, warnings = find_file(config), [], []
    try:
        settings = load_settings(config, verbose)
        read_arches(settings.farm.arches)
        warnings = list(find_warnings(settings))
    except ConfigError as error:
        if not as_json:
            raise
        errors = str(error).splitlines()
    if as_json:
        print_json({"file": str(file) if file else None, "errors": errors, "warnings": warnings})
        return EXIT_CONFIG if errors else 0
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{file}: no faults" if file else f"no {DEFAULT_FILE}: the defaults apply")
    return 0


@config_group.command("sample", epilog=EXIT_CODES)
def print_sample() -> None:
    """Print a file with every setting, its default and its meaning.

    \b
    Example:
      reimzul config sample > /etc/reimzul/reimzul.ini
    """
    click.echo(sample_text(), nl=False)


def find_warnings(settings: Settings) -> Iterator[str]:
    """What would keep a program on this host from doing what the settings say."""
    if settings.mail.notifications:
        yield from _find_unreadable("mail", settings.mail, "ca_cert", "password_file")
        if not any(settings.mail_rcpts.arches.values()) and not settings.mail.to_submitter:
            yield "[mail_rcpts] has no recipients: no mail is sent"
    if settings.mqtt.notifications:
        yield from _find_unreadable("mqtt", settings.mqtt, "ca_cert", "tls_cert", "tls_key")
        if settings.mqtt.tls_insecure:
            yield "[mqtt] tls_insecure: any broker with a certificate of that authority is trusted, whatever its name"
        yield from _find_missing("paho", "[mqtt] notifications: paho-mqtt")
    if settings.history.url.startswith("mongodb"):
        yield from _find_missing("pymongo", "[history] url: pymongo")


def _find_unreadable(section: str, settings: MailSettings | MqttSettings, *names: str) -> Iterator[str]:
    for name in names:
        file: Path | None = getattr(settings, name)
        if file is not None and not os.access(file, os.R_OK):
            yield f"[{section}] {name}: {file} does not exist, or this user may not read it"


def _find_missing(module: str, what: str) -> Iterator[str]:
    if importlib.util.find_spec(module) is None:
        yield f"{what} is not installed on this host; the notifier needs it: pip install 'reimzul[controller]'"
