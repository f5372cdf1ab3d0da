# SPDX-License-Identifier: Apache-2.0
"""Programs that measure: not tests, since a figure depends on the machine."""
