"""Offline training of the networks of `sqsegv3_ros.network`."""
