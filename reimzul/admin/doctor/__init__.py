# SPDX-License-Identifier: Apache-2.0
"""`reimzul doctor`: checks this host and its links to the others, with a hint for each problem."""
