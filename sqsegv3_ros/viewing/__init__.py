# SPDX-License-Identifier: Apache-2.0
"""Pictures of labelled scans, and recordings for the Rerun viewer."""
