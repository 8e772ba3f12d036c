# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: per-scan latency by stage beside other runtimes, load tests of the node, the paper's ablations."""
