"""Benchmarks: what a scan costs, load tests of the node, and the ablations of the paper."""
