# SPDX-License-Identifier: Apache-2.0
"""A farm of the product's daemons in one process: two workers, one repogen or two, tosign and the notifier."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import os
import pkgutil
import random
import socket
import sys
import time
import types
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Callable

import attr
import greenstalk

from tests.simulate import beanstalkd, files, primitives, programs, scheduler
from tests.simulate.scheduler import Process

for _name in ("click", "json", "sqlite3", "yaml", "http.client", "xml.etree.ElementTree", "tempfile", "logging"):
    importlib.import_module(_name)
if "reimzul.core" in sys.modules:
    raise ImportError("the product was imported before its clock was replaced")
with primitives.replace_modules():
    import reimzul

    for _package in ("core", "history", "worker", "repogen", "store", "tosign", "notifier", "submit", "plan", "batch"):
        for _module in pkgutil.walk_packages([f"{reimzul.__path__[0]}/{_package}"], f"reimzul.{_package}."):
            importlib.import_module(_module.name)

from reimzul.batch import cli as batch_cli  # noqa: E402
from reimzul.batch import daemon as batch_daemon  # noqa: E402
from reimzul.batch import job_checks, target_provides  # noqa: E402
from reimzul.core import beanstalk, control, daemon, fs, validators  # noqa: E402
from reimzul.core.arch import _arches_of  # noqa: E402
from reimzul.core.beanstalk import Broker, arch_tube  # noqa: E402
from reimzul.core.errors import BrokerUnavailable, ReimzulError  # noqa: E402
from reimzul.core.heartbeat import HeartbeatSender, ProcessIdentity  # noqa: E402
from reimzul.core.message import BuildEvent, BuildRequest, Refusal  # noqa: E402
from reimzul.core.settings import (  # noqa: E402
    IncomingSettings,
    NotifierSettings,
    RepogenSettings,
    Settings,
    StoreSettings,
)
from reimzul.core.store_paths import StorePaths, StoreUrls, leg_key  # noqa: E402
from reimzul.history import BuildFilter  # noqa: E402
from reimzul.history.build_record import BuildRecord, apply_events  # noqa: E402
from reimzul.notifier.daemon import Notifier  # noqa: E402
from reimzul.notifier.delivery import Sink, SinkUnavailable  # noqa: E402
from reimzul.notifier.housekeeping import HeartbeatIntake  # noqa: E402
from reimzul.notifier.outbox import Outbox  # noqa: E402
from reimzul.notifier.sinks.batch import BatchSink  # noqa: E402
from reimzul.plan import journal  # noqa: E402
from reimzul.repogen import cli as repogen_cli  # noqa: E402
from reimzul.repogen import copier, verify  # noqa: E402
from reimzul.store import createrepo, listing, listing_rules, repodata  # noqa: E402
from reimzul.store.listing import read_listing  # noqa: E402
from reimzul.submit import submission  # noqa: E402
from reimzul.submit.sources import Source  # noqa: E402
from reimzul.tosign import cli as tosign_cli  # noqa: E402
from reimzul.worker import build, download, mock, roots, upload  # noqa: E402
from reimzul.worker.build import BuildEnvironment  # noqa: E402
from reimzul.worker.daemon import HealthCheck, Worker  # noqa: E402
from reimzul.worker.model import Workspace  # noqa: E402

ARCH, FOLLOWER, TARGET = "x86_64", "i386", "c7.x86_64"
ARCHES = _arches_of({"arches": {ARCH: {"follows": [FOLLOWER]}, FOLLOWER: {"accepts": ["i686"]}}})
WORKERS, DAEMONS = ("b1", "b2"), ("b1", "b2", "repogen", "tosign", "notifier")
SECOND_REPOGEN, BATCH = "repogen2", "batch"
#: The tries after which no builder could build it.
TRIES = 3


class WorldClock:
    """The virtual clock, for beanstalkd."""

    def __init__(self) -> None:
        self._waiting = primitives.Event()

    @property
    def now(self) -> float:
        return scheduler.world.now

    def wait_for_change(self, until: float) -> None:
        self._waiting._waiters.append(scheduler.world.current)
        scheduler.world.wait(until, "beanstalkd")

    def changed(self) -> None:
        self._waiting._wake_all()


@attr.frozen
class Delivery:
    name: tuple[str, str]
    status: str
    maybe_sent: bool


@attr.define(eq=False)
class Records:
    """What the sinks have; it outlives the notifier."""

    history: dict[str, BuildRecord] = attr.field(factory=dict)
    mails: list[Delivery] = attr.field(factory=list)
    refusals: list[Refusal] = attr.field(factory=list)


class HistorySink(Sink):
    name = "history"

    def __init__(self, records: Records) -> None:
        self.records = records

    @classmethod
    def from_settings(cls, _: Settings) -> None:
        return None

    def deliver(self, notices: Sequence[Any]) -> Iterator[Any]:
        scheduler.world.step("history")
        builds = [notice.event for notice in notices if isinstance(notice.event, BuildEvent)]
        self.records.history.update(apply_events(self.records.history, builds))
        self.records.refusals += [notice.event for notice in notices if isinstance(notice.event, Refusal)]
        yield from notices


class MailSink(HistorySink):
    name = "mail"

    def deliver(self, notices: Sequence[Any]) -> Iterator[Any]:
        for notice in notices:
            scheduler.world.step("mail")
            if scheduler.world.random.random() < 0.02:
                raise SinkUnavailable("no mail server")
            self.records.mails.append(Delivery(notice.name, notice.event.status, notice.maybe_sent))
            scheduler.world.step("mailed")
            yield notice


@attr.define(eq=False)
class Farm:
    root: Path
    seed: int
    outcomes: dict[str, programs.Outcomes]  #: of each package
    rates: dict[str, float]
    names: tuple[str, ...] = DAEMONS
    requirements: programs.Requirements = attr.field(factory=programs.Requirements)  #: of a batch's packages
    server: beanstalkd.Server = attr.field(init=False)
    records: Records = attr.field(factory=Records, init=False)
    processes: dict[str, Process] = attr.field(factory=dict, init=False)
    daemons: dict[str, Any] = attr.field(factory=dict, init=False)  #: those that run, for their signals
    store: StorePaths = attr.field(init=False)
    incoming: Path = attr.field(init=False)
    sources: dict[str, bytes] = attr.field(factory=dict, init=False)
    singles: list[str] = attr.field(init=False)  #: packages that are submitted outside the batch
    person: Any = attr.field(default=None, init=False)  #: who has submitted a batch (`batches.Person`)
    plan: dict[str, programs.Outcomes] = attr.field(init=False)  #: the outcomes, of which mock takes away its own
    accepted: dict[str, BuildRequest] = attr.field(factory=dict, init=False)
    doubtful: set[str] = attr.field(factory=set, init=False)  #: builds whose submission was not confirmed
    cancelled: set[str] = attr.field(factory=set, init=False)
    collected: list[str] = attr.field(factory=list, init=False)  #: the legs that the signer has got
    happened: list[str] = attr.field(factory=list, init=False)  #: the faults
    unlisted: set[str] = attr.field(factory=set, init=False)  #: published legs that some repodata lacked
    starts_at: dict[str, float] = attr.field(factory=dict, init=False)  #: of a daemon that is down
    kills: set[str] = attr.field(factory=set, init=False)
    next_faults: Callable[[Process], None] = attr.field(default=lambda _: None, init=False)
    ends: bool = attr.field(default=False, init=False)
    _pid: int = 100

    def __attrs_post_init__(self) -> None:
        self.server = beanstalkd.Server(WorldClock(), idle_seconds=12.0)
        self.store = StorePaths(self.root / "store")
        self.incoming = self.root / "incoming"
        self.incoming.mkdir()
        self.plan, self.singles = copy.deepcopy(self.outcomes), list(self.outcomes)
        for name in self.outcomes:
            self.sources[f"{name}-1-1.src.rpm"] = programs.package_text(name, ARCH, is_source=True)
        configs = self.root / "configs"
        configs.mkdir()
        (configs / "mock.cfg").write_text("config_opts['root'] = 'sim'\n")
        for name in WORKERS:
            Workspace(self.root / name).create()
        install(
            programs.Programs(
                store=self.store.root,
                sources=self.sources,
                outcomes=self.plan,
                requirements=self.requirements,
                faults=self.rates,
            )
        )

    # --- daemons

    def start(self, name: str) -> None:
        self.starts_at.pop(name, None)
        if self.ends or name in self.processes:
            return
        self._pid += 1
        process = Process(name, self._pid, on_exit=self._ended)
        self.processes[name] = process
        self.next_faults(process)
        scheduler.world.start(process, lambda: self._run(process), "main")

    def _run(self, process: Process) -> None:
        try:
            made = self._make(process.name)
            self.daemons[process.name] = made
            try:
                made.run()
            finally:
                if process.name == "notifier":
                    made.close()
        except (ReimzulError, OSError) as error:  # systemd starts it again
            if not process.disk_full_until and "beanstalkd" not in str(error):
                raise
        finally:
            scheduler.world.kill(process)  # its other threads end with it

    def _ended(self, process: Process) -> None:
        files.close_descriptors(process)
        for connection in process.sockets:
            connection.close()
        self.daemons.pop(process.name, None)
        self.processes.pop(process.name, None)
        world = scheduler.world
        starts_at = world.now + world.random.choice((0.1, 1.0, 10.0, 10.0, 200.0 if world.random.random() < 0.2 else 1))
        self.starts_at[process.name] = starts_at
        world.at(starts_at, lambda: self.start(process.name))

    def _make(self, name: str) -> Any:
        if name in WORKERS:
            return self._make_worker(name)
        settings = Settings(
            bstore=StoreSettings(root=self.store.root, base_url=programs.BASE + "repo/", upload_url=programs.UPLOAD),
            repogen=RepogenSettings(createrepo_c="createrepo_c"),
            notifier=NotifierSettings(ledger=self.root / "outbox.sqlite", presence=self.root / "presence.sqlite"),
            incoming=IncomingSettings(folder=self.incoming),
        )
        if name == "notifier":
            return self._make_notifier(settings)
        if name == BATCH:
            return batch_cli.make_daemon(settings)
        return (tosign_cli if name == "tosign" else repogen_cli).make_daemon(settings)

    def _make_worker(self, name: str) -> Worker:
        urls = StoreUrls(programs.BASE, programs.UPLOAD)
        workspace, configs, own = Workspace(self.root / name), programs.Configs(self.root / "configs"), programs.Roots()
        environment = BuildEnvironment(
            arches=ARCHES,
            incoming=download.Downloader(programs.INCOMING),
            urls=urls,
            configs=configs,  # type: ignore[arg-type]
            mock=mock.Mock(mock="mock", configs=configs, roots=own, build_timeout=0, stall_timeout=0),  # type: ignore[arg-type]
            uploader=upload.Uploader(rsync="rsync", arguments=(), urls=urls),
            log_streamer=upload.LogStreamer("rsync", (), urls, 0),
        )
        workspace.remove_orphaned(environment.mock.recover_root)
        identity = ProcessIdentity(host=name, instance=name, arches=(ARCH,), folders=(), boot="", session=f"{name}x")
        cleanup = types.SimpleNamespace(clean_one=lambda _: None)
        health = HealthCheck(folders=(), free_mib=0, free_inodes=0, max_load=0)
        heartbeat = HeartbeatSender(identity, 0)
        puller = types.SimpleNamespace(pull_if_due=lambda _: None)
        own_parts: Any = (environment, workspace, health, TRIES, heartbeat, cleanup, puller)
        return Worker(connect, [arch_tube(ARCH)], name, *own_parts)

    def _make_notifier(self, settings: Settings) -> Notifier:
        sinks: list[Sink] = [HistorySink(self.records), MailSink(self.records)]
        if BATCH in self.names:
            sinks.append(BatchSink(settings.beanstalkd, ARCHES.tubes()))
        outbox = Outbox(settings.notifier.ledger)
        return Notifier(connect, "ctl", outbox, sinks, HeartbeatIntake(settings.notifier.presence), [], None)

    # --- people

    def submit(self, name: str, *, after: tuple[str, ...] = (), dep_wait: int = 0) -> None:
        """Submit a build, as `reimzul-submit` does."""
        header = programs.source_header(name)
        digest = hashlib.sha256(self.sources[f"{name}-1-1.src.rpm"]).hexdigest()
        source = Source(name=f"{name}-1-1.src.rpm", sha256=digest, copied=False, header=header)
        options = submission.SubmissionOptions(
            arches=(ARCH,), target=TARGET.rpartition(".")[0], disttag=".x", scratch=name.startswith("scratch"),
            after=after, dep_wait=dep_wait,
        )  # fmt: skip
        (request,) = submission.make_requests(source, options, "someone")
        self.accepted[request.build_id] = request
        self.doubtful.add(request.build_id)
        with contextlib.suppress(BrokerUnavailable, ReimzulError), connect() as broker:
            (queued,) = submission.queue_requests(broker, [(source, request)], options, ARCHES)
            self.doubtful -= {request.build_id} if queued.job else set()

    def collect(self) -> None:
        """Take what is laid out to be signed, as the signer does at any time."""
        top = str(self.store.tosign)
        targets = [name for name in os.listdir(top) if not name.startswith(".")] if os.path.isdir(top) else []
        for folder in sorted(
            self.store.tosign / target / name for target in targets for name in os.listdir(f"{top}/{target}")
        ):
            _, arch, build_id = folder.name.rsplit(".", 2)
            self.collected.append(leg_key(build_id, arch))
            folder.rename(self.root / f"collected-{len(self.collected)}")

    def check_listing(self) -> None:
        """Note which published legs the repodata lacks, which has just become visible."""
        listed = {Path(name).parent for name in read_listing(self.store.target(TARGET) / "repodata")}
        legs = {(folder.parts[0], folder.name) for folder in listed}
        for key, record in self.records.history.items():
            place = Path(record.place)  # repo/<target>/<package>/<timestamp>/<evr>.<arch>
            if record.published and (place.parts[2], place.name) not in legs:
                self.unlisted.add(key)

    def cancel(self, build_id: str) -> None:
        """Cancel a build: set the flag, then delete the job if it waits, then announce it; here only the flag."""
        self.cancelled.add(build_id)
        with contextlib.suppress(ReimzulError), connect() as broker:
            control.set_flag(broker, beanstalk.cancel_tube(build_id), control.new_flag("someone"))


@attr.frozen
class History:
    """The history as `reimzul-batch` reads it."""

    records: Records

    def find_builds(self, wanted: BuildFilter, _: int) -> list[BuildRecord]:
        return [each for each in self.records.history.values() if each.build_id == wanted.build_id]

    def close(self) -> None:
        """Nothing is open."""


def _open_history(_: str, *, reading: bool) -> History:
    assert reading
    assert _Running.farm is not None
    scheduler.world.step("history read")
    return History(_Running.farm.records)


def connect() -> Broker:
    return Broker("localhost", 11300)


class _Running:
    farm: Farm | None = None  #: while there is one


def _open_socket(*_: Any) -> beanstalkd.Connection:
    world = scheduler.world
    world.step("connect")
    assert _Running.farm is not None
    connection = _Running.farm.server.connect()
    world.current.process.sockets.append(connection)
    return connection


def _select(reads: list[beanstalkd.Connection], *_: Any) -> tuple[list[Any], list[Any], list[Any]]:
    return [each for each in reads if each.is_cut], [], []


@contextlib.contextmanager
def running(farm: Farm) -> Iterator[None]:
    _Running.farm = farm
    try:
        yield
    finally:
        _Running.farm = None


class Client(beanstalkd.Client):
    @staticmethod
    def before(command: str) -> None:
        scheduler.world.step(f"beanstalkd {command}")


def install(stand_ins: programs.Programs) -> None:
    """Put the programs of this run into the product's modules."""
    for module in (mock, upload, createrepo, roots):
        _put(module, run=stand_ins.run)
    for module in (build, target_provides):
        _put(module, HttpSession=stand_ins.http_session)
    _put(download, _open_url=stand_ins.open_url)


