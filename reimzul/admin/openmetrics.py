# SPDX-License-Identifier: Apache-2.0
"""Figures as OpenMetrics text, which Prometheus and node_exporter's textfile collector read too. Pure.

The format is https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md. All of ours are gauges:
what they say is of this moment, or of the last day. It is thirty lines, so no library is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import attr


@attr.define
class Gauge:
    """One family of figures, by their labels."""

    name: str
    about: str
    unit: str = ""  #: the name ends with it
    samples: list[tuple[Mapping[str, str], float]] = attr.field(factory=list)

    def set(self, value: float, **labels: str) -> None:
        """Say one figure."""
        self.samples.append((labels, value))


def format_openmetrics(gauges: Iterable[Gauge]) -> str:
    """All of them; a family without figures is left out."""
    lines = [line for gauge in gauges if gauge.samples for line in _lines(gauge)]
    return "".join(f"{line}\n" for line in (*lines, "# EOF"))


def _lines(gauge: Gauge) -> Iterator[str]:
    yield f"# TYPE {gauge.name} gauge"
    if gauge.unit:
        yield f"# UNIT {gauge.name} {gauge.unit}"
    yield f"# HELP {gauge.name} {_escaped(gauge.about)}"
    for labels, value in gauge.samples:
        told = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
        yield f"{gauge.name}{{{told}}} {_number(value)}" if told else f"{gauge.name} {_number(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isfinite(value) and value == int(value):
        return str(int(value))
    return repr(round(value, 3))
