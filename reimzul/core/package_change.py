# SPDX-License-Identifier: Apache-2.0
"""How a build differs from the one before: it fails newly, or is fixed.

The build before is the package's previous one on the same target and arch that succeeded or failed, by the time of
submission; scratch builds do not count. The notifier compares them when it decides a result
(`notifier/package_results.py`).
"""

from __future__ import annotations

from typing import Optional, Protocol

import attr

from reimzul.core import validators
from reimzul.core.failure_cause import CausedResult
from reimzul.core.json_message import field


@attr.frozen(kw_only=True)
class ComparedResult(CausedResult):
    """A message about a result, compared with the package's previous one; only the notifier sets these fields."""

    #: of a failure: whether the previous build succeeded; None: unknown, as of a scratch build
    newly_failing: Optional[bool] = field(validators.optional_flag, None)
    #: of a success: whether the previous build failed; None: unknown
    fixed: Optional[bool] = field(validators.optional_flag, None)
    previous_build: str = field(validators.optional(validators.build_id), "")  #: its build id
    previous_evr: str = field(validators.optional(validators.name), "")  #: its version-release


class Compared(Protocol):
    @property
    def newly_failing(self) -> Optional[bool]: ...
    @property
    def fixed(self) -> Optional[bool]: ...
    @property
    def previous_build(self) -> str: ...
    @property
    def previous_evr(self) -> str: ...


def describe_change(result: Compared) -> str:
    """Say how a result differs from the package's previous one; empty if it does not, or if that is unknown."""
    if result.newly_failing:
        return f"newly failing; last built{_name_previous(result)}"
    return f"fixed; last failed{_name_previous(result)}" if result.fixed else ""


def _name_previous(result: Compared) -> str:
    evr = f" {result.previous_evr}" if result.previous_evr else ""
    return f"{evr} as build {result.previous_build[:8]}"
