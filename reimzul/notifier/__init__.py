# SPDX-License-Identifier: Apache-2.0
"""The notifier: takes every event out of `notify` and tells it to each sink, once. A leaf: nothing follows it."""
