# SPDX-License-Identifier: Apache-2.0
"""A whole farm on one machine, and the stand-in for mock."""
