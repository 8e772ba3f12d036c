# SPDX-License-Identifier: Apache-2.0
"""The commands of `sqsegv3`, a module each."""
