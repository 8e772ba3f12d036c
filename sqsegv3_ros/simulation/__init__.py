# SPDX-License-Identifier: Apache-2.0
"""A ray-cast spinning LiDAR in synthetic streets, with ground truth."""
