# SPDX-License-Identifier: Apache-2.0
"""`reimzul.ini` as typed, checked values.

A section is a class, a setting one field of it: its default, its parser and its meaning stand in one row, which
feeds the reading, the refusals and `conf/reimzul.ini.sample`. The file is read once, when a program starts, and
handed down. All faults are told at once, by section and key.
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

#: Names of the host itself: what is said there is heard nowhere else.
LOCAL = ("localhost", "127.0.0.1", "::1")

#: A mail address; without a domain it is a mailbox of the host that takes our mail.
_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+(@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)?\Z")
_DOMAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?\Z")

_NICK = re.compile(r"[A-Za-z\[\]\\`_^{|}][A-Za-z0-9\[\]\\`_^{|}-]{0,29}\Z")
_CHANNEL = re.compile(r"[#&+!][^\s,:\x00-\x1f\x7f]{1,49}\Z")

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse_flag(text: str) -> bool:
    """true or false, in any of ini's spellings."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"{text!r} is not true or false")


def parse_text(text: str) -> str:
    """Any text that is not empty."""
    if not text:
        raise ValueError("is empty")
    return text


def parse_path(text: str) -> Path:
    """An absolute path."""
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    return Path(text)


def parse_optional_path(text: str) -> Path | None:
    """An absolute path, or nothing."""
    return parse_path(text) if text else None


def parse_program(text: str) -> str:
    """A program: a name to look up on PATH, or an absolute path."""
    if not text or (" " in text and not text.startswith("/")) or ("/" in text and not text.startswith("/")):
        raise ValueError(f"{text!r} is not a program's name or absolute path")
    return text


def parse_arguments(text: str) -> tuple[str, ...]:
    """Words of a command line, quoted as in a shell; nothing of them is ever given to one."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


def integer_parser(low: int, high: int) -> Callable[[str], int]:
    """A whole number in a range."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


port = integer_parser(1, 65535)
seconds = integer_parser(0, 10_000_000)
days = integer_parser(0, 36_500)


def url_parser(scheme: str, ending: str = "/") -> Callable[[str], str]:
    """A URL of a scheme (https also passes where http does); it gets its last slash where that was left out."""

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
    """Where the history is: `sqlite:///` and an absolute path, or a `mongodb://` URL."""
    if text.startswith(("mongodb://", "mongodb+srv://")):
        return text
    if text.startswith("sqlite:////"):
        return text
    raise ValueError(f"{text!r} is neither mongodb://… nor sqlite:////an/absolute/path")


def parse_topic(text: str) -> str:
    """The beginning of an MQTT topic: no wildcards, no slash at its ends."""
    if not text or text != text.strip("/") or any(sign in text for sign in "+#\0"):
        raise ValueError(f"{text!r} is no MQTT topic")
    return text


def parse_address(text: str) -> str:
    """A mail address, bare."""
    if not _ADDRESS.match(text):
        raise ValueError(f"{text!r} is not a mail address, as me@example.org")
    return text


def parse_addresses(text: str) -> tuple[str, ...]:
    """Mail addresses with commas between; none where the text is empty."""
    return tuple(parse_address(one.strip()) for one in text.split(",")) if text else ()


def parse_nick(text: str) -> str:
    """A nickname of IRC."""
    if not _NICK.match(text):
        raise ValueError(f"{text!r} is not a nickname of IRC")
    return text


def parse_channels(text: str) -> tuple[str, ...]:
    """Channels of IRC with commas between; none where the text is empty."""
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    for name in names:
        if not _CHANNEL.match(name):
            raise ValueError(f"{name!r} is not a channel of IRC, as #centos-build")
    return names


def choice_parser(*words: str) -> Callable[[str], str]:
    """One of a few words."""

    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text.lower()

    return parse


def parse_optional_domain(text: str) -> str:
    """A domain, or nothing."""
    if text and not _DOMAIN.match(text):
        raise ValueError(f"{text!r} is not a domain, as example.org")
    return text


def parse_optional_target(text: str) -> str:
    """A target, or nothing."""
    return validators.target(text) if text else ""


def setting(parse: Callable[[str], Any], default: str, meaning: str) -> Any:
    """One row of the table: how the text of a setting is read, what it is when left out, what it means."""
    return attr.field(default=parse(default), metadata={"parse": parse, "default": default, "meaning": meaning})


_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"(\d{1,6})([mhdw])\Z")


