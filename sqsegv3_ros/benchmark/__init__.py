"""Benchmarks: per-scan latency by stage, compared with the reference implementation and other runtimes."""
