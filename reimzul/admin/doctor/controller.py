# SPDX-License-Identifier: Apache-2.0
"""Checks the controller: beanstalkd and its tubes, batches, the history, mail, MQTT and certificates.

It connects to the servers of mail and MQTT as the notifier does, and sends nothing. The library for MQTT is installed
on controllers alone, so it is imported when it is needed.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

from reimzul.admin import lookup
from reimzul.admin.doctor import Check, CheckGroup, Result, fail, is_root, ok, recommend, require, shorten, warn
from reimzul.admin.doctor.host import PROGRAM_TIMEOUT_SECONDS, READ, WRITE, Host, check_writable, user_can
from reimzul.admin.doctor.services import ANSWER_TIMEOUT_SECONDS, connect, format_address
from reimzul.admin.held import read_held_counts, separate_held
from reimzul.admin.queues import all_tubes, count_buried, farm_tubes, is_unwatched
from reimzul.admin.setup.mqtt import FOLDER as MQTT_FOLDER
from reimzul.core.beanstalk import BATCH, CREATEREPO, NOTIFY, TOSIGN, Broker
from reimzul.core.errors import ConfigError, InputError, InvalidMessage, ReimzulError, ReservationLost, RetryLater
from reimzul.core.formatting import format_duration, format_size, pluralize
from reimzul.core.message import BuildRequest
from reimzul.core.pending import CORRUPT_PATTERN, read_pending
from reimzul.core.process import output_of
from reimzul.core.settings import MqttSettings
from reimzul.core.smtp import SmtpSession
from reimzul.core.tls import client_context
from reimzul.core.validators import TIMESTAMP_FORMAT
from reimzul.history import CORRUPT_PATTERN as CORRUPT_HISTORY
from reimzul.history import BuildFilter, BuildRecord, HistoryDamaged, HistoryUnavailable, NoHistory
from reimzul.history.build_record import BuildState
from reimzul.plan.batches import list_batch_ids, load_batch, read_announced_end
from reimzul.plan.document import FOLDER, journal_path, plan_path
from reimzul.plan.journal import read_journal

#: Doctor puts a job into this tube and deletes it at once; nobody watches it.
TEST_TUBE = "doctor"
#: Who watches the farm's own tubes, and a hint if nobody does.
_DAEMONS = {
    NOTIFY.name: ("the notifier", "systemctl restart reimzul-notifier; journalctl -u reimzul-notifier"),
    CREATEREPO.name: ("a repogen worker", "on bstore: reimzul setup bstore, which starts it; reimzul doctor"),
    TOSIGN.name: ("the signer", "on bstore: reimzul setup bstore, which starts it; reimzul doctor"),
}
_BUILDER_HINT = "on a builder: reimzul setup builder, which starts the workers; reimzul doctor"
_SQLITE = "sqlite://"
#: Deliveries that have been pending for this long are reported.
PENDING_SECONDS = 600
#: An outbox of this size is reported.
_LARGE_OUTBOX_BYTES = 1 << 30
#: A binlog of this size is reported: 10 files of beanstalkd's 10 MiB are usual.
_LARGE_BINLOG_BYTES = 1 << 30
#: beanstalkd's -z where nobody sets it: the unit of `reimzul setup` always has more.
_DEFAULT_JOB_BYTES = 65_535
#: A successful build that has not been published for this long is reported.
UNPUBLISHED_SECONDS = 3600
#: How far back unpublished and claimed builds are searched.
_MAX_AGE_DAYS, _MAX_BUILDS = 30, 5_000
#: Doctor warns this many days before a certificate expires.
EXPIRY_WARNING_DAYS = 14
#: Certificates that setup has made are made again by it.
_RENEW_CERTIFICATES = "reimzul setup controller --mqtt, which makes new ones"
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


# --- beanstalkd and its tubes: jobs have to survive a restart, and somebody has to take them


beanstalkd_checks = CheckGroup("link.beanstalkd")


@beanstalkd_checks.add("beanstalkd")
def _check_beanstalkd(host: Host) -> Result:
    with connect(host.settings) as broker:
        stats = broker.server_stats()
        require(
            not is_too_old(stats.version),
            f"beanstalkd {stats.version} lacks reserve-job, which workers need",
            "install 1.12 or newer",
        )
        require(
            not stats.draining,
            "beanstalkd is draining: it accepts no jobs until a restart",
            "systemctl restart beanstalkd",
        )
        try:
            records = _write_binlog(broker)
        except RetryLater as error:
            hint = (
                "free some space under its binlog (-b): df -h /var/lib/beanstalkd; then: systemctl restart beanstalkd"
            )
            return fail(f"beanstalkd accepts no jobs: {error}", hint)
    require(
        records != stats.binlog_records,
        "beanstalkd writes no binlog: a restart loses all waiting jobs",
        "reimzul setup controller, which has it write one; systemctl restart beanstalkd: once its disk was full, it "
        "writes none until then",
    )
    return ok(f"beanstalkd {stats.version} writes its binlog")


def is_too_old(version: str) -> bool:
    """Whether beanstalkd lacks `reserve-job`; a version that is not a number is accepted."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) < (1, 12)