def _last_change(folder: Path) -> float:
    return files.last_change(str(folder))


_real_exchange = repodata.exchange_names


def _exchange(one: Path, other: Path) -> None:
    scheduler.world.step("exchange")
    _real_exchange(one, other)
    assert _Running.farm is not None
    _Running.farm.check_listing()


def _put(module: Any, **names: Any) -> None:
    """Put stand-ins into a module of the product."""
    for name, stand_in in names.items():
        setattr(module, name, stand_in)


def _install_once() -> None:
    """What is the same in every run."""
    originals = {name: getattr(greenstalk, name) for name in dir(greenstalk) if not name.startswith("__")}
    _put(
        beanstalk,
        greenstalk=types.SimpleNamespace(**{**originals, "Client": Client}),
        socket=primitives.StandIn(socket, create_connection=_open_socket),
        select=types.SimpleNamespace(select=_select),
    )
    now = types.SimpleNamespace(now=lambda zone: datetime.fromtimestamp(scheduler.world.time(), zone))
    now.strptime = datetime.strptime
    _put(validators, datetime=now)
    _put(daemon, handle_signals=lambda _: contextlib.nullcontext())
    _put(fs, last_change=_last_change)
    # Both compare with the times of real files: those are all new, and here they count as old as the run.
    _put(listing, time=time)
    _put(copier, time=primitives.StandIn(time, time=lambda: time.time() + scheduler.world.now))
    _put(repodata, exchange_names=_exchange)
    _put(build, read_source_header=programs.read_header)
    for module in (upload, verify, listing_rules):
        _put(module, read_header=programs.read_header)
    _put(verify, read_published_texts=lambda _: iter(()))
    _put(repogen_cli, import_rpm=lambda: None)
    _put(batch_cli, read_arches=lambda _: ARCHES)
    _put(batch_daemon, _KICK_SECONDS=1.0)  # less often: a paused worker may hold a job for minutes
    _put(job_checks, open_history=_open_history)
    _put(journal, os=primitives.StandIn(os, open=files.open_journal, write=files.write_journal))
    sys.unraisablehook = lambda _: None  # a generator of a killed process that is cleaned up late


_install_once()


def make_plan(random_: random.Random) -> dict[str, programs.Outcomes]:
    """The packages of a run, and what mock comes to at each attempt at each of their legs."""
    odds: list[list[str]] = [[]] * 6 + [[programs.FAILED], [programs.UNFIT], [programs.UNFIT] * 3, [programs.NOBODY]]
    kinds = [random_.choice(("pkg", "pkg", programs.TWO_LEGS, "scratch")) for _ in range(random_.randint(1, 4))]
    names = {f"{kind}{number}": legs_of(kind) for number, kind in enumerate(kinds)}
    return {name: {arch: list(random_.choice(odds)) for arch in legs} for name, legs in names.items()}


def legs_of(package: str) -> tuple[str, ...]:
    return (ARCH, FOLLOWER) if package.startswith(programs.TWO_LEGS) else (ARCH,)