def parse_span(text: str) -> int:
    """A span of time as `90d`, in seconds."""
    found = _SPAN.match(text)
    if not found:
        raise ValueError(f"{text!r} is not a span of time, as 12h, 90d or 2w")
    return int(found[1]) * _UNITS[found[2]]


@attr.frozen(kw_only=True)
class Pruning:
    """Which old builds of a target are dropped."""

    keep: int = 1  #: of each package and arch, the newest that many stay
    older: int = 0  #: seconds; none that is younger is dropped
    unsigned: bool = False  #: also builds that nobody has laid out for the signer


def parse_pruning(text: str) -> Pruning:
    """`keep 3`, `older 90d`, `keep 3 older 90d`; with `unsigned` at its end where nothing is signed."""
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
    """`builds`, `legs` or both."""
    kinds = frozenset(text.split())
    if not kinds or not kinds <= set(DUPLICATE_KINDS):
        raise ValueError(f"{text!r} is not one or more of {', '.join(DUPLICATE_KINDS)}")
    return kinds


def open_section(key: Callable[[str], Any], parse: Callable[[str], Any], example: str) -> Any:
    """The one row of a section whose settings have names of the operator's own; `example` is one of them."""
    return attr.field(factory=dict, metadata={"key": key, "parse": parse, "example": example})


@attr.frozen(kw_only=True)
class FarmSettings:
    """What every host of the farm has to agree on."""

    arches: Path | None = setting(
        parse_optional_path, "", "A table of arches to use instead of the shipped arches.yml."
    )
    refused: Path = setting(
        parse_path,
        "/var/log/reimzul/refused",
        "Where refused messages go once 1,000 of a tube are buried: a file for each tube, on the host that refused.",
    )
    original_workers: bool = setting(
        parse_flag,
        "false",
        "true, on controller and bstore, for as long as workers of the original are there: what they upload is\n"
        "published and staged for signing as what ours do (docs/upgrading.md).",
    )
    canary_target: str = setting(
        parse_optional_target,
        "",
        "The target that `reimzul doctor --canary` builds for, without an arch, as c9s; always a scratch build.",
    )


@attr.frozen(kw_only=True)
class BeanstalkdSettings:
    """Where beanstalkd is reached: on all hosts the local end of stunnel, on the controller itself."""

    host: str = setting(parse_text, "localhost", "Host name or address of beanstalkd.")
    port: int = setting(port, "11300", "Its port. Builders and bstore: stunnel's local end of controller:13100.")


@attr.frozen(kw_only=True)
class IncomingSettings:
    """Where source rpms wait to be built."""

    folder: Path = setting(parse_path, "/srv/reimzul/incoming", "The folder on the controller (reimzul-submit).")
    url: str = setting(
        url_parser("http"),
        "http://localhost:11080/reimzul-incoming/",
        "The same as builders reach it (reimzul-worker).",
    )


@attr.frozen(kw_only=True)
class StoreSettings:
    """The store: where results go, and from where they are read."""

    base_url: str = setting(
        url_parser("http", "/repo/"),
        "http://localhost:11081/bstore/repo/",
        "Published repositories as all hosts reach them; ends with /repo/. The folder above it is what\n"
        "http://repohost stands for in mock's configurations.",
    )
    upload_url: str = setting(
        url_parser("rsync"), "rsync://localhost:11874/reimzul-bstore/", "The rsync module builders upload to."
    )
    root: Path = setting(
        parse_path,
        "/srv/reimzul/bstore",
        "The store's root on bstore itself: repo/, spool/, tosign/ and the others lie in it, on one file system.",
    )