def _write_binlog(broker: Broker) -> int:
    """Put and delete a job; return the number of binlog records."""
    while (leftover := broker.first_ready(TEST_TUBE)) is not None:  # of a doctor that was killed
        broker.delete(leftover[0])
    broker.delete(broker.put_raw(TEST_TUBE, b"", priority=2**32 - 1))  # the lowest priority
    return broker.server_stats().binlog_records


@beanstalkd_checks.add("binlog")
def _check_binlog(host: Host) -> Result:
    """Look for a binlog that has grown large: beanstalkd bounds neither its size nor the number of jobs."""
    with connect(host.settings) as broker:
        stats = broker.server_stats()
    message = f"beanstalkd's binlog has {format_size(stats.binlog_bytes)}"
    recommend(
        stats.binlog_bytes <= _LARGE_BINLOG_BYTES,
        message,
        "`reimzul queues` shows the tubes; beanstalkd keeps a file of the binlog until its last job is deleted",
    )
    recommend(
        stats.max_job_bytes > _DEFAULT_JOB_BYTES,
        f"beanstalkd takes jobs of {_DEFAULT_JOB_BYTES:,} bytes, and cannot read them or the next after a restart",
        "reimzul setup controller, which lets its -z grow (conf/beanstalkd-service.conf)",
    )
    return ok(message)


@beanstalkd_checks.add("tubes.watched")
def _check_watchers(host: Host) -> Iterator[Result]:
    with connect(host.settings) as broker:
        tubes = [broker.tube_stats(name) for name in farm_tubes(host.settings)]
    with contextlib.suppress(HistoryUnavailable, ConfigError):  # other checks report it
        tubes = separate_held(tubes, read_held_counts(host.settings))  # a held job waits for no builder
    for tube in tubes:
        daemon, hint = _DAEMONS.get(tube.name, ("a builder", _BUILDER_HINT))
        if is_unwatched(tube):
            yield fail(f"{tube.ready + tube.delayed} jobs wait in {tube.name}, and nobody watches it", hint)
        elif not tube.watchers and tube.name in _DAEMONS:
            yield warn(f"{daemon} is not connected: nobody watches {tube.name}", hint)
    if not any(tube.watchers for tube in tubes if tube.name not in _DAEMONS):
        yield warn("no builder is connected", _BUILDER_HINT)
    yield ok("watchers: " + ", ".join(f"{tube.name} {tube.watchers}" for tube in tubes if tube.watchers))


@beanstalkd_checks.add("tubes.buried")
def _check_buried(host: Host) -> Result:
    with connect(host.settings) as broker:
        counts = count_buried(broker, all_tubes(broker, host.settings))
    buried = ", ".join(f"{count} in {tube}" for tube, count in counts.items())
    recommend(not buried, f"buried jobs: {buried}", "reimzul buried lists the reasons; then reimzul kick or discard")
    return ok("there are no buried jobs")


# --- the history and the sinks


checks = CheckGroup()


@checks.add("history")
def _check_history(host: Host) -> Result:
    url = host.settings.history.url
    if url.startswith(_SQLITE):
        _check_history_file(host, Path("/" + url[len(_SQLITE) :].lstrip("/")))
    try:
        with lookup.reading_history(url) as history:
            history.find_builds(BuildFilter(), 1)
    except NoHistory:
        return ok("nothing has been recorded yet")
    except ConfigError as error:
        return fail(str(error), "make install ROLE=controller")
    except HistoryDamaged as error:
        return fail(
            str(error), "systemctl restart reimzul-notifier, which at the next event saves what can be read of it"
        )
    except HistoryUnavailable as error:
        return fail(str(error), "" if url.startswith(_SQLITE) else "check that the MongoDB of [history] url runs")
    return ok("the history can be read")


