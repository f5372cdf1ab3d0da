# SPDX-License-Identifier: Apache-2.0
"""The daemons' own code in one process, on a virtual clock, under faults that a seed chooses (CONTRIBUTING.md)."""
