# SPDX-License-Identifier: Apache-2.0
"""What a person runs to look at the farm and to mend it: the command `reimzul`."""
