# SPDX-License-Identifier: Apache-2.0
"""`reimzul-submit`, on the controller: queues a source rpm."""
