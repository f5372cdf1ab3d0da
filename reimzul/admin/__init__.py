# SPDX-License-Identifier: Apache-2.0
"""The administrator's command, `reimzul`."""
