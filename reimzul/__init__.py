# SPDX-License-Identifier: Apache-2.0
"""Reimzul, a small distributed build farm for RPM distributions."""

__version__ = "0.2.0"
