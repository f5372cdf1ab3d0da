# SPDX-License-Identifier: Apache-2.0
"""`reimzul.ini`: every setting with its parser, default and meaning, and reading the file.

A section is a class, a setting an attribute of it. Its row gives parser, default and meaning, from which errors,
`conf/reimzul.ini.sample` and the man page are made. A program reads the file once, when it starts. All faults are
reported together, by section and key.
"""

from __future__ import annotations

import configparser
import difflib
import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlsplit

import attr

from reimzul.core import validators
from reimzul.core.errors import ConfigError

log = logging.getLogger(__name__)

DEFAULT_FILE = Path("/etc/reimzul/reimzul.ini")
FILE_VARIABLE = "REIMZUL_CONFIG"

#: Names of the host itself: traffic to them stays on the host.
LOCAL = ("localhost", "127.0.0.1", "::1")

#: A mail address; without a domain it is a mailbox of the mail server.
_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+(@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)?\Z")
_DOMAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?\Z")

_NICK = re.compile(r"[A-Za-z\[\]\\`_^{|}][A-Za-z0-9\[\]\\`_^{|}-]{0,29}\Z")
_CHANNEL = re.compile(r"[#&+!][^\s,:\x00-\x1f\x7f]{1,49}\Z")

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse_flag(text: str) -> bool:
    """Read true or false in any spelling of ini files."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"{text!r} is not true or false")


def parse_text(text: str) -> str:
    """Read a text that is not empty."""
    if not text:
        raise ValueError("is empty")
    return text


def parse_path(text: str) -> Path:
    """Read an absolute path."""
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    return Path(text)


def parse_optional_path(text: str) -> Path | None:
    """Read an absolute path or nothing."""
    return parse_path(text) if text else None


def parse_program(text: str) -> str:
    """Read a program: a name to find on PATH, or an absolute path."""
    if not text or (" " in text and not text.startswith("/")) or ("/" in text and not text.startswith("/")):
        raise ValueError(f"{text!r} is not a program's name or absolute path")
    return text


def parse_arguments(text: str) -> tuple[str, ...]:
    """Read arguments, quoted as in a shell; no shell ever sees them."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def integer_parser(low: int, high: int) -> Callable[[str], int]:
    """The parser of a whole number in a range."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


port = integer_parser(1, 65535)
seconds = integer_parser(0, 10_000_000)
days = integer_parser(0, 36_500)


def url_parser(scheme: str, ending: str = "/") -> Callable[[str], str]:
    """The parser of a URL of a scheme, or of its https; a missing final slash is added."""

    def parse(text: str) -> str:
        parts = urlsplit(text)
        if parts.scheme not in (scheme, scheme + "s") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{text!r} is not of the form {scheme}://host:port/folder/")
        whole_url = text.rstrip("/") + "/"
        if not whole_url.endswith(ending):
            raise ValueError(f"{text!r} does not end with {ending}")
        return whole_url

    return parse


def parse_history_url(text: str) -> str:
    """Read `sqlite:///` with an absolute path, or a `mongodb://` URL."""
    if text.startswith(("mongodb://", "mongodb+srv://")):
        return text
    if text.startswith("sqlite:////"):
        return text
    raise ValueError(f"{text!r} is neither mongodb://… nor sqlite:////an/absolute/path")


def parse_topic(text: str) -> str:
    """Read the prefix of an MQTT topic: no wildcards, no slash at its ends."""
    if not text or text != text.strip("/") or any(sign in text for sign in "+#\0"):
        raise ValueError(f"{text!r} is not an MQTT topic")
    return text


def parse_address(text: str) -> str:
    """Read a bare mail address."""
    if not _ADDRESS.match(text):
        raise ValueError(f"{text!r} is not a mail address, as me@example.org")
    return text


def parse_addresses(text: str) -> tuple[str, ...]:
    """Read mail addresses separated by commas."""
    return tuple(parse_address(one.strip()) for one in text.split(",")) if text else ()


def parse_nick(text: str) -> str:
    if not _NICK.match(text):
        raise ValueError(f"{text!r} is not an IRC nickname")
    return text


def parse_channels(text: str) -> tuple[str, ...]:
    """Read IRC channels separated by commas."""
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    for name in names:
        if not _CHANNEL.match(name):
            raise ValueError(f"{name!r} is not an IRC channel, as #centos-build")
    return names


def choice_parser(*words: str) -> Callable[[str], str]:
    """The parser of one of a few words."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text.lower()

    return parse


