# SPDX-License-Identifier: Apache-2.0
"""The Python of programs that a test or a benchmark writes: the one the environment was made by.

The kernel takes the first line of a program apart at its spaces, and a checkout may lie at any path; the Python an
environment was made by lies at none with a space. Such programs use the standard library alone.
"""

from __future__ import annotations

import os
import sys

PYTHON = os.path.realpath(sys.executable)
