# SPDX-License-Identifier: Apache-2.0
"""`reimzul-worker`, on builders: builds one job at a time."""
