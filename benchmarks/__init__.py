"""Throughput, measured beside the loop one would write by hand: ``python -m benchmarks``.

Each figure alternates with its baseline in one run and is told as the median ratio with its
spread, because a machine's speed drifts and a ratio does not.
"""
