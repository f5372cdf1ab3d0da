# SPDX-License-Identifier: Apache-2.0
"""`reimzul doctor`: every link and every part of this host looked at, with what to do where one fails."""
