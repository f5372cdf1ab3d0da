# SPDX-License-Identifier: Apache-2.0
"""`reimzul-repogen`, on bstore: verifies uploads, publishes and indexes them."""
