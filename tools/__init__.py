# SPDX-License-Identifier: Apache-2.0
"""What a checkout is worked on with: set-up, installing, tests, packages, man pages."""
