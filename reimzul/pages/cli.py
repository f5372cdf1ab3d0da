# SPDX-License-Identifier: Apache-2.0
"""`reimzul-pages`: the daemon that makes the pages; runs on the controller, or where its history can be read."""

from __future__ import annotations

from typing import NoReturn

from reimzul.core.cli import daemon_command, run_command
from reimzul.core.errors import ConfigError
from reimzul.core.settings import Settings

EXAMPLES = """\b
Examples:
  reimzul-pages
  reimzul-pages --config /etc/reimzul/reimzul.ini -v

All of [pages] folder can be removed while the daemon is stopped: it makes the pages again from the history.
"""


@daemon_command("reimzul-pages", EXAMPLES)
def command(settings: Settings) -> None:
    """Make pages that show the farm in a browser, in [pages] folder, and keep them up to date.

    The pages are static files for a web server. The history, the workers' heartbeats and the store are only read.
    """
    try:
        from reimzul.pages.daemon import PagesDaemon
    except ImportError as error:
        raise ConfigError(f"a library is not installed ({error}): pip install 'reimzul[controller]'") from error
    PagesDaemon(settings).run()


def main() -> NoReturn:
    run_command(command)
