# SPDX-License-Identifier: Apache-2.0
"""`reimzul setup`: a host's files, keys and units for its role.

`roles` plans what a role needs, as values; `files` compares that with the host and writes it; `apply` shows the plan,
asks for consent and carries it out; `psk` changes keys.
"""