@attr.frozen(kw_only=True)
class WorkerSettings:
    """Builders."""

    mock: str = setting(
        parse_program,
        "mock",
        "The program that builds. A host without mock can try the farm with reimzul-standin-mock, which builds with\n"
        "the host's own rpmbuild: for trying and testing, never for packages that are given to others.",
    )
    mock_configs: Path = setting(
        parse_path,
        "/srv/reimzul/mock_configs",
        "A git checkout with mock/<target>.cfg, mock/site-defaults.cfg and mock/logging.ini, pulled before a build.\n"
        "What is changed there by hand and not committed may be lost.",
    )
    results: Path = setting(
        parse_path, "/srv/reimzul/results", "Where builds are made, and kept until they are uploaded. On a large disk."
    )
    fqdn: str = setting(
        validators.optional(validators.host), "", "The name this builder goes by; the host's own name when empty."
    )
    machine: str = setting(
        validators.optional(validators.arch),
        "",
        "What uname -m would say, where it says the wrong thing (setarch, qemu-user).",
    )
    build_timeout: int = setting(
        seconds, "86400", "Seconds a build may take before mock (and a little later the worker) ends it; 0: any time."
    )
    stall_timeout: int = setting(
        seconds, "14400", "Seconds without a change of any log or result before a build is ended; 0: any time."
    )
    mock_roots: Path = setting(
        parse_path,
        "/var/lib/mock",
        "Where mock has its roots. The disk they are on is looked at, and roots that nobody builds in any more are\n"
        "removed; what is known of them lies in .reimzul/ there, for all workers that share the roots.",
    )
    root_days: int = setting(
        days,
        "30",
        "Days after which a bootstrap root of mock's is made anew although it is used, and after which the roots and\n"
        "caches of a target that was not built are removed; 0: never.",
    )
    min_free_mib: int = setting(
        integer_parser(0, 1 << 40),
        "4096",
        "MiB that have to be free under results and mock_roots before a job is taken.",
    )
    min_free_inodes: int = setting(
        integer_parser(0, 1 << 40), "50000", "Inodes that have to be free there, where the file system counts them."
    )
    max_load: int = setting(
        integer_parser(0, 100_000),
        "0",
        "No job is taken while the load of the last minute is above it; 0: at any load.",
    )
    tries: int = setting(
        integer_parser(1, 20),  # a message has room for 50, and uploads that did not match count there too
        "3",
        "How many tries of a request may fail by a builder's fault before it ends as Failed.",
    )
    presence: int = setting(
        integer_parser(0, 60), "30", "Seconds between two words of an idle worker that it is there; 0: it says nothing."
    )
    live_logs: int = setting(
        integer_parser(0, 3600),
        "2",
        "Seconds between two looks at growing logs, to send them on; 0: they come with results.",
    )
    pull_timeout: int = setting(
        seconds, "60", "Seconds a `git pull` of mock_configs may take; then its last state holds."
    )
    rsync: str = setting(parse_program, "rsync", "The program that uploads.")
    rsync_arguments: tuple[str, ...] = setting(parse_arguments, "", "Further arguments for it, as --bwlimit=20m.")


@attr.frozen(kw_only=True)
class RepogenSettings:
    """Publishing and indexing, on bstore."""

    createrepo_c: str = setting(parse_program, "createrepo_c", "The program that makes repodata.")
    database: bool = setting(
        parse_flag, "false", "Make the sqlite databases too (-d): yum on EL7 and older likes them."
    )
    after_createrepo: tuple[str, ...] = setting(
        parse_arguments,
        "",
        "A program and its arguments, quoted as in a shell; it runs on new repodata before that becomes visible, as\n"
        "to sign repomd.xml. {repodata} stands for the folder, which is the last argument where no other names it;\n"
        "{target} stands for the target. Where it fails, the old repodata stays, and it is tried again.",
    )
    after_createrepo_timeout: int = setting(
        integer_parser(1, 3600), "60", "Seconds that program may take before it is ended, and counts as failed."
    )
    arguments: tuple[str, ...] = setting(
        parse_arguments,
        "",
        "Further arguments for createrepo_c, quoted as in a shell; none that changes which packages are listed, or\n"
        "how they are called: a build is published when the repodata lists each of its packages.",
    )
    cores: int = setting(integer_parser(0, 1024), "0", "Threads it may use; 0: as many as the host has cores.")
    spool_days: int = setting(
        integer_parser(1, 3650), "7", "Days after which an upload that never was completed is removed from the spool."
    )
    attempts_days: int = setting(
        days, "90", "Days the logs are kept of attempts that decided nothing (attempts/); 0: for ever."
    )
    rejected_days: int = setting(
        days, "180", "Days an upload is kept that was not what its manifest says (rejected/); 0: for ever."
    )


@attr.frozen(kw_only=True)
class PruneSettings:
    """Of a target, with its arch or without: how many builds of a package `reimzul prune` leaves, and of which age."""

    targets: Mapping[str, Pruning] = open_section(validators.target, parse_pruning, "c7.1708.u = keep 3 older 90d")


@attr.frozen(kw_only=True)
class DuplicatesSettings:
    """Of a target, with its arch or without: what it may list twice, `builds` of one NEVRA or `legs` of one build."""

    targets: Mapping[str, frozenset[str]] = open_section(validators.target, parse_duplicates, "c7.1708.u = builds legs")

    def kinds_for(self, target: str) -> frozenset[str]:
        """The kinds that a target, given with its arch, may list."""
        return self.targets.get(target) or self.targets.get(target.rpartition(".")[0]) or frozenset()


