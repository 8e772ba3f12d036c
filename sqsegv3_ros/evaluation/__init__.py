"""Evaluation of predicted labels, and pictures and reports of them."""
