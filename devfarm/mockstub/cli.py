# SPDX-License-Identifier: Apache-2.0
"""The command line of the stand-in for mock, and one run of it. Like mock it writes all messages to stderr."""

from __future__ import annotations

import argparse
import contextlib
import platform
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from devfarm.mockstub.build import Build, check_arch, check_source
from devfarm.mockstub.config import MockConfig, read_config
from devfarm.mockstub.logs import VERSION, Exit, Fault, Logs
from devfarm.mockstub.root import Bootstrap, Root, find_roots
from reimzul.core.errors import ReimzulError

_DESCRIPTION = """\
A stand-in for mock, NOT mock itself: the host's own rpmbuild in a private folder, with mock's options, files and
exit codes. For trying and testing a farm where there is no mock; nothing is isolated from the host.
"""
_EPILOG = """\
Roots lie in the configuration's basedir, else in the folder for temporary files. BuildRequires are met by what the
host has, and by the repositories of dnf.conf whose baseurl is http. The cache of repositories lies in cache_topdir, or
beside the roots.
An option of mock that is not listed is taken for the name of a source rpm, as mock does.
"""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(BaseException):
    """A signal ends the run. Not an `Exception`, so that only `main` handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def make_parser() -> argparse.ArgumentParser:
    """mock's options, as far as a farm uses them."""
    parser = argparse.ArgumentParser(
        prog="reimzul-standin-mock",
        usage="%(prog)s [options] --resultdir=FOLDER package.src.rpm",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("srpms", nargs="*", type=Path, metavar="SRPM")
    add("--clean", action="store_true", help="remove the root")
    add("--orphanskill", action="store_true", help="kill what still runs in the root")
    add("--scrub", action="append", default=[], choices=("cache",), help="remove the caches of the root's name")
    add("-p", "--print-root-path", dest="path", action="store_true", help="print the root's path")
    add("--version", action="version", version=f"{VERSION} (reimzul's stand-in for mock)")
    add("-r", "--root", default="default", metavar="NAME", help="configuration to use, NAME.cfg")
    add("--configdir", type=Path, default=Path("/etc/mock"), metavar="FOLDER", help="where configurations lie")
    add("--resultdir", type=Path, metavar="FOLDER", help="where logs and packages go")
    add("--uniqueext", default="", metavar="TEXT", help="text to add to the root's name")
    add("--rpmbuild_timeout", type=int, metavar="SECONDS", help="the longest rpmbuild may take")
    add("-D", "--define", action="append", default=[], metavar="'NAME VALUE'", help="define an rpm macro")
    add("--with", dest="bconds", action="append", default=[], metavar="NAME", help="enable a build condition")
    add("--cleanup-after", action="store_true", help="remove the root after the build (the default)")
    add("--no-bootstrap-chroot", dest="bootstrap", action="store_false", default=None, help="use no bootstrap root")
    return parser


def perform(options: argparse.Namespace, logs: Logs) -> None:
    overrides = {"rpmbuild_timeout": options.rpmbuild_timeout, "use_bootstrap": options.bootstrap}
    given = {name: value for name, value in overrides.items() if value is not None}
    macros = {name: value for name, _, value in (text.partition(" ") for text in options.define)}
    macros.update({f"_with_{name}": f"--with-{name}" for name in options.bconds})  # as mock does
    config = read_config(options.configdir, options.root, given, macros)
    root, bootstrap = find_roots(config, options.uniqueext)
    if options.path:
        print(f"{root.path}/root/")
    elif options.orphanskill:
        root.kill_processes(logs)
        if bootstrap is not None:
            with contextlib.suppress(Fault), bootstrap.lock():  # another build may have it
                bootstrap.kill_processes(logs)
    elif options.scrub:
        shutil.rmtree(config.cache, ignore_errors=True)
    elif options.clean:
        with root.lock():
            root.kill_processes(logs)
            root.remove()
    elif options.srpms:
        rebuild_all(options, config, root, bootstrap, logs)
    else:
        raise Fault(Exit.SETUP, "No package specified to rebuild command.")


def rebuild_all(
    options: argparse.Namespace, config: MockConfig, root: Root, bootstrap: Bootstrap | None, logs: Logs
) -> None:
    i386 = check_arch(config.target)
    logs.state.info("Start: run")
    for srpm in options.srpms:
        check_source(srpm)
    with root.lock(), bootstrap.lock() if bootstrap else contextlib.nullcontext():
        logs.open((options.resultdir or root.path.with_name(f"{root.path.name}-result")).absolute())
        for srpm in options.srpms:
            rebuild(Build(srpm=srpm, config=config, i386=i386, root=root, bootstrap=bootstrap, logs=logs))
    logs.state.info("Finish: run")


def rebuild(build: Build) -> None:
    log, started, name = build.logs.root, time.monotonic(), build.root.path.name
    log.info("Start(%s)  Config(%s)", build.srpm, name)
    try:
        build.run()
    except Signalled as signalled:
        log.info("\nReceived signal %s activating orphansKill", signal.Signals(signalled.number).name)
        build.root.kill_processes(build.logs)
        if signalled.number == signal.SIGINT:  # mock leaves the root where it is for any other signal
            build.root.remove()
        raise
    except (Fault, OSError, ReimzulError):
        log.error("Exception(%s) Config(%s) %s", build.srpm, name, _duration(started))
        _finish(build, "failure")
        raise
    log.info("Done(%s) Config(%s) %s", build.srpm, name, _duration(started))
    _finish(build, "success")


def _finish(build: Build, outcome: str) -> None:
    build.logs.root.info("Results and/or logs in: %s", build.logs.folder)
    build.logs.root.info("Cleaning up build root ('cleanup_on_%s=True')", outcome)
    with build.logs.phase("clean chroot"):
        build.root.remove()


def _duration(started: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    return f"{minutes} minutes {seconds} seconds"


def _end_run(number: int, frame: FrameType | None) -> None:
    """Handle the first of INT, TERM and HUP; a second one must not interrupt the clean-up."""
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Signalled(number)


def main() -> None:
    options, unknown = make_parser().parse_known_args()
    options.srpms += map(Path, unknown)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored by nohup, or by a shell's `&`
            signal.signal(number, _end_run)
    logs = Logs()
    logs.root.info(
        "reimzul-standin-mock version %s, a stand-in for mock, starting (python version = %s), args: %s",
        VERSION, platform.python_version(), shlex.join(sys.argv[1:]),
    )  # fmt: skip
    try:
        perform(options, logs)
    except Fault as fault:
        logs.root.error("%s", fault)
        sys.exit(fault.code)
    except (OSError, ReimzulError) as error:
        # a full disk, a missing rpmbuild: the host's fault, not the package's
        logs.root.error("%s", error)
        sys.exit(Exit.SETUP)
    except Signalled as signalled:
        sys.exit(Exit.INTERRUPTED if signalled.number == signal.SIGINT else 128 + signalled.number)


if __name__ == "__main__":
    main()