@attr.frozen(kw_only=True)
class NotifierSettings:
    """Who is told, and what is remembered of it, on the controller."""

    ledger: Path = setting(
        parse_path, "/srv/reimzul/notifier/ledger.sqlite", "The outbox: every event, and which sinks have it."
    )
    presence: Path = setting(
        parse_path, "/srv/reimzul/notifier/presence.sqlite", "Which workers are there, and what each of them does."
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
    """What became of every build."""

    url: str = setting(
        parse_history_url,
        "sqlite:////srv/reimzul/notifier/history.sqlite",
        "sqlite:////absolute/path, or mongodb://host:port/ (database reimzul, collection notify_history).",
    )
    refused_days: int = setting(
        days, "180", "Days it is remembered why a message was refused, and longer while it is buried; 0: for ever."
    )


@attr.frozen(kw_only=True)
class LogsSettings:
    """The log of builds."""

    logfile: Path = setting(parse_path, "/var/log/reimzul/reimzul.log", "One line for each event of a build.")


@attr.frozen(kw_only=True)
class MailSettings:
    """Mails about results, but not of scratch builds."""

    notifications: bool = setting(parse_flag, "false", "Whether results are mailed.")
    mail_from: str = setting(parse_address, "reimzul@localhost", "The sender.")
    smtp_host: str = setting(parse_text, "localhost", "The server that takes our mail, as its certificate has it.")
    smtp_port: int = setting(port, "25", "Its port.")
    starttls: bool = setting(parse_flag, "false", "true: speak TLS to it, or not at all.")
    ca_cert: Path | None = setting(
        parse_optional_path, "", "The authority that signed its certificate; when empty, those the host trusts."
    )
    login: str = setting(str, "", "The name we log in with; when empty, we do not.")
    password_file: Path | None = setting(parse_optional_path, "", "A file with the password and nothing else.")
    only_on_change: bool = setting(
        parse_flag, "false", "true: only when the result is another than the package's last on that arch and target."
    )
    to_submitter: bool = setting(parse_flag, "false", "Whether who submitted a build gets its mails too.")
    submitter_domain: str = setting(
        parse_optional_domain, "", "What follows the @ where a submitter's name is no mail address by itself."
    )


@attr.frozen(kw_only=True)
class MailRcptsSettings:
    """Who is mailed of an arch's results, a line an arch. Of one that is not here nobody is."""

    arches: Mapping[str, tuple[str, ...]] = open_section(
        validators.arch, parse_addresses, "x86_64 = me@example.org, you@example.org"
    )


@attr.frozen(kw_only=True)
class MqttSettings:
    """Results for others to subscribe to."""

    notifications: bool = setting(parse_flag, "false", "Whether results are published by MQTT.")
    host: str = setting(parse_text, "localhost", "The broker's host name, as its certificate has it.")
    port: int = setting(port, "8883", "The broker's port.")
    ca_cert: Path | None = setting(parse_optional_path, "", "The authority that signed the broker's certificate.")
    tls_cert: Path | None = setting(parse_optional_path, "", "Our certificate for the broker.")
    tls_key: Path | None = setting(parse_optional_path, "", "Its key.")
    tls_insecure: bool = setting(parse_flag, "false", "true: do not check that the broker's certificate has its name.")
    topic: str = setting(
        parse_topic, "reimzul", "Topics begin with it: <topic>/builds/results and <topic>/builds/events."
    )


@attr.frozen(kw_only=True)
class IrcSettings:
    """What reimzul-irc says where: the results that [mqtt] publishes, a line each."""

    server: str = setting(parse_text, "localhost", "The IRC server, as its certificate has it.")
    port: int = setting(port, "6697", "Its port.")
    tls: bool = setting(parse_flag, "true", "Whether it speaks TLS.")
    ca_cert: Path | None = setting(
        parse_optional_path, "", "The authority that signed its certificate; when empty, those the host trusts."
    )
    nick: str = setting(parse_nick, "reimzul", "The name we go by.")
    identify: str = setting(
        choice_parser("no", "sasl", "nickserv"), "no", "How we prove that it is ours: no, sasl (PLAIN) or nickserv."
    )
    account: str = setting(str, "", "The account of sasl; the nick when empty.")
    password_file: Path | None = setting(parse_optional_path, "", "A file with its password and nothing else.")
    channels: tuple[str, ...] = setting(
        parse_channels, "", "Where results are said that no line of [irc_channels] is about, with commas between."
    )
    colours: bool = setting(parse_flag, "true", "Whether statuses are coloured.")
    seconds_a_line: int = setting(integer_parser(0, 600), "2", "Seconds between two lines, after the first four.")
    client_id: str = setting(
        parse_text, "reimzul-irc", "The name the MQTT broker keeps our place under; each has its own."
    )
    mqtt_cert: Path | None = setting(
        parse_optional_path, "", "Our certificate for the MQTT broker; that of [mqtt] when empty."
    )
    mqtt_key: Path | None = setting(parse_optional_path, "", "Its key.")


@attr.frozen(kw_only=True)
class IrcChannelsSettings:
    """Channels for the results of an arch or a target (with its arch or without), a line each."""

    by_name: Mapping[str, tuple[str, ...]] = open_section(
        validators.target, parse_channels, "c7.1708.u = #centos-seven, #centos-build"
    )


@attr.frozen(kw_only=True)
class ScmSettings:
    """Of the original's file, which has it too. Nothing here reads it."""

    git_url: str = setting(str, "", "Where the sources of packages are kept.")


@attr.frozen(kw_only=True)
class Settings:
    """All of it, a section an attribute."""

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
    ("notifier", "quarantine_ratio"): "quarantine counts faults in a row",
    ("notifier", "quarantine_hours"): "quarantine counts faults in a row",
}


