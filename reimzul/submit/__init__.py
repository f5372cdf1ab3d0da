# SPDX-License-Identifier: Apache-2.0
"""Queue a source rpm: `reimzul-submit`."""
