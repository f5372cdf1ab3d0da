# SPDX-License-Identifier: Apache-2.0
"""Stage what is published for signing: `reimzul-tosign`, on bstore."""
