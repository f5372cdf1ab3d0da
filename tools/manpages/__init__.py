# SPDX-License-Identifier: Apache-2.0
"""Makes the man pages from the programs' help, the table of settings and docs/wire.md."""