def _check_history_file(host: Host, path: Path) -> None:
    """Raises `Misconfigured` if the notifier cannot write the history, and `OSError` if that is not known."""
    check_writable(host, path.parent)
    for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        can_write = not host.user_entry or not file.exists() or user_can(host.user_entry, file, READ | WRITE)
        require(can_write, f"user {host.user} cannot write {file}", f"chown {host.user}: {file}")
    corrupt = list(map(str, sorted(path.parent.glob(CORRUPT_HISTORY))))
    require(
        not corrupt,
        f"the history was damaged, and builds may be missing: {', '.join(corrupt)}",
        f"look for the cause; then: rm {' '.join(corrupt)}",
    )


@checks.add("outbox")
def _check_outbox(host: Host) -> Result:
    outbox = host.settings.notifier.ledger
    corrupt = list(map(str, sorted(outbox.parent.glob(CORRUPT_PATTERN))))
    require(
        not corrupt,
        f"the outbox was damaged, and events may be lost: {', '.join(corrupt)}",
        f"look for the cause; then: rm {' '.join(corrupt)}",
    )
    if not outbox.exists():
        return ok(f"{outbox} does not exist yet")
    size = outbox.stat().st_size
    message = f"{outbox} has {format_size(size)}"
    recommend(size <= _LARGE_OUTBOX_BYTES, message, "`reimzul queues` shows which sink lacks so many events")
    return ok(message)


@checks.add("owed")
def _check_pending(host: Host) -> Result:
    now = time.time()
    late = [each for each in read_pending(host.settings.notifier.ledger) if now - each.oldest > PENDING_SECONDS]
    counts = ", ".join(f"{each.count} events for {each.sink} for {format_duration(now - each.oldest)}" for each in late)
    recommend(not late, f"deliveries are pending: {counts}", "journalctl -u reimzul-notifier shows why they fail")
    return ok(f"no delivery has been pending for over {PENDING_SECONDS // 60} min")


@checks.add("unpublished", "history")
def _check_unpublished(host: Host) -> Result:
    """Look for successful builds that are still not published; scratch builds never are."""
    now = time.time()
    late = [
        f"{build.srpm} for {build.arch}, built by {build.builder_fqdn or 'an unknown builder'}"
        for build in _recent_builds(host, BuildState.BUILT)
        if not build.scratch and not build.claimed and now - build.at > UNPUBLISHED_SECONDS
    ]
    recommend(
        not late,
        f"built successfully, but not published for over an hour: {shorten(late)}",
        "on bstore: reimzul doctor; journalctl -u 'reimzul-repogen-worker@*'",
    )
    return ok(f"every successful build of the last {_MAX_AGE_DAYS} days is published, or less than an hour old")


@checks.add("events.claimed", "history")
def _check_claims(host: Host) -> Result:
    """Look for builds that were announced as published without bstore's signature."""
    claimed = [f"{build.srpm} for {build.arch}" for build in _recent_builds(host) if build.claimed]
    recommend(
        not claimed,
        f"announced as published, and not signed by bstore: {shorten(claimed)}",
        "on bstore: reimzul doctor; a repogen of an old version, or without the key, does not sign (reimzul setup "
        "bstore --new-event-key). If bstore signs, somebody has forged it with a builder's key",
    )
    return ok(f"all that was published in the last {_MAX_AGE_DAYS} days is signed, or older than the key")


def _recent_builds(host: Host, *states: str) -> list[BuildRecord]:
    since = time.strftime(TIMESTAMP_FORMAT, time.gmtime(time.time() - _MAX_AGE_DAYS * 86400))
    with contextlib.suppress(NoHistory), lookup.reading_history(host.settings.history.url) as history:
        return history.find_builds(BuildFilter(since=since, states=states or None), _MAX_BUILDS)
    return []


