# SPDX-License-Identifier: Apache-2.0
"""The store's files on bstore: createrepo_c's runs, listing rules, repodata, removal of builds."""
