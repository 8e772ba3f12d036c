# SPDX-License-Identifier: Apache-2.0
"""The live algorithm: points -> range image -> logits -> labels. Start reading at `segmenter.py`."""
