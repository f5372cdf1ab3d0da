# SPDX-License-Identifier: Apache-2.0
"""Publish and index what was built: `reimzul-repogen`, on bstore."""
