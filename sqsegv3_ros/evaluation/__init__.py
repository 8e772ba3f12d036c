# SPDX-License-Identifier: Apache-2.0
"""Evaluation of predicted labels, live and offline, and reports of them."""
