# SPDX-License-Identifier: Apache-2.0
"""A farm on machines that boot systemd, with a network of their own between them: `make farm-test`."""
