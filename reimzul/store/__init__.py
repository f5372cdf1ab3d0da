# SPDX-License-Identifier: Apache-2.0
"""The files of bstore: its layout on disk, createrepo_c's runs on it, and what is removed from it."""
