# SPDX-License-Identifier: Apache-2.0
"""Labelling of scans, SemanticKITTI data sets and rosbags."""
