# SPDX-License-Identifier: Apache-2.0
"""Batches as data: the plan, the order it computes, and what has become of each member.

Pure code and two files of a batch (`document.py`, `journal.py`), for `reimzul-submit`, `reimzul-batch`, the
administrator's command and the pages.
"""
