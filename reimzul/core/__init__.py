# SPDX-License-Identifier: Apache-2.0
"""What all packages share; core imports none of them."""
