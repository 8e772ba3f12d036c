# SPDX-License-Identifier: Apache-2.0
"""The paper's ablations: its networks, their cost and accuracy, and its figures on local data."""
