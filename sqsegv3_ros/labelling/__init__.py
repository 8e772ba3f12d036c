# SPDX-License-Identifier: Apache-2.0
"""Labelling of scans, SemanticKITTI trees and rosbags."""
