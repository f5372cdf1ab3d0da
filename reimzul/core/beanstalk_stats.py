# SPDX-License-Identifier: Apache-2.0
"""Statistics of beanstalkd's jobs, tubes and server, made from its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attr

#: Seconds of delay from which a job counts as held; its remaining delay shrinks by the day.
_LEAST_HELD_SECONDS = 365 * 86_400


@attr.frozen
class JobStats:
    tube: str
    priority: int
    ttr: int  #: seconds
    age: int  #: seconds since it was put
    reserves: int
    releases: int
    timeouts: int
    buries: int
    state: str = ""  #: ready, reserved, delayed or buried
    time_left: int = 0  #: seconds until a delayed job is ready

    @classmethod
    def from_answer(cls, raw: Mapping[str, Any]) -> JobStats:
        same = ("tube", "ttr", "age", "reserves", "releases", "timeouts", "buries", "state")
        return cls(**{name: raw[name] for name in same}, priority=raw["pri"], time_left=raw["time-left"])

    @property
    def is_held(self) -> bool:
        return self.state == "delayed" and self.time_left > _LEAST_HELD_SECONDS

    @property
    def deaths(self) -> int:
        """How many earlier holders disconnected without settling the job: they died, or their link was cut."""
        return self.reserves - 1 - self.releases - self.timeouts


@attr.frozen
class TubeStats:
    name: str
    ready: int = 0
    reserved: int = 0
    delayed: int = 0
    held: int = 0  #: beanstalkd counts them among the delayed jobs (admin/held.py)
    buried: int = 0
    watchers: int = 0

    @classmethod
    def from_answer(cls, name: str, raw: Mapping[str, Any]) -> TubeStats:
        counts = {state: raw[f"current-jobs-{state}"] for state in ("ready", "reserved", "delayed", "buried")}
        return cls(name, **counts, watchers=raw["current-watching"])

    @property
    def is_empty(self) -> bool:
        """Whether nobody has, or will get, a job of it; buried ones do not count."""
        return not (self.ready or self.reserved or self.delayed)


@attr.frozen(kw_only=True)
class ServerStats:
    version: str
    draining: bool  #: it accepts no job until it is restarted
    binlog_records: int  #: written since it started; stays 0 without a binlog
    binlog_bytes: int  #: of its files on the disk; they are allocated in full
    max_job_bytes: int  #: its -z

    @classmethod
    def from_answer(cls, raw: Mapping[str, Any]) -> ServerStats:
        oldest, current = raw["binlog-oldest-index"], raw["binlog-current-index"]
        return cls(
            version=str(raw["version"]),
            draining=raw["draining"] == "true",
            binlog_records=raw["binlog-records-written"],
            binlog_bytes=(current - oldest + 1) * int(raw["binlog-max-size"]) if oldest else 0,
            max_job_bytes=raw["max-job-size"],
        )
