# SPDX-License-Identifier: Apache-2.0
"""`reimzul-batch`, on the controller: holds builds until what they need is published, and releases them."""