@checks.add("mqtt", applies=lambda host: host.settings.mqtt.notifications)
def _check_mqtt(host: Host) -> Result:
    try:
        from reimzul.core.mqtt import MqttConnection
    except ImportError as error:
        return fail(f"paho-mqtt is not installed ({error})", "make install ROLE=controller")
    settings = host.settings.mqtt
    return _check_connection(
        lambda: MqttConnection(settings).close(),
        f"the broker at {settings.host}:{settings.port} accepts the notifier",
        "systemctl restart mosquitto; where it refuses the certificates: reimzul setup controller --mqtt",
    )


@checks.add("mail", applies=lambda host: host.settings.mail.notifications)
def _check_mail(host: Host) -> Result:
    settings = host.settings.mail
    return _check_connection(
        lambda: SmtpSession(settings).close(),
        f"the mail server at {settings.smtp_host}:{settings.smtp_port} accepts the notifier",
        "check that the mail server of [mail] runs and accepts mail from this host",
    )


def _check_connection(connect_and_close: Callable[[], None], message: str, hint: str) -> Result:
    """Connect to a sink's server. Ordinary users cannot read the keys and passwords it needs."""
    try:
        connect_and_close()
    except ReimzulError as error:
        if "Permission denied" in str(error) and not is_root():
            return warn(str(error), "run reimzul doctor as root, or as user reimzul")
        return fail(str(error), hint)
    return ok(message)


# --- certificates


def certificate_checks(host: Host) -> list[Check]:
    mqtt, mail = host.settings.mqtt, host.settings.mail
    rows = (
        ("mqtt.ca_cert", mqtt.ca_cert, mqtt.notifications),
        ("mqtt.tls_cert", mqtt.tls_cert, mqtt.notifications),
        ("mail.ca_cert", mail.ca_cert, mail.notifications),
    )
    found = [
        Check(name=f"certificate.{name}", run=partial(check_certificates, path))
        for name, path, is_used in rows
        if path and is_used
    ]
    if mqtt.notifications:
        found.append(Check(name="certificate.mqtt.broker", run=partial(_check_broker, mqtt), needs=("mqtt",)))
    return found


def check_certificates(path: Path) -> Result:
    try:
        ends = expiry_times(path)
    except ReimzulError as error:
        return fail(f"{path}: cannot read a certificate: {error}", _hint_for_certificate(path))
    if not ends:
        return fail(f"{path} contains no certificate", _hint_for_certificate(path))
    return judge_expiry(min(ends), str(path), _hint_for_certificate(path))


def _hint_for_certificate(path: Path) -> str:
    if str(path).startswith(f"{MQTT_FOLDER}/"):
        return _RENEW_CERTIFICATES
    return "replace the file with a valid one of your authority"


def expiry_times(path: Path) -> list[float]:
    """When each certificate in a file expires, in seconds since 1970. Raises `OSError`, `ReimzulError`."""
    certificates = _CERTIFICATE.findall(path.read_text(encoding="utf-8", errors="replace"))
    with TemporaryDirectory(prefix="reimzul-doctor-") as folder:
        # openssl storeutl fails for a file that contains a key, too
        file = Path(folder) / "certificates.pem"
        file.write_text("\n".join(certificates), encoding="utf-8")
        text = output_of(["openssl", "storeutl", "-noout", "-text", "-certs", file], timeout=PROGRAM_TIMEOUT_SECONDS)
    return [ssl.cert_time_to_seconds(time_text) for time_text in re.findall(r"Not After *: (.*)", text)]


def judge_expiry(end: float, name: str, hint: str) -> Result:
    """The result for a certificate that expires at that time, in seconds since 1970."""
    days = (end - time.time()) / 86400
    date = datetime.fromtimestamp(end, timezone.utc).strftime("%Y-%m-%d")
    if days < 0:
        return fail(f"{name} expired on {date}", hint)
    if days < EXPIRY_WARNING_DAYS:
        return warn(f"{name} expires in {days:.0f} days, on {date}", hint)
    return ok(f"valid until {date}")


def _check_broker(settings: MqttSettings) -> Result:
    pair = settings.tls_cert, settings.tls_key
    context = client_context("mqtt", ca_cert=settings.ca_cert, pair=pair, any_name=settings.tls_insecure)
    address = (settings.host, settings.port)
    plain = socket.create_connection(address, ANSWER_TIMEOUT_SECONDS)
    with plain, context.wrap_socket(plain, server_hostname=settings.host) as wrapped:
        certificate = wrapped.getpeercert() or {}
    name = f"the certificate of {format_address(address)}"
    hint = _hint_for_certificate(settings.tls_cert) if settings.tls_cert else "have its owner renew it"
    return judge_expiry(ssl.cert_time_to_seconds(str(certificate["notAfter"])), name, hint)


