# SPDX-License-Identifier: Apache-2.0
"""Runs the stand-in for mock, whether this folder is named by its path or as `python -m devfarm.mockstub`."""

import sys
from pathlib import Path

# Named by its path, Python looks for modules in this folder; `devfarm` lies two folders higher.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from devfarm.mockstub.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
