# SPDX-License-Identifier: Apache-2.0
"""Announces results in IRC channels. It subscribes to MQTT and knows nothing of the farm beyond what is published."""
