# SPDX-License-Identifier: Apache-2.0
"""`reimzul-notifier`, on the controller: delivers every event in `notify` to each sink."""