def parse_optional_domain(text: str) -> str:
    if text and not _DOMAIN.match(text):
        raise ValueError(f"{text!r} is not a domain, as example.org")
    return text


def parse_optional_target(text: str) -> str:
    return validators.target(text) if text else ""


def setting(parse: Callable[[str], Any], default: str, meaning: str) -> Any:
    """A setting: its parser, its default and its meaning."""
    return attr.field(default=parse(default), metadata={"parse": parse, "default": default, "meaning": meaning})


_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"(\d{1,6})([mhdw])\Z")


def parse_span(text: str) -> int:
    """Read a span of time, as `90d`, in seconds."""
    found = _SPAN.match(text)
    if not found:
        raise ValueError(f"{text!r} is not a span of time, as 12h, 90d or 2w")
    return int(found[1]) * _UNITS[found[2]]


@attr.frozen(kw_only=True)
class Pruning:
    """Which old builds of a target are removed."""

    keep: int = 1  #: how many of the newest builds of each package and arch stay
    older: int = 0  #: seconds; no younger build is removed
    unsigned: bool = False  #: also remove builds that were not staged for signing


def parse_pruning(text: str) -> Pruning:
    """Read `keep 3`, `older 90d` or `keep 3 older 90d`, with a final `unsigned` if nothing is signed."""
    words = text.split()
    unsigned = words[-1:] == ["unsigned"]
    given = dict(zip(words[::2], words[1::2])) if len(words) % 2 == unsigned else {}
    if not given or not given.keys() <= {"keep", "older"} or len(given) < (len(words) - unsigned) / 2:
        raise ValueError(f"{text!r} is not a rule, as `keep 3`, `older 90d` or `keep 3 older 90d`")
    return Pruning(
        keep=integer_parser(1, 100_000)(given.get("keep", "1")),
        older=parse_span(given.get("older", "0d")),
        unsigned=unsigned,
    )


DUPLICATE_KINDS = ("builds", "legs")


def parse_duplicates(text: str) -> frozenset[str]:
    """Read `builds`, `legs` or both."""
    kinds = frozenset(text.split())
    if not kinds or not kinds <= set(DUPLICATE_KINDS):
        raise ValueError(f"{text!r} is not one or more of {', '.join(DUPLICATE_KINDS)}")
    return kinds


def open_section(key: Callable[[str], Any], parse: Callable[[str], Any], example: str) -> Any:
    """The row of a section whose keys the administrator chooses; `example` is a line of it."""
    return attr.field(factory=dict, metadata={"key": key, "parse": parse, "example": example})


@attr.frozen(kw_only=True)
class FarmSettings:
    """Settings that all hosts of the farm must share."""

    arches: Path | None = setting(
        parse_optional_path, "", "A table of arches to use instead of the shipped arches.yml."
    )
    canary_target: str = setting(
        parse_optional_target,
        "",
        "The target that `reimzul doctor --canary` builds for, without an arch, as c9s; always a scratch build.",
    )

    @property
    def original_workers(self) -> bool:
        """Always False: the setting is retired. Removed at merging, with its last readers."""
        return False


@attr.frozen(kw_only=True)
class BeanstalkdSettings:
    """beanstalkd: on the controller itself, on other hosts the local end of stunnel."""

    host: str = setting(parse_text, "localhost", "Host name or address of beanstalkd.")
    port: int = setting(port, "11300", "Its port. Builders and bstore: stunnel's local end of controller:13100.")


@attr.frozen(kw_only=True)
class IncomingSettings:
    """Source rpms that wait to be built."""

    folder: Path = setting(parse_path, "/srv/reimzul/incoming", "The folder on the controller (reimzul-submit).")
    url: str = setting(
        url_parser("http"),
        "http://localhost:11080/reimzul-incoming/",
        "The URL of that folder for builders (reimzul-worker).",
    )


@attr.frozen(kw_only=True)
class StoreSettings:
    """The store of results on bstore."""

    base_url: str = setting(
        url_parser("http", "/repo/"),
        "http://localhost:11081/bstore/repo/",
        "The URL of the published repositories for all hosts; ends with /repo/. In mock's configurations\n"
        "http://repohost stands for the folder above it.",
    )
    upload_url: str = setting(
        url_parser("rsync"), "rsync://localhost:11874/reimzul-bstore/", "The rsync module that builders upload to."
    )
    root: Path = setting(
        parse_path,
        "/srv/reimzul/bstore",
        "The root folder of the store on bstore, on one file system.",
    )