def all_sections() -> dict[str, type]:
    """Every section by its name in the file."""
    return {a.name: type(getattr(Settings(), a.name)) for a in attr.fields(Settings)}


def settings_of(section: type) -> list[Any]:
    """The settings of a section, as attributes whose metadata has parse, default and meaning."""
    return [row for row in attr.fields(section) if "default" in row.metadata]


def open_row(section: type) -> Any:
    """The row of a section whose settings have free names (metadata: key, parse, example); None of any other."""
    return next((row for row in attr.fields(section) if "key" in row.metadata), None)


def find_file(given: Path | None = None) -> Path | None:
    """The file that holds: the one given, else $REIMZUL_CONFIG, else the default one where it exists."""
    if given is not None:
        return given
    if os.environ.get(FILE_VARIABLE):
        return Path(os.environ[FILE_VARIABLE])
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def load_file(given: Path | None = None) -> Settings:
    """The settings of the file that holds, or the defaults. Raises `ConfigError` with a line for each fault."""
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
    """The settings in an ini file's text."""
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
    """The setting that was probably meant: of this section, or the same word in another."""
    close = difflib.get_close_matches(key, [row.name for row in settings_of(all_sections()[section])], 1)
    if close:
        return f"; is {close[0]} meant?"
    for name, kind in all_sections().items():
        if key in [row.name for row in settings_of(kind)]:
            return f"; [{name}] has one of that name"
    return ""


def _cross_checks(values: dict[str, Any]) -> Iterator[str]:
    """Faults that only show when several settings are looked at together."""
    yield from _cross_check_mail(values["mail"])
    yield from _cross_check_irc(values["irc"])
    mqtt = values["mqtt"]
    if bool(mqtt.tls_cert) != bool(mqtt.tls_key):
        yield "[mqtt] tls_cert and tls_key come together"
    if mqtt.notifications and not mqtt.ca_cert:
        yield "[mqtt] ca_cert: has to be set where notifications is true"


def _cross_check_mail(mail: MailSettings) -> Iterator[str]:
    if bool(mail.login) != bool(mail.password_file):
        yield "[mail] login and password_file come together"
    if mail.login and not mail.starttls and mail.smtp_host not in LOCAL:
        yield "[mail] starttls: has to be true: the password would cross the network in the clear"
    if mail.to_submitter and not mail.submitter_domain:
        yield "[mail] submitter_domain: has to be set where to_submitter is true"


def _cross_check_irc(irc: IrcSettings) -> Iterator[str]:
    if (irc.identify != "no") != bool(irc.password_file):
        yield "[irc] password_file: has to be set where identify is sasl or nickserv, and only there"
    if irc.identify != "no" and not irc.tls and irc.server not in LOCAL:
        yield "[irc] tls: has to be true: the password would cross the network in the clear"
    if bool(irc.mqtt_cert) != bool(irc.mqtt_key):
        yield "[irc] mqtt_cert and mqtt_key come together"


def sample_text() -> str:
    """A file that holds every setting with its default and meaning, as `conf/reimzul.ini.sample` has it."""
    lines = [
        "# /etc/reimzul/reimzul.ini: every setting of the farm, with its default and what it means.",
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
