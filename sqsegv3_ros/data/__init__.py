# SPDX-License-Identifier: Apache-2.0
"""Label sets, SemanticKITTI trees and rosbags."""
