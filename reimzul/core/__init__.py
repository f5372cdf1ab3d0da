# SPDX-License-Identifier: Apache-2.0
"""What every room may use, and nothing of any room."""
