# SPDX-License-Identifier: Apache-2.0
"""The code that all packages share; core imports none of them."""
