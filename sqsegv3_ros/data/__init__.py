# SPDX-License-Identifier: Apache-2.0
"""Label sets, SemanticKITTI data sets, rosbags and point-cloud files, and their replay."""
