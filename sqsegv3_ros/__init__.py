# SPDX-License-Identifier: Apache-2.0
"""SqueezeSegV3 for ROS 2: every point of a live LiDAR cloud gets a label."""
