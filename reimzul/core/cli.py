# SPDX-License-Identifier: Apache-2.0
"""The parts that all command lines share: --config, -v, logging, and errors as one line with an exit code."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NoReturn, TypeVar

import click

from reimzul import __version__
from reimzul.core import validators
from reimzul.core.errors import (
    EXIT_BUG,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    ConfigError,
    InputError,
    ReimzulError,
    describe_os_error,
)

if TYPE_CHECKING:  # `reimzul --help` starts without the settings
    from reimzul.core.settings import Settings

#: The key of click's `Context.meta` with a command that only works on the controller, as a person types it.
NEEDS_CONTROLLER = "reimzul.needs_controller"

#: What writing to stdout may fail with; a file of ours that is written has its own message.
_OUTPUT_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes:
   0  success
   1  failed, or partly failed
   2  wrong usage
   3  wrong configuration
   4  bad input: a file, an arch, a target
   5  beanstalkd cannot be reached
  70  a bug in Reimzul
 130  interrupted
"""


def shared_options(function: F) -> F:
    """Add the options of every command; they are passed as `config` and `verbose`."""
    function = click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Settings file instead of /etc/reimzul/reimzul.ini (or $REIMZUL_CONFIG).",
    )(function)
    function = click.option("-v", "--verbose", is_flag=True, help="Log debug messages.")(function)
    return click.version_option(__version__, "--version", message="%(prog)s %(version)s")(function)


def daemon_command(name: str, examples: str = "") -> Callable[[Callable[[Settings], None]], click.Command]:
    """Make a daemon's command from the function that runs the daemon with its settings; its docstring is the help."""

    def make_command(run: Callable[[Settings], None]) -> click.Command:
        @click.command(name, help=run.__doc__, epilog=f"{examples}\n{EXIT_CODES}" if examples else EXIT_CODES)
        @shared_options
        def command(config: Path | None, verbose: bool) -> None:
            run(load_settings(config, verbose))

        return command

    return make_command


def load_settings(config: Path | None, verbose: bool) -> Settings:
    """Set up logging and read the settings. Raises `ConfigError`."""
    from reimzul.core.config import load_file

    when = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "  # journald sets the variable and adds the time
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format=f"{when}%(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%SZ",
        stream=sys.stderr,
    )
    return load_file(config)


def run_command(command: click.Command, *, help_without_arguments: bool = False) -> NoReturn:
    """Run a command as a program: an error becomes a line on stderr and its exit code.

    `help_without_arguments`: without any, the error is the whole help.
    """
    command.context_settings["help_option_names"] = ["-h", "--help"]  # -h as in the original; groups pass it on
    _open_standard_streams()
    stdout = sys.stdout
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the terminal lacks is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = command.main(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except SystemExit:
        if sys.stdout is not stdout:  # click's answer to a reader that has ended: a stdout that drops all
            _end_without_output(0)
        raise
    except click.ClickException as error:
        if help_without_arguments and not sys.argv[1:] and isinstance(error, click.UsageError) and error.ctx:
            click.echo(error.ctx.get_help(), err=True)
        else:
            error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has ended
        _end_without_output(0)
    except ReimzulError as error:
        _print_lines(command.name, str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT_FAULTS:
            _print_lines(command.name, f"the output cannot be written: {describe_os_error(error)}")
            _end_without_output(EXIT_FAILED)
        logging.getLogger(__name__).debug("", exc_info=error)
        _print_lines(command.name, f"a bug in Reimzul: {error!r} (run it with -v for where)")
        sys.exit(EXIT_BUG)


def _open_standard_streams() -> None:
    """Have all three: whoever starts a program may have closed some of them, as by `>&-`."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        stream = open(descriptor, "r" if descriptor == 0 else "w", encoding="utf-8")  # noqa: SIM115
        setattr(sys, ("stdin", "stdout", "stderr")[descriptor], stream)
    os.close(descriptor)


def _end_without_output(code: int) -> NoReturn:
    """End the program; what stdout still holds is dropped, as Python would try to write it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def print_error(message: str) -> None:
    """Print a message of the running command on stderr, each line after the program's name."""
    _print_lines(click.get_current_context().find_root().command.name, message)


def _print_lines(program: str | None, message: str) -> None:
    for line in message.splitlines():
        click.echo(f"{program}: {line}", err=True)


def local_hostname() -> str:
    """This host's name in messages. Raises `ConfigError` if it cannot be used."""
    name = os.environ.get("REIMZUL_FQDN") or os.uname().nodename
    try:
        return validators.host(name)
    except ValueError as error:
        raise ConfigError(f"the name of this host: {error} (set another in $REIMZUL_FQDN)") from None


def current_user() -> str:
    """The user who runs the command. Raises `InputError` if the name cannot be used."""
    try:
        return validators.submitter(_user_name())
    except ValueError as error:
        raise InputError(f"the name of the submitting user cannot be used: {error} (set another in $LOGNAME)") from None


def _user_name() -> str:
    """The name of this process's user, or `uid<number>` without one."""
    import getpass

    number = f"uid{os.getuid()}"
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):  # OSError since Python 3.13
        return number
    return name if name.strip() else number
