# SPDX-License-Identifier: Apache-2.0
"""What mock's exit codes mean, in words for a person.

They are those of `exception.py` in mock's source (https://github.com/rpm-software-management/mock); the words say what
was seen with mock 6.7. 1 and 30 alone do not say whose fault it was: the worker's verdict looks into the logs for that.
"""

from __future__ import annotations

#: Those that speak of the host, the call or the configuration.
HOST_FAULT_CODES = {
    2: "mock's setuid wrapper did not start it",
    3: "mock's configuration is missing or wrong",
    4: "mock's configuration is wrong",
    5: "mock did not understand how it was called",
    6: "this host cannot build for that arch",
    7: "mock was interrupted",
    20: "the chroot could not be set up",
    25: "LVM",
    31: "an external dependency could not be had",
    50: "mock misses something it needs to be called",
    60: "the root is in use by another mock",
    65: "LVM",
    70: "the result folder cannot be made",
    80: "unshare failed",
    90: "the bootstrap chroot failed",
    110: "mock's state is not what it should be",
    120: "a weak dependency failed",
    143: "mock was ended",
    247: "rpmbuild was killed, mostly for a lack of memory",
}
#: All of them.
MEANINGS = {
    0: "built",
    1: "rpmbuild failed, or mock did not get as far",
    10: "the package does not build",
    11: "it took longer than a build may",
    30: "what it needs to be built could not be installed",
    40: "the source rpm cannot be installed",
    **HOST_FAULT_CODES,
}


def describe_code(code: int | None) -> str:
    """An exit code of mock in words; of a negative one, which signal ended it."""
    if code is None:
        return "mock was not run, or did not come to its end"
    if code < 0:
        return f"mock was ended by signal {-code}"
    return MEANINGS.get(code, "not a code of mock's")