@attr.frozen(kw_only=True)
class WorkerSettings:
    """Workers on builders."""

    mock: str = setting(
        parse_program,
        "mock",
        "The program that builds. A host without mock can try the farm with a checkout's reimzul-standin-mock, which\n"
        "builds with the host's own rpmbuild (docs/install-builder.md): never for packages that are given to others.",
    )
    mock_configs: Path = setting(
        parse_path,
        "/srv/reimzul/mock_configs",
        "A git checkout with mock/<target>.cfg, mock/site-defaults.cfg and mock/logging.ini, pulled before a build.\n"
        "Uncommitted changes in it may be lost.",
    )
    results: Path = setting(
        parse_path,
        "/srv/reimzul/results",
        "Folder for running builds and for results until they are uploaded; needs much space.",
    )
    fqdn: str = setting(validators.optional(validators.host), "", "The name of this builder; the host's name if empty.")
    machine: str = setting(
        validators.optional(validators.arch),
        "",
        "The machine, if uname -m is wrong (setarch, qemu-user).",
    )
    build_timeout: int = setting(
        seconds, "86400", "Seconds after which mock (a little later the worker) ends a build; 0: never."
    )
    stall_timeout: int = setting(
        seconds, "14400", "Seconds without a change of any log or result after which a build is ended; 0: never."
    )
    mock_roots: Path = setting(
        parse_path,
        "/var/lib/mock",
        "mock's roots. Their free space is checked, and roots that are no longer used are removed. Records about\n"
        "them are in .reimzul/ there, for all workers that share the roots.",
    )
    root_days: int = setting(
        days,
        "30",
        "Days after which a bootstrap root of mock is renewed although it is used, and after which roots and caches\n"
        "of a target that was not built are removed; 0: never.",
    )
    min_free_mib: int = setting(
        integer_parser(0, 1 << 40),
        "4096",
        "MiB that must be free under results and mock_roots to take a job.",
    )
    min_free_inodes: int = setting(
        integer_parser(0, 1 << 40), "50000", "Inodes that must be free there, if the file system counts them."
    )
    max_load: int = setting(
        integer_parser(0, 100_000),
        "0",
        "No job is taken while the load of the last minute is higher; 0: no limit.",
    )
    tries: int = setting(
        integer_parser(1, 20),  # a message holds 50, and damaged uploads count there too
        "3",
        "How many attempts may fail by a builder's fault before the build is Failed.",
    )
    presence: int = setting(
        integer_parser(0, 60), "30", "Seconds between heartbeats of an idle worker; 0: no heartbeats."
    )
    live_logs: int = setting(
        integer_parser(0, 3600),
        "2",
        "Seconds between uploads of growing logs; 0: logs come with the results.",
    )
    pull_timeout: int = setting(
        seconds, "60", "Seconds that `git pull` of mock_configs may take; after that its last state is used."
    )
    rsync: str = setting(parse_program, "rsync", "The program that uploads.")
    rsync_arguments: tuple[str, ...] = setting(parse_arguments, "", "Additional arguments for rsync, as --bwlimit=20m.")


@attr.frozen(kw_only=True)
class RepogenSettings:
    """Publishing and indexing on bstore."""

    createrepo_c: str = setting(parse_program, "createrepo_c", "The program that makes repodata.")
    database: bool = setting(
        parse_flag, "false", "Also make sqlite databases (-d), which yum on EL7 and older prefers."
    )
    after_createrepo: tuple[str, ...] = setting(
        parse_arguments,
        "",
        "A program that runs on new repodata before it is published, as to sign repomd.xml; arguments are quoted as\n"
        "in a shell. {repodata} stands for the folder, which is otherwise the last argument, {target} for the target.\n"
        "If the program fails, the old repodata stays and the run is retried.",
    )
    after_createrepo_timeout: int = setting(
        integer_parser(1, 3600), "60", "Seconds after which that program is ended and counts as failed."
    )
    arguments: tuple[str, ...] = setting(
        parse_arguments,
        "",
        "Additional arguments for createrepo_c, quoted as in a shell. Those that change which packages are listed or\n"
        "their names are refused: a build is published once the repodata lists each of its packages.",
    )
    cores: int = setting(integer_parser(0, 1024), "0", "Threads of createrepo_c; 0: one per core.")
    spool_days: int = setting(
        integer_parser(1, 3650), "7", "Days after which an incomplete upload is removed from the spool."
    )
    attempts_days: int = setting(
        days, "90", "Days that logs of attempts without a decision are kept (attempts/); 0: for ever."
    )
    rejected_days: int = setting(days, "180", "Days that rejected uploads are kept (rejected/); 0: for ever.")


