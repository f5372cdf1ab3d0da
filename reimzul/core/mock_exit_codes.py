# SPDX-License-Identifier: Apache-2.0
"""mock's exit codes and their meanings for a person.

The codes are those of `exception.py` in mock's source (https://github.com/rpm-software-management/mock), the meanings
were seen with mock 6.7 (docs/mock.md). 1 and 30 do not say whose fault it was; the worker reads the logs for that.
"""

from __future__ import annotations

#: Faults of the host, the call or the configuration.
HOST_FAULT_CODES = {
    2: "mock's setuid wrapper did not start it",
    3: "mock's configuration is missing or wrong",
    4: "mock's configuration is wrong",
    5: "mock was called with wrong arguments",
    6: "this host cannot build for that arch",
    7: "mock was interrupted",
    20: "the chroot could not be set up",
    25: "LVM",
    31: "an external dependency is missing",
    50: "mock lacks something that its call needs",
    60: "the root is in use by another mock",
    65: "LVM",
    70: "the result folder cannot be created",
    80: "unshare failed",
    90: "the bootstrap chroot failed",
    110: "mock's state is wrong",
    120: "a weak dependency failed",
    143: "mock was ended",
    247: "rpmbuild was killed, mostly for a lack of memory",
}
MEANINGS = {
    0: "built",
    1: "rpmbuild failed, or mock failed before it",
    10: "the package does not build",
    11: "the build timed out",
    30: "packages needed for the build could not be installed",
    40: "the source rpm cannot be installed",
    **HOST_FAULT_CODES,
}


def describe_code(code: int | None) -> str:
    """Describe an exit code of mock; a negative one is the number of a signal."""
    if code is None:
        return "mock did not run, or did not exit"
    if code < 0:
        return f"mock was ended by signal {-code}"
    return MEANINGS.get(code, "unknown exit code of mock")
