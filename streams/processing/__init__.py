"""Executors: what drives the engine. They know the engine and a subscription, never a driver.

* :mod:`~streams.processing.job`: what is to be run, decided once when a processor starts.
* :mod:`~streams.processing.poller`: the thread that polls a subscription, feeds an executor, and
  commits.
* :mod:`~streams.processing.executor`: what every executor does with an outcome.
* :mod:`~streams.processing.thread_executor`: plain handlers, in worker threads.
* :mod:`~streams.processing.async_executor`: async handlers, on the app's event loop.

What patterns know of processing is exported here, and nothing else.
"""

from streams.engine.dispatcher import Delivery
from streams.processing.committer import PartitionProgress
from streams.processing.job import Decoding, Job, Outgoing, Skip
from streams.processing.timing import BUCKET_BOUNDS, Durations

__all__ = [
    "BUCKET_BOUNDS",
    "Decoding",
    "Delivery",
    "Durations",
    "Job",
    "Outgoing",
    "PartitionProgress",
    "Skip",
]
