# SPDX-License-Identifier: Apache-2.0
"""A failed build, as far as causes need it: a history yields thousands of them without reading their records."""

from __future__ import annotations

import attr

from reimzul.core.failure_cause import cause_of
from reimzul.history.build_record import BuildRecord


@attr.frozen
class FailedBuild:
    build_id: str
    arch: str
    timestamp: str
    target: str
    package: str
    cause: str  #: by this version of the rule

    @classmethod
    def from_record(cls, record: BuildRecord) -> FailedBuild:
        values = (record.build_id, record.arch, record.timestamp, record.target, record.package)
        return cls(*values, cause_of(record).id)
