# SPDX-License-Identifier: Apache-2.0
"""A stand-in for mock, for hosts that have none: mock's command line, files and exit codes on the host's own rpmbuild.

It is for trying and testing a farm. It isolates nothing: a build sees the host's packages, network and processes.
"""

from pathlib import Path

#: The executable, for `[worker] mock`. `reimzul doctor` recognises the stand-in by this file name.
PROGRAM = Path(__file__).with_name("reimzul-standin-mock")
