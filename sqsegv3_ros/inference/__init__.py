"""The live algorithm: points -> range image -> logits -> labels. Start reading at `segmenter.py`."""
