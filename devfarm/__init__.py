# SPDX-License-Identifier: Apache-2.0
"""A whole farm on one machine, to try and to test. It belongs to a checkout and is not installed."""
