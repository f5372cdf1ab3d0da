# SPDX-License-Identifier: Apache-2.0
"""Runs a farm on this machine: `python -m devfarm` from the checkout, `python /path/to/devfarm` from anywhere."""

import sys
from pathlib import Path

# Named by its path, Python looks for modules in this folder; the package `devfarm` lies one folder higher.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from devfarm.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
