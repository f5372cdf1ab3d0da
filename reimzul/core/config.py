# SPDX-License-Identifier: Apache-2.0
"""Reading `reimzul.ini`. A program reads the file once, when it starts; all faults are reported together."""

from __future__ import annotations

import configparser
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reimzul.core.errors import ConfigError, describe_os_error
from reimzul.core.formatting import find_nearest, suggest_nearest
from reimzul.core.settings import (
    RETIRED,
    Settings,
    all_sections,
    open_row,
    settings_of,
)

log = logging.getLogger(__name__)

DEFAULT_FILE = Path("/etc/reimzul/reimzul.ini")
FILE_VARIABLE = "REIMZUL_CONFIG"

#: Names of the host itself: traffic to them stays on the host.
LOCAL = ("localhost", "127.0.0.1", "::1")


def find_file(given: Path | None = None) -> Path | None:
    """The settings file: the given one, or $REIMZUL_CONFIG, or the default one if it exists."""
    if given is not None:
        return given
    if os.environ.get(FILE_VARIABLE):
        return Path(os.environ[FILE_VARIABLE])
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def load_file(given: Path | None = None) -> Settings:
    """Read the settings file, or return the defaults. Raises `ConfigError` with a line for each fault."""
    file = find_file(given)
    if file is None:
        return Settings()
    try:
        return parse_settings(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise ConfigError(f"{file}: {describe_os_error(error)}{_find_readers(file, error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 at byte {error.start}") from error


def _find_readers(file: Path, error: OSError) -> str:
    """Who may read a file that this user may not; empty where that is unknown."""
    if not isinstance(error, PermissionError):
        return ""
    import grp

    with contextlib.suppress(OSError, KeyError):
        status = file.stat()
        group = grp.getgrgid(status.st_gid).gr_name if status.st_mode & 0o040 else ""
        return f": run it as root{f', or as a member of group {group}' if group else ''}"
    return ""


def parse_settings(text: str, source: str) -> Settings:
    """Read the text of a settings file. Raises `ConfigError`."""
    parser = configparser.ConfigParser(interpolation=None, default_section="\0")
    try:
        parser.read_string(text, source)
    except configparser.Error as error:
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in _describe_syntax(error))) from None
    faults = list(_unknown_sections(parser))
    values = {}
    for name, kind in all_sections().items():
        given = dict(parser[name]) if parser.has_section(name) else {}
        values[name], wrong = _parse_section(name, kind, given)
        faults += wrong
    faults += _cross_checks(values)
    if faults:
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))
    return Settings(**values)


def _describe_syntax(error: configparser.Error) -> Iterator[str]:
    """What is wrong with the form of a settings file, without its text: that may be a secret."""
    if isinstance(error, configparser.MissingSectionHeaderError):
        yield f"line {error.lineno} is before the first section, as [worker]"
    elif isinstance(error, configparser.ParsingError) and error.errors:
        yield from (f"line {number} is neither a section nor a setting" for number, _ in error.errors)
    elif isinstance(error, configparser.DuplicateSectionError):
        yield f"line {error.lineno}: [{error.section}] is there already"
    elif isinstance(error, configparser.DuplicateOptionError):
        yield f"line {error.lineno}: [{error.section}] {error.option} is set already"
    else:
        yield " ".join(str(error).split())


def _parse_section(name: str, kind: type, given: dict[str, str]) -> tuple[Any, list[str]]:
    free = open_row(kind)
    rows = {row.name: row for row in settings_of(kind)}
    values, faults = {}, []
    for key, text in given.items():
        row = free or rows.get(key)
        if (name, key) in RETIRED:
            log.warning("[%s] %s is ignored, and an error from 0.3 on: %s", name, key, RETIRED[name, key])
        elif row is None:
            faults.append(f"[{name}] {key} is not a setting{_suggest_key(name, key)}")
        else:
            try:
                values[row.metadata["key"](key)] = row.metadata["parse"](text.strip())
            except ValueError as error:
                faults.append(f"[{name}] {key}: {error}")
    return kind(**({free.name: values} if free else values)), faults


def _unknown_sections(parser: configparser.ConfigParser) -> Iterator[str]:
    for name in parser.sections():
        if name not in all_sections():
            nearest = find_nearest(name, all_sections())  # without the brackets, in which all are alike
            yield f"[{name}] is not a section{f'; is [{nearest}] meant?' if nearest else ''}"


def _suggest_key(section: str, key: str) -> str:
    """Suggest a setting of the section, or name another section that has the key."""
    if meant := suggest_nearest(key, [row.name for row in settings_of(all_sections()[section])]):
        return meant
    for name, kind in all_sections().items():
        if key in [row.name for row in settings_of(kind)]:
            return f"; [{name}] has one of that name"
    return ""


def _cross_checks(values: dict[str, Any]) -> Iterator[str]:
    mail, irc, mqtt = values["mail"], values["irc"], values["mqtt"]
    faults = (
        (bool(mail.login) != bool(mail.password_file), "[mail] set both login and password_file, or none"),
        (
            mail.login and not mail.starttls and mail.smtp_host not in LOCAL,
            "[mail] starttls: must be true: the password would be sent in the clear",
        ),
        (
            mail.to_submitter and not mail.submitter_domain,
            "[mail] submitter_domain: required if to_submitter is true",
        ),
        (
            (irc.identify != "no") != bool(irc.password_file),
            "[irc] password_file: required if identify is sasl or nickserv, and only then",
        ),
        (
            irc.identify != "no" and not irc.tls and irc.server not in LOCAL,
            "[irc] tls: must be true: the password would be sent in the clear",
        ),
        (bool(irc.mqtt_cert) != bool(irc.mqtt_key), "[irc] set both mqtt_cert and mqtt_key, or none"),
        (bool(mqtt.tls_cert) != bool(mqtt.tls_key), "[mqtt] set both tls_cert and tls_key, or none"),
        (mqtt.notifications and not mqtt.ca_cert, "[mqtt] ca_cert: required if notifications is true"),
    )
    return (message for is_wrong, message in faults if is_wrong)


def sample_text() -> str:
    """The content of `conf/reimzul.ini.sample`: every setting with its default and meaning."""
    lines = [
        "# /etc/reimzul/reimzul.ini: every setting with its default and meaning.",
        "# A setting that is left out has its default. Check a file with: reimzul config check",
    ]
    for name, kind in all_sections().items():
        lines += ["", f"# {(kind.__doc__ or '').strip()}", f"[{name}]"]
        if open_row(kind) is not None:
            lines.append(f"# {open_row(kind).metadata['example']}")
        for row in settings_of(kind):
            lines += [f"# {line}" for line in row.metadata["meaning"].splitlines()]
            lines.append(f"{row.name} = {row.metadata['default']}".rstrip())
    return "\n".join(lines) + "\n"
