"""Judging predictions, and pictures of them."""
