# SPDX-License-Identifier: Apache-2.0
"""A subscriber of MQTT that says results in IRC channels. It knows nothing of the farm but what is published."""
