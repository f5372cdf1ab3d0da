# SPDX-License-Identifier: Apache-2.0
"""A stand-in for mock, for hosts that have none: mock's command line, files and exit codes, the host's own rpmbuild.

It is for trying a farm and for testing one. It isolates nothing: a build sees the host's packages, network and
processes. `reimzul-worker` uses it only where the setting names it.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Optional

import attr

from devfarm.standin_bootstrap import Bootstrap, bootstrap_of
from devfarm.standin_build import Build, check_source
from devfarm.standin_config import Chroot, load
from devfarm.standin_faults import Exit, Fault, Signalled
from devfarm.standin_host import way_to
from devfarm.standin_logs import VERSION, Logs
from devfarm.standin_root import Root, root_of
from reimzul.core.errors import ReimzulError

_DESCRIPTION = """\
A stand-in for mock, NOT mock itself: the host's own rpmbuild in a private folder, with mock's options, files and
exit codes. For trying and testing a farm where there is no mock; nothing is isolated from the host.
"""
_EPILOG = """\
Roots lie in $REIMZUL_STANDIN_ROOTS, else in the configuration's basedir, else in the folder for temporary files.
BuildRequires are met by the repositories of dnf.conf whose baseurl is http or file, by what the host has, and by
config_opts['standin_provides'], a list of names. The cache of repositories lies in cache_topdir, or beside the roots.
Options of mock that are not listed are taken for a source rpm's name, as mock takes them.
"""


def parser() -> argparse.ArgumentParser:
    """mock's options, as far as a farm uses them; some are heard and change nothing without a chroot."""
    options = argparse.ArgumentParser(
        prog="reimzul-standin-mock",
        usage="%(prog)s [options] --resultdir=FOLDER package.src.rpm",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("srpms", nargs="*", type=Path, metavar="SRPM")
    add("--rebuild", action="store_true", help="build the source rpms named (the default)")
    add("--clean", action="store_true", help="remove the root")
    add("--orphanskill", action="store_true", help="kill what still runs in the root")
    add("--scrub", action="append", default=[], choices=("cache",), help="remove the caches of the root's name")
    add("-p", "--print-root-path", dest="path", action="store_true", help="print the root's path")
    add("--version", action="version", version=f"{VERSION} (reimzul's stand-in for mock)")
    add("-r", "--root", default="default", metavar="NAME", help="configuration to use, NAME.cfg")
    add("--configdir", type=Path, default=Path("/etc/mock"), metavar="FOLDER", help="where configurations lie")
    add("--resultdir", type=Path, metavar="FOLDER", help="where logs and packages go")
    add("--uniqueext", default="", metavar="TEXT", help="added to the root's name")
    add("--rpmbuild_timeout", type=int, metavar="SECONDS", help="the longest rpmbuild may take")
    add("-D", "--define", action="append", default=[], metavar="'NAME VALUE'", help="an rpm macro")
    add("--cleanup-after", dest="cleanup", action="store_true", default=None, help="remove the root after the build")
    add("-N", "--no-cleanup-after", dest="cleanup", action="store_false", help="leave it")
    add("--bootstrap-chroot", dest="bootstrap", action="store_true", default=None, help="have a bootstrap root")
    add("--no-bootstrap-chroot", dest="bootstrap", action="store_false", help="have none")
    for ignored in ("--isolation", "--enable-plugin", "--disable-plugin"):
        add(ignored, action="append", default=[], help=argparse.SUPPRESS)
    for ignored in ("--verbose", "--quiet", "--no-clean"):
        add(ignored, action="store_true", help=argparse.SUPPRESS)
    return options


def defined(words: Sequence[str]) -> dict[str, str]:
    """The macros of `--define`, each `NAME VALUE`."""
    pairs = [word.split(None, 1) for word in words]
    for word, pair in zip(words, pairs):
        if len(pair) != 2:
            raise Fault(Exit.COMMAND_LINE, f'Bad option for "--define" ({word}). Use --define="NAME VALUE"')
    return {name.lstrip("%"): value for name, value in pairs}


def configured(given: argparse.Namespace) -> Chroot:
    """The configuration, with what the command line says in its place."""
    macros = defined(given.define)
    if wrong := set(given.isolation) - {"auto", "simple", "nspawn"}:
        raise Fault(Exit.COMMAND_LINE, f"Bad option for '--isolation' ({wrong.pop()}). Use 'simple' or 'nspawn'")
    chroot = load(given.configdir, given.root)
    chroot = attr.evolve(chroot, macros={**chroot.macros, **macros})
    if given.rpmbuild_timeout is not None:
        chroot = attr.evolve(chroot, timeout=given.rpmbuild_timeout)
    if given.bootstrap is not None:
        chroot = attr.evolve(chroot, bootstrap=given.bootstrap)
    if given.cleanup is not None:
        chroot = attr.evolve(chroot, clean_on_success=given.cleanup, clean_on_failure=given.cleanup)
    return chroot


def perform(given: argparse.Namespace, logs: Logs) -> None:
    """What the command line asks for. Raises `Fault` where it cannot be had."""
    chroot = configured(given)
    root = root_of(chroot.roots, chroot.name, given.uniqueext)
    bootstrap = bootstrap_of(chroot, given.uniqueext)
    if maintain(given, chroot, root, bootstrap, logs):
        return
    if not given.srpms:
        raise Fault(Exit.SETUP, "No package specified to rebuild command.")
    way = way_to(chroot.target, chroot.legal_hosts)
    with logs.phase("init plugins"):
        logs.root.info("Signal handler active")
    logs.state.info("Start: run")
    for srpm in given.srpms:
        check_source(srpm)
    with root.held(), bootstrap.held() if bootstrap else nullcontext():
        logs.open((given.resultdir or root.path.with_name(f"{root.path.name}-result")).absolute())
        for srpm in given.srpms:
            rebuild(Build(srpm=srpm, chroot=chroot, way=way, root=root, bootstrap=bootstrap, logs=logs))
    logs.state.info("Finish: run")


def maintain(given: argparse.Namespace, chroot: Chroot, root: Root, bootstrap: Optional[Bootstrap], logs: Logs) -> bool:
    """Do to the root what the command line asks for beside a build; whether it asks for any of it."""
    if given.path:
        print(f"{root.path}/root/")
    elif given.orphanskill:
        root.end_processes(logs)
        if bootstrap is not None:
            bootstrap.end_processes(logs)
    elif given.scrub:
        shutil.rmtree(chroot.cache, ignore_errors=True)
    elif given.clean:
        with root.held():
            root.end_processes(logs)
            root.remove()
    return bool(given.path or given.orphanskill or given.scrub or given.clean)


def rebuild(build: Build) -> None:
    """One build, told as mock tells it, and cleaned up after."""
    say, started = build.logs.root, time.monotonic()
    say.info("Start(%s)  Config(%s)", build.srpm, build.root.path.name)
    try:
        build.run()
    except Signalled as told:
        say.info("\nReceived signal %s activating orphansKill", signal.Signals(told.number).name)
        build.root.end_processes(build.logs)
        if told.number == signal.SIGINT:  # mock leaves the root where it is for any other signal
            build.root.remove()
        raise
    except (Fault, OSError, ReimzulError):
        say.error("Exception(%s) Config(%s) %s", build.srpm, build.root.path.name, lasted(started))
        say.info("Results and/or logs in: %s", build.logs.folder)
        if build.chroot.clean_on_failure:
            say.info("Cleaning up build root ('cleanup_on_failure=True')")
            clean(build)
        raise
    say.info("Done(%s) Config(%s) %s", build.srpm, build.root.path.name, lasted(started))
    say.info("Results and/or logs in: %s", build.logs.folder)
    if build.chroot.clean_on_success:
        say.info("Cleaning up build root ('cleanup_on_success=True')")
        clean(build)


def clean(build: Build) -> None:
    """Remove the root, as --cleanup-after does."""
    with build.logs.phase("clean chroot"):
        build.root.remove()


def lasted(started: float) -> str:
    """How long it took, in mock's words."""
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    return f"{minutes} minutes {seconds} seconds"


def heed_signals() -> None:
    """Let INT, TERM and HUP end us, once; a second one must not cut short what the first one began."""

    def told(number: int, frame: Optional[FrameType]) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise Signalled(number)

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(each) is not signal.SIG_IGN:  # nohup, or a shell's `&`
            signal.signal(each, told)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """The command. Like mock it says all it has to say on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given, unknown = parser().parse_known_args(words)
    given.srpms += map(Path, unknown)
    heed_signals()
    logs = Logs()
    logs.root.info(
        "%s version %s, a stand-in for mock, starting (python version = %s), args: %s",
        "reimzul-standin-mock", VERSION, platform.python_version(), shlex.join(words),
    )  # fmt: skip
    try:
        perform(given, logs)
    except Fault as fault:
        logs.root.error("%s", fault)
        sys.exit(fault.code)
    except (OSError, ReimzulError) as error:
        # a disk that is full, rpmbuild that is not there: this host's fault, and no package's
        logs.root.error("%s", error)
        sys.exit(Exit.SETUP)
    except Signalled as told:
        sys.exit(Exit.INTERRUPTED if told.number == signal.SIGINT else 128 + told.number)
