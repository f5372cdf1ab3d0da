# SPDX-License-Identifier: Apache-2.0
"""The proof that nothing is lost: a farm on real parts, and one bad thing after another done to it.

A trial is a kind of fault and a seed. The seed chooses what is submitted, what is done to the farm and when; then the
farm has to settle by itself, and what it shows is held against what was submitted (ledger.py, checks.py). Everything
happens in namespaces of our own (room.py): no port, mount or sysctl of the machine is touched.

    python -m tests.faults [--kind KIND] [--trials N] [--seed SEED] [--json FILE]
"""