@attr.frozen(kw_only=True)
class PruneSettings:
    """What `reimzul prune` keeps of a target (with or without its arch)."""

    targets: Mapping[str, Pruning] = open_section(validators.target, parse_pruning, "c7.1708.u = keep 3 older 90d")


@attr.frozen(kw_only=True)
class DuplicatesSettings:
    """What a target (with or without its arch) may list twice: `builds` of one NEVRA, `legs` of one build."""

    targets: Mapping[str, frozenset[str]] = open_section(validators.target, parse_duplicates, "c7.1708.u = builds legs")

    def kinds_for(self, target: str) -> frozenset[str]:
        """What a target, given with its arch, may list twice."""
        return self.targets.get(target) or self.targets.get(target.rpartition(".")[0]) or frozenset()


@attr.frozen(kw_only=True)
class NotifierSettings:
    """The notifier on the controller."""

    ledger: Path = setting(
        parse_path, "/srv/reimzul/notifier/ledger.sqlite", "The outbox: every event, and which sinks have it."
    )
    presence: Path = setting(
        parse_path, "/srv/reimzul/notifier/presence.sqlite", "The latest heartbeat of each worker."
    )
    quarantine: bool = setting(
        parse_flag,
        "false",
        "Whether a builder takes no more jobs after quarantine_faults faults of its own in a row, on different\n"
        "packages, of which other builders of the arch have built at least half meanwhile. It is probed with a\n"
        "canary, a scratch build for [farm] canary_target, and released when that builds; without a canary_target\n"
        "a person has to resume it. The last builder of an arch is never held back.",
    )
    quarantine_faults: int = setting(
        integer_parser(1, 1000), "5", "After how many faults in a row, on different packages."
    )
    quarantine_pause: int = setting(
        seconds, "1800", "Seconds until the first canary; twice as many after each that failed, up to a day."
    )


@attr.frozen(kw_only=True)
class HistorySettings:
    """The history of builds."""

    url: str = setting(
        parse_history_url,
        "sqlite:////srv/reimzul/notifier/history.sqlite",
        "sqlite:////absolute/path, or mongodb://host:port/ (database reimzul, collection notify_history).",
    )
    refused_days: int = setting(
        days, "180", "Days that reasons of refusals are kept, and longer while the job is buried; 0: for ever."
    )


@attr.frozen(kw_only=True)
class LogsSettings:
    """The log file of builds."""

    logfile: Path = setting(
        parse_path, "/var/log/reimzul/reimzul.log", "The log file: a line for each event of a build."
    )


@attr.frozen(kw_only=True)
class MailSettings:
    """Mails about results, except those of scratch builds."""

    notifications: bool = setting(parse_flag, "false", "Whether results are mailed.")
    mail_from: str = setting(parse_address, "reimzul@localhost", "The sender.")
    smtp_host: str = setting(parse_text, "localhost", "The mail server; with TLS its certificate must have this name.")
    smtp_port: int = setting(port, "25", "Its port.")
    starttls: bool = setting(parse_flag, "false", "true: send only over TLS.")
    ca_cert: Path | None = setting(
        parse_optional_path, "", "The authority of the server's certificate; if empty, those that the host trusts."
    )
    login: str = setting(str, "", "The login name; if empty, no login.")
    password_file: Path | None = setting(parse_optional_path, "", "A file with the password and nothing else.")
    only_on_change: bool = setting(
        parse_flag,
        "false",
        "true: mail only if the result differs from the package's last one on that arch and target.",
    )
    to_submitter: bool = setting(parse_flag, "false", "Whether the submitter of a build also gets its mails.")
    submitter_domain: str = setting(
        parse_optional_domain, "", "The domain of submitters whose name is not a mail address."
    )


@attr.frozen(kw_only=True)
class MailRcptsSettings:
    """Mail recipients per arch. No mail is sent for an arch not listed."""

    arches: Mapping[str, tuple[str, ...]] = open_section(
        validators.arch, parse_addresses, "x86_64 = me@example.org, you@example.org"
    )


