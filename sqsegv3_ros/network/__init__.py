# SPDX-License-Identifier: Apache-2.0
"""The model module: SqueezeSegV3 for training, official checkpoints, and export."""
