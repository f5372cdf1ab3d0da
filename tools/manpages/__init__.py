# SPDX-License-Identifier: Apache-2.0
"""The man pages, made from what the programs themselves say: their help, the table of settings, docs/wire.md."""
