# SPDX-License-Identifier: Apache-2.0
"""Every setting of `reimzul.ini`: a class per section, a row per setting with its parser, default and meaning.

Errors, `conf/reimzul.ini.sample` and the man page are made from these rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import attr

from reimzul.core import validators
from reimzul.core.setting_parsers import (
    Pruning,
    choice_parser,
    days,
    integer_parser,
    parse_address,
    parse_addresses,
    parse_arguments,
    parse_channels,
    parse_duplicates,
    parse_flag,
    parse_history_url,
    parse_nick,
    parse_optional_domain,
    parse_optional_path,
    parse_optional_target,
    parse_optional_url,
    parse_path,
    parse_program,
    parse_pruning,
    parse_text,
    parse_topic,
    port,
    seconds,
    url_parser,
)


def setting(parse: Callable[[str], Any], default: str, meaning: str) -> Any:
    return attr.field(
        default=parse(default), metadata={"key": str, "parse": parse, "default": default, "meaning": meaning}
    )


def open_section(key: Callable[[str], Any], parse: Callable[[str], Any], example: str) -> Any:
    """The row of a section whose keys the administrator chooses; `example` is a line of it."""
    return attr.field(factory=dict, metadata={"key": key, "parse": parse, "example": example})


@attr.frozen(kw_only=True)
class FarmSettings:
    """Settings that all hosts of the farm must share."""

    arches: Path | None = setting(
        parse_optional_path, "", "A table of arches to use instead of the shipped arches.yml."
    )
    event_keys: Path | None = setting(
        parse_optional_path,
        "",
        "The file with the keys by which repogen signs events and the notifier verifies them, on the controller and\n"
        "bstore alone (reimzul setup makes it). Empty: nothing is signed, and a builder's key can forge results.",
    )
    canary_target: str = setting(
        parse_optional_target,
        "",
        "The target that `reimzul doctor --canary` builds for, without an arch, as c9s; always a scratch build.",
    )


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
    keep_days: int = setting(
        days,
        "0",
        "Days after which the notifier removes a source rpm that came or was last submitted before; 0: never.\n"
        "What a build needs stays: one that waits or runs, or failed within these days.",
    )


@attr.frozen(kw_only=True)
class StoreSettings:
    """The store of results on bstore."""

    base_url: str = setting(
        url_parser("http", "/repo/"),
        "http://localhost:11081/bstore/repo/",
        "The URL of the published repositories for mock and the farm's own programs; ends with /repo/. In mock's\n"
        "configurations http://repohost stands for the folder above it.",
    )
    public_url: str = setting(
        parse_optional_url,
        "",
        "The URL of the folder above repo/ for people, as http://bstore.example.org/: every link shown, mailed or\n"
        "published begins with it. Empty: that of bstore's public port (reimzul setup bstore --public-port), or no\n"
        "links, if it has none.",
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
    max_upload_mib: int = setting(
        integer_parser(1, 2**30), "20480", "The most that an upload may have, in MiB. A larger one is rejected unread."
    )
    max_upload_files: int = setting(
        integer_parser(1, 100_000), "10000", "The most files that an upload may have. One with more is rejected unread."
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
    """What a target (with or without its arch) may list twice: `builds` of a NEVRA, `arches` of a build."""

    targets: Mapping[str, frozenset[str]] = open_section(
        validators.target, parse_duplicates, "c7.1708.u = builds arches"
    )

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
        "a person has to resume it. The last builder of an arch is never quarantined.",
    )
    quarantine_faults: int = setting(
        integer_parser(1, 1000), "5", "After how many faults in a row, on different packages."
    )
    quarantine_pause: int = setting(
        seconds, "1800", "Seconds until the first canary; twice as many after each that failed, up to a day."
    )


@attr.frozen(kw_only=True)
class BatchSettings:
    """Held builds and batches (reimzul-batch)."""

    enabled: bool = setting(
        parse_flag, "false", "Whether the notifier passes events on to reimzul-batch, which has to run then."
    )
    dep_wait: int = setting(
        seconds,
        "172800",
        "Seconds that a single build submitted with --dep-wait may wait for a requirement that nobody provides yet.",
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
    local_time: bool = setting(
        parse_flag,
        "false",
        "true: times in it are local and in the original's form, as Sun Nov 29 05:03:14 2026, not in UTC, as\n"
        "2026-11-29 04:03:14Z.",
    )


@attr.frozen(kw_only=True)
class PagesSettings:
    """reimzul-pages, which makes the pages that show the farm in a browser."""

    folder: Path = setting(parse_path, "/srv/reimzul/pages", "The folder of the pages, for the web server.")
    url: str = setting(
        validators.optional(url_parser("http")),
        "",
        "The URL of that folder for people, as http://farm.example.org/: links to builds lead to their pages.\n"
        "Empty: there are no pages, and links lead to the store.",
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
    farm: FarmSettings = attr.field(factory=FarmSettings)
    beanstalkd: BeanstalkdSettings = attr.field(factory=BeanstalkdSettings)
    incoming: IncomingSettings = attr.field(factory=IncomingSettings)
    bstore: StoreSettings = attr.field(factory=StoreSettings)
    worker: WorkerSettings = attr.field(factory=WorkerSettings)
    repogen: RepogenSettings = attr.field(factory=RepogenSettings)
    prune: PruneSettings = attr.field(factory=PruneSettings)
    duplicates: DuplicatesSettings = attr.field(factory=DuplicatesSettings)
    notifier: NotifierSettings = attr.field(factory=NotifierSettings)
    batch: BatchSettings = attr.field(factory=BatchSettings)
    history: HistorySettings = attr.field(factory=HistorySettings)
    logs: LogsSettings = attr.field(factory=LogsSettings)
    pages: PagesSettings = attr.field(factory=PagesSettings)
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
    return {a.name: type(getattr(Settings(), a.name)) for a in attr.fields(Settings)}


def settings_of(section: type) -> list[Any]:
    """The settings of a section: attributes with parse, default and meaning in their metadata."""
    return [row for row in attr.fields(section) if "default" in row.metadata]


def open_row(section: type) -> Any:
    """The row of a section with free keys (metadata: key, parse, example); None for other sections."""
    return next((row for row in attr.fields(section) if "example" in row.metadata), None)
