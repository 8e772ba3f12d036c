# SPDX-License-Identifier: Apache-2.0
"""Offline training of the networks of `sqsegv3_ros.network`."""
