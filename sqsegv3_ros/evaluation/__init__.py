# SPDX-License-Identifier: Apache-2.0
"""Evaluation of predicted labels, and pictures and reports of them."""
