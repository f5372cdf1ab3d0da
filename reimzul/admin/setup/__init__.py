# SPDX-License-Identifier: Apache-2.0
"""Setting a host up for its role: files, keys, units.

`roles` has what each role wants, as values; `files` and `units` hold it against what is there; `act` shows it, has it
agreed to and does it. Another root than / is an image, where all is written and nothing started.
"""
