"""Peers: other toolkits on the same topics, each configured as well as its documentation allows.

Each is a program that runs one measurement and prints one line of JSON: the figures, and the
settings it ran with. It runs in an environment of its own (:mod:`benchmarks.peers.install`), so it
may import :mod:`benchmarks.orders`, :mod:`benchmarks.counting` and its own toolkit, but not
``streams``. Toolkits are loaded by name, because this project's environment has none of them.
"""