#: Seconds after which a plan that was not accepted is reported.
_ACCEPTED_WITHIN_SECONDS = 600

batch_checks = CheckGroup()


def _is_enabled(host: Host) -> bool:
    return host.settings.batch.enabled


@batch_checks.add("batch", "link.beanstalkd", applies=_is_enabled)
def _check_daemon(host: Host) -> Result:
    with connect(host.settings) as broker:
        tube = broker.tube_stats(BATCH.name)
    waiting = f"; {pluralize(tube.ready, 'job')} wait in tube {BATCH.name}" if tube.ready else ""
    hint = "systemctl restart reimzul-batch; journalctl -u reimzul-batch"
    require(tube.watchers, f"reimzul-batch is not connected: no held build is released{waiting}", hint)
    return ok("reimzul-batch is connected")


@batch_checks.add("batch.plans", applies=_is_enabled)
def _check_plans(host: Host) -> Result:
    """Look for batches that reimzul-batch does not touch: their plan is gone, changed, or was never accepted."""
    incoming = host.settings.incoming.folder
    faults = list(_find_faults(incoming))
    hint = (
        f"give the plan in {incoming / FOLDER} back as it was, then: systemctl restart reimzul-batch; or submit again"
    )
    require(not faults, f"batches that nobody works on: {shorten(faults)}", hint)
    return ok(f"{pluralize(len(list_batch_ids(incoming)), 'batch')} in {incoming / FOLDER}")


def _find_faults(incoming: Path) -> Iterator[str]:
    journals = {path.stem for path in (incoming / FOLDER).glob("*.log") if path.stem != "single"}
    for batch in sorted(journals | set(list_batch_ids(incoming))):
        journal, plan = journal_path(incoming, batch), plan_path(incoming, batch)
        if not journal.exists():
            age = time.time() - plan.stat().st_mtime
            if age > _ACCEPTED_WITHIN_SECONDS:
                yield f"{batch} was never accepted"
        elif read_announced_end(journal) is None:
            try:
                load_batch(incoming, batch)
            except InputError as error:
                yield str(error)


@batch_checks.add("batch.held", "link.beanstalkd", "history", applies=_is_enabled)
def _check_held(host: Host) -> Result:
    """Look for held jobs that reimzul-batch does not know, so that nobody will release them."""
    try:
        with lookup.reading_history(host.settings.history.url) as history:
            unfinished = [each for each in history.find_unfinished() if each.job]
    except NoHistory:
        return ok("nothing is held")
    known = _list_known_builds(host.settings.incoming.folder)
    with connect(host.settings) as broker:
        held = [each for each in unfinished if _is_held(broker, each)]
    lost = [f"job {each.job} ({each.srpm})" for each in held if each.build_id not in known]
    hint = "reimzul kick --held JOB releases one; reimzul cancel ends its build"
    recommend(not lost, f"held, and no batch knows of them: {shorten(lost)}", hint)
    return ok(f"{pluralize(len(held), 'build')} held, each by a batch or for another build")


def _is_held(broker: Broker, record: BuildRecord) -> bool:
    with contextlib.suppress(ReservationLost, InvalidMessage):
        request = BuildRequest.decode(broker.peek(record.job))
        return request.build_id == record.build_id and broker.job_stats(record.job).is_held
    return False


def _list_known_builds(incoming: Path) -> set[str]:
    """The build ids of the unfinished batches' members, and of the single builds that are held."""
    known: set[str] = set()
    for batch in list_batch_ids(incoming):
        if read_announced_end(journal_path(incoming, batch)) is None:
            with contextlib.suppress(InputError):  # the check of plans reports it
                known.update(each.build_id for each in load_batch(incoming, batch).members.values())
    single = journal_path(incoming, "single")
    if single.exists():
        known.update(_read_single_builds(single))
    return known


def _read_single_builds(journal: Path) -> Iterator[str]:
    for entry in read_journal(journal):
        build = entry.get("build")
        request = build.get("request", {}) if isinstance(build, dict) else {}
        yield str(request.get("build_id", ""))
