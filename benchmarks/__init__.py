"""The cost of the toolkit, measured beside the loop one would write by hand and beside its peers,
and the cost of each pattern beside the bare processor.

``python -m benchmarks`` (or ``make bench``). Each figure alternates with its baselines in one run
and is reported as the median ratio with its spread, because a machine's speed drifts and a ratio
does not. Where to look:

* :mod:`~benchmarks.baseline`: the hand-written loops, for a sceptic to read;
* :mod:`~benchmarks.ours`: the same with the toolkit;
* :mod:`~benchmarks.cases`: the cases, their rivals, and the ratio that each should reach;
* :mod:`~benchmarks.patterns` and :mod:`~benchmarks.pattern_cases`: the same two for the patterns
  and for metrics, beside the bare processor (``--case pattern:`` measures these alone);
* :mod:`~benchmarks.measure`: measures a case and makes its rows;
* :mod:`~benchmarks.against`: compares this commit with another one;
* :mod:`~benchmarks.growth`: operations that slow down as history grows
  (``python -m benchmarks.growth``);
* ``peers/``: other toolkits, each in an environment of its own;
* ``report/``: the table, the JSON and the page.

Neither this package nor ``tests/servers``, whose servers it starts, is shipped.
"""