@attr.frozen(kw_only=True)
class MqttSettings:
    """MQTT, for subscribers to results."""

    notifications: bool = setting(parse_flag, "false", "Whether results are published by MQTT.")
    host: str = setting(parse_text, "localhost", "The broker's host name; its certificate must have this name.")
    port: int = setting(port, "8883", "The broker's port.")
    ca_cert: Path | None = setting(parse_optional_path, "", "The authority of the broker's certificate.")
    tls_cert: Path | None = setting(parse_optional_path, "", "Our certificate for the broker.")
    tls_key: Path | None = setting(parse_optional_path, "", "Its key.")
    tls_insecure: bool = setting(parse_flag, "false", "true: accept a certificate of another name.")
    topic: str = setting(
        parse_topic, "reimzul", "The prefix of the topics <topic>/builds/results and <topic>/builds/events."
    )


@attr.frozen(kw_only=True)
class IrcSettings:
    """reimzul-irc, which announces the results published by [mqtt] in IRC channels."""

    server: str = setting(parse_text, "localhost", "The IRC server; with TLS its certificate must have this name.")
    port: int = setting(port, "6697", "Its port.")
    tls: bool = setting(parse_flag, "true", "Whether to use TLS.")
    ca_cert: Path | None = setting(
        parse_optional_path, "", "The authority of the server's certificate; if empty, those that the host trusts."
    )
    nick: str = setting(parse_nick, "reimzul", "Our nickname.")
    identify: str = setting(
        choice_parser("no", "sasl", "nickserv"), "no", "How to log in: no, sasl (PLAIN) or nickserv."
    )
    account: str = setting(str, "", "The account for sasl; the nick if empty.")
    password_file: Path | None = setting(parse_optional_path, "", "A file with its password and nothing else.")
    channels: tuple[str, ...] = setting(
        parse_channels, "", "Channels, separated by commas, of results without a line in [irc_channels]."
    )
    colours: bool = setting(parse_flag, "true", "Whether statuses are coloured.")
    seconds_a_line: int = setting(integer_parser(0, 600), "2", "Seconds between two lines after the first four.")
    client_id: str = setting(
        parse_text, "reimzul-irc", "Our client id at the MQTT broker; unique for each reimzul-irc."
    )
    mqtt_cert: Path | None = setting(
        parse_optional_path, "", "Our certificate for the MQTT broker; that of [mqtt] if empty."
    )
    mqtt_key: Path | None = setting(parse_optional_path, "", "Its key.")


@attr.frozen(kw_only=True)
class IrcChannelsSettings:
    """Channels for the results of an arch or of a target (with or without its arch)."""

    by_name: Mapping[str, tuple[str, ...]] = open_section(
        validators.target, parse_channels, "c7.1708.u = #centos-seven, #centos-build"
    )


@attr.frozen(kw_only=True)
class ScmSettings:
    """A section of the original's file. Nothing reads it."""

    git_url: str = setting(str, "", "Where the sources of packages are kept.")


@attr.frozen(kw_only=True)
class Settings:
    """All settings, an attribute per section."""

    farm: FarmSettings = attr.field(factory=FarmSettings)
    beanstalkd: BeanstalkdSettings = attr.field(factory=BeanstalkdSettings)
    incoming: IncomingSettings = attr.field(factory=IncomingSettings)
    bstore: StoreSettings = attr.field(factory=StoreSettings)
    worker: WorkerSettings = attr.field(factory=WorkerSettings)
    repogen: RepogenSettings = attr.field(factory=RepogenSettings)
    prune: PruneSettings = attr.field(factory=PruneSettings)
    duplicates: DuplicatesSettings = attr.field(factory=DuplicatesSettings)
    notifier: NotifierSettings = attr.field(factory=NotifierSettings)
    history: HistorySettings = attr.field(factory=HistorySettings)
    logs: LogsSettings = attr.field(factory=LogsSettings)
    mail: MailSettings = attr.field(factory=MailSettings)
    mail_rcpts: MailRcptsSettings = attr.field(factory=MailRcptsSettings)
    mqtt: MqttSettings = attr.field(factory=MqttSettings)
    irc: IrcSettings = attr.field(factory=IrcSettings)
    irc_channels: IrcChannelsSettings = attr.field(factory=IrcChannelsSettings)
    scm: ScmSettings = attr.field(factory=ScmSettings)


#: Settings of earlier versions, by section and key: accepted and ignored, with a warning, until version 0.3.
RETIRED = {
    ("farm", "original_workers"): "workers of the original are no longer supported",
    ("farm", "refused"): "refused jobs stay buried in beanstalkd",
    ("notifier", "quarantine_ratio"): "quarantine counts faults in a row",
    ("notifier", "quarantine_hours"): "quarantine counts faults in a row",
}


