# SPDX-License-Identifier: Apache-2.0
"""Adaptation of a model to a sensor without labels: self-training on a recording and simulated scans."""
