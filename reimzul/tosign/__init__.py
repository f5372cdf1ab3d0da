# SPDX-License-Identifier: Apache-2.0
"""`reimzul-tosign`, on bstore: stages published packages for signing."""
