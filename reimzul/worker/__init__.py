# SPDX-License-Identifier: Apache-2.0
"""Build one job: `reimzul-worker`, on builders."""