def all_sections() -> dict[str, type]:
    """All sections by their name in the file."""
    return {a.name: type(getattr(Settings(), a.name)) for a in attr.fields(Settings)}


def settings_of(section: type) -> list[Any]:
    """The settings of a section: attributes with parse, default and meaning in their metadata."""
    return [row for row in attr.fields(section) if "default" in row.metadata]


def open_row(section: type) -> Any:
    """The row of a section with free keys (metadata: key, parse, example); None for other sections."""
    return next((row for row in attr.fields(section) if "key" in row.metadata), None)


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
        raise ConfigError(f"{file}: {(error.strerror or 'cannot be read').lower()}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 at byte {error.start}") from error


def parse_settings(text: str, source: str) -> Settings:
    """Read the text of a settings file. Raises `ConfigError`."""
    parser = configparser.ConfigParser(interpolation=None, default_section="\0")
    try:
        parser.read_string(text, source)
    except configparser.Error as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error
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


def _parse_section(name: str, kind: type, given: dict[str, str]) -> tuple[Any, list[str]]:
    free = open_row(kind)
    if free is not None:
        return _parse_open_section(name, kind, free, given)
    values, faults = {}, []
    rows = {row.name: row for row in settings_of(kind)}
    for key, text in given.items():
        if (name, key) in RETIRED:
            log.warning("[%s] %s is ignored, and an error from 0.3 on: %s", name, key, RETIRED[name, key])
            continue
        if key not in rows:
            faults.append(f"[{name}] {key} is not a setting{_suggest_key(name, key)}")
            continue
        try:
            values[key] = rows[key].metadata["parse"](text.strip())
        except ValueError as error:
            faults.append(f"[{name}] {key}: {error}")
    return kind(**values), faults


def _parse_open_section(name: str, kind: type, free: Any, given: dict[str, str]) -> tuple[Any, list[str]]:
    values, faults = {}, []
    for key, text in given.items():
        try:
            values[free.metadata["key"](key)] = free.metadata["parse"](text.strip())
        except ValueError as error:
            faults.append(f"[{name}] {key}: {error}")
    return kind(**{free.name: values}), faults


def _unknown_sections(parser: configparser.ConfigParser) -> Iterator[str]:
    for name in parser.sections():
        if name not in all_sections():
            close = difflib.get_close_matches(name, all_sections(), 1)
            yield f"[{name}] is not a section" + (f"; is [{close[0]}] meant?" if close else "")


def _suggest_key(section: str, key: str) -> str:
    """Suggest a setting of the section, or name another section that has the key."""
    close = difflib.get_close_matches(key, [row.name for row in settings_of(all_sections()[section])], 1)
    if close:
        return f"; is {close[0]} meant?"
    for name, kind in all_sections().items():
        if key in [row.name for row in settings_of(kind)]:
            return f"; [{name}] has one of that name"
    return ""


def _cross_checks(values: dict[str, Any]) -> Iterator[str]:
    """Faults of combinations of settings."""
    yield from _cross_check_mail(values["mail"])
    yield from _cross_check_irc(values["irc"])
    mqtt = values["mqtt"]
    if bool(mqtt.tls_cert) != bool(mqtt.tls_key):
        yield "[mqtt] set both tls_cert and tls_key, or none"
    if mqtt.notifications and not mqtt.ca_cert:
        yield "[mqtt] ca_cert: required if notifications is true"


def _cross_check_mail(mail: MailSettings) -> Iterator[str]:
    if bool(mail.login) != bool(mail.password_file):
        yield "[mail] set both login and password_file, or none"
    if mail.login and not mail.starttls and mail.smtp_host not in LOCAL:
        yield "[mail] starttls: must be true: the password would be sent in the clear"
    if mail.to_submitter and not mail.submitter_domain:
        yield "[mail] submitter_domain: required if to_submitter is true"


def _cross_check_irc(irc: IrcSettings) -> Iterator[str]:
    if (irc.identify != "no") != bool(irc.password_file):
        yield "[irc] password_file: required if identify is sasl or nickserv, and only then"
    if irc.identify != "no" and not irc.tls and irc.server not in LOCAL:
        yield "[irc] tls: must be true: the password would be sent in the clear"
    if bool(irc.mqtt_cert) != bool(irc.mqtt_key):
        yield "[irc] set both mqtt_cert and mqtt_key, or none"


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
